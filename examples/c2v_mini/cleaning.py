"""Turn docstrings and document sections into plain text: markup out, wrapped lines joined."""

from __future__ import annotations

import html
import inspect
import re

DOCTEST_CHARS = 300  # of doctests kept in one text; further ones are dropped
_DROPPED = (  # directives whose whole block says nothing to a reader of plain text
    "versionadded|versionchanged|deprecated|image|figure|plot|include|index|currentmodule|module"
    "|auto\\w+|toctree|testsetup|testcleanup|literalinclude|contents|highlight|raw|only|tabularcolumns"
    "|rubric:: References|bibliography|footbibliography|jupyter-execute|ipython|autosummary|raw"
    "|list-table|csv-table|tab-set|graphviz|meta|sectionauthor|moduleauthor|codeauthor|role|default-role"
)
_DROPPED_BLOCK = re.compile(rf"^(\s*)\.\. (?:{_DROPPED})\b")
_DIRECTIVE = re.compile(r"^(\s*)\.\. [\w:+-]+:: ?(.*)$")
_COMMENT = re.compile(r"^(\s*)\.\.(?: (?![\w:+-]+::).*)?$")
_CODE_BLOCK = re.compile(r"^\s*\.\. (?:code|sourcecode|parsed-literal|testcode|doctest)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_CODE = "\x01"  # before a line that must not be joined to others
_OPTION = re.compile(r"^\s*:[\w-]+:(\s.*)?$")
_RULE = re.compile(r"^\s*([-=~^`'\"*+#_.:])\1{2,}\s*$")
_ITEM = re.compile(r"^\s*([-*+•]|\d+[.)]|[a-z][.)]|#\.|>>>|\.\.\.|:\w|@\w|\|)\s*")
_PARAMETER = re.compile(r"^[\w*]+ ?(\([^)]*\):?$|\(.*(optional|default).*\)|: \w+(,|$))")
_FIELD = re.compile(r"^\s*[*`]*[\w.*\[\]\"']+(?:,? [\w.*]+){0,2}[`*]*\s*(\(.{1,60}?\))?\s?:(\s|$)")

_TAGS = (
    "a|img|p|div|br|hr|span|b|i|em|strong|code|pre|table|t[rdh]|tbody|thead|h[1-6]|ul|ol|li|center"
    "|details|summary|su[bp]|picture|source|kbd|video|iframe|figure|font|small|blockquote|d[ltd]"
)
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<!--.*?-->", re.S), " "),
    (re.compile(r"\[!\[[^\]]*\]\([^)]*\)\](\([^)]*\))?"), " "),
    (re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])"), " "),
    (re.compile(r":(?:[\w+-]+:)?[\w+-]+:`[~!]?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r":(?:[\w+-]+:)?[\w+-]+:`([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<]{1,200}?)\s*<[^`>]+>`__?"), r"\1"),
    (re.compile(r"\b[CLIBUM]\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\[([^\]\[]+)\]\([^()\s]*(?:\([^()]*\)[^()]*)?(?:\s\"[^\"]*\")?\)"), r"\1"),
    (re.compile(r"\[([^\]\[]+)\]\[[^\]\[]*\]"), r"\1"),
    (re.compile(rf"</?(?:{_TAGS})\b[^<>]{{0,300}}>", re.I), ""),
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`\n]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*\*([^*\n]+)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*([^*\s][^*\n]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s?\[(?:#\w*|\d+|[A-Z]\w+\d{2,4}\w?)\]_"), ""),
    (re.compile(r"(?<!\|)\|([A-Za-z][\w-]*(?: [\w-]+){0,3})\|_{0,2}"), r"\1"),
    (re.compile(r"^\s*\|?(?:\s*:?-{2,}:?\s*\|)+[\s:-]*$", re.M), ""),
    (re.compile(r"\\([*_`|<>])"), r"\1"),
    (re.compile(r"::[ \t]*$", re.M), ":"),
    (re.compile(r"^:$", re.M), ""),
    (re.compile("[\u2018\u2019]"), "'"),
    (re.compile("[\u201c\u201d]"), '"'),
    (re.compile("[\u2013\u2014]"), "-"),
    (re.compile("\u2026"), "..."),
    (re.compile("\u00a0"), " "),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]?\s+(?=[A-Z\"'(\[`])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|Eq|Fig|Ref|no|al|St|Dr)\.|\b[A-Z]\.)$"
)
_SIGNATURE = re.compile(r"^[\w.]+\([^)]*\)*.*(?:\)|->.*)$|^[\w.]+\(.*\)(\s*->.*)?:?$")
_NOT_LETTER = re.compile(r"[^a-zA-Z ]+")
_NOT_WORD = re.compile(r"[^a-z0-9]+")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _literal(lines: list[str], start: int, indent: int) -> tuple[list[str], int]:
    """Lines of the indented block that follows, marked as code, and the line after it."""
    marked = []
    while start < len(lines) and (not lines[start].strip() or _indent(lines[start]) > indent):
        marked.append(_CODE + lines[start].strip() if lines[start].strip() else "")
        start += 1
    return marked, start


def _without_fences(lines: list[str]) -> list[str]:
    kept, inside = [], False
    for line in lines:
        if _FENCE.match(line):
            inside = not inside
            kept.append("")
        else:
            kept.append(_CODE + line.strip() if inside and line.strip() else line)
    return kept


def _without_directives(lines: list[str]) -> list[str]:
    """Drop silent blocks and comments; of other directives keep the content."""
    kept: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        silent = _DROPPED_BLOCK.match(line) or _COMMENT.match(line)
        if silent:
            i += 1
            while i < len(lines) and (
                not lines[i].strip() or _indent(lines[i]) > len(silent.group(1))
            ):
                i += 1
            kept.append("")
            continue
        if speaking := _DIRECTIVE.match(line):
            argument = speaking.group(2)
            is_code = _CODE_BLOCK.match(line)
            kept.append("" if is_code else speaking.group(1) + argument)
            i += 1
            while i < len(lines) and _OPTION.match(lines[i]):
                i += 1
            if is_code:
                block, i = _literal(lines, i, len(speaking.group(1)))
                kept += block
            continue
        kept.append(line)
        i += 1
        if line.rstrip().endswith("::"):
            block, i = _literal(lines, i, _indent(line))
            kept += block
    return kept


def _without_long_doctests(lines: list[str]) -> list[str]:
    """Keep the first doctests, up to DOCTEST_CHARS; later ones go, with their output."""
    kept: list[str] = []
    used, dropping, inside = 0, False, False
    for line in lines:
        stripped = line.strip(_CODE + " ")
        if stripped.startswith(">>>"):
            inside = True
            dropping = used + len(stripped) > DOCTEST_CHARS
        elif not stripped:
            inside = dropping = False
        if inside:
            used += len(stripped)
        if not (inside and dropping):
            kept.append(line)
    return kept


def _joined(lines: list[str]) -> str:
    """Undo the wrapping of paragraphs: a line that only continues the one before joins it."""
    out: list[str] = []
    previous_indent, open_line = -1, False
    for line in lines:
        stripped = re.sub(r"\s+", " ", line.strip())
        if not stripped or _RULE.match(stripped):
            if out and out[-1]:
                out.append("")
            open_line = False
            continue
        if stripped.startswith(_CODE) or "::=" in stripped:
            out.append(stripped.lstrip(_CODE))
            open_line = False
            continue
        indent = _indent(line)
        starts = bool(_ITEM.match(line)) or (indent != previous_indent and not open_line)
        field = bool(_FIELD.match(line))
        if (
            open_line
            and not starts
            and not field
            and (indent == previous_indent or (indent > previous_indent and len(out[-1]) > 60))
        ):
            out[-1] += " " + stripped
        else:
            out.append(stripped)
        is_code = stripped.startswith((">>>", "...", "$ ", "|"))
        open_line = not is_code and not (field and stripped.count(" ") < 6) and len(stripped) > 30
        previous_indent = indent
    return "\n".join(out).strip()


def clean(text: str) -> str:
    """Plain text of a docstring or section: no markup, paragraphs unwrapped, examples short."""
    text = inspect.cleandoc(text.replace("\r\n", "\n")).expandtabs(4)
    lines = _without_directives(_without_fences(text.split("\n")))
    text = "\n".join(_without_long_doctests(lines))
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = _joined(html.unescape(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def shorten(text: str, limit: int) -> str:
    """The text's first ``limit`` characters at most, ended at a line, sentence or word."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    for mark in ("\n", ". ", " "):
        cut = head.rfind(mark)
        if cut > limit * 0.75:
            return head[: cut + (mark == ". ")].rstrip()
    return head.rstrip()


def split_summary(text: str) -> tuple[str, str]:
    """A cleaned docstring's summary (its first sentence, or short first paragraph) and the rest."""
    paragraphs = text.split("\n\n")
    while len(paragraphs) > 1 and _SIGNATURE.match(paragraphs[0]):
        paragraphs.pop(0)
    first, rest = paragraphs[0], paragraphs[1:]
    lines = first.split("\n")
    while len(lines) > 1 and _SIGNATURE.match(lines[0]):
        lines.pop(0)
    line, after = lines[0], lines[1:]
    for match in _SENTENCE_END.finditer(line):
        if not _ABBREVIATION.search(line[: match.start()]):
            after.insert(0, line[match.end() :])
            line = line[: match.start()]
            break
    body = "\n\n".join(part for part in ["\n".join(after), *rest] if part)
    return line.strip(), body.strip()


def is_field(line: str) -> bool:
    """Whether a line documents a parameter rather than its symbol."""
    return line.startswith((":", "@")) or bool(_PARAMETER.match(line))


def words(text: str) -> list[str]:
    """Words with letters in them, as written."""
    return re.findall(r"[^\W\d_][\w'-]*", text)


def prose_words(text: str) -> int:
    """Number of words outside doctests and code-like lines."""
    return sum(
        len(words(line)) for line in text.split("\n") if not line.startswith((">>>", "...", "$ "))
    )


def normalized(text: str) -> str:
    """Lower-case letters and digits only: what two texts must share to be called the same."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def is_english(text: str) -> bool:
    """Whether a text is almost all ASCII and made of words rather than symbols."""
    if not text:
        return False
    ascii_share = len(text.encode("ascii", "ignore")) / len(text)
    letters = len(_NOT_LETTER.sub("", text)) / len(text)
    return ascii_share > 0.97 and letters > 0.6
