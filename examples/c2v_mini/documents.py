"""Sections of Markdown and reStructuredText documents, with titles that say what they are about."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cleaning import clean, is_english, prose_words, words

_SKIPPED = re.compile(
    r"install|licen[cs]e|copyright|contribut|change ?log|changes|credit|author|badge|acknowledg|"
    r"table of contents|contents|parameters|returns|examples?$|see also|links|support|sponsor|"
    r"release|history|what'?s new|citation|citing|cite|references?$|todo|donat|community|contact|"
    r"maintainer|status|development|testing|tests|thanks|code of conduct|security|bibliography|"
    r"further reading|requirements|dependencies|prerequisites|resources|documentation|help|"
    r"build(ing)? from|download|funding|versioning|compatibility|disclaimer|roadmap|feedback|"
    r"attributes|methods|raises|yields|note?s?$|warnings?$|indices and tables|team|stargazers|"
    r"supported (python )?versions|who uses|used by|bugs|issues|repository|project (info|links)",
    re.I,
)
_GENERIC = re.compile(
    r"^((basic|advanced|simple|example|quick|general|more|python|common|library|cli)?[ -]?"
    r"(usage|features?|overview|quick ?start( guide)?|getting started|introduction|configuration|"
    r"faq|about|background|description|motivation|tutorial|how it works|use cases?|options|api|"
    r"summary|rationale|details|key features|main features|concepts?|start|guide|settings|"
    r"performance|benchmarks?|limitations|purpose|goals|design|why|example|data|results|models?|"
    r"tasks?|groups|dataset|paper|caveats|implementation|command[ -]line( interface)?|basics|"
    r"api reference|reference|customi[sz]ation|logging|caching|authentication|tips|extras))[?!]?$",
    re.I,
)
_VERSION = re.compile(  # of change logs and instructions to install
    r"\d+\.\d+|\d{4}-\d\d|^v?\d+$|unreleased|enterprise|test suite"
    r"|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\w* (\d|20\d\d)"
    r"|^bug ?fix|^fix|^from (git|source|pypi|conda)|^conda|^new in ",
    re.I,
)
_LOGGED = re.compile(r"\(?#\d{2,5}\)?|\bgh-\d+|\bPR \d+")  # issues that a change log cites
_INSTALLS = re.compile(r"(pip|conda|brew|apt|apt-get|uv|npm) (install|add)|git clone|Tidelift")
_SKIPPED_FILE = re.compile(
    r"licen[cs]e|copying|change|history|news|author|contribut|notice|release|^\d", re.I
)
_ADORNMENT = re.compile(r"^([=\-~^\"'`*+#:.])\1{2,}\s*$")
_TITLE_MARKUP = re.compile(
    r"[`*#]|\[!\[.*|!?\[|\]\([^)]*\)|</?\w{1,4}(?: [^>]*)?/?>|:\w+:|\]|_$|^\d+(\.\d+)*[.)]?\s+"
)


@dataclass(frozen=True)
class Section:
    """A titled piece of a document, cleaned; ``title`` names its subject by itself."""

    document: str
    title: str
    text: str


def _headings(lines: list[str], markdown: bool) -> Iterator[tuple[int, int, str]]:
    """First line, line after the heading, and title of each heading."""
    fenced = False
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if fenced:
            pass
        elif markdown and (match := re.match(r"^#{1,6}\s+(.*?)#*\s*$", line)):
            yield i, i + 1, match.group(1)
        elif (
            line.strip()
            and not line.startswith((" ", "\t", "|", ">", "-", "*"))
            and not _ADORNMENT.match(line)
            and _ADORNMENT.match(following)
            and (following[0] in "=-" or not markdown)
            and len(following.strip()) >= len(line.strip()) - 2
        ):
            over = i > 0 and bool(_ADORNMENT.match(lines[i - 1])) and not markdown
            yield i - over, i + 2, line.strip()
            i += 1
        i += 1


def _title(raw: str) -> str:
    title = html.unescape(_TITLE_MARKUP.sub("", raw))
    return re.sub(r"\s+", " ", title.encode("ascii", "ignore").decode()).strip(" :.-")


def _context(package: str, document: str, title: str) -> list[str]:
    """What a title that says too little is about: the package, and the document's own subject."""
    parts = re.sub(r"\.(md|rst)$", "", document).replace(".", "/").split("/")
    while len(parts) > 1 and parts[-1].lower() in ("readme", "index", "intro", "__init__"):
        parts.pop()
    subject = parts[-1].strip("_")
    named = title.lower()
    context = [] if package.lower() in named else [package]
    told = {normal(title), normal(package), "readme", "index", ""}
    return context + ([subject] if normal(subject) not in told else [])


def sections(package: str, document: str, text: str) -> Iterator[Section]:
    """Sections with a telling title; generic titles get the package's name, empty ones go."""
    if any(_SKIPPED_FILE.search(part) for part in document.split("/")[-2:]):
        return
    lines = text.replace("\r\n", "\n").split("\n")
    found = list(_headings(lines, document.endswith(".md")))
    ends = [*(start for start, _, _ in found[1:]), len(lines)]
    for (_, begin, raw), end in zip(found, ends, strict=False):
        title = _title(raw)
        if not title or _SKIPPED.search(title) or _VERSION.search(title):
            continue
        if _GENERIC.match(title) or len(words(title)) < 2:
            if normal(title) == normal(package):
                title = f"what is {package}"
            else:
                title = " ".join([*_context(package, document, title), title])
        body = clean("\n".join(lines[begin:end]))
        yield Section(document, title, body)


def is_readable(text: str) -> bool:
    """Whether a section says something: prose, no change log, no table, not how to install."""
    lines = text.split("\n")
    if prose_words(text) < 20 or len(text) < 120 or not is_english(text):
        return False
    if len(_LOGGED.findall(text)) >= 2 or sum(line.startswith("|") for line in lines) > 0.4 * len(
        lines
    ):
        return False
    return not (_INSTALLS.search(text) and len(text) < 600)


def normal(name: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[\W_]+", "", name.lower())


def topics(source: bytes) -> Iterator[Section]:
    """Sections of the language reference that ``pydoc_data.topics`` carries, read by ``ast``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(
            node.value, ast.Dict
        ):
            continue
        for name, text in sorted(ast.literal_eval(node.value).items()):
            yield from sections("python", f"topics/{name}.rst", text)
