"""Cutting a long text before it is tokenised, with the tokens that the whole text would give.

A tokenizer splits a text into words (its pre-tokenizer's pieces) and tokenises each on its own, so
that a token depends on nothing beyond its word but the few characters that decide where the word
ends. Of a prefix, all tokens but those of the last words are therefore the whole text's tokens. A
prefix long enough to hold as many of these as can be used is as good as the text.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

_WORD_START = "\u2581"
# Words at the end of a prefix whose tokens may change with what follows: the one that is cut, and
# the one whose end a pattern finds by looking at the next.
_OPEN_WORDS = 2
# Characters a token takes, generously: fewer only means that the prefix is doubled.
_CHARACTERS_PER_TOKEN = 10


class PrefixCutter:
    """Finds prefixes that tokenise like the whole.

    Args:
        tokenizer: without truncation and padding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        # An added token is found before words are: a cut through one must stay in the margin.
        self._margin = 16 + max((len(token.content) for token in added), default=0)
        self._splits_words, self._marks_words = _word_structure(tokenizer)

    @property
    def can_cut(self) -> bool:
        """Whether this tokenizer's words are known to be independent."""
        return self._splits_words or self._marks_words

    def cut(self, before: str, text: str, tokens: int) -> str:
        """A prefix of ``text`` with the same first tokens.

        Args:
            before: what stands in front of the text in the same string.
            text: of any length, with nothing after it.
            tokens: how many leading tokens of ``before + text`` must be the same.

        Returns:
            The prefix, or the text itself where no shorter one is certain.

        Raises:
            UnicodeEncodeError: the text is not valid Unicode, anywhere in it.
        """
        length = _CHARACTERS_PER_TOKEN * tokens + self._margin
        if 2 * length < len(text):
            text.encode("utf-8")  # refuses what the tokenizer would, though it never sees the rest
        while self.can_cut and 2 * length < len(text):
            prefix = text[: _end_of_word(text, length)]
            if self._certain_tokens(before + prefix) >= tokens:
                return prefix
            length *= 4
        return text

    def _certain_tokens(self, string: str) -> int:
        """How many leading tokens of the string would be there whatever followed it."""
        encoding = self._tokenizer.encode(string, add_special_tokens=False)
        ends = [end for _, end in encoding.offsets]
        words = encoding.word_ids if self._splits_words else self._marked_words(encoding.tokens)
        known = [word for word in words if word is not None]
        last = known[-1] if known else 0
        # An added token may take all the space before it, so space at the end is open too.
        limit = len(string.rstrip()) - self._margin
        certain = 0
        for word, end in zip(words, ends, strict=True):
            if word is None or word > last - _OPEN_WORDS or end > limit:
                break
            certain += 1
        return certain

    @staticmethod
    def _marked_words(pieces: list[str]) -> list[int]:
        words: list[int] = []
        word, previous = 0, ""
        for piece in pieces:
            if piece.startswith(_WORD_START) and not previous.endswith(_WORD_START):
                word += 1
            words.append(word)
            previous = piece
        return words


def _end_of_word(text: str, length: int) -> int:
    """The last place before ``length`` where a space follows a word, or ``length`` itself."""
    for index in range(length, max(length // 2, 1), -1):
        if text[index].isspace() and not text[index - 1].isspace():
            return index
    return length


def _word_structure(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether the pre-tokenizer splits words, and whether merges never cross a word's start."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    parts = _parts(spec.get("pre_tokenizer"), "pretokenizers")
    if any(_looks_far(part) for part in parts):
        return False, False
    if any(_splits(part) for part in parts):
        return True, False
    # SentencePiece models without a pre-tokenizer mark a word's start by a character: as long as
    # no piece holds one after another character, no merge can cross from one word into the next.
    crossing = any(_WORD_START in piece.lstrip(_WORD_START) for piece in tokenizer.get_vocab())
    return False, spec["model"]["type"] == "BPE" and not crossing


def _parts(spec: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if spec is None:
        return []
    return list(spec[key]) if spec["type"] == "Sequence" else [spec]


def _looks_far(spec: dict[str, Any]) -> bool:
    """Whether a pattern may look ahead without bound, as one that groups digits from the right."""
    pattern = str(spec["pattern"].get("Regex", "")) if spec["type"] == "Split" else ""
    rest = pattern.replace(r"(?!\S)", "")  # which looks at one character
    return "(?=" in rest or "(?!" in rest


def _splits(spec: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer cuts a text into words of bounded sight."""
    kind = spec["type"]
    if kind == "ByteLevel":
        return bool(spec.get("use_regex", True))
    if kind == "Metaspace":
        return bool(spec.get("split", True))
    return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Split")
