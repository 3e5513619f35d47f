"""A unit's rows in files of their own: written under temporary names, and moved by their owner."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.layout import shard_names
from c2v_engine.jobs.corpus.records import ShardFile
from c2v_engine.jobs.output import sync_folder, write_failure
from c2v_engine.jobs.writers import DTYPES, check_precision, open_format
from c2v_engine.jobs.writers.base import Writer
from c2v_engine.jobs.writers.tables import EMBEDDING

FORMATS = ("parquet", "arrow", "safetensors", "npy")
_MOST_ROWS = 32 * 1024
_MOST_BYTES = 256 * 1024 * 1024
_CHUNK = 1024 * 1024


class ShardWriter:
    """Writes the files of one shard; they stay under temporary names.

    Args:
        folder: the job's.
        unit: number of the unit.
        format: parquet, arrow, safetensors or npy.
        schema: pyarrow schema of the columns, ``id`` first.
        dimension: columns of an embedding.
        precision: of the embeddings.
        metadata: about the job; equal in all shards.
        nulls: whether rows may have no embedding.

    Raises:
        OutputError: the folder can not be written to, or the format can not hold such columns.
    """

    def __init__(
        self,
        folder: Path,
        unit: int,
        format: str,
        schema: Any,
        dimension: int,
        precision: str,
        metadata: dict[str, Any],
        *,
        nulls: bool = False,
    ) -> None:
        self._folder = folder
        self._names = shard_names(unit, format)
        self._temporary: list[str] = []
        self._files: list[IO[bytes]] = []
        self._writer: Writer | None = None
        self._over = False
        with self._mishaps():
            for name in self._names:
                temporary = temporary_name(name)
                self._files.append(open(folder / temporary, "xb"))  # noqa: SIM115
                self._temporary.append(temporary)
            self._writer = open_format(
                format, self._files, dimension, precision, schema, metadata, nulls=nulls
            )

    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Append rows.

        Args:
            columns: pyarrow record batch [rows] of the schema.
            embeddings: [valid rows, dimension].
            valid: bool [rows], which rows have an embedding; None for all.

        Raises:
            OutputError: the system refuses, for example on a full disk; nothing is left.
        """
        assert self._writer is not None
        with self._mishaps():
            self._writer.write(columns, embeddings, valid)

    def finish(self) -> list[tuple[str, ShardFile]]:
        """Complete the files and sync them.

        Returns:
            For each file the name that it has until it is committed, and what is recorded of it.

        Raises:
            OutputError: the system refuses; nothing is left.
        """
        assert self._writer is not None
        with self._mishaps():
            self._writer.finish()
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            found = [
                (temporary, ShardFile(name, *digest_of(self._folder / temporary)))
                for name, temporary in zip(self._names, self._temporary, strict=True)
            ]
        self._over = True
        return found

    def abandon(self) -> None:
        """Remove what was written, unless it is finished."""
        if self._over:
            return
        self._over = True
        if self._writer is not None:
            self._writer.abandon()
        for temporary in self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / temporary)
        for file in self._files:
            with contextlib.suppress(OSError):  # closing flushes, on a full disk in vain
                file.close()

    @contextmanager
    def _mishaps(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abandon()
            raise write_failure(str(self._folder / self._names[0]), error) from error
        except BaseException:
            self.abandon()
            raise


open_shard = ShardWriter


def commit_shard(folder: Path, files: Iterable[tuple[str, ShardFile]]) -> None:
    """Move a finished shard's files to their places, lastingly; only who holds the lock may.

    Raises:
        OutputError: the system refuses.
    """
    for temporary, file in files:
        try:
            os.replace(folder / temporary, folder / file.name)
        except OSError as error:
            raise write_failure(str(folder / file.name), error) from error
    sync_folder(folder)


def check_shards(folder: Path, format: str, schema: Any, precision: str, *, nulls: bool) -> None:
    """Check, before anything is computed, that shards can be written.

    Args:
        folder: of the job, for messages; nothing is written.
        format: of the shards.
        schema: pyarrow schema of the columns, ``id`` first.
        precision: of the embeddings.
        nulls: whether rows may have no embedding.

    Raises:
        OutputError: the format is unknown, or can not hold such columns, such embeddings, or rows
            without one.
    """
    if format not in FORMATS:
        raise OutputError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    check_precision(str(folder), precision)
    names = [*schema.names, EMBEDDING]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OutputError(f"{folder}: two columns of the output would be named {twice!r}")
    if nulls and format in ("npy", "safetensors") and np.dtype(DTYPES[precision]).kind != "f":
        raise OutputError(
            f"{folder}: {format} files hold no null, and {precision} has no NaN: write parquet or "
            "arrow, or skip bad rows"
        )
    files = [io.BytesIO() for _ in shard_names(0, format)]
    open_format(format, files, 8, precision, schema, {}, nulls=nulls).finish()


def default_shard_rows(dimension: int, precision: str) -> int:
    """How many rows make a shard where nobody says it.

    Args:
        dimension: columns of an embedding, bytes for packed bits.
        precision: of the embeddings.

    Returns:
        A power of two, at most 32,768, so that the embeddings of a shard take at most 256 MiB.
    """
    row_bytes = max(1, dimension * np.dtype(DTYPES[precision]).itemsize)
    most: int = max(1, min(_MOST_ROWS, _MOST_BYTES // row_bytes))
    return 1 << (most.bit_length() - 1)


def temporary_name(name: str) -> str:
    """A name that no other process gives, on any machine, for a file that is not whole yet."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
    return f".{name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"


def digest_of(path: Path) -> tuple[int, str]:
    """Read a file and give its size and its SHA-256 in hexadecimal digits.

    Raises:
        OSError: it can not be read.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
