"""What a stopped job left: recorded shards are checked, and what no record names is removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.layout import is_temporary, shard_number
from c2v_engine.jobs.corpus.folder.manifest import Manifest
from c2v_engine.jobs.corpus.folder.shards import digest_of
from c2v_engine.jobs.corpus.records import UnitDone
from c2v_engine.jobs.output import sync_folder, write_failure

_MOST_THREADS = 8
_AHEAD = 64


def check(folder: Path, record: UnitDone) -> str | None:
    """Say what is wrong with the files of a unit's shard; None for nothing."""
    for file in record.files:
        path = folder / file.name
        try:
            size = path.stat().st_size
            if size != file.size:
                return f"{path}: is {size} bytes, {file.size} were written"
            if digest_of(path)[1] != file.sha256:
                return f"{path}: its bytes are not those that were written"
        except FileNotFoundError:
            return f"{path}: is gone"
        except OSError as error:
            return f"{path}: can not be read: {error.strerror}"
    return None


def check_there(folder: Path, records: Iterable[UnitDone]) -> None:
    """See that shards are there, by their sizes alone.

    Raises:
        OutputError: one is not: it was removed or changed since it was written.
    """
    for record in records:
        for file in record.files:
            try:
                size = (folder / file.name).stat().st_size
            except OSError:
                size = -1
            if size != file.size:
                raise OutputError(
                    f"{folder / file.name}: was removed or changed while the job ran: the same "
                    "command does its unit again"
                )


def check_all(
    manifest_records: Iterator[UnitDone],
    folder: Path,
    report: Callable[[int], None] | None = None,
) -> Iterator[tuple[UnitDone, str | None]]:
    """Check the shards of many units, some at a time; in order, each with what is wrong.

    Args:
        manifest_records: of the units.
        folder: the job's.
        report: called with the number of units checked so far.
    """
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="c2v-check") as pool:
        ahead: list[UnitDone] = []
        done = 0

        def checked() -> Iterator[tuple[UnitDone, str | None]]:
            nonlocal done
            found = pool.map(lambda record: check(folder, record), ahead)
            for record, problem in zip(ahead, found, strict=True):
                done += 1
                if report is not None:
                    report(done)
                yield record, problem

        for record in manifest_records:
            ahead.append(record)
            if len(ahead) == _AHEAD:
                yield from checked()
                ahead.clear()
        yield from checked()


def recover(
    folder: Path, manifest: Manifest, report: Callable[[int], None] | None = None
) -> list[str]:
    """Bring a folder into the state that its manifest records; only who holds the lock may.

    Records of shards that are missing or damaged are dropped, so that their units are done again.
    Temporary files and shards that no record names are removed; nothing else is touched.

    Args:
        folder: the job's.
        manifest: its manifest.
        report: called with the number of units checked so far.

    Returns:
        A line for each record that was dropped, and one for shards whose records are lost.

    Raises:
        OutputError: the system refuses.
    """
    notes, bad = [], set()
    recorded: set[str] = set()
    for record, problem in check_all(manifest.records(), folder, report):
        if problem is None:
            recorded.update(file.name for file in record.files)
        else:
            bad.add(record.unit)
            notes.append(f"{problem}: unit {record.unit} is done again")
    manifest.drop(bad)
    strays = _remove(folder, recorded) - bad
    if len(strays) > 1:  # a stop between rename and record leaves one
        notes.append(
            f"{folder}: {len(strays):,} shards that the manifest does not record: done again"
        )
    return notes


def remove_temporaries(folder: Path) -> None:
    """Remove what workers left that were ended; only who holds the lock may, when none is at work.

    Raises:
        OutputError: the system refuses.
    """
    _remove(folder, None)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a job's folder.

    Raises:
        OutputError: the system refuses.
    """
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(str(folder / name), error) from error
    sync_folder(folder)


def _remove(folder: Path, recorded: set[str] | None) -> set[int]:
    """Remove temporary files and shards that are not recorded; give the units of these."""
    strays, gone = set(), []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    for name in names:
        number = shard_number(name)
        stray = recorded is not None and number is not None and name not in recorded
        if stray and number is not None:
            strays.add(number)
        if stray or is_temporary(name):
            gone.append(name)
    remove(folder, gone)
    return strays
