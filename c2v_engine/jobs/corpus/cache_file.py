"""The SQLite file of a cache: made, recognised, opened; nothing else is ever written to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator

from c2v_engine.errors import C2VError, InputError, OutputError

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_APPLICATION_ID = 0x43325643  # "C2VC"; in the header's bytes 68 to 71
_VERSION = 1
# 7 rows of 512 float32 fill a page to nine tenths; of the 4 KiB that are SQLite's default one row
# would take a page of its own.
_PAGE_BYTES = 16384
_MEMORY_KIB = 32 * 1024
_LOG_PAGES = 4096  # after so many the log goes into the file
_LOCK_SECONDS = 60.0
_RETRY_SECONDS = 0.05

_SCHEMA = (
    "CREATE TABLE namespaces (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE,"
    " about TEXT NOT NULL)",
    "CREATE TABLE vectors (namespace INTEGER NOT NULL, key BLOB NOT NULL, crc INTEGER NOT NULL,"
    " vector BLOB NOT NULL)",
    "CREATE UNIQUE INDEX vectors_by_key ON vectors (namespace, key)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


def open_cache_file(name: str, digest: bytes, about: str) -> tuple[sqlite3.Connection, int]:
    """Open a cache's file, which is made where there is none.

    Args:
        name: of the file.
        digest: of the namespace.
        about: the namespace, for people.

    Returns:
        A connection that threads may share under a lock, and the namespace's number.

    Raises:
        InputError: the file is something else, or damaged. It is left as it is.
        OutputError: the file can not be made or written.
    """
    _check_file(name)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        connection = None
        try:
            connection = sqlite3.connect(
                name, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            return connection, _prepare(connection, name, digest, about)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error):
                raise
            # Turning the log on does not wait for others who do the same.
            if not _is_lock(error) or time.monotonic() > deadline:
                raise _failure(name, error) from error
            time.sleep(_RETRY_SECONDS)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """A transaction that has the right to write from its beginning."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not what SQLite wrote."""
    return any(word in str(error) for word in ("malformed", "not a database"))


def _prepare(connection: sqlite3.Connection, name: str, digest: bytes, about: str) -> int:
    _identify(connection, name)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise OutputError(
            f"{name}: its disk can not share a cache between processes: choose a "
            "folder on a disk of this machine"
        )
    for pragma in (
        "synchronous = NORMAL",  # synced when the log goes into the file; never damaged
        f"cache_size = -{_MEMORY_KIB}",
        f"wal_autocheckpoint = {_LOG_PAGES}",
        f"journal_size_limit = {2 * _LOG_PAGES * _PAGE_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    with transaction(connection):
        connection.execute(
            "INSERT OR IGNORE INTO namespaces (digest, about) VALUES (?, ?)", (digest, about)
        )
        found = connection.execute("SELECT id FROM namespaces WHERE digest = ?", (digest,))
        return int(found.fetchone()[0])


def _identify(connection: sqlite3.Connection, name: str) -> None:
    """Make the tables in a new file; see that any other has them."""
    if _application(connection) == 0:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        with transaction(connection, "EXCLUSIVE"):
            if _application(connection) == 0:  # nobody was faster
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise _foreign(name)
                for statement in _SCHEMA:
                    connection.execute(statement)
    if _application(connection) != _APPLICATION_ID:
        raise _foreign(name)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        raise InputError(
            f"{name}: is a cache of version {version}, this release has {_VERSION}: name another"
        )


def _application(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA application_id").fetchone()[0])


def _check_file(name: str) -> None:
    """Recognise a file by its header, before SQLite touches it."""
    try:
        with open(name, "rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(name))
        if not os.path.isdir(folder):
            raise OutputError(f"{name}: the folder {folder} does not exist") from None
        return
    except OSError as error:
        raise InputError(f"{name}: can not be read: {error.strerror or error}") from error
    if not header:  # a process was killed before its first write
        return
    number = int.from_bytes(header[68:72], "big")
    if header[:16] != _MAGIC or number not in (0, _APPLICATION_ID):
        raise _foreign(name)


def _foreign(name: str) -> InputError:
    return InputError(f"{name}: is not a cache of embeddings: name another file, or a new one")


def _is_lock(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _failure(name: str, error: sqlite3.Error) -> C2VError:
    if is_damage(error):
        return InputError(
            f"{name}: the cache is damaged ({error}): remove it, or name another (all that it "
            "holds can be computed again)"
        )
    if _is_lock(error):
        return OutputError(
            f"{name}: another program has locked the cache for {_LOCK_SECONDS:.0f} s"
        )
    return OutputError(f"{name}: the cache can not be opened: {error}")
