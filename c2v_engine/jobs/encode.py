"""The encode job: one file of texts in, one file of embeddings out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from c2v_engine.errors import OutputError, TextError
from c2v_engine.jobs.duplicates import DuplicateCounter
from c2v_engine.jobs.feed import TextFeed
from c2v_engine.jobs.maker import stored_name
from c2v_engine.jobs.output import AtomicFile, check_place
from c2v_engine.jobs.progress import Progress, Snapshot, ticking
from c2v_engine.jobs.readers import Reader, open_reader
from c2v_engine.jobs.writers import Writer, check_output, id_batch, open_writer, pack_ranges


class Counters(Protocol):
    """What the engine counts as its batches finish."""

    @property
    def texts(self) -> int:
        """Texts embedded."""

    @property
    def tokens(self) -> int:
        """Decoder rows computed."""


class Encoder(Protocol):
    """What the job needs of ``Causal2Vec``."""

    @property
    def stats(self) -> Counters:
        """The running counters."""

    def info(self) -> dict[str, Any]:
        """Say what the model is; the job keeps name, fingerprint, normalisation, default prompt."""

    @property
    def ranges(self) -> NDArray[Any] | None:
        """Float32 [2, dimensions] by which int8 and uint8 are quantised."""

    def output_dimension(self, truncate_dim: int | None, precision: Any) -> int:
        """Give the number of columns."""

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: int | None = None,
        truncate_dim: int | None = None,
        precision: Any = "float32",
    ) -> Iterator[NDArray[Any]]:
        """Give embeddings in blocks, in order."""


@dataclass(frozen=True)
class EncodeOptions:
    """How the texts are embedded; the fields mean what ``Causal2Vec.encode`` means by them."""

    prompt_name: str | None = None
    prompt: str | None = None
    precision: str = "float32"
    truncate_dim: int | None = None
    batch_tokens: int | None = None


@dataclass(frozen=True)
class EncodeReport:
    """What a finished job did.

    Attributes:
        rows: texts embedded, one output row each.
        model: the engine's name.
        dimension: output columns.
        precision: of the output.
        tokens: decoder rows computed.
        seconds: from the first text to the file in its place.
        duplicates: rows whose id an earlier row has; 0 where ids are row numbers.
        output: the file.
        size: its size in bytes.
    """

    rows: int
    model: str
    dimension: int
    precision: str
    tokens: int
    seconds: float
    duplicates: int
    output: Path
    size: int

    @property
    def texts_per_second(self) -> float:
        """Texts a second."""
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Decoder rows a second."""
        return self.tokens / self.seconds


