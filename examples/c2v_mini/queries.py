"""Queries for a docstring: its summary, its symbol as words, or a plain question made by rule."""

from __future__ import annotations

import hashlib
import re

from cleaning import is_field, words
from docstrings import Docstring

MIN_WORDS, MAX_WORDS, MAX_KEYWORDS = 2, 40, 12
VERBS = frozenset(  # in their base form
    """
    abort accept access accumulate acquire activate add adjust aggregate align allocate allow
    analyze annotate append apply approximate arrange assemble assert assign associate attach
    average avoid await balance bind blend block broadcast build cache calculate calibrate call
    cancel cast change check choose clamp classify clean clear clip close cluster coerce
    collapse collect combine commit compare compile complete compose compress compute
    concatenate configure confirm connect construct consume contract convert convolve copy
    correct count crawl create crop cut deactivate debug decide declare decode decompose
    decompress deconstruct decorate decrease decrypt deduce define delete deliver denoise deploy
    derive describe deserialize detach detect determine diff differentiate disable discard
    disconnect discover dispatch display dissolve distribute divert divide download draw drop
    dump duplicate edit eliminate embed emit emulate enable encode encrypt enforce enqueue
    ensure enumerate erase escape establish estimate evaluate examine exclude execute expand
    explode export expose express extend extract factor factorize fetch fill filter finalize
    find finish fit fix flatten flip flush follow force forecast format forward freeze gather
    generate get give grab group guess handle hash hide highlight identify ignore implement
    import impute include increase increment index indicate infer inflate inform initialize
    inject insert inspect install instantiate integrate interpolate interpret intersect
    invalidate invert invoke issue iterate join keep label launch leave limit linearize link
    list listen load localize locate lock log look loop lower make manage map mark mask match
    maximize measure merge migrate minimize mix mock modify monitor mount move multiply mutate
    negate normalize notify obtain offset open optimize order override pack pad paint
    parallelize parse partition paste patch pause perform permute pick pin ping plot point poll
    pop populate post predict prefetch prepare prepend preprocess preserve prevent print process
    produce profile project promote prompt propagate protect provide prune publish pull purge
    push put quantize query queue quote raise randomize rank read rearrange rebuild receive
    recompute reconstruct record recover recv redirect redo reduce refer refresh register
    reindex reject release reload remap remove rename render reorder repair repeat replace
    report represent reproject request require resample reserve reset reshape resize resolve
    respond restart restore restrict resume retain retrieve retry return reverse revert revoke
    rewrite roll rotate round route run sample sanitize save scale scan schedule score search
    seek segment select send separate serialize serve set setup shift show shuffle shut sign
    simplify simulate skip slice smooth solve sort specify split squeeze stack standardize start
    stop store stream strip submit subscribe subset substitute subtract sum summarize suppress
    swap switch synchronize take tell terminate test threshold tile toggle tokenize trace track
    train transfer transform translate transmit transpose traverse trigger trim truncate try
    tune turn undo unify uninstall unload unlock unpack unregister unstack unwrap update upgrade
    upload upsample use validate vectorize verify view visit visualize wait walk warn warp watch
    weight wrap write yield zip zoom
    """.split()  # noqa: SIM905
)
_SMALL = frozenset(
    """
    a an the of this that these those given specified its it is are be as by which to for in on
    and or with from into at current any all new provided whose has have will can used using
    """.split()  # noqa: SIM905
)
_VAGUE = re.compile(
    r"\b(this|self|itself|the above|these|here|current object|the object|it)\b", re.I
)
_FINITE = re.compile(
    r"\b(is|are|was|were|will|would|can|must|should|has|have|may|might|does|do|allows?|returns?)\b"
)
_STUB = re.compile(
    r"^(alias (for|of|to)|see |same as|deprecated|inherit|todo|fixme|not implemented|docstring"
    r"|equivalent (of|to) |overrid|internal |private |wrapper (for|around)|copy of"
    r"|refer to |constructor\b|initiali[sz]er\b|initiali[sz]e (self|the (object|class))|init method"
    r"|placeholder|magic method|auto-?generated|generated (by|from|protocol)|do not |backward"
    r"|this (function|method|class) (is|was|has been) deprecated|helper (function|method)"
    r"|legacy|undocumented|\.\. |copyright|licensed under|spdx|usage:|@)",
    re.I,
)


