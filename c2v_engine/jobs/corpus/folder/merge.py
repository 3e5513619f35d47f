"""Joins a job's shards into one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.folder.finished import JobFolder
from c2v_engine.jobs.corpus.folder.layout import is_own
from c2v_engine.jobs.corpus.folder.recovery import check
from c2v_engine.jobs.corpus.folder.shard_files import ShardReader, open_files
from c2v_engine.jobs.corpus.folder.shards import FORMATS, check_shards
from c2v_engine.jobs.corpus.records import UnitDone
from c2v_engine.jobs.output import AtomicFile, check_place
from c2v_engine.jobs.writers import open_format
from c2v_engine.jobs.writers.base import Writer

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class MergeReport:
    """What was written.

    Attributes:
        rows: in the order of the input.
        shards: that they came from.
        units: that the job has, more where it is not finished.
        files: the embeddings', and the ids' where those stand apart.
        size: of the files, in bytes.
    """

    rows: int
    shards: int
    units: int
    files: tuple[Path, ...]
    size: int


class MergeJob:
    """One merge, as a context manager; leaving it removes what is unfinished.

    Entering it checks the folder and both names.

    Args:
        folder: the job's.
        output: .parquet, .arrow, .npy or .safetensors; of the last two, the ids and other columns
            are put beside it, into ``NAME.ids.parquet``.
        overwrite: replace an output that exists.
        unfinished: take what is done of a job that is not finished.
    """

    def __init__(
        self, folder: Path, output: Path, *, overwrite: bool = False, unfinished: bool = False
    ) -> None:
        self.output = output
        self._job = JobFolder(folder)
        self._unfinished = unfinished
        self._overwrite = overwrite
        self._format = output.suffix.lower().removeprefix(".")
        self._targets: list[AtomicFile] = []
        self._writer: Writer | None = None

    def __enter__(self) -> MergeJob:
        """See that it can be done.

        Raises:
            InputError: the job is not finished.
            OutputError: the output can not be written.
        """
        if self._format not in FORMATS:
            known = ", ".join(f".{name}" for name in FORMATS)
            raise OutputError(
                f"{self.output}: unknown extension {self.output.suffix!r}; known are {known}"
            )
        inside = self.output.resolve().parent == self._job.path.resolve()
        if inside and is_own(self.output.name):
            raise OutputError(f"{self.output}: is the name of a file of the job: choose another")
        if not self._unfinished:
            self._job.check_finished()
        if not self._job.manifest.done:
            raise InputError(f"{self._job.path}: holds no rows: there is nothing to merge")
        paths = [self.output]
        if self._format in ("npy", "safetensors"):
            paths.append(self.output.with_suffix(".ids.parquet"))
        for path in paths:
            check_place(path, overwrite=self._overwrite)
        try:
            for path in paths:
                self._targets.append(AtomicFile(path, overwrite=self._overwrite))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        whole = [not target.abandon() for target in self._targets]
        if self._writer is not None and not all(whole):
            self._writer.abandon()

    def interrupt(self) -> str:
        """Drop the output from another thread, just before the process ends; say what there is."""
        whole = [not target.give_up() for target in self._targets]
        state = "already written, whole" if whole and all(whole) else "not written"
        return f"interrupted: {self.output} was {state}"

    def run(self, report: Callable[[int, int], None] | None = None) -> MergeReport:
        """Write the output and put it in its place.

        Args:
            report: called with the shards done and all of them, after each.

        Raises:
            InputError: a shard is missing or damaged.
            OutputError: the output can not be written.
        """
        done = self._job.manifest.done
        shards = 0
        for record in self._job.manifest.records():
            self._append(record)
            shards += 1
            if report is not None:
                report(shards, len(done))
        assert self._writer is not None
        try:
            self._writer.finish()
        except OSError as error:
            raise self._targets[0].failure(error) from error
        # The ids come first: an array that stands in its place has them.
        size = sum(target.commit() for target in reversed(self._targets))
        files = tuple(target.path for target in self._targets)
        return MergeReport(self._writer.rows, shards, self._job.units, files, size)

    def _append(self, record: UnitDone) -> None:
        problem = check(self._job.path, record)
        if problem is not None:
            raise InputError(f"{problem}: the command that began the job mends it")
        shard = open_files([self._job.path / file.name for file in record.files])
        try:
            if self._writer is None:
                self._writer = self._open(shard)
            for block in shard.blocks(_BLOCK_ROWS):
                try:
                    self._writer.write(*block)
                except OSError as error:
                    raise self._targets[0].failure(error) from error
        finally:
            shard.close()

    def _open(self, shard: ShardReader) -> Writer:
        precision: str = self._job.job["precision"]
        nulls = self._job.job.get("on_error") == "null"
        schema = pa.schema(shard.schema)
        check_shards(self.output, self._format, schema, precision, nulls=nulls)
        files = [target.file for target in self._targets]
        return open_format(
            self._format, files, shard.dimension, precision, schema, shard.about, nulls=nulls
        )


def merge_job(
    folder: Path, output: Path, *, overwrite: bool = False, unfinished: bool = False
) -> MergeReport:
    """Join a job's shards into one file; see ``MergeJob``.

    Raises:
        InputError: the job is not finished, or a shard is missing or damaged.
        OutputError: the folder holds no job, or the output can not be written.
    """
    with MergeJob(folder, output, overwrite=overwrite, unfinished=unfinished) as job:
        return job.run()
