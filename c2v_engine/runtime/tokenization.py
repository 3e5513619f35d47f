"""From texts to token ids: both tokenizers of a checkpoint, and the shortening of long texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from c2v_engine.errors import CheckpointError, TextError
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig
from c2v_engine.model.template import BOS, CONTEXT, EOS, SUMMARY, Template, TextFormat, parse_format
from c2v_engine.runtime.prefix import PrefixCutter

_NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class TokenizedText:
    """One text, ready to be packed.

    Attributes:
        token_ids: int32 ``[n]``: the decoder's sequence; contextual and summary rows hold 0.
        bounds: where each template entry begins in it, and its end: entries + 1 numbers.
        windows: int32 token ids of what the encoder reads; empty without an encoder.
        shortened: whether the text did not fit in ``max_length`` and lost its end.
    """

    token_ids: np.ndarray
    bounds: tuple[int, ...]
    windows: tuple[np.ndarray, ...]
    shortened: bool = False

    @property
    def encoder_tokens(self) -> int:
        """Tokens of all windows."""
        return sum(len(window) for window in self.windows)


class Token(NamedTuple):
    """A token of the decoder's sequence.

    Attributes:
        id: in its vocabulary.
        text: the characters that it stands for, or its name.
        special: whether the template put it there, as BOS and EOS.
        start: of its characters in the template entry's string, which is prompt and text as they
            are joined; None for special ones.
        stop: the end of them.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecoderSequence(NamedTuple):
    """What the decoder reads of one text; the fields are those of ``TokenizedText``."""

    token_ids: np.ndarray
    bounds: tuple[int, ...]
    shortened: bool


class DecoderTokenizer:
    """Renders the template, tokenises it and shortens the text where it is too long.

    Args:
        tokenizer: the decoder's.
        template: the checkpoint's.
        max_length: most rows of a sequence.
        bos_id: of ``<bos>``; may be None where the template has none.
        eos_id: of ``<eos>``; likewise.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        max_length: int,
        bos_id: int | None,
        eos_id: int | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._entries = template.entries
        self._formats = template.formats
        self._single_rows = template.single_rows
        ids = {BOS: bos_id, EOS: eos_id, CONTEXT: 0, SUMMARY: 0}
        self._ids = {kind: number for kind, number in ids.items() if number is not None}
        self._single_ids = [
            None
            if entry.format is not None
            else np.full(entry.rows, self._ids[entry.kind], dtype=np.int32)
            for entry in template.entries
        ]
        self._cutter = PrefixCutter(tokenizer)

    def single_id(self, kind: str) -> int:
        """The id of ``<bos>`` or ``<eos>``, where the template has it."""
        return self._ids[kind]

    def token_ids(self, strings: Sequence[str]) -> list[list[int]]:
        """Token ids of strings, without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(strings), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def __call__(self, texts: Sequence[str], prompt: str) -> list[DecoderSequence]:
        """The sequence of every text.

        Raises:
            TextError: prompt and single rows leave no room for the text; row is the position in
                ``texts``.
        """
        count = len(self._formats)
        strings = [
            self._render(text_format, prompt, text)
            for text in texts
            for text_format in self._formats
        ]
        encodings = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        results = []
        for row, text in enumerate(texts):
            parts = encodings[row * count : (row + 1) * count]
            # Of a text that was cut before, what is left has more tokens than fit, too.
            shortened = self._single_rows + sum(len(part) for part in parts) > self._max_length
            if shortened:
                ids = self._shorten(row, strings[row * count : (row + 1) * count], prompt, text)
            else:
                ids = [np.array(part.ids, dtype=np.int32) for part in parts]
            results.append(DecoderSequence(*self._assemble(ids), shortened))
        return results

    def tokens(self, text: str, prompt: str) -> list[Token]:
        """The sequence of a text, not shortened, for people; without rows that are no tokens.

        Raises:
            UnicodeError: it is not valid Unicode.
        """
        tokens: list[Token] = []
        for entry in self._entries:
            if entry.format is None:
                if entry.kind not in (CONTEXT, SUMMARY):
                    number = self._ids[entry.kind]
                    name = self._tokenizer.id_to_token(number) or entry.kind
                    tokens.append(Token(number, name, True, None, None))
                continue
            string, _ = entry.format.render(prompt, text)
            encoding = self._tokenizer.encode(string, add_special_tokens=False)
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                tokens.append(Token(number, string[start:end], False, start, end))
        return tokens

    def _render(self, text_format: TextFormat, prompt: str, text: str) -> str:
        if text_format.ends_with_text and len(text) > self._max_length:
            before, _ = text_format.render(prompt, "")
            text = self._cutter.cut(before, text, self._tokens_needed(before))
        return text_format.render(prompt, text)[0]

    def _tokens_needed(self, before: str) -> int:
        """Leading tokens that shortening can keep: all of what stands before, and max_length."""
        return self._max_length + 1 + len(before.encode("utf-8", "replace"))

    def _shorten(self, row: int, strings: list[str], prompt: str, text: str) -> list[np.ndarray]:
        """Drop text tokens from the right, as many of every occurrence, until all fits."""
        parts: list[tuple[np.ndarray, list[np.ndarray]]] = []
        for text_format, string in zip(self._formats, strings, strict=True):
            encoding = self._tokenizer.encode(string, add_special_tokens=False)
            spans = _text_spans(text_format, string, prompt, text)
            parts.append((np.array(encoding.ids, dtype=np.int32), _text_tokens(encoding, spans)))
        occurrences = [len(tokens) for _, found in parts for tokens in found]
        fixed = self._single_rows + sum(len(ids) for ids, _ in parts) - sum(occurrences)
        most = _common_length(occurrences, self._max_length - fixed)
        if fixed > self._max_length or (most == 0 and any(occurrences)):
            raise TextError(
                row,
                f"the prompt and the template take {fixed} tokens and leave too few of max_length "
                f"{self._max_length} for the text: use a shorter prompt",
            )
        shortened = []
        for ids, found in parts:
            dropped = [tokens[most:] for tokens in found]
            shortened.append(np.delete(ids, np.concatenate(dropped)) if dropped else ids)
        return shortened

    def _assemble(self, ids: list[np.ndarray]) -> tuple[np.ndarray, tuple[int, ...]]:
        parts = []
        bounds = [0]
        remaining = iter(ids)
        for single in self._single_ids:
            part = next(remaining) if single is None else single
            parts.append(part)
            bounds.append(bounds[-1] + len(part))
        return np.concatenate(parts), tuple(bounds)