def chance(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def pick(options: list[str], *key: object) -> str:
    """One of the options, chosen by the key alone."""
    return options[int(chance(*key) * len(options))]


def is_stub(summary: str) -> bool:
    """Whether a summary only points elsewhere, or says nothing about its symbol."""
    return bool(_STUB.match(summary)) or is_field(summary)


def content_words(text: str) -> list[str]:
    """Words that carry meaning."""
    return [word for word in words(text) if word.lower() not in _SMALL]


def split_identifier(name: str) -> str:
    """``JSONEncoder`` as ``JSON Encoder``, ``to_json`` as ``to json``."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name.replace("_", " "))
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", name).strip()


def is_public(symbol: str) -> bool:
    """Whether the symbol's own name and its class's are public."""
    return not any(part.startswith("_") for part in symbol.split(".")[-2:])


def symbol_parts(doc: Docstring) -> list[str]:
    """The package, the class if there is one, and the name; modules for a module."""
    parts = [part for part in doc.symbol.split(".") if not part.startswith("_")]
    if doc.form == "module" or len(parts) <= 2:
        return parts
    tail = parts[-2:] if parts[-2][:1].isupper() or len(parts) == 3 else parts[-1:]
    return [parts[0], *tail]


def symbol_query(doc: Docstring, seed: int) -> str:
    """The symbol as a searcher types it: mostly split words, at times dotted as in code."""
    parts = symbol_parts(doc)
    key = (seed, "symbol", doc.symbol)
    style = chance(*key)
    if style < 0.15:
        return ".".join(parts)
    if style < 0.25 and len(parts) > 2:
        return f"{parts[0]} {'.'.join(parts[1:])}"
    split = " ".join(split_identifier(part) for part in parts)
    return split.lower() if style < 0.6 else split


def base_verb(word: str) -> str | None:
    """The base form of a summary's leading verb, or None where it is no verb we know."""
    word = word.lower().replace("ise", "ize") if word.lower().endswith(("ise", "ises")) else word
    word = word.lower()
    for form in (word, word[:-1], word[:-2], word[:-3] + "y"):
        if form in VERBS and (form == word or word.endswith("s")):
            return form
    return None


def _tidy(text: str) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", text)
    text = re.sub(r"[`*\"]+", "", text)
    return re.sub(r"\s+", " ", text).strip(" .:;,-")


def _clause(text: str) -> str:
    """The first clause where the sentence is long."""
    if len(text.split()) <= 12:
        return text
    head = re.split(r", (?:and|or|but|which|where|so|then|using|if|as)\b|; | - |: ", text)[0]
    return head if len(head.split()) >= 5 else text


def _keywords(text: str) -> str:
    kept = [word for word in text.split() if word.lower().strip(",.") not in _SMALL]
    return " ".join(kept[:MAX_KEYWORDS]).replace(",", "")


def _place(doc: Docstring) -> str:
    """Where a method lives, for a question that its summary alone leaves open."""
    parts = symbol_parts(doc)
    if len(parts) > 2:
        return f"{parts[0]} {split_identifier(parts[-2])}"
    return parts[0]


def _action(doc: Docstring) -> str | None:
    """A verb phrase, "get the name of a file", of a verb-first summary."""
    first, _, rest = _tidy(doc.summary).partition(" ")
    verb = base_verb(first)
    if not verb or not rest:
        return None
    truth = re.match(
        r"(?:true|false|a bool(?:ean)?(?: value)?)?,? ?(?:indicating )?(if|whether|when) (.*)",
        rest,
        re.I,
    )
    if verb in {"return", "get", "check", "test", "indicate", "tell", "determine"} and truth:
        return f"check if {_clause(truth.group(2))}"
    verb = "get" if verb in {"return", "yield", "give"} else verb
    rest = re.sub(
        r"\band (return|raise|store|set|get|create|add|remove|write|read)s\b", r"and \1", rest
    )
    return f"{verb} {_clause(rest)}"


def question_query(doc: Docstring, package: str, seed: int) -> str | None:
    """The summary asked as a question, a request or keywords; None where no rule fits."""
    key = (seed, "question", doc.symbol)
    action = _action(doc)
    if action is not None:
        found = content_words(action)
        if len(found) < 3 or _VAGUE.search(action) or (len(found) < 5 and doc.form == "function"):
            if _VAGUE.search(action) or not is_public(doc.symbol):
                return None
            place = ["in", "of a", "with"] if len(symbol_parts(doc)) > 2 else ["in", "with"]
            action = f"{action} {pick(place, *key, 1)} {_place(doc)}"
        style = chance(*key)
        if style < 0.25:
            return f"how to {action}"
        if style < 0.35:
            return f"how do I {action}?"
        if style < 0.42:
            return f"how can I {action} in {package}?"
        if style < 0.47:
            return f"is there a way to {action}?"
        if style < 0.55:
            return f"function to {action}"
        if style < 0.62:
            return f"I want to {action}"
        if style < 0.70:
            return f"{package} {_keywords(action)}"
        return _keywords(action)
    noun = re.match(r"(?:an?|the) (.*)", _tidy(doc.summary), re.I)
    if noun is None or (doc.form == "module" and len(noun.group(1).split()) > 25):
        return None
    thing = _clause(noun.group(1))
    if thing.split()[0][1:].islower():
        thing = thing[0].lower() + thing[1:]
    if _FINITE.search(thing):
        return _keywords(thing)
    if len(content_words(thing)) < 3 or _VAGUE.search(thing):
        return None
    if doc.form == "class":
        options = [
            f"class for a {thing}",
            f"what is a {thing}?",
            _keywords(thing),
            f"{package} {_keywords(thing)}",
        ]
    else:
        options = [
            f"what is the {thing}?",
            _keywords(thing),
            f"get the {thing}",
            f"{package} {_keywords(thing)}",
        ]
    return pick(options, *key)


def fits(query: str) -> bool:
    """Whether a query has a searcher's length and is text."""
    count = len(query.split())
    return MIN_WORDS <= count <= MAX_WORDS and len(query) >= 6 and query.isascii()
