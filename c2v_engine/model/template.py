"""The template: how prompt, text and single rows make the decoder's sequence."""

from __future__ import annotations

import string
from dataclasses import dataclass

from c2v_engine.errors import ConfigError

BOS = "<bos>"
EOS = "<eos>"
CONTEXT = "<context>"
SUMMARY = "<summary>"
SINGLE_ROWS = (BOS, EOS, CONTEXT)
# A pooling, not an entry: the mean over the whole sequence, its single rows included.
ALL = "<all>"


@dataclass(frozen=True)
class TextFormat:
    """A format string over ``{prompt}`` and ``{text}``, parsed into literals and fields.

    Attributes:
        source: the string as the config has it.
        pieces: in order, ``("literal", characters)``, ``("prompt", "")`` or ``("text", "")``.
    """

    source: str
    pieces: tuple[tuple[str, str], ...]

    @property
    def fields(self) -> frozenset[str]:
        """Which of ``prompt`` and ``text`` the string reads."""
        return frozenset(kind for kind, _ in self.pieces if kind != "literal")

    @property
    def ends_with_text(self) -> bool:
        """Whether the text stands once, at the end: then what follows a cut can not matter."""
        kinds = [kind for kind, _ in self.pieces]
        return bool(kinds) and kinds[-1] == "text" and kinds.count("text") == 1

    def render(self, prompt: str, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Fill in the fields.

        Returns:
            The string to tokenise, and the character spans ``[start, end)`` where the text stands.
        """
        parts: list[str] = []
        spans: list[tuple[int, int]] = []
        length = 0
        for kind, literal in self.pieces:
            part = literal if kind == "literal" else prompt if kind == "prompt" else text
            if kind == "text":
                spans.append((length, length + len(part)))
            parts.append(part)
            length += len(part)
        return "".join(parts), spans


def parse_format(source: str, name: str = "format") -> TextFormat:
    """Parse a format string over ``{prompt}`` and ``{text}``.

    Raises:
        ConfigError: any other field, a conversion or a format specification.
    """
    pieces: list[tuple[str, str]] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(source):
            if literal:
                pieces.append(("literal", literal))
            if field is None:
                continue
            if field not in ("prompt", "text") or spec or conversion:
                raise ConfigError(
                    f"{name} is {source!r}: only {{prompt}} and {{text}} can stand in braces"
                )
            pieces.append((field, ""))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} is {source!r}: {error}") from None
    return TextFormat(source, tuple(pieces))


@dataclass(frozen=True)
class TemplateEntry:
    """One entry of the template: a single row (``kind`` names it) or a ``text`` format.

    ``<summary>`` is ``rows`` rows.
    """

    kind: str
    format: TextFormat | None = None
    rows: int = 1


class Template:
    """The parsed template and pooling of a config.

    Args:
        template: the entries.
        pooling: the pooled ones.
        summary_tokens: rows of ``<summary>``; 0 where there is none.

    Attributes:
        entries: the parsed entries, in order.
        pooled: for each part of the embedding, the index of the entry it is pooled from; the number
            of entries, which is the index of none, stands for the whole sequence.
        summary_tokens: rows of ``<summary>``.

    Raises:
        ConfigError: an entry or a pooling that can not be.
    """

    def __init__(
        self,
        template: tuple[str, ...],
        pooling: tuple[str | int, ...],
        summary_tokens: int = 0,
    ) -> None:
        if not template:
            raise ConfigError("template is empty, expected at least one entry")
        for entry in template:
            if not isinstance(entry, str) or not entry:
                raise ConfigError(f"template holds {entry!r}, expected non-empty strings")
            if entry == ALL:
                raise ConfigError(f"template holds {ALL!r}, which can only stand in pooling")
        self.entries = tuple(_parse_entry(entry, summary_tokens) for entry in template)
        _check_summary(template, summary_tokens)
        self.summary_tokens = summary_tokens
        if not pooling:
            raise ConfigError("pooling is empty, expected entries of the template or their indices")
        self.pooled = tuple(_pooled_index(entry, template) for entry in pooling)

    @property
    def has_context(self) -> bool:
        """Whether the decoder reads a contextual token."""
        return any(entry.kind == CONTEXT for entry in self.entries)

    @property
    def has_text(self) -> bool:
        """Whether some entry reads ``{text}``."""
        return any(entry.format and "text" in entry.format.fields for entry in self.entries)

    @property
    def single_rows(self) -> int:
        """How many rows of the sequence are BOS, EOS, contextual or summary tokens."""
        return sum(entry.rows for entry in self.entries if entry.format is None)

    @property
    def splits_summary(self) -> bool:
        """Whether summary rows, of which none sees another, are sequences of their own."""
        return self.summary_tokens > 1

    @property
    def pools_single_rows(self) -> bool:
        """Whether a text's embedding is read off as many rows as any other's, in one sequence."""
        return not self.splits_summary and all(
            index < len(self.entries) and self.entries[index].format is None
            for index in self.pooled
        )

    @property
    def formats(self) -> list[TextFormat]:
        """The text entries' formats, in order."""
        return [entry.format for entry in self.entries if entry.format is not None]


def _check_summary(template: tuple[str, ...], rows: int) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise ConfigError(f"summary_tokens is {rows!r}, expected a whole number of at least 0")
    count = template.count(SUMMARY)
    if count > 1:
        raise ConfigError(f"template has {SUMMARY} {count} times, expected it once at most")
    if count and not rows:
        raise ConfigError(f"template has {SUMMARY}, so summary_tokens must be at least 1")
    if rows and not count:
        raise ConfigError(f"summary_tokens is {rows}, but template has no {SUMMARY}")
    if count and template[-1] != SUMMARY:
        after = template[template.index(SUMMARY) + 1]
        raise ConfigError(
            f"template has {after!r} after {SUMMARY}, which must be "
            "its last entry: what follows the summary tokens can not change them"
        )


def _parse_entry(entry: str, summary_tokens: int) -> TemplateEntry:
    if entry == SUMMARY:
        return TemplateEntry(entry, rows=summary_tokens)
    if entry in SINGLE_ROWS:
        return TemplateEntry(entry)
    return TemplateEntry("text", parse_format(entry, "template entry"))


def _pooled_index(entry: str | int, template: tuple[str, ...]) -> int:
    if isinstance(entry, int) and not isinstance(entry, bool):
        if not -len(template) <= entry < len(template):
            raise ConfigError(f"pooling holds index {entry}, template has {len(template)} entries")
        return entry % len(template)
    if entry == ALL:
        return len(template)
    if entry not in template:
        raise ConfigError(f"pooling holds {entry!r}, which is no entry of template")
    if template.count(str(entry)) > 1:
        raise ConfigError(f"pooling holds {entry!r}, which stands twice in template: use its index")
    return template.index(str(entry))