def _text_spans(
    text_format: TextFormat, string: str, prompt: str, text: str
) -> list[tuple[int, int]]:
    """Character spans of the text in the rendered string, which may hold only its beginning."""
    spans = text_format.render(prompt, text)[1]
    return [(start, min(end, len(string))) for start, end in spans]


def _text_tokens(encoding: Encoding, spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """For each span, the indices of the tokens that lie wholly inside it and no earlier one."""
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    start, end = offsets[:, 0], offsets[:, 1]
    free = np.ones(len(offsets), dtype=bool)
    found = []
    for span_start, span_end in spans:
        inside = free & (start >= span_start) & (end <= span_end)
        free &= ~inside
        found.append(np.flatnonzero(inside))
    return found


def _common_length(lengths: list[int], room: int) -> int:
    """The largest t with ``sum(min(length, t)) <= room``."""
    low, high = 0, room
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(length, middle) for length in lengths) <= room:
            low = middle
        else:
            high = middle - 1
    return low


class EncoderTokenizer:
    """Tokenises what the encoder reads, with its own special tokens.

    Args:
        tokenizer: the encoder's.
        config: the encoder's section of the checkpoint's config.

    Raises:
        CheckpointError: ``max_length`` leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, config: EncoderConfig) -> None:
        self._cutter = PrefixCutter(tokenizer)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if config.max_length <= special:
            raise CheckpointError(
                f"{config.path}: encoder.max_length is {config.max_length}, "
                f"its tokenizer's special tokens alone take {special}"
            )
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.enable_truncation(config.max_length)
        self._format = parse_format(config.text)
        self._max_length = config.max_length
        self._windows = config.overflow == "windows"

    def __call__(self, texts: Sequence[str], prompt: str) -> list[tuple[np.ndarray, ...]]:
        """The windows of every text, one each unless long texts are read in several."""
        strings = [self._render(prompt, text) for text in texts]
        encode = (
            self._tokenizer.encode_batch if self._windows else self._tokenizer.encode_batch_fast
        )
        results = []
        for encoding in encode(strings, add_special_tokens=True):
            parts = [encoding, *encoding.overflowing] if self._windows else [encoding]
            results.append(tuple(np.array(part.ids, dtype=np.int32) for part in parts))
        return results

    def _render(self, prompt: str, text: str) -> str:
        if not self._windows and self._format.ends_with_text and len(text) > self._max_length:
            before, _ = self._format.render(prompt, "")
            text = self._cutter.cut(before, text, self._max_length + 1)
        return self._format.render(prompt, text)[0]


class CheckpointTokenizer:
    """Both tokenizers of a checkpoint; safe to call from several threads.

    Args:
        config: the checkpoint's.
        directory: of the checkpoint.
        decoder_config: the decoder's transformers config.
        encoder_vocab_size: rows of the encoder's embedding table, None without an encoder.

    Raises:
        CheckpointError: a tokenizer is missing, is not a fast one, has ids beyond the embedding
            table, or lacks the BOS or EOS token that the template needs.
    """

    def __init__(
        self,
        config: Causal2VecConfig,
        directory: Path,
        decoder_config: Any,
        encoder_vocab_size: int | None,
    ) -> None:
        template = config.parsed_template
        folder = directory / config.decoder.path
        fast = load_fast_tokenizer(folder)
        vocab_size = decoder_config.vocab_size
        check_vocabulary(fast.backend_tokenizer, vocab_size, folder)
        kinds = {entry.kind for entry in template.entries}
        bos_id = special_id("bos", fast, decoder_config, folder) if BOS in kinds else None
        eos_id = special_id("eos", fast, decoder_config, folder) if EOS in kinds else None
        self._decoder = DecoderTokenizer(
            plain_backend(fast), template, config.max_length, bos_id, eos_id
        )
        self._encoder: EncoderTokenizer | None = None
        if config.encoder is not None:
            folder = directory / config.encoder.path
            backend = plain_backend(load_fast_tokenizer(folder))
            check_vocabulary(backend, encoder_vocab_size or 0, folder)
            self._encoder = EncoderTokenizer(backend, config.encoder)

    @property
    def decoder(self) -> DecoderTokenizer:
        """The decoder's."""
        return self._decoder

    def __call__(self, texts: Sequence[str], prompt: str) -> list[TokenizedText]:
        """Tokenise texts for both models.

        Raises:
            TextError: a text that is not text, or has no room; row is the position in ``texts``.
        """
        try:
            sequences = self._decoder(texts, prompt)
            windows = self._encoder(texts, prompt) if self._encoder else [()] * len(texts)
        except (TypeError, UnicodeError):
            raise _find_bad_text(texts) from None
        results = []
        for row, (sequence, parts) in enumerate(zip(sequences, windows, strict=True)):
            if not len(sequence.token_ids):
                raise TextError(row, "the text is empty, and the template gives it no rows at all")
            if not all(map(len, parts)):
                raise TextError(row, "it gives the encoder no token at all, not even a special one")
            ids, bounds, shortened = sequence
            results.append(TokenizedText(ids, bounds, parts, shortened))
        return results


