"""The way of a batch: texts are tokenised ahead in threads, packed, run, and put in order."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import torch

from c2v_engine.errors import BackendError, TextError
from c2v_engine.model.checkpoint import Checkpoint
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import NOT_FINITE, BatchRunner, finite_texts, too_large
from c2v_engine.runtime.batches import Batch, Budget, Gathered, Window
from c2v_engine.runtime.counting import Counter
from c2v_engine.runtime.execution import Embedded, Execution, UnderWay
from c2v_engine.runtime.graphs import FEWEST_TOKENS, MOST_TOKENS
from c2v_engine.runtime.runner import Runner
from c2v_engine.runtime.shared_prompt import SharedPrompt, find_shared_prompt
from c2v_engine.runtime.tokenization import CheckpointTokenizer, TokenizedText

# Texts that one call of the tokenizers takes: enough to keep their own threads busy.
_CHUNK_TEXTS = 256
# Of the first chunks where batches run ahead: a GPU waits for the first of them, which shares the
# processors with those behind it.
_FIRST_CHUNKS = (64, 128)
# A window is what is sorted by length together. Two are held at a time.
_WINDOW_TEXTS = 8192
_KEPT_PROMPTS = 64
# Words by which a warm-up finds how many tokens one has.
_SAMPLE_WORDS = 16
_WINDOW_CHARACTERS = 64 * 2**20


@dataclass(frozen=True)
class _Call:
    """What the batches of one call share."""

    prompt: str
    shared: SharedPrompt
    output: OutputFormat
    report: Callable[[int], None] | None


class EmbeddingPipeline(Runner):
    """Runs a model over texts.

    Args:
        checkpoint: of the model.
        execution: likewise.
        tokenizer: of its checkpoint.
        share_prompts: whether rows of a prompt that all texts begin with are computed once.

    Attributes:
        stats: what has gone through.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        execution: Execution,
        tokenizer: CheckpointTokenizer,
        share_prompts: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self._execution = execution
        self._tokenizer = tokenizer
        # Without the causal mask a prompt's rows see the text.
        config = execution.model.config
        self._share_prompts = share_prompts and config.attention == "causal"
        # Most rows of a batch since one did not fit in memory.
        self._fitting: int | None = None
        self._shared: dict[str, SharedPrompt] = {}
        self._threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        self._counter = Counter()
        self.stats = self._counter.stats
        self._process = os.getpid()

    def run(
        self,
        texts: Iterable[str],
        prompt: str,
        batch_tokens: int | None,
        output: OutputFormat,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """See the base class; up to two windows are read ahead of what is returned.

        A batch that does not fit in the device's memory is cut in two, and later ones are no
        larger.

        Raises:
            BackendError: this is a forked copy of the process that loaded the model.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "this model was loaded in another process, and torch's threads do not survive a "
                "fork: load it in each process, or start them with the spawn method"
            )
        if output.ranges is not None:
            output = replace(output, ranges=output.ranges.to(self.checkpoint.placement.device))
        call = _Call(prompt, self._shared_prompt(prompt), output, report)
        if batch_tokens is None:
            batch_tokens = self.batch_tokens
        budget = Budget(min(batch_tokens, self._fitting or batch_tokens))
        executor = ThreadPoolExecutor(self._threads, thread_name_prefix="c2v-tokenize")
        flights: deque[tuple[Batch, UnderWay]] = deque()
        try:
            batches = self._batches(iter(texts), call, budget, executor)
            while True:
                failure: Exception | None = None
                try:
                    with self._counter.waiting():
                        batch = next(batches, None)
                except Exception as error:  # of the input, after texts that are good
                    batch, failure = None, error
                if batch is None:
                    yield from self._collected(flights, call, 0)
                    if failure is not None:
                        raise failure
                    return
                yield from self._launched(batch, call, budget, flights)
                yield from self._collected(flights, call, self._execution.ahead)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for _, under_way in flights:  # a call that failed or was given up
                with contextlib.suppress(Exception):
                    under_way.result()
                self._counter.end()

    @property
    def batch_tokens(self) -> int:
        """Most rows of a batch where a call asks for none, chosen when the model was loaded."""
        return self._execution.batch_tokens

    def info(self) -> dict[str, str]:
        """Where and how the model runs, for people: names and plain values."""
        model, placement = self.checkpoint.model, self.checkpoint.placement
        dtype = str(placement.dtype).removeprefix("torch.")
        decoder, description = model.decoder, self.checkpoint.description
        lines = {
            "decoder": _describe(
                description.decoder_config, decoder.num_parameters(), decoder.embed_tokens
            ),
        }
        if model.context is not None:
            encoder = model.context.encoder
            lines["encoder"] = _describe(
                description.encoder_config, encoder.num_parameters(), encoder.word_embeddings
            )
        lines |= {
            "device": str(placement.device),
            "dtype": dtype if placement.weights == "dtype" else f"{placement.weights}, {dtype}",
            "attention backend": model.attention.name,
        }
        if model.context is not None:
            lines["encoder attention backend"] = model.context.attention.name
        return lines

    def warmup(self, prompt: str, output: OutputFormat) -> None:
        """Run a small batch of every size, one text and several, so that the next one is fast.

        Args:
            prompt: of the texts that will come.
            output: their format.
        """
        short, long = self._tokenizer(["", "a " * _SAMPLE_WORDS], prompt)
        shared = self._shared_prompt(prompt)
        rows = len(short.token_ids) - len(shared.token_ids)
        grown = max(1, len(long.token_ids) - len(short.token_ids))
        longest = self.checkpoint.model.config.max_length
        tokens = FEWEST_TOKENS
        while tokens <= MOST_TOKENS:
            # Three quarters of a size: its bucket, whatever a word's tokens are exactly.
            each = min(3 * tokens // 4, longest - len(shared.token_ids))
            words = max(0, (each - rows) * _SAMPLE_WORDS // grown)
            count = max(1, 3 * tokens // 4 // max(each, 1))
            for number in {1, count}:
                texts = [f"{'a ' * words}{i}" for i in range(number)]
                for _ in range(2):  # what is met twice is captured
                    list(self.run(texts, prompt, None, output))
            tokens *= 2

    def batch_runner(self) -> BatchRunner:
        """See the base class."""
        return BatchRunner(
            self._execution,
            self._tokenizer,
            self._shared_prompt,
            self._counter,
            self.checkpoint.placement.device,
        )

    def close(self) -> None:
        """Wait for what is under way, and drop what later batches would use again."""
        self._execution.close()

    def _shared_prompt(self, prompt: str) -> SharedPrompt:
        if not self._share_prompts:
            return SharedPrompt((), self._execution.rules)
        if prompt not in self._shared:
            decoder, model = self._tokenizer.decoder, self._execution.model
            if len(self._shared) >= _KEPT_PROMPTS:
                self._shared.clear()
            self._shared[prompt] = find_shared_prompt(
                model.config.parsed_template,
                self._execution.rules,
                prompt,
                decoder.token_ids,
                decoder.single_id,
            )
        return self._shared[prompt]

    def _launched(
        self,
        batch: Batch,
        call: _Call,
        budget: Budget,
        flights: deque[tuple[Batch, UnderWay]],
    ) -> Iterator[torch.Tensor]:
        """Launch a batch; where it does not fit in memory, its halves, after all before it."""
        waiting = [batch]
        while waiting:
            batch = waiting.pop(0)
            if len(batch.texts) > 1 and batch.tokens > budget.tokens:  # cut before memory ran out
                waiting[:0] = batch.halves()
                continue
            under_way = self._try(batch, call, budget)
            if under_way is not None:
                flights.append((batch, under_way))
                continue
            yield from self._collected(flights, call, 0)
            self._execution.out_of_memory()
            under_way = self._try(batch, call, budget)
            if under_way is not None:
                flights.append((batch, under_way))
            elif len(batch.texts) > 1:
                waiting[:0] = batch.halves()
                budget.tokens = min(budget.tokens, max(half.tokens for half in waiting[:2]))
                self._fitting = budget.tokens
            else:
                raise too_large(batch.texts[0], batch.window.row_of(batch.numbers))

    def _try(self, batch: Batch, call: _Call, budget: Budget) -> UnderWay | None:
        """Launch a batch; None where it does not fit in memory."""
        self._counter.begin()
        try:
            return self._execution.launch(batch.texts, call.output, budget.tokens, batch.prompt)
        except BaseException as error:
            self._counter.end()
            if isinstance(error, torch.OutOfMemoryError):
                return None
            raise

    def _collected(
        self, flights: deque[tuple[Batch, UnderWay]], call: _Call, most: int
    ) -> Iterator[torch.Tensor]:
        """Wait for the oldest batches until so many are left; the windows that are whole."""
        while len(flights) > most:
            batch, under_way = flights.popleft()
            try:
                embedded = under_way.result()
            finally:
                self._counter.end()
            self._collect(batch, embedded, call)
            window = batch.window
            if not window.missing:
                assert window.block is not None
                yield window.block

    def _collect(self, batch: Batch, embedded: Embedded, call: _Call) -> None:
        finite = finite_texts(embedded, call.output)
        if not finite.all():
            bad = [batch.numbers[i] for i in torch.nonzero(~finite).flatten().tolist()]
            raise TextError(batch.window.row_of(bad), NOT_FINITE)
        count = batch.window.put(batch.numbers, embedded.embeddings)
        self._counter.add(batch, count)
        if call.report is not None:
            call.report(count)

    def _batches(
        self,
        texts: Iterator[str],
        call: _Call,
        budget: Budget,
        executor: ThreadPoolExecutor,
    ) -> Iterator[Batch]:
        """The batches of all windows, each as soon as enough of its texts are tokenised.

        While the batches of a window are computed the next one is read and tokenised. Where the
        input fails, what was good before that comes first.
        """
        windows = self._windows(texts, call.prompt, executor)
        window = next(windows, None)
        while window is not None:
            failure: Exception | None = None
            try:
                following = next(windows, None)
            except Exception as error:
                following, failure = None, error
            yield from self._window_batches(window, call, budget)
            if failure is not None:
                raise failure
            window = following

    def _windows(
        self, texts: Iterator[str], prompt: str, executor: ThreadPoolExecutor
    ) -> Iterator[Window]:
        """Cut the input into windows and set their tokenisation going."""
        first_row = 0
        while window_texts := take_window(texts, first_row):
            places: dict[str, list[int]] = {}
            for place, text in enumerate(window_texts):
                places.setdefault(text, []).append(place)
            distinct = list(places)
            window = Window(first_row, len(window_texts), list(places.values()))
            # Longest first, by characters as long as tokens are not known: batches then hold like
            # lengths although they are run before the last text is tokenised.
            order = sorted(range(len(distinct)), key=lambda i: -len(distinct[i]))
            sizes = self._chunk_sizes(first=first_row == 0)
            begin = 0
            while begin < len(order):
                numbers = order[begin : begin + next(sizes)]
                begin += len(numbers)
                chunk = [distinct[i] for i in numbers]
                window.chunks.append((numbers, executor.submit(self._tokenize, chunk, prompt)))
            yield window
            first_row += len(window_texts)

    def _tokenize(self, texts: Sequence[str], prompt: str) -> list[TokenizedText]:
        with self._counter.tokenizing():
            return self._tokenizer(texts, prompt)

    def _chunk_sizes(self, *, first: bool) -> Iterator[int]:
        """Texts of each chunk of a window, for as long as there are some.

        Args:
            first: whether it is a call's first window.
        """
        return chain(_FIRST_CHUNKS if first and self._execution.ahead else (), repeat(_CHUNK_TEXTS))

    def _window_batches(self, window: Window, call: _Call, budget: Budget) -> Iterator[Batch]:
        """Batches of distinct texts; those that begin with the shared prompt apart from others.

        Where batches run ahead, the first chunk of a call makes batches at once, full or not: the
        device has nothing else to do.
        """
        prompt = call.shared.token_ids
        cost = self._execution.model.prompt_cost(len(prompt))
        gathered = {True: Gathered(window, prompt, cost), False: Gathered(window, (), 0)}
        idle = window.first_row == 0 and self._execution.ahead > 0
        for last, (numbers, future) in _mark_last(window.chunks):
            try:
                texts = future.result()
            except TextError as error:
                raise TextError(window.row_of([numbers[error.row]]), error.reason) from None
            for number, text in zip(numbers, texts, strict=True):
                gathered[call.shared.begins(text)].add(number, text)
            for part in gathered.values():
                yield from part.batches(budget, last or idle)
            idle = False


def _describe(config: Any, parameters: int, embeddings: torch.Tensor) -> str:
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{parameters / 1e6:.1f} M parameters + {embeddings.numel() / 1e6:.1f} M embeddings"
    )


def take_window(texts: Iterator[object], first_row: int) -> list[str]:
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
