"""The input of a corpus job: files that are found, told apart, and known again."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import IO, Any

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import one_line

FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
REMOTE_THREADS = 16
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024


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
        return _is_url(self.name)

    def open(self) -> IO[bytes]:
        """Open it for reading bytes at any place.

        Raises:
            InputError: it can not be opened.
        """
        return _open(self.name)


def find_inputs(sources: Sequence[str]) -> list[InputFile]:
    """Find the files that are meant.

    Args:
        sources: files, globs, folders and URLs of any of them. What a glob or a folder holds is
            taken in the order of its names, folders with all that is below them; there names that
            begin with a dot or an underscore and files of other formats are passed over.

    Raises:
        InputError: one of them is not there, is of no known format, or is meant twice; or a folder
            or glob holds nothing.
    """
    if not sources:
        raise InputError("no input was given")
    names: list[str] = []
    for source in sources:
        names += _find_remote(source) if _is_url(source) else _find_local(source)
    seen: set[str] = set()
    for name in names:
        same = name if _is_url(name) else os.path.realpath(name)
        if same in seen:
            raise InputError(f"{name}: is given twice")
        seen.add(same)
    return [describe(name) for name in names]


def describe(name: str) -> InputFile:
    """Take down what tells a file from another, or from itself when it has changed.

    Raises:
        InputError: it is not there, can not be read, or is of no known format.
    """
    format, compression = format_of(name)
    size, modified = _status(name)
    return InputFile(name, format, compression, size, modified, _digest(name, size))


def check_unchanged(file: InputFile) -> None:
    """See that a file is the one that the job began with.

    Raises:
        InputError: it is not there any more, or holds something else.
    """
    size, modified = _status(file.name, " (the job began with it)")
    if size != file.size:
        raise InputError(
            f"{file.name}: has {size:,} bytes, and had {file.size:,} when the job began: put it "
            "back, or begin anew with --overwrite"
        )
    if modified is not None and modified == file.modified:
        return
    if _digest(file.name, size) != file.digest:
        raise InputError(
            f"{file.name}: its bytes are not those that the job began with: put the file back, or "
            "begin anew with --overwrite"
        )


def format_of(name: str) -> tuple[str, str | None]:
    """Give a file's format and compression by its name.

    Raises:
        InputError: the extension is unknown.
    """
    found = _known_format(name)
    if found is None:
        known = ", ".join(FORMATS)
        raise InputError(
            f"{name}: no known extension; known are {known}, each also with "
            f"{', '.join(COMPRESSIONS)}"
        )
    return found


def _known_format(name: str) -> tuple[str, str | None] | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name.replace(os.sep, "/")).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        return None
    return FORMATS[suffixes[-1]], compression


def _is_url(source: str) -> bool:
    return "://" in source or "::" in source


def _find_local(source: str) -> list[str]:
    if os.path.isdir(source):
        return _of_folder(source, _below(Path(source)))
    if os.path.exists(source) or not has_magic(source):
        return [source]
    found = sorted(glob(source, recursive=True))
    names: list[str] = []
    for name in found:
        names += _below(Path(name)) if os.path.isdir(name) else [name]
    return _of_folder(source, list(dict.fromkeys(names)))


def _below(folder: Path) -> list[str]:
    names = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        names += [os.path.join(path, name) for name in files if not name.startswith((".", "_"))]
    return sorted(names)


def _find_remote(source: str) -> list[str]:
    system, path = _file_system(source)
    try:
        if has_magic(source):
            paths = sorted(system.glob(path))
        elif system.isdir(path):
            paths = sorted(system.find(path))
        else:
            return [source]
    except Exception as error:
        raise InputError(f"{source}: can not be listed: {one_line(error)}") from error
    below = [p for p in paths if not any(x.startswith((".", "_")) for x in _inner(p, path))]
    return _of_folder(source, [system.unstrip_protocol(found) for found in below])


def _inner(path: str, folder: str) -> list[str]:
    """The parts of a path below a folder; of one that a glob found, its name."""
    if path.startswith(folder.rstrip("/") + "/"):
        return path[len(folder.rstrip("/")) + 1 :].split("/")
    return [path.rpartition("/")[2]]


def _of_folder(source: str, names: list[str]) -> list[str]:
    known = [name for name in names if _known_format(name) is not None]
    if not known:
        what = "holds" if os.path.isdir(source) else "matches"
        raise InputError(f"{source}: {what} no file of a known format ({', '.join(FORMATS)})")
    return known


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {one_line(error)}") from error
    return system, path


def _open(name: str) -> IO[bytes]:
    try:
        if _is_url(name):
            system, path = _file_system(name)
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
    if _is_url(name):
        system, path = _file_system(name)
        try:
            info = system.info(path)
        except FileNotFoundError:
            raise InputError(f"{name}: no such file{more}") from None
        except Exception as error:
            raise InputError(f"{name}: can not be read: {one_line(error)}") from error
        if info.get("size") is None:
            raise InputError(f"{name}: its size is not known, so it can not be cut into units")
        return int(info["size"]), None
    try:
        found = os.stat(name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file{more}") from None
    except OSError as error:
        raise InputError(f"{name}: can not be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name}: is not a regular file: it could not be read again from a place")
    return found.st_size, found.st_mtime_ns


def _digest(name: str, size: int) -> str:
    digest = blake2b(str(size).encode(), digest_size=16)
    with _open(name) as file:
        try:
            last = max(0, size - _SAMPLE_BYTES)
            places = sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)})
            for place in places:
                file.seek(place, io.SEEK_SET)
                digest.update(_read(file, _SAMPLE_BYTES))
        except Exception as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise InputError(f"{name}: can not be read: {reason}") from error
    return digest.hexdigest()


def _read(file: IO[bytes], size: int) -> bytes:
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
