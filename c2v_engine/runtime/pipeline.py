"""The way of a batch: texts are tokenised ahead in threads, packed, run, and put in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch

from c2v_engine.errors import BackendError, TextError
from c2v_engine.model.causal2vec import PackedCausal2Vec
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.packing import PackingRules, pack, split_by_tokens
from c2v_engine.runtime.tokenization import CheckpointTokenizer, TokenizedText

# Texts that one call of the tokenizers takes: enough to keep their own threads busy, few enough
# that the first batch does not wait long.
_CHUNK_TEXTS = 256
# A window is what is sorted by length together. Two are held at a time.
_WINDOW_TEXTS = 8192
_WINDOW_CHARACTERS = 64 * 2**20


@dataclass
class EncodeStats:
    """What has gone through an engine, growing as batches finish.

    Attributes:
        texts: texts embedded; equal ones of a window are computed once and counted each.
        tokens: rows of the decoder that were computed.
        encoder_tokens: tokens of the encoder that were computed.
        batches: batches run.
    """

    texts: int = 0
    tokens: int = 0
    encoder_tokens: int = 0
    batches: int = 0


@dataclass
class _Window:
    """Consecutive texts of the input, in the middle of being embedded."""

    first_row: int
    size: int
    # For each distinct text, where it stands in the window.
    places: list[list[int]]
    chunks: list[tuple[list[int], Future[list[TokenizedText]]]] = field(default_factory=list)


class EmbeddingPipeline:
    """Runs a model over texts.

    Args:
        model: on its device.
        tokenizer: of its checkpoint.
        device: of the model.
    """

    def __init__(
        self, model: PackedCausal2Vec, tokenizer: CheckpointTokenizer, device: torch.device
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        config = model.config
        template = config.parsed_template
        pooling = config.encoder.pooling if config.encoder is not None else "mean"
        self._rules = PackingRules.from_template(template, pooling)
        self._threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        self.stats = EncodeStats()
        self._process = os.getpid()

    def run(
        self,
        texts: Iterable[str],
        prompt: str,
        batch_tokens: int,
        output: OutputFormat,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Embed texts of any number, in order, with bounded memory.

        Args:
            texts: any iterable; read up to two windows ahead of what is returned.
            prompt: of all of them.
            batch_tokens: most rows of a batch.
            output: the format of the embeddings.
            report: called with the number of texts of each batch that is done.

        Yields:
            Blocks of embeddings on the CPU, ``[texts, columns]``, in the order of the input.

        Raises:
            TextError: a text that can not be embedded, or whose embedding is not finite.
            BackendError: this is a forked copy of the process that loaded the model.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "this model was loaded in another process, and torch's threads do not survive a "
                "fork: load it in each process, or start them with the spawn method"
            )
        executor = ThreadPoolExecutor(self._threads, thread_name_prefix="c2v-tokenize")
        try:
            windows = self._windows(iter(texts), prompt, executor)
            window = next(windows, None)
            while window is not None:
                failure: Exception | None = None
                try:
                    following = next(windows, None)
                except Exception as error:  # of the input, after texts that are good
                    following, failure = None, error
                yield self._embed(window, batch_tokens, output, report)
                if failure is not None:
                    raise failure
                window = following
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _windows(
        self, texts: Iterator[str], prompt: str, executor: ThreadPoolExecutor
    ) -> Iterator[_Window]:
        """Cut the input into windows and set their tokenisation going."""
        first_row = 0
        while window_texts := _take_window(texts, first_row):
            places: dict[str, list[int]] = {}
            for place, text in enumerate(window_texts):
                places.setdefault(text, []).append(place)
            distinct = list(places)
            window = _Window(first_row, len(window_texts), list(places.values()))
            # Longest first, by characters as long as tokens are not known: batches then hold like
            # lengths although they are run before the last text is tokenised.
            order = sorted(range(len(distinct)), key=lambda i: -len(distinct[i]))
            for begin in range(0, len(order), _CHUNK_TEXTS):
                numbers = order[begin : begin + _CHUNK_TEXTS]
                chunk = [distinct[i] for i in numbers]
                window.chunks.append((numbers, executor.submit(self._tokenizer, chunk, prompt)))
            yield window
            first_row += len(window_texts)

    def _embed(
        self,
        window: _Window,
        batch_tokens: int,
        output: OutputFormat,
        report: Callable[[int], None] | None,
    ) -> torch.Tensor:
        """The window's embeddings, in order."""
        block: torch.Tensor | None = None
        for numbers, texts in self._batches(window, batch_tokens):
            embeddings = self._run_batch(window, numbers, texts, batch_tokens, output)
            if block is None:
                block = embeddings.new_empty((window.size, embeddings.shape[1]))
            places = [place for number in numbers for place in window.places[number]]
            repeats = torch.tensor([len(window.places[number]) for number in numbers])
            block[torch.tensor(places)] = embeddings.repeat_interleave(repeats, dim=0)
            self.stats.texts += len(places)
            if report is not None:
                report(len(places))
        assert block is not None
        return block

    def _batches(
        self, window: _Window, batch_tokens: int
    ) -> Iterator[tuple[list[int], list[TokenizedText]]]:
        """Batches of distinct texts, as soon as enough of them are tokenised."""
        numbers: list[int] = []
        texts: list[TokenizedText] = []
        for last, (chunk_numbers, future) in _mark_last(window.chunks):
            try:
                texts += future.result()
            except TextError as error:
                row = window.first_row + min(window.places[chunk_numbers[error.row]])
                raise TextError(row, error.reason) from None
            numbers += chunk_numbers
            batches = list(split_by_tokens(texts, batch_tokens))
            # The last batch may be short of texts that the next chunk has.
            for batch in batches if last else batches[:-1]:
                yield [numbers[i] for i in batch], [texts[i] for i in batch]
            kept = [] if last else batches[-1]
            numbers, texts = [numbers[i] for i in kept], [texts[i] for i in kept]

    def _run_batch(
        self,
        window: _Window,
        numbers: list[int],
        texts: Sequence[TokenizedText],
        batch_tokens: int,
        output: OutputFormat,
    ) -> torch.Tensor:
        batch = pack(texts, self._rules, batch_tokens, self._device)
        embeddings, norms = self._model.forward(batch, output)
        embeddings, finite = embeddings.cpu(), torch.isfinite(norms.cpu())
        if output.precision == "float16" and not output.normalize:
            # A finite float32 vector may still be too large for float16.
            finite &= torch.isfinite(embeddings).all(dim=1)
        if not finite.all():
            bad = [numbers[i] for i in torch.nonzero(~finite).flatten().tolist()]
            row = window.first_row + min(min(window.places[number]) for number in bad)
            reason = "its embedding is not finite: weights hold NaN, or dtype or precision overflow"
            raise TextError(row, reason)
        self.stats.tokens += sum(len(text.token_ids) for text in texts)
        self.stats.encoder_tokens += sum(text.encoder_tokens for text in texts)
        self.stats.batches += 1
        return embeddings


def _take_window(texts: Iterator[object], first_row: int) -> list[str]:
    """The next texts, bounded in number and characters.

    Raises:
        TextError: something that is not a text; row is its position in the whole input.
    """
    window: list[str] = []
    characters = 0
    for text in islice(texts, _WINDOW_TEXTS):
        if not isinstance(text, str):
            reason = f"is {type(text).__name__}, expected text (str)"
            raise TextError(first_row + len(window), reason)
        window.append(text)
        characters += len(text)
        if characters > _WINDOW_CHARACTERS:
            break
    return window


def _mark_last(
    chunks: list[tuple[list[int], Future[list[TokenizedText]]]],
) -> Iterator[tuple[bool, tuple[list[int], Future[list[TokenizedText]]]]]:
    """Each chunk, with whether it is the last; futures are let go as they are used."""
    chunks.reverse()
    while chunks:
        chunk = chunks.pop()
        yield not chunks, chunk
