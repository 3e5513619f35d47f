"""The input files of a corpus job: told apart, and known again."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import IO, TypeVar

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source.finding import file_system, find_names, format_of, is_url
from c2v_engine.jobs.readers.base import one_line

REMOTE_THREADS = 16
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class InputFile:
    """A file of the input.

    Attributes:
        name: a path or URL, as it was given or found.
        format: txt, jsonl, csv, parquet or arrow.
        compression: gzip, zstd, bz2, lz4 or None.
        size: in bytes.
        modified: when its bytes were last changed, in nanoseconds; None where that is not known.
        digest: of its size and of samples of its bytes, spread evenly from first to last.
    """

    name: str
    format: str
    compression: str | None
    size: int
    modified: int | None
    digest: str

    @property
    def remote(self) -> bool:
        """Whether it is read through fsspec."""
        return is_url(self.name)

    def open(self) -> IO[bytes]:
        """Open it for reading bytes at any place.

        Raises:
            InputError: it can not be opened.
        """
        return _open(self.name)


def find_inputs(sources: Sequence[str]) -> list[InputFile]:
    """Find the files that are meant, and take down what tells them from others.

    Raises:
        InputError: as ``find_names`` and ``describe``.
    """
    return describe(find_names(sources))


def describe(names: Sequence[str]) -> list[InputFile]:
    """Take down what tells files from others, or from themselves when they have changed.

    Raises:
        InputError: one is not there, can not be read, or is of no known format.
    """
    return _each(_describe, names, names)


def check_unchanged(files: Sequence[InputFile]) -> None:
    """See that files are those that the job began with.

    Raises:
        InputError: one is not there any more, or holds something else.
    """
    for change in _each(_change, files, [file.name for file in files]):
        if change is not None:
            raise InputError(f"{change}: put it back, or let --redo-changed do its units again")


def find_changed(files: Sequence[InputFile]) -> list[int]:
    """Find the files that hold something else than when the job began, by their positions.

    Raises:
        InputError: one is not there any more.
    """
    changes = _each(_change, files, [file.name for file in files])
    return [number for number, change in enumerate(changes) if change is not None]


def _each(do: Callable[[_T], _R], items: Sequence[_T], names: Sequence[str]) -> list[_R]:
    """Do something for each item; many at once where the answers come from elsewhere."""
    if not any(map(is_url, names)):
        return [do(item) for item in items]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return list(pool.map(do, items))


def _describe(name: str) -> InputFile:
    size, modified = _status(name)
    format, compression = format_of(name)
    return InputFile(name, format, compression, size, modified, _digest(name, size))


def _change(file: InputFile) -> str | None:
    """Say what has become of a file; None where it is the one that the job began with."""
    size, modified = _status(file.name, " (the job began with it)")
    if size != file.size:
        return f"{file.name}: has {size:,} bytes, and had {file.size:,} when the job began"
    if modified is not None and modified == file.modified:
        return None
    if _digest(file.name, size) != file.digest:
        return f"{file.name}: its bytes are not those that the job began with"
    return None


def _open(name: str) -> IO[bytes]:
    try:
        if is_url(name):
            system, path = file_system(name)
            file: IO[bytes] = system.open(path, "rb")
            return file
        return open(name, "rb", buffering=0)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except Exception as error:  # each file system has errors of its own
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{name}: can not be opened: {reason}") from error


def _status(name: str, more: str = "") -> tuple[int, int | None]:
    """A file's size and time of change."""
    if is_url(name):
        return _remote_status(name, more)
    try:
        found = os.stat(name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file{more}") from None
    except OSError as error:
        raise InputError(f"{name}: can not be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name}: is not a regular file: it could not be read again from a place")
    return found.st_size, found.st_mtime_ns


def _remote_status(name: str, more: str) -> tuple[int, int | None]:
    system, path = file_system(name)
    try:
        size = system.info(path).get("size")
        modified = None
        with suppress(NotImplementedError, AttributeError, KeyError, TypeError):
            modified = int(system.modified(path).timestamp() * 1e6) * 1000
    except FileNotFoundError:
        raise InputError(f"{name}: no such file{more}") from None
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{name}: can not be read: {one_line(error)}") from error
    if size is None:
        raise InputError(f"{name}: its size is not known, so it can not be cut into units")
    return int(size), modified


def _digest(name: str, size: int) -> str:
    digest = blake2b(str(size).encode(), digest_size=16)
    last = max(0, size - _SAMPLE_BYTES)
    places = sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)})
    try:
        for part in _remote_parts(name, places) if is_url(name) else _parts(name, places):
            digest.update(part)
    except InputError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{name}: can not be read: {reason}") from error
    return digest.hexdigest()


def _parts(name: str, places: list[int]) -> Iterator[bytes]:
    with _open(name) as file:
        for place in places:
            file.seek(place)
            yield file.read(_SAMPLE_BYTES)


def _remote_parts(name: str, places: list[int]) -> Iterator[bytes]:
    system, path = file_system(name)
    ends = [place + _SAMPLE_BYTES for place in places]
    for part in system.cat_ranges([path] * len(places), places, ends):
        if isinstance(part, BaseException):
            raise part
        yield part
