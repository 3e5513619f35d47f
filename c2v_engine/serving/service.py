"""``EmbeddingService``: what a server asks for embeddings, from one event loop or several."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from c2v_engine.errors import InputError, TextError
from c2v_engine.runtime.options import resolve_prompt
from c2v_engine.serving.batching.admission import Admission
from c2v_engine.serving.batching.batcher import Batcher
from c2v_engine.serving.batching.ticket import QueuedText, Ticket
from c2v_engine.serving.contract import (
    EmbedOptions,
    EmbedResult,
    Observer,
    Snapshot,
    State,
    Timings,
    Token,
)
from c2v_engine.serving.refusals import (
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)

if TYPE_CHECKING:
    from c2v_engine import Causal2Vec
    from c2v_engine.model.pooling import OutputFormat
    from c2v_engine.runtime.batch_runner import ReadyText

Result = TypeVar("Result")

_PROBE_TEXT = "The quick brown fox jumps over the lazy dog."
_PROBE_SECONDS = 1.0  # for which a probe's answer holds
# What one call of the tokenizers takes of a request, so that others come between.
_CHUNK_TEXTS = 256
_CHUNK_CHARACTERS = 2**20
# Of an estimate made before tokenising: English has about four characters to a token.
_CHARACTERS_PER_TOKEN = 3
_ROWS_AROUND = 8
# By default so many of the largest batches may wait.
_QUEUED_BATCHES = 32
_MOST_CHARACTERS_TO_TOKENIZE = 2**20


@dataclass(frozen=True)
class ServiceOptions:
    """How requests are taken.

    Attributes:
        batch_tokens: most tokens of a batch; None for as many as suit the device.
        queue_tokens: most tokens that may wait; None for 32 batches.
        timeout: seconds in which a request must be done.
        truncate: whether texts longer than the model reads are shortened where a request does not
            say; else they are refused.
        tokenizer_threads: that tokenise requests side by side.

    Raises:
        InputError: a number that can not be.
    """

    batch_tokens: int | None = None
    queue_tokens: int | None = None
    timeout: float = 60.0
    truncate: bool = False
    tokenizer_threads: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "queue_tokens", "timeout", "tokenizer_threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value!r}, expected more than 0")


class EmbeddingService:
    """Embeds texts of many requests with one engine, in batches that are filled by tokens.

    It is made and used in event loops; the engine is not used by anything else meanwhile.

    Args:
        engine: on one device, without worker processes.
        options: how requests are taken.

    Attributes:
        name: of the model.
        dimension: of a whole embedding.
        segments: parts of it, of which ``truncate_dim`` is a multiple.
        max_length: most decoder rows of a text.
        prompts: the checkpoint's.
        fingerprint: of its files.
        normalizes: whether embeddings are normalised where a request does not say.
        truncates: whether long texts are shortened where a request does not say.
        info: what the engine says of itself.

    Raises:
        BackendError: the engine has worker processes.
    """

    def __init__(
        self,
        engine: Causal2Vec,
        options: ServiceOptions | None = None,
    ) -> None:
        options = options or ServiceOptions()
        self.name = engine.name
        self.dimension = engine.dimension
        self.segments = engine.config.segments
        self.max_length = engine.config.max_length
        self.prompts = engine.prompts
        self.info: dict[str, Any] = engine.info()
        self.fingerprint: str | None = self.info["fingerprint"]
        self.normalizes = engine.config.normalize
        self.truncates = options.truncate
        self._engine = engine
        self._options = options
        self._runner = engine.batch_runner()
        batch_tokens = options.batch_tokens or self._runner.batch_tokens
        # A text of any length that the model reads must fit.
        capacity = max(options.queue_tokens or _QUEUED_BATCHES * batch_tokens, self.max_length)
        self._admission = Admission(capacity, options.timeout, batch_tokens)
        [probe] = self._runner.tokenize([_PROBE_TEXT], self._prompt(EmbedOptions()))
        self._probe: tuple[ReadyText, OutputFormat] = (probe, engine.output_format())
        self._observers: list[Observer] = []
        self._batcher = Batcher(
            self._runner, self._admission, batch_tokens, self._probe, self._observers
        )
        self._tokenizers = ThreadPoolExecutor(
            options.tokenizer_threads, thread_name_prefix="c2v-tokenize"
        )
        self._open: set[Ticket] = set()
        self._before = copy(engine.stats)
        self._warm = False
        self._draining = False
        self._probed = -_PROBE_SECONDS
        self._probing: asyncio.Task[None] | None = None

    # --- its life ---------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Have the first requests be as fast as later ones, then be ready.

        Takes a while; call it once, in any thread, before the first request.
        """
        warmed = set()
        for name in (None, *self.prompts):
            prompt = self._prompt(EmbedOptions(prompt_name=name))
            [ready] = self._runner.tokenize([_PROBE_TEXT], prompt)
            if ready.prompt in warmed:
                continue
            warmed.add(ready.prompt)
            if self._engine.device.type == "cuda":  # kernels to compile, graphs to capture
                self._engine.warmup(prompt=prompt)
            else:
                self._engine.encode([_PROBE_TEXT], prompt=prompt)
        self._before = copy(self._engine.stats)  # what was embedded for nobody does not count
        self._batcher.start()
        self._warm = True

    def add_observer(self, observer: Observer) -> None:
        """Have it told of batches and failures; before ``warm_up``."""
        self._observers.append(observer)

    def drain(self) -> None:
        """Say by the state that the end has come; requests are still taken until ``close``."""
        self._draining = True

    def close(self) -> None:
        """Fail what still waits, and end the threads."""
        self._batcher.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    # --- requests ---------------------------------------------------------------------------------

    async def embed(self, texts: Sequence[str], options: EmbedOptions | None = None) -> EmbedResult:
        """Embed texts; cancelling it frees their work.

        Args:
            texts: of one request.
            options: how.

        Raises:
            InputError: options that can not be.
            TextError: a text that can not be embedded; row is its position.
            TextTooLongError: a text that was not to be shortened and is too long.
            RequestTooLargeError: more tokens than may wait, at any time.
            OverloadedError: more than there is room for now.
            UnavailableError: warming up, shutting down, or the model failed.
            TimedOutError: not done in time.
            ComputeError: the model failed, or its numbers are not finite.
        """
        options = options or EmbedOptions()
        output, prompt = self._output(options), self._prompt(options)
        if not self._warm:
            raise UnavailableError("the model is warming up", retry_after=1)
        if not texts:
            columns = self._engine.output_dimension(options.truncate_dim, options.precision)
            empty = np.empty((0, columns), dtype=self._engine.output_dtype(options.precision))
            return EmbedResult(empty, np.zeros(0, dtype=np.int64), Timings(0.0, 0.0, 0.0))
        loop = asyncio.get_running_loop()
        chunks = list(self._chunks(texts))
        ticket = Ticket(loop, len(texts), output, sum(estimate for _, _, estimate in chunks))
        truncate = self.truncates if options.truncate is None else options.truncate
        with self._admitted(ticket):
            for begin, end, estimate in chunks:
                ready = await self._in_thread(
                    ticket, self._tokenize, texts[begin:end], begin, prompt, truncate
                )
                if end == len(texts):
                    ticket.tokenized()
                ticket.tokens[begin:end] = [len(one.text.token_ids) for one in ready]
                queued = [QueuedText(ticket, begin + i, one) for i, one in enumerate(ready)]
                self._batcher.push(ticket, queued, estimate)
                if ticket.done.done():
                    break
            return await ticket.done

    async def tokenize(
        self, texts: Sequence[str], prompt_name: str | None = None, add_special_tokens: bool = True
    ) -> list[list[Token]]:
        """The decoder's sequence of every text, whole, without contextual tokens.

        Args:
            texts: at most a million characters together.
            prompt_name: as in ``EmbedOptions``.
            add_special_tokens: whether BOS and EOS are among them, where the template has them.

        Raises:
            InputError: an unknown prompt.
            RequestTooLargeError: more characters.
            TextError: a text that is not valid Unicode.
            OverloadedError: more than there is room for now.
            UnavailableError: shutting down, or the model failed.
            TimedOutError: not done in time.
        """
        characters = sum(map(len, texts))
        if characters > _MOST_CHARACTERS_TO_TOKENIZE:
            raise RequestTooLargeError(
                f"the texts have more than {_MOST_CHARACTERS_TO_TOKENIZE} characters"
            )
        prompt = self._prompt(EmbedOptions(prompt_name=prompt_name))

        def tokenize() -> list[list[Token]]:
            sequences = []
            for row, text in enumerate(texts):
                try:
                    tokens = self._runner.tokens(text, prompt)
                except (TypeError, UnicodeError):
                    raise TextError(row, "is not valid Unicode text") from None
                sequences.append([t for t in tokens if add_special_tokens or not t.special])
            return sequences

        # Nothing of it is queued, but embeddings wait for the same threads.
        estimate = characters // _CHARACTERS_PER_TOKEN + _ROWS_AROUND * len(texts)
        room = min(estimate, self._admission.capacity)
        ticket = Ticket(asyncio.get_running_loop(), 0, self._probe[1], room)
        with self._admitted(ticket):
            return await self._in_thread(ticket, tokenize)

    async def probe(self) -> None:
        """Embed a text known to be good, before all that waits; an answer holds for a second.

        Raises:
            UnavailableError: the model does not embed, or not in time.
        """
        if self._batcher.failure is not None:
            raise UnavailableError(f"the model does not embed: {self._batcher.failure}")
        if time.monotonic() - self._probed < _PROBE_SECONDS:
            return
        probing, loop = self._probing, asyncio.get_running_loop()
        if probing is None or probing.done() or probing.get_loop() is not loop:
            probing = self._probing = loop.create_task(self._run_probe())
        await asyncio.shield(probing)

    def snapshot(self) -> Snapshot:
        """The service at this moment."""
        failure, stats = self._batcher.failure, self._engine.stats.since(self._before)
        if failure is not None:
            state = State.FAILED
        elif self._draining:
            state = State.DRAINING
        else:
            state = State.READY if self._warm else State.WARMING
        return Snapshot(
            state,
            failure,
            self._batcher.waiting_tokens,
            self._admission.capacity,
            self._batcher.waiting_texts,
            len(self._open),
            self._admission.speed.tokens_per_second,
            self._batcher.batch_tokens,
            stats.texts,
            stats.tokens,
            stats.batches,
        )

    @contextmanager
    def _admitted(self, ticket: Ticket) -> Iterator[None]:
        """Around a request from when it is let in until it is over, by its time if nothing else."""
        self._batcher.admit(ticket)
        self._open.add(ticket)
        timer = ticket.loop.call_later(self._options.timeout, self._expire, ticket)
        try:
            yield
        finally:
            timer.cancel()
            self._open.discard(ticket)
            self._batcher.give_up(ticket)
            if ticket.done.done() and not ticket.done.cancelled():
                ticket.done.exception()  # seen, also where something else ended the request

    async def _in_thread(
        self, ticket: Ticket, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """What a function gives in a tokenizer's thread, for a request that may end before that.

        Raises:
            C2VError: with which the request ended.
        """
        work = ticket.loop.run_in_executor(self._tokenizers, function, *arguments)
        try:
            await asyncio.wait((work, ticket.done), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                ticket.done.result()  # an error: embeddings need this work first
            return work.result()
        finally:
            work.cancel()

    async def _run_probe(self) -> None:
        if not self._warm:
            return
        ready, output = self._probe
        ticket = Ticket(asyncio.get_running_loop(), 1, output, 0)
        self._batcher.push(ticket, [QueuedText(ticket, 0, ready)], 0, ahead=True)
        try:
            await asyncio.wait_for(ticket.done, self._options.timeout)
        except asyncio.TimeoutError:
            raise UnavailableError(
                f"the model did not embed a text in {self._options.timeout:g} seconds"
            ) from None
        except Exception as error:
            raise UnavailableError(f"the model does not embed: {error}") from error
        finally:
            self._batcher.give_up(ticket)
        self._probed = time.monotonic()

    def _expire(self, ticket: Ticket) -> None:
        if not ticket.done.done():
            ticket.done.set_exception(
                TimedOutError(f"not done in {self._options.timeout:g} seconds")
            )

    def _tokenize(
        self, texts: Sequence[str], begin: int, prompt: str, truncate: bool
    ) -> list[ReadyText]:
        try:
            ready = self._runner.tokenize(texts, prompt)
        except TextError as error:
            raise TextError(begin + error.row, error.reason) from None
        if not truncate:
            for row, one in enumerate(ready):
                if one.text.shortened:
                    raise TextTooLongError(
                        begin + row,
                        f"is longer than the {self.max_length} tokens that the model reads; "
                        "send truncate: true to have its beginning embedded",
                    )
        return ready

    def _chunks(self, texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
        """Where a request is cut for the tokenizers, and about how many tokens each part has."""
        begin = characters = tokens = 0
        for row, text in enumerate(texts):
            if row > begin and (row - begin == _CHUNK_TEXTS or characters > _CHUNK_CHARACTERS):
                yield begin, row, tokens
                begin, characters, tokens = row, 0, 0
            characters += len(text)
            estimate = len(text) // _CHARACTERS_PER_TOKEN + _ROWS_AROUND
            tokens += min(self.max_length, estimate)
        yield begin, len(texts), tokens

    def _output(self, options: EmbedOptions) -> OutputFormat:
        if options.precision == "bfloat16":
            raise InputError("precision bfloat16 can not be sent: ask for float16 or float32")
        return self._engine.output_format(
            options.normalize, options.truncate_dim, options.precision
        )

    def _prompt(self, options: EmbedOptions) -> str:
        return resolve_prompt(self._engine.config, options.prompt_name, None)
