"""An output file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from c2v_engine.errors import OutputError


def check_place(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check that a file may be put at ``path``.

    Raises:
        OutputError: the folder is missing, something that is not a file stands at the place, or a
            file does and ``overwrite`` is False.
    """
    name = os.fspath(path)
    place = os.path.realpath(path)
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(place)
        if not os.path.isdir(folder):
            raise OutputError(f"{name}: the folder {folder} does not exist") from None
        return
    except OSError as error:
        raise write_failure(name, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{name}: is a folder, expected a file name")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{name}: is not a regular file and can not be replaced")
    if not overwrite:
        raise OutputError(f"{name}: exists already; --overwrite replaces it")


class AtomicFile:
    """A file written under a temporary name beside its place, and moved there once it is whole.

    ``commit`` syncs and renames, ``abandon`` removes what was written; whatever stood at the
    place before stays untouched until the rename. The two exclude each other, so that another
    thread may abandon the file at any moment. A process that is killed leaves at worst the
    temporary file ``.<name>.<pid>.<random>.tmp``.

    Attributes:
        path: where the file will be, with symbolic links followed.
        temporary: the temporary file's name, for what writes by name.
        file: the open temporary file, for writing bytes.
        committed: True once the file stands in its place.

    Raises:
        OutputError: as ``check_place``, or the folder can not be written to.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.name = os.fspath(path)
        self.path = Path(os.path.realpath(path))
        self.committed = False
        self._overwrite = overwrite
        self._lock = threading.RLock()
        self._abandoned = False
        check_place(path, overwrite=overwrite)
        folder = self.path.parent
        mark = f"{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self.temporary = folder / f".{self.path.name[:100]}.{mark}.tmp"
        try:
            self.file: IO[bytes] = open(self.temporary, "xb")  # noqa: SIM115
        except OSError as error:
            raise self.failure(error) from error

    def failure(self, error: OSError, when: str | None = None) -> OutputError:
        """Make the error for a failed write from what the system said."""
        return write_failure(self.name, error, when)

    def commit(self) -> int:
        """Sync the file and move it to its place.

        Returns:
            Its size in bytes.

        Raises:
            OutputError: the system refuses, or a file has appeared at the place meanwhile. The
                temporary file is removed.
        """
        with self._lock:
            assert not self._abandoned
            assert not self.committed
            try:
                self.file.flush()
                os.fsync(self.file.fileno())
                size = os.fstat(self.file.fileno()).st_size
                self.file.close()
                check_place(self.name, overwrite=self._overwrite)
                os.replace(self.temporary, self.path)
            except OSError as error:
                self.abandon()
                raise self.failure(error) from error
            except OutputError:
                self.abandon()
                raise
            self.committed = True
            sync_folder(self.path.parent)
            return size

    def abandon(self) -> bool:
        """Remove what was written, unless it is committed.

        Returns:
            False if the file was committed, and so stays.
        """
        with self._lock:
            if self.committed:
                return False
            self._abandoned = True
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)
            # Closing flushes, and on a full disk that fails once more: nobody needs those bytes.
            with contextlib.suppress(OSError):
                self.file.close()
            return True

    def give_up(self) -> bool:
        """Remove what was written from a thread other than the writing one, before an exit.

        Like ``abandon``, but it keeps the lock and leaves the file open: the writing thread can
        neither commit nor run into a closed file any more.
        """
        self._lock.acquire()
        if self.committed:
            return False
        with contextlib.suppress(OSError):
            os.unlink(self.temporary)
        return True


def replace_file(path: str | os.PathLike[str], parts: Iterable[bytes]) -> None:
    """Write a whole file and put it in the place of what stands there.

    Args:
        path: of the file.
        parts: its bytes, written as they come.

    Raises:
        OutputError: the system refuses, or refuses what gives the parts; what stood there stays.
    """
    target = AtomicFile(path, overwrite=True)
    try:
        target.file.writelines(parts)
    except OSError as error:
        target.abandon()
        raise target.failure(error) from error
    except BaseException:
        target.abandon()
        raise
    target.commit()


def write_failure(name: str, error: OSError, when: str | None = None) -> OutputError:
    """Make the error for a failed write from what the system said."""
    reason = error.strerror or str(error)
    return OutputError(f"{name}: can not be written: {reason}" + (f" ({when})" if when else ""))


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
