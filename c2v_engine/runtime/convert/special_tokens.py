"""What a tokenizer puts around a text, found by asking it, and the template that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.model.template import BOS, EOS
from c2v_engine.runtime.tokenization import special_id

PROBES = (
    "Hello, world!",
    "a",
    "  two  spaces ",
    "Grüße, naïve café – 日本語 🙂",
    "two\nlines\n\n",
    "1234 5678",
    "",
)

_ANY_LENGTH = 1 << 20


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer puts before and after every text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class SpecialEntries:
    """How a template says the same.

    Attributes:
        before: entries that stand before the text.
        after: entries that stand behind it.
        named: what the copied tokenizer must name, such as ``{"eos": 5}``, where it names another
            token or none.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    named: dict[str, int]


def stock_ids(tokenizer: Any, texts: Sequence[str], max_length: int | None = None) -> list[Any]:
    """Token ids of texts, each as sentence-transformers has it, but for padding."""
    encoded = tokenizer(list(texts), truncation="longest_first", max_length=max_length)
    return [list(ids) for ids in encoded["input_ids"]]


def find_special_tokens(tokenizer: Any, folder: Path) -> SpecialTokens:
    """Ask a tokenizer for several texts, with and without its special tokens.

    Raises:
        UnsupportedError: what it adds is not the same for every text, or stands elsewhere than
            around it.
    """
    whole = stock_ids(tokenizer, PROBES, max_length=_ANY_LENGTH)
    plain = tokenizer(list(PROBES), add_special_tokens=False)["input_ids"]
    candidates: set[SpecialTokens] | None = None
    for probe, ids, text in zip(PROBES, whole, plain, strict=True):
        places = (at for at in range(len(ids) + 1) if ids[at : at + len(text)] == list(text))
        found = {SpecialTokens(tuple(ids[:at]), tuple(ids[at + len(text) :])) for at in places}
        candidates = found if candidates is None else candidates & found
        if not candidates:
            raise UnsupportedError(
                f"{folder}: no template says what its tokenizer does: {probe!r} gives "
                f"{_names(tokenizer, ids)}, without special tokens {_names(tokenizer, text)}"
            )
    assert candidates is not None
    return min(candidates, key=lambda one: len(one.before))


def special_entries(
    special: SpecialTokens, tokenizer: Any, decoder_config: Any, folder: Path
) -> SpecialEntries:
    """The template entries for special tokens: the first is BOS, the last EOS.

    Raises:
        UnsupportedError: a token between these that is no text of its own.
    """
    before, named_before = _entries(special.before, "bos", tokenizer, decoder_config, folder)
    after, named_after = _entries(special.after, "eos", tokenizer, decoder_config, folder)
    return SpecialEntries(before, after, {**named_before, **named_after})


def _entries(
    ids: tuple[int, ...], name: str, tokenizer: Any, decoder_config: Any, folder: Path
) -> tuple[tuple[str, ...], dict[str, int]]:
    if not ids:
        return (), {}
    place, entry = (0, BOS) if name == "bos" else (len(ids) - 1, EOS)
    entries = [
        entry if index == place else _literal(number, tokenizer, folder)
        for index, number in enumerate(ids)
    ]
    try:
        is_named = special_id(name, tokenizer, decoder_config, folder) == ids[place]
    except CheckpointError:
        is_named = False
    return tuple(entries), {} if is_named else {name: ids[place]}


def _literal(number: int, tokenizer: Any, folder: Path) -> str:
    """The template entry whose only token is one of the tokenizer's."""
    token = str(tokenizer.convert_ids_to_tokens(number))
    if tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
        raise UnsupportedError(
            f"{folder}: its tokenizer adds {token!r}, which is no text that a template can hold"
        )
    return token.replace("{", "{{").replace("}", "}}")


def _names(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(map(repr, tokenizer.convert_ids_to_tokens(list(ids)))) or "nothing"
