"""Passages of a package, without repetition, and the queries that should find them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import queries
from cleaning import is_english, normalized, prose_words, shorten, words
from docstrings import Docstring, docstrings, parse, titled_sections
from documents import Section, is_readable, sections, topics
from packages import Source

KINDS = ("summary", "symbol", "section", "question")
MAX_CHARS = 1200
GRAM = 8  # words; texts that share most of their 8-grams are one text
REPEATED = 0.7  # share of a text's 8-grams read before at which it is boilerplate
SAME_QUERY = 3  # pairs that may share one query
_SAMPLED = 4  # one 8-gram in so many is remembered, by its hash


@dataclass(frozen=True)
class Pair:
    """One query and the passage that answers it."""

    query: str
    positive: str
    package: str
    kind: str


@dataclass(frozen=True)
class Passage:
    """A text worth finding: a docstring or a section, with its 8-grams' hashes."""

    package: str
    key: str
    content: Docstring | Section
    grams: frozenset[int]

    @property
    def text(self) -> str:
        """The whole text."""
        return shorten(self.content.text, MAX_CHARS)


def grams(text: str) -> frozenset[int]:
    """Hashes of all runs of GRAM words."""
    found = normalized(text).split()
    return frozenset(
        zlib.crc32(" ".join(found[i : i + GRAM]).encode()) for i in range(len(found) - GRAM + 1)
    )


@dataclass
class Repetition:
    """What has been read so far, to tell texts that only repeat it."""

    texts: set[str] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)

    def is_new(self, text: str, hashes: frozenset[int]) -> bool:
        """Whether a text differs from all before it; remembers it if so."""
        plain = normalized(text)[:MAX_CHARS]
        sampled = {value for value in hashes if value % _SAMPLED == 0}
        repeated = len(sampled & self.seen) >= REPEATED * len(sampled) if sampled else False
        if plain in self.texts or repeated:
            return False
        self.texts.add(plain)
        self.seen |= sampled
        return True


def _is_good(doc: Docstring) -> bool:
    if queries.is_stub(doc.summary) or not is_english(doc.text):
        return False
    if doc.body.lower().startswith(("deprecated", "this function is deprecated")):
        return False
    return prose_words(doc.text) >= 8 and len(doc.text) >= 50


def _contents(source: Source) -> Iterator[tuple[str, Docstring | Section]]:
    for module, code in source.modules:
        if module == "pydoc_data.topics":
            for section in topics(code):
                yield f"{section.document}#{section.title}", section
            continue
        if (tree := parse(code)) is None:
            continue
        for doc in docstrings(module, tree):
            if _is_good(doc):
                yield doc.symbol, doc
        for section in titled_sections(source.pin.name, module, tree):
            yield f"{section.document}#{section.title}", section
    for name, text in source.documents:
        for section in sections(source.pin.name, name, text):
            yield f"{section.document}#{section.title}", section


def passages(source: Source, repetition: Repetition, limit: int, seed: int) -> list[Passage]:
    """New, good passages of a package, at most ``limit``, in an order that the seed decides."""
    kept = []
    for key, content in _contents(source):
        text = shorten(content.text, MAX_CHARS)
        if isinstance(content, Section) and not is_readable(text):
            continue
        hashes = grams(text)
        if repetition.is_new(text, hashes):
            kept.append(Passage(source.pin.name, key, content, hashes))
    kept.sort(key=lambda passage: (queries.chance(seed, "order", passage.key), passage.key))
    return kept[:limit]


def has_body(doc: Docstring) -> bool:
    """Whether a docstring says something beyond its summary."""
    return prose_words(doc.body) >= 8 and len(doc.body) >= 50 and is_english(doc.body)


def query_of(passage: Passage, kind: str, seed: int) -> str | None:
    """The passage's query of a kind, or None where it has none that is fit."""
    content = passage.content
    if isinstance(content, Section):
        title = content.title
        query: str | None = title.lower() if queries.chance(seed, "case", title) < 0.3 else title
    elif kind == "symbol":
        public = queries.is_public(content.symbol)
        query = queries.symbol_query(content, seed) if public else None
    elif kind == "question":
        query = queries.question_query(content, passage.package, seed)
    else:
        telling = len(queries.content_words(content.summary)) >= 3 and len(content.summary) >= 15
        query = content.summary.rstrip(" .:") if telling and has_body(content) else None
        query = query if query and len(words(query)) >= 4 else None
    return query if query and queries.fits(query) else None


def kinds_of(passage: Passage, seed: int) -> list[str]:
    """Kinds of query in the order in which this passage should try them."""
    if isinstance(passage.content, Section):
        return ["section"]
    order = ["question", "summary", "symbol"]
    draw = queries.chance(seed, "kind", passage.package, passage.key)
    first = "question" if draw < 0.44 else "summary" if draw < 0.78 else "symbol"
    return [first, *(kind for kind in order if kind != first)]


def body_or_text(passage: Passage, kind: str) -> str:
    """What answers a query of a kind: the body without the summary where one was the query."""
    content = passage.content
    if isinstance(content, Docstring) and kind in ("summary", "question") and has_body(content):
        return shorten(content.body, MAX_CHARS)
    return passage.text


class PairMaker:
    """Makes training pairs, each positive once, each query a few times at most."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.positives: set[str] = set()
        self.asked: Counter[str] = Counter()

    def _pair(self, passage: Passage, kind: str, positive: str) -> Pair | None:
        query = query_of(passage, kind, self.seed)
        if query is None:
            return None
        asked, answer = normalized(query), normalized(positive)
        if answer in self.positives or self.asked[asked] >= SAME_QUERY:
            return None
        if kind == "question" and len(answer.split()) < 1.6 * len(asked.split()):
            return None  # the answer only says the question again
        self.positives.add(answer)
        self.asked[asked] += 1
        return Pair(query, positive, passage.package, kind)

    def pairs(self, passage: Passage) -> list[Pair]:
        """One pair of a passage, or two of different kinds with different positives."""
        wanted = 1 + (queries.chance(self.seed, "second", passage.key) < 0.5)
        made: list[Pair] = []
        for kind in kinds_of(passage, self.seed):
            positive = body_or_text(passage, kind)
            if made and positive == made[0].positive:
                positive = passage.text  # a question may also be answered by the whole docstring
            if kind == "summary" and positive == passage.text:
                continue
            if len(made) < wanted and (pair := self._pair(passage, kind, positive)):
                made.append(pair)
        return made
