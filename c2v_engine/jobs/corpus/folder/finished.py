"""A job's folder as its readers see it: whether all of it is there, and its shards in order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.folder.identity import read_job
from c2v_engine.jobs.corpus.folder.manifest import Manifest


class JobFolder:
    """What a folder's ``job.json`` and manifest say. Nothing in the folder is changed.

    Args:
        path: the folder.

    Attributes:
        path: as given.
        job: what decides the output.
        manifest: opened for reading.
        rows: of the input.
        shard_rows: of a unit; the last one may have fewer.
        units: how many there are when all is done.

    Raises:
        OutputError: it holds no job, or one of its files is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job: dict[str, Any] = read_job(path)
        self.manifest = Manifest.read(path)
        self.rows: int = self.job["rows"]
        self.shard_rows: int = self.job["shard_rows"]
        self.units = -(-self.rows // self.shard_rows)

    def missing(self) -> list[int]:
        """The units that are not done, in order."""
        done = self.manifest.done
        return [unit for unit in range(self.units) if unit not in done]

    def check_finished(self) -> None:
        """Check that all units are done.

        Raises:
            InputError: some are not.
        """
        missing = self.missing()
        if missing:
            raise InputError(f"{self.path}: {self.words_for(missing)}")

    def words_for(self, missing: list[int]) -> str:
        """Say which units are missing, and what to do."""
        return (
            f"is not finished: {len(missing):,} of {self.units:,} units are missing "
            f"({ranges_text(missing)}); the command that began it goes on with it"
        )


def ranges_text(numbers: Iterable[int], most: int = 8) -> str:
    """Ascending numbers as a person writes them: ``3, 7-9, ...``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:most]]
    return ", ".join([*parts, *(["..."] if len(ranges) > most else [])])
