"""A lock that keeps two jobs out of one folder and ends with the process that has it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.layout import LOCK_NAME
from c2v_engine.jobs.output import write_failure


@contextmanager
def locked(folder: Path, what: str = "job") -> Iterator[None]:
    """Keep others out of a folder; it is made where it is missing.

    The file stays there: who removed it could lock another one than who comes next. The lock is the
    system's, so nothing is left of it however the process ends.

    Args:
        folder: the folder.
        what: the word for those that are kept out.

    Raises:
        OutputError: another one is writing there; the message says which. Or the folder can not
            be written to.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(str(folder), error) from error
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_failure(str(path), error) from error
    try:
        _lock(descriptor, folder, what)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, what: str) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        who = f" ({holder})" if holder else ""
        raise OutputError(f"{folder}: another {what} is writing there{who}") from None
    except OSError as error:
        raise write_failure(str(folder / LOCK_NAME), error, "it can not be locked") from error
    with contextlib.suppress(OSError):  # on a full disk others are kept out without these words
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
