"""Embeds units in one process: read, embedded and written side by side, as one stream of texts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError, TextError
from c2v_engine.jobs.corpus.records import RowBlock, Unit
from c2v_engine.jobs.corpus.work.feed import Feed
from c2v_engine.jobs.corpus.work.pending import PendingBlock
from c2v_engine.jobs.corpus.work.writing import EndOfUnit, Finished, Shard, ShardThread
from c2v_engine.jobs.encode import EncodeOptions, Encoder

# Rows that wait for an earlier one; more than the engine reads ahead, so it only happens where
# most embeddings are known already and the engine would wait long for enough texts.
_MOST_WAITING = 65_536
_MOST_KNOWN_BYTES = 128 * 1024 * 1024
_ENGINE_SECONDS = ("busy_seconds", "tokenize_seconds", "wait_seconds")


class Cache(Protocol):
    """Embeddings that were computed before; ``cache.VectorCache``."""

    def get_many(self, texts: Sequence[str]) -> list[NDArray[Any] | None]:
        """Give the embedding of each text that has one."""

    def put_many(self, texts: Sequence[str], vectors: NDArray[Any]) -> None:
        """Keep embeddings [texts, dimension]."""


@dataclass(frozen=True)
class Counters:
    """What a runner has done so far.

    Attributes:
        rows: rows of the input that have their embedding, or were rejected; in order but for what
            the engine has embedded of the texts under way.
        cached: of them, those whose embedding was in the cache.
        rejects: of them, those that were not embedded.
        tokens: decoder rows computed.
        read_seconds: spent reading.
        write_seconds: spent writing.
        busy_seconds: in which the device had work.
        tokenize_seconds: of all tokenizer threads together.
        wait_seconds: in which the device had no work, for want of texts.
        lengths: texts computed by decoder rows: entry i counts those of 2^i to 2^(i+1) - 1 rows.
    """

    rows: int = 0
    cached: int = 0
    rejects: int = 0
    tokens: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    busy_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    wait_seconds: float = 0.0
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunnerOptions:
    """How texts become rows of shards.

    Attributes:
        dimension: columns of an embedding.
        dtype: NumPy's name of the embeddings' type.
        on_error: ``fail``, ``skip`` or ``null``.
        encode: how texts are embedded.
    """

    dimension: int
    dtype: str
    on_error: str = "fail"
    encode: EncodeOptions = field(default_factory=EncodeOptions)


class UnitRunner:
    """Embeds units, one stream of texts across all of them.

    Args:
        engine: embeds the texts.
        options: how.
        read: gives the blocks of a unit; called in a thread of its own.
        open_shard: opens a unit's shard; called in another thread.
        cache: of embeddings, where one is wanted.
    """

    def __init__(
        self,
        engine: Encoder,
        options: RunnerOptions,
        read: Callable[[Unit], Iterator[RowBlock]],
        open_shard: Callable[[Unit], Shard],
        cache: Cache | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._read = read
        self._open_shard = open_shard
        self._cache = cache
        self._pending: deque[PendingBlock | EndOfUnit] = deque()
        self._rows = self._cached = self._fed = 0
        self._waiting = self._known_bytes = 0
        self._begun = time.perf_counter()
        self._tokens_told = 0
        self._feed: Feed | None = None
        self._writer: ShardThread | None = None
        self._read_before = self._write_before = 0.0
        self._rejects_before = 0
        # An engine may have been used before.
        self._engine_before = _engine_counters(engine)

    def run(self, units: Iterable[Unit]) -> Generator[Finished, None, None]:
        """Embed units.

        Args:
            units: in this order; asked for one at a time, from another thread, some thousands of
                texts ahead.

        Yields:
            Each unit when its shard is on disk.

        Raises:
            InputError: a row or a file that can not be used; units before it come first.
            OutputError: a shard can not be written.
        """
        options, cache = self._options, self._cache
        feed = self._feed = Feed(units, self._read)
        writer = self._writer = ShardThread(
            self._open_shard,
            options.dimension,
            options.dtype,
            skip=options.on_error == "skip",
            keep=None if cache is None else cache.put_many,
        )
        self._begun, self._tokens_told = time.perf_counter(), self._engine.stats.tokens
        failure: Exception | None = None
        over = False
        try:
            while not over and failure is None:
                try:
                    over = yield from self._stream(feed, writer)
                except Exception as error:  # what was whole before it is kept
                    failure = error
            yield from writer.drain()
            writer.check()
            if failure is not None:
                raise failure
        finally:
            feed.close()
            writer.close()
            self._pending.clear()
            self._waiting = self._known_bytes = 0
            self._read_before += feed.seconds
            self._write_before += writer.seconds
            self._rejects_before += writer.rejects
            self._feed = self._writer = None

    def counters(self) -> Counters:
        """Say what has been done so far; from any thread."""
        feed, writer = self._feed, self._writer
        now, before = _engine_counters(self._engine), self._engine_before
        seconds = {name: now[name] - before[name] for name in _ENGINE_SECONDS}
        lengths = [
            count - (before["lengths"][number] if number < len(before["lengths"]) else 0)
            for number, count in enumerate(now["lengths"])
        ]
        return Counters(
            rows=max(self._rows, min(self._fed, now["texts"] - before["texts"] + self._cached)),
            cached=self._cached,
            rejects=self._rejects_before + (writer.rejects if writer else 0),
            tokens=now["tokens"] - before["tokens"],
            read_seconds=self._read_before + (feed.seconds if feed else 0.0),
            write_seconds=self._write_before + (writer.seconds if writer else 0.0),
            lengths=tuple(lengths),
            **seconds,
        )

    def _stream(self, feed: Feed, writer: ShardThread) -> Generator[Finished, None, bool]:
        """Embed until there are no more texts (returns True), or until the stream must be cut."""
        encode = self._options.encode
        ended: list[bool] = []
        taken = 0
        blocks: Any = self._engine.encode_stream(
            self._texts(feed, writer, ended),
            prompt_name=encode.prompt_name,
            prompt=encode.prompt,
            batch_tokens=encode.batch_tokens,
            truncate_dim=encode.truncate_dim,
            precision=encode.precision,
        )
        try:
            with closing(blocks):
                for block in blocks:
                    taken += len(block)
                    self._take(block)
                    self._settle(writer)
                    yield from writer.finished()
        except TextError as error:
            self._reject(error.row - taken, error)
            self._settle(writer)
            return False
        self._settle(writer)
        yield from writer.finished()
        return bool(ended)

    def _texts(self, feed: Feed, writer: ShardThread, ended: list[bool]) -> Iterator[str]:
        for piece in list(self._pending):  # of a stream that was cut
            if isinstance(piece, PendingBlock):
                yield from piece.texts()
        while self._waiting < _MOST_WAITING and self._known_bytes < _MOST_KNOWN_BYTES:
            found = feed.next()
            if found is None:
                ended.append(True)
                return
            if found.block is None:
                self._pending.append(EndOfUnit(found.unit, 0, 0.0))
            else:
                entry = PendingBlock(found.unit, found.block, self._known(found.block))
                self._pending.append(entry)
                self._waiting += len(found.block)
                self._known_bytes += entry.known_bytes
                self._fed += len(found.block)
                yield from entry.texts()
            self._settle(writer)

    def _known(self, block: RowBlock) -> dict[int, NDArray[Any]] | None:
        if self._cache is None:
            return None
        places = [place for place, text in enumerate(block.texts) if text is not None]
        vectors = self._cache.get_many([str(block.texts[place]) for place in places])
        known = {p: v for p, v in zip(places, vectors, strict=True) if v is not None}
        self._cached += len(known)
        return known

    def _take(self, vectors: NDArray[np.generic]) -> None:
        for piece in self._pending:
            if not len(vectors):
                return
            if isinstance(piece, PendingBlock):
                vectors = vectors[piece.fill(vectors) :]
        if len(vectors):
            raise RuntimeError(f"the engine gave {len(vectors)} rows more than it took texts")

    def _settle(self, writer: ShardThread) -> None:
        """Hand over what is complete."""
        while self._pending:
            piece = self._pending[0]
            if isinstance(piece, EndOfUnit):
                now, tokens = time.perf_counter(), self._engine.stats.tokens
                end = EndOfUnit(piece.unit, tokens - self._tokens_told, now - self._begun)
                self._begun, self._tokens_told = now, tokens
                self._pending.popleft()
                writer.put(end)
                continue
            if not piece.complete:
                return
            self._pending.popleft()
            self._waiting -= len(piece.block)
            self._known_bytes -= piece.known_bytes
            self._rows += len(piece.block)
            writer.put(piece)

    def _reject(self, number: int, error: TextError) -> None:
        """Give up the text that the engine refused: the ``number``-th that has not come back."""
        for piece in self._pending:
            if not isinstance(piece, PendingBlock):
                continue
            if number < piece.missing:
                if self._options.on_error == "fail":
                    raise InputError(f"{piece.place_of(number)}: {error.reason}") from error
                piece.reject(number, error.reason)
                return
            number -= piece.missing
        raise error


def _engine_counters(engine: Encoder) -> dict[str, Any]:
    """What an engine has counted, as far as it counts."""
    stats: Any = engine.stats
    found: dict[str, Any] = {name: getattr(stats, name, 0.0) for name in _ENGINE_SECONDS}
    lengths = [int(count) for count in getattr(stats, "lengths", ())]
    return {**found, "texts": stats.texts, "tokens": stats.tokens, "lengths": lengths}