def _find_bad_text(texts: Sequence[object]) -> TextError:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            return TextError(row, f"is {type(text).__name__}, expected text (str)")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return TextError(row, f"is not valid Unicode: {error.reason} at {error.start}")
    raise AssertionError("every text can be tokenised alone")


def load_fast_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: none is there, or it has no fast form.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds for a damaged file
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: its tokenizer can not be loaded: {reason}") from None
    if getattr(tokenizer, "backend_tokenizer", None) is None or not tokenizer.is_fast:
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} has no fast form (tokenizer.json)"
        )
    # Without these files transformers may silently make a tokenizer of special tokens alone.
    names = sorted(tokenizer.vocab_files_names.values())
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder}: its tokenizer is missing, expected {' or '.join(names)}")
    return tokenizer


def plain_backend(fast: Any) -> Tokenizer:
    """A copy of a fast tokenizer's backend that neither truncates nor pads."""
    backend = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """Refuse a tokenizer that can give ids beyond the embedding table.

    Raises:
        CheckpointError: naming the token.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    token, largest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if largest >= vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer id {largest} ({token!r}) is beyond the embedding table, "
            f"which has {vocab_size} rows"
        )


def special_id(name: str, fast: Any, decoder_config: Any, folder: Path) -> int:
    """The id of ``bos`` or ``eos``: the tokenizer's, else the decoder config's.

    Raises:
        CheckpointError: neither has one, or it is beyond the embedding table.
    """
    value = getattr(fast, f"{name}_token_id", None)
    if value is None:
        value = getattr(decoder_config, f"{name}_token_id", None)
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None:
        raise CheckpointError(
            f"{folder}: the template has <{name}>, but neither the tokenizer nor the config "
            f"names a {name} token"
        )
    if not 0 <= value < decoder_config.vocab_size:
        raise CheckpointError(
            f"{folder}: {name} id {value} is beyond the embedding table, "
            f"which has {decoder_config.vocab_size} rows"
        )
    return int(value)
