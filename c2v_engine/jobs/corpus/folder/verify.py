"""Checks a job's folder: every row of the input once, in order, in files as they were written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from c2v_engine.errors import C2VError
from c2v_engine.jobs.corpus.folder.finished import JobFolder, ranges_text
from c2v_engine.jobs.corpus.folder.layout import (
    PLAN_NAME,
    REJECTED_NAME,
    is_own,
    is_temporary,
    shard_number,
)
from c2v_engine.jobs.corpus.folder.manifest import Totals
from c2v_engine.jobs.corpus.folder.recovery import check_all
from c2v_engine.jobs.corpus.folder.shard_files import ShardReader, open_files
from c2v_engine.jobs.corpus.records import UnitDone
from c2v_engine.jobs.corpus.source.plan import Plan
from c2v_engine.jobs.writers import DTYPES

_BLOCK_ROWS = 4096


@dataclass
class VerifyReport:
    """What was found in a folder.

    Attributes:
        folder: as given.
        rows: of the input, as the job has them.
        units: that the job has.
        totals: sums over the units that are done, as the manifest records them.
        checked: shards whose files were read.
        problems: a line for each thing that is wrong.
        notes: a line for each thing that is worth knowing.
    """

    folder: Path
    rows: int = 0
    units: int = 0
    totals: Totals = field(default_factory=Totals)
    checked: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the job is finished and nothing is wrong."""
        return not self.problems


def verify_job(folder: Path, *, report: Callable[[int], None] | None = None) -> VerifyReport:
    """Check all that a job has written. Nothing is changed.

    Args:
        folder: the job's.
        report: called with the number of units checked so far.

    Returns:
        What was found; what is wrong is in it, and not raised.
    """
    found = VerifyReport(folder)
    try:
        job = JobFolder(folder)
    except C2VError as error:
        found.problems.append(str(error))
        return found
    found.rows, found.units, found.totals = job.rows, job.units, job.manifest.totals
    found.problems += _of_plan(folder, job.job.get("input"))
    found.problems += job.manifest.notes
    missing = job.missing()
    if missing:
        found.problems.append(f"{folder}: {job.words_for(missing)}")
    recorded: set[str] = set()
    for record, problem in check_all(job.manifest.records(), folder, report):
        recorded.update(file.name for file in record.files)
        found.checked += 1
        problems = [problem] if problem else list(_unit_problems(job, record))
        found.problems += [f"unit {record.unit}: {problem}" for problem in problems]
    found.problems += _rejected_problems(job)
    _look_around(folder, recorded, found)
    return found


def _unit_problems(job: JobFolder, record: UnitDone) -> Iterator[str]:
    """What is wrong with a unit whose files are as they were written."""
    first = record.unit * job.shard_rows
    rows = min(job.rows - first, job.shard_rows)
    if (record.first_row, record.rows) != (first, rows):
        yield (
            f"holds rows {_span(record.first_row, record.rows)} of the input, expected "
            f"{_span(first, rows)}"
        )
        return
    rejected = [reject.row for reject in record.rejects]
    inside = all(first <= row < first + rows for row in rejected)
    if rejected != sorted(set(rejected)) or not inside:
        yield "its rejected rows are not rows of its own, each once and in order"
        return
    skipped = rejected if job.job.get("on_error") == "skip" else []
    if record.written != rows - len(skipped):
        yield f"records {record.written} written rows, expected {rows - len(skipped)}"
        return
    try:
        yield from _content_problems(job, record, skipped)
    except C2VError as error:
        yield str(error)


def _content_problems(job: JobFolder, record: UnitDone, skipped: list[int]) -> Iterator[str]:
    shard = open_files([job.path / file.name for file in record.files])
    try:
        if shard.rows != record.written:
            yield f"{shard.path}: holds {shard.rows} rows, {record.written} were written"
            return
        dtype = np.dtype(DTYPES[job.job["precision"]])
        if (shard.dimension, shard.dtype) != (job.job["dimension"], dtype):
            yield (
                f"{shard.path}: holds embeddings of {shard.dimension} {shard.dtype}, expected "
                f"{job.job['dimension']} {dtype}"
            )
        ids = shard.ids()
        if len(ids) != record.written:
            yield f"{shard.path}: holds {len(ids)} ids for {record.written} rows"
        elif job.job.get("id_column") is None and not _numbered(ids, record, skipped):
            yield f"{shard.path}: its ids are not the numbers of its rows"
        if record.rejects and not skipped and not _nulls_fit(shard, record):
            yield f"{shard.path}: the rows without an embedding are not those that were rejected"
    finally:
        shard.close()


def _numbered(ids: Any, record: UnitDone, skipped: list[int]) -> bool:
    """Whether ids are the row numbers of the input that the unit has, without what it skipped."""
    rows = np.arange(record.first_row, record.first_row + record.rows)
    expected = np.delete(rows, [row - record.first_row for row in skipped])
    return np.array_equal(ids.to_numpy(), expected)


def _nulls_fit(shard: ShardReader, record: UnitDone) -> bool:
    """Whether just the rejected rows have no embedding."""
    found: list[int] = []
    first = record.first_row
    for block in shard.blocks(_BLOCK_ROWS):
        if block.valid is not None:
            found += (np.flatnonzero(~block.valid) + first).tolist()
        first += len(block.columns)
    return found == [reject.row for reject in record.rejects]


def _rejected_problems(job: JobFolder) -> Iterator[str]:
    path = job.path / REJECTED_NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    if lines != job.manifest.totals.rejects:
        yield (
            f"{path}: has {lines} rows, {job.manifest.totals.rejects} were rejected; the command "
            "that began the job writes it anew"
        )


def _look_around(folder: Path, recorded: set[str], found: VerifyReport) -> None:
    """See what else is in the folder."""
    names = sorted(os.listdir(folder))
    stray = [name for name in names if shard_number(name) is not None and name not in recorded]
    for name in stray:
        found.problems.append(f"{folder / name}: is not recorded, and not part of the output")
    for name in names:
        if is_temporary(name):
            found.notes.append(
                f"{folder / name}: is not whole; the command that began the job removes it"
            )
    others = [name for name in names if not is_own(name)]
    if others:
        more = ", ..." if len(others) > 3 else ""
        found.notes.append(f"{len(others)} other files: {', '.join(others[:3])}{more}")


def _span(first: int, rows: int) -> str:
    return ranges_text(range(first, first + rows)) if rows < 3 else f"{first}-{first + rows - 1}"


def _of_plan(folder: Path, digest: Any) -> list[str]:
    """What is wrong with a job's plan; one that is missing is made again when it is needed."""
    path = folder / PLAN_NAME
    if not path.exists():
        return []
    try:
        plan = Plan.load(path)
    except C2VError as error:
        return [str(error)]
    if plan.digest != digest:
        return [f"{path}: is not the plan that the job began with"]
    return []
