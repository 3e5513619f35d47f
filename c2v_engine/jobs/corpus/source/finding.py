"""The names of input files: of files, globs, folders and URLs of any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

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
_HIDDEN = (".", "_")
_WEB = ("http://", "https://")


def find_names(sources: Sequence[str], output: Path | None = None) -> list[str]:
    """Find the files that are meant.

    Args:
        sources: files, globs, folders and URLs of any of them. What a glob or a folder holds is
            taken in the order of its names, folders with all that is below them; there names that
            begin with a dot or an underscore and files of other formats are passed over.
        output: a folder that is passed over too, since the job itself writes there.

    Raises:
        InputError: one of them can not be listed, or is meant twice; or a folder or glob holds
            nothing.
    """
    if not sources:
        raise InputError("no input was given")
    names: list[str] = []
    for source in sources:
        names += _find_remote(source) if is_url(source) else _find_local(source, output)
    seen: set[str] = set()
    for name in names:
        same = _one_name(name)
        if same in seen:
            raise InputError(f"{name}: is given twice")
        seen.add(same)
    return names


def format_of(name: str) -> tuple[str, str | None]:
    """Give a file's format and compression by its name.

    Raises:
        InputError: the extension is unknown.
    """
    found = known_format(name)
    if found is None:
        known = ", ".join(FORMATS)
        raise InputError(
            f"{name}: no known extension; known are {known}, each also with "
            f"{', '.join(COMPRESSIONS)}"
        )
    return found


def known_format(name: str) -> tuple[str, str | None] | None:
    """Give a file's format and compression by its name; None where that does not tell."""
    if is_url(name):
        # Of a chain only the first address names the file: zip://a.csv::https://x.org/all.zip
        name = next(part for part in name.split("::") if "://" in part)
        if name.startswith(_WEB):
            name = name.partition("?")[0]
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        return None
    return FORMATS[suffixes[-1]], compression


def is_url(source: str) -> bool:
    """Whether a name is one for fsspec."""
    return "://" in source


def file_system(url: str) -> tuple[Any, str]:
    """Give a URL's file system, fsspec's, and the path there.

    Raises:
        InputError: there is no such file system, or it can not be reached.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # each file system has errors of its own
        kind = "no such file: " if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"{url}: {kind}{one_line(error)}") from error
    return system, path


def _one_name(name: str) -> str:
    """The same for all names of a file."""
    if not is_url(name):
        return os.path.realpath(name)
    if "::" in name:
        return name
    system, path = file_system(name)
    same: str = system.unstrip_protocol(path)
    return os.path.realpath(path) if same.startswith("file://") else same


def _find_local(source: str, output: Path | None) -> list[str]:
    if os.path.isdir(source):
        names = _below(source)
    elif os.path.exists(source) or not has_magic(source):
        return [source]
    else:
        names = _matching_local(source)
    if output is not None:
        base = os.path.join(os.path.realpath(output), "")
        names = [name for name in names if not os.path.realpath(name).startswith(base)]
    return _usable(source, names)


def _matching_local(source: str) -> list[str]:
    names: list[str] = []
    for name in sorted(glob(source, recursive=True)):
        if _shown(name, source):
            names += _below(name) if os.path.isdir(name) else [name]
    return list(dict.fromkeys(names))


def _shown(name: str, pattern: str) -> bool:
    """Whether a name that a glob matched is meant: hidden ones only where the glob names them."""
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    named = tuple(part[:1] for part in parts[fixed:])
    found = name.rstrip("/").split("/")[fixed:]
    return not any(part.startswith(_HIDDEN) and part[0] not in named for part in found)


def _below(folder: str) -> list[str]:
    names = []
    seen = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: can not be listed: {error.strerror}") from error

    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(path) in seen:
            folders.clear()  # a link leads back
            continue
        seen.add(os.path.realpath(path))
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        names += [os.path.join(path, name) for name in files if not name.startswith(_HIDDEN)]
    return sorted(names)


def _find_remote(source: str) -> list[str]:
    if source.startswith(_WEB) and "*" not in source and known_format(source) is not None:
        return [source]  # to ask whether this is a folder would fetch all of it
    system, path = file_system(source)
    try:
        if has_magic(path) and not system.exists(path):
            found = _matching_remote(system, path)
        elif system.isdir(path):
            found = _below_remote(system, path)
        else:
            return [source]
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{source}: can not be listed: {one_line(error)}") from error
    _, link, rest = source.partition("::")
    return _usable(source, [system.unstrip_protocol(name) + link + rest for name in found])


def _matching_remote(system: Any, pattern: str) -> list[str]:
    names: list[str] = []
    for name, about in sorted(system.glob(pattern, detail=True).items()):
        if _shown(name, pattern):
            names += _below_remote(system, name) if about["type"] == "directory" else [name]
    return list(dict.fromkeys(names))


def _below_remote(system: Any, folder: str) -> list[str]:
    base = folder.rstrip("/") + "/"
    return [
        name
        for name in sorted(system.find(folder))
        if not any(part.startswith(_HIDDEN) for part in name.removeprefix(base).split("/"))
    ]


def _usable(source: str, names: list[str]) -> list[str]:
    usable = [name for name in names if known_format(name) is not None]
    if not usable:
        what = "holds" if not has_magic(source) else "matches"
        raise InputError(f"{source}: {what} no file of a known format ({', '.join(FORMATS)})")
    return usable