class EncodeJob:
    """One job, opened and closed as a context manager; leaving it removes what is unfinished.

    Entering it checks everything that can be checked without a model: both names, the columns,
    the first row, and that the output can be written.

    Args:
        source: the file of texts, see ``open_reader``.
        output: ``.npy`` or ``.parquet``.
        column: the column with the texts.
        id_column: the column with the ids.
        overwrite: replace an output that exists.
        options: how the texts are embedded.
    """

    _reader: Reader
    _feed: TextFeed

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        column: str | None = None,
        id_column: str | None = None,
        overwrite: bool = False,
        options: EncodeOptions | None = None,
    ) -> None:
        self.source = source
        self.output = output
        self.column = column
        self.id_column = id_column
        self.overwrite = overwrite
        self.options = options or EncodeOptions()
        self._target: AtomicFile | None = None
        self._writer: Writer | None = None
        self._now: Callable[[], Snapshot] | None = None

    def __enter__(self) -> EncodeJob:
        """Open both files.

        Raises:
            InputError: the source can not be used.
            OutputError: the output can not be written.
        """
        check_output(self.output, ids=self.id_column is not None, precision=self.options.precision)
        both_exist = os.path.exists(self.output) and os.path.exists(self.source)
        if both_exist and os.path.samefile(self.source, self.output):
            raise OutputError(f"{os.fspath(self.output)}: is the input itself")
        check_place(self.output, overwrite=self.overwrite)
        self._reader = open_reader(self.source, self.column, self.id_column)
        try:
            self._feed = TextFeed(self._reader)
            self._target = AtomicFile(self.output, overwrite=self.overwrite)
        except BaseException:
            self._reader.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is not None and self._target.abandon() and self._writer is not None:
            self._writer.abandon()
        self._reader.close()

    def interrupt(self) -> str:
        """Drop the output from another thread, just before the process ends; say what there is."""
        name = os.fspath(self.output)
        if self._target is None:
            return f"interrupted: nothing was written to {name} (0 texts done)"
        whole = not self._target.give_up()
        done = self._now().rows if self._now is not None else 0
        if whole:
            return f"interrupted: {name} was already written, whole ({done} texts)"
        total = "" if self._reader.rows is None else f" of {self._reader.rows}"
        return f"interrupted: nothing was written to {name} ({done}{total} texts done)"

    def run(self, model: Encoder, progress: Progress | None = None) -> EncodeReport:
        """Embed every row and put the output in its place.

        Args:
            model: the engine.
            progress: shown every half second.

        Raises:
            InputError: a row can not be read or embedded. Nothing is written.
            OutputError: the output can not be written, for example on a full disk.
        """
        assert self._target is not None
        options = self.options
        dimension = model.output_dimension(options.truncate_dim, options.precision)
        about = model.info()
        now = self._now = self._clock(model)
        ids = DuplicateCounter()
        with self._disk_errors():
            writer = self._writer = open_writer(
                self._target,
                dimension,
                options.precision,
                self._reader.id_type,
                self._metadata(dimension, about, model.ranges),
            )
        with ticking(progress or Progress(), now):
            for block in self._blocks(model):
                keys = self._feed.take(len(block))
                with self._disk_errors():
                    writer.write(id_batch(keys, self._reader.id_type), block)
                if self._reader.id_column is not None:
                    ids.add(keys)
        if self._feed.taken != self._feed.pulled:
            raise RuntimeError(
                f"the engine took {self._feed.pulled} texts and gave {self._feed.taken} rows"
            )
        with self._disk_errors():
            writer.finish()
        size = self._target.commit()
        end = now()
        return EncodeReport(
            rows=writer.rows,
            model=str(about["model"]),
            dimension=dimension,
            precision=options.precision,
            tokens=end.tokens,
            seconds=end.seconds,
            duplicates=ids.count(),
            output=Path(self.output),
            size=size,
        )

    def _clock(self, model: Encoder) -> Callable[[], Snapshot]:
        """Start counting; what is returned says where the job stands, from any thread."""
        start, texts, tokens = time.perf_counter(), model.stats.texts, model.stats.tokens

        def now() -> Snapshot:
            done = model.stats.texts - texts
            fraction = self._reader.fraction()
            if fraction is not None:
                # The reader is ahead of the engine by the texts still inside it.
                fraction *= min(1.0, done / max(1, self._feed.pulled))
            seconds = time.perf_counter() - start
            return Snapshot(done, model.stats.tokens - tokens, seconds, fraction)

        return now

    def _blocks(self, model: Encoder) -> Iterator[NDArray[Any]]:
        options = self.options
        try:
            blocks: Any = model.encode_stream(
                self._feed.texts(),
                prompt_name=options.prompt_name,
                prompt=options.prompt,
                batch_tokens=options.batch_tokens,
                truncate_dim=options.truncate_dim,
                precision=options.precision,
            )
            with closing(blocks):
                yield from blocks
        except TextError as error:
            raise self._feed.place_error(error) from error

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        assert self._target is not None
        try:
            yield
        except OSError as error:
            raise self._target.failure(error, f"at row {self._feed.taken}") from error

    def _metadata(
        self, dimension: int, about: dict[str, Any], ranges: NDArray[Any] | None
    ) -> dict[str, Any]:
        options = self.options
        kept = ranges if options.precision in ("int8", "uint8") else None
        prompt_name = options.prompt_name
        if prompt_name is None and options.prompt is None:
            prompt_name = about["default prompt"]
        return {
            "model": stored_name(about),
            "fingerprint": about.get("fingerprint"),
            "id_column": self.id_column,
            "prompt_name": prompt_name,
            "prompt": options.prompt,
            "precision": options.precision,
            "dimension": dimension,
            "truncate_dim": options.truncate_dim,
            "normalize": about["normalize"],
            "ranges": None if kept is None else pack_ranges(kept),
        }
