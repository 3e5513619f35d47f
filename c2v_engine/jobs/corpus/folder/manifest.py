"""The manifest: which units are done, with what their shards are; written to last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.chain import BEGINNING, make_line, open_line, read_lines
from c2v_engine.jobs.corpus.folder.layout import MANIFEST_NAME
from c2v_engine.jobs.corpus.records import Reject, UnitDone
from c2v_engine.jobs.output import replace_file, sync_folder, write_failure


@dataclass
class Totals:
    """Sums over the units that are done.

    Attributes:
        rows: of the input.
        written: rows of shards.
        rejects: rows that were not embedded.
        tokens: decoder rows computed.
        size: of the shards, in bytes.
    """

    rows: int = 0
    written: int = 0
    rejects: int = 0
    tokens: int = 0
    size: int = 0

    def add(self, record: UnitDone, sign: int = 1) -> None:
        """Add a unit, or take it away."""
        self.rows += sign * record.rows
        self.written += sign * record.written
        self.rejects += sign * len(record.rejects)
        self.tokens += sign * record.tokens
        self.size += sign * sum(file.size for file in record.files)


class Manifest:
    """The records of a job's units, on disk; of each only its place is held in memory.

    What can not be believed of it is dropped, so that the units are done again; only who holds the
    folder's lock may have the file repaired, and append to it.

    Args:
        folder: the job's.
        repair: whether the file itself is rid of what is dropped.

    Attributes:
        path: the file.
        notes: a line for each thing that was dropped or amiss on opening.
        totals: sums over all records.

    Raises:
        OutputError: it can not be read, or not be repaired.
    """

    def __init__(self, folder: Path, *, repair: bool = True) -> None:
        self.folder = folder
        self.path = folder / MANIFEST_NAME
        self.notes: list[str] = []
        self.totals = Totals()
        self._offsets: dict[int, int] = {}
        self._digest = BEGINNING
        self._size = 0
        self._descriptor: int | None = None
        whole = self._read()
        if repair and not whole:
            self._rewrite(self._offsets)

    @classmethod
    def open(cls, folder: Path) -> Manifest:
        """Open a folder's manifest to go on with it, under its lock; it may be missing."""
        return cls(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Open a folder's manifest to read it; nothing is changed."""
        return cls(folder, repair=False)

    @property
    def done(self) -> Collection[int]:
        """The numbers of the units that are done."""
        return self._offsets.keys()

    def record(self, unit: int) -> UnitDone:
        """Read the record of a unit that is done.

        Raises:
            OutputError: it is not what was written.
        """
        return next(self._records([unit]))

    def records(self) -> Iterator[UnitDone]:
        """Read all records, in the order of units."""
        return self._records(sorted(self._offsets))

    def iter_rejects(self) -> Iterator[Reject]:
        """Read all rows that were not embedded, in the order of the input."""
        for record in self.records():
            yield from record.rejects

    def append(self, record: UnitDone) -> None:
        """Record a unit whose shard stands in its place, lastingly.

        Raises:
            OutputError: the system refuses; then nothing is recorded.
        """
        assert record.unit not in self._offsets
        line, digest = make_line(record, self._digest)
        try:
            self._write(line)
        except OSError as error:
            # What was written of the line would be in the way of the next one.
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            self.close()
            raise write_failure(str(self.path), error, f"unit {record.unit}") from error
        self._offsets[record.unit] = self._size
        self._size += len(line)
        self._digest = digest
        self.totals.add(record)

    def drop(self, units: Collection[int]) -> None:
        """Take back the records of units, so that they are done again.

        Raises:
            OutputError: the system refuses.
        """
        if not units:
            return
        for record in self._records(units):
            self.totals.add(record, -1)
        self._rewrite([unit for unit in self._offsets if unit not in units])

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> bool:
        """Take what can be believed; say whether the file can stay as it is."""
        whole = True
        for line in read_lines(self.path):
            name = f"{self.path}, line {line.number}"
            if line.problem is not None:
                whole = False
                self.notes.append(f"{name}: {line.problem}{_consequence(line.record, line.torn)}")
            if line.record is None:
                continue
            if line.record.unit in self._offsets:
                whole = False
                self.notes.append(f"{name}: records unit {line.record.unit} a second time: dropped")
                continue
            self._offsets[line.record.unit] = line.offset
            self._digest = line.digest
            self.totals.add(line.record)
        if whole and self._offsets:
            self._size = self.path.stat().st_size
        return whole

    def _records(self, units: Iterable[int]) -> Iterator[UnitDone]:
        if not self._offsets:
            return
        with open(self.path, "rb") as file:
            for unit in units:
                file.seek(self._offsets[unit])
                found = open_line(file.readline())
                if found is None or found[1].unit != unit:
                    raise OutputError(f"{self.path}: has changed since the job opened it")
                yield found[1]

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            new = not self.path.exists()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self.path, flags, 0o666)
            if new:
                sync_folder(self.folder)
        done = os.write(self._descriptor, line)
        while done < len(line):  # a disk that is nearly full takes a part, and then says so
            done += os.write(self._descriptor, line[done:])
        os.fsync(self._descriptor)

    def _rewrite(self, units: Collection[int]) -> None:
        """Write the file anew with some of its records, in their order, chained again."""
        self.close()
        offsets, digest, size = {}, BEGINNING, 0

        def lines() -> Iterator[bytes]:
            nonlocal digest, size
            for record in self._records(units):
                line, digest = make_line(record, digest)
                offsets[record.unit] = size
                size += len(line)
                yield line

        replace_file(self.path, lines())
        self._offsets, self._digest, self._size = offsets, digest, size


def _consequence(record: UnitDone | None, torn: bool) -> str:
    if record is not None:
        return "; what it says itself holds, and is kept"
    if torn:
        return ", as a power cut leaves it: dropped, its unit is done again"
    return ": not believed, its unit is done again"
