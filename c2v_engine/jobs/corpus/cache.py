"""Embeddings kept on disk by text, so that a text which any earlier job met is not computed again.

One SQLite file serves many models and any number of processes of one machine. Rows are found by a
hash of 128 bits of the text: among ten thousand million texts two share one with a probability of
1.5e-19 (n^2 / 2^129), far below that of an undetected error of memory or disk. Each row has a
checksum, so that a changed bit makes a text unknown rather than its embedding wrong.

The write-ahead log makes a killed process lose at most the rows that it was writing. It needs
memory shared by all who have the file open, so the file must be on a disk of their own machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine._version import __version__
from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.cache_file import is_damage, open_cache_file, transaction
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.encode import EncodeOptions

_KEYS_PER_QUERY = 512
_ROWS_PER_COMMIT = 4096

_INSERT = """
INSERT INTO vectors (namespace, key, crc, vector) VALUES (?, ?, ?, ?)
ON CONFLICT (namespace, key) DO UPDATE SET crc = excluded.crc, vector = excluded.vector
"""


def cache_namespace(
    facts: EngineFacts, options: EncodeOptions, *, deterministic: bool
) -> dict[str, Any]:
    """Say all that decides an embedding's bits, apart from its text.

    Args:
        facts: of the engine.
        options: how texts are embedded. ``batch_tokens`` decides nothing beyond what an engine that
            is not deterministic leaves open anyway.
        deterministic: whether the engine is. What was computed by one that is not never serves one
            that is.

    Raises:
        InputError: the engine has no fingerprint, or no such prompt.
    """
    info = facts.info
    if info.get("fingerprint") is None:
        raise InputError(
            f"model {info.get('model')!r} has no fingerprint to tell its embeddings from another's:"
            " it can not be used with a cache"
        )
    prompts, name = info.get("prompts", {}), options.prompt_name or info.get("default prompt")
    if options.prompt is None and name is not None and name not in prompts:
        raise InputError(f"prompt_name is {name!r}, the model has {', '.join(prompts) or 'none'}")
    chosen = "" if name is None else prompts.get(name, "")
    return {
        "release": __version__,
        "fingerprint": info["fingerprint"],
        "prompt": chosen if options.prompt is None else options.prompt,
        "precision": options.precision,
        "truncate_dim": options.truncate_dim,
        "dimension": facts.dimension,
        "normalize": info.get("normalize"),
        "ranges": facts.ranges_digest(options.precision),
        "dtype": info.get("dtype"),
        "device": str(info.get("device", "")).partition(":")[0],
        "attention": [info.get("attention backend"), info.get("encoder attention backend")],
        "deterministic": deterministic,
    }


class VectorCache:
    """The embeddings of one namespace of a cache file; threads may share it, processes may not.

    Trouble that comes later than opening (a full disk, a file that stays locked or turns out to be
    damaged) ends the caching with one warning, and nothing else: all embeddings can be computed
    without it.

    Args:
        path: the file; it is made where there is none.
        about: what decides the bits, as ``cache_namespace`` says it; other values are another
            namespace.
        dimension: columns of an embedding.
        dtype: NumPy's name of its type.

    Raises:
        InputError: the file is something else, or damaged. It is left as it is.
        OutputError: the file can not be made or written.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: Mapping[str, Any], dimension: int, dtype: Any
    ) -> None:
        self.name = os.fspath(path)
        self._dtype = np.dtype(dtype)
        self._shape = (dimension,)
        self._bytes = dimension * self._dtype.itemsize
        text = json.dumps({**about, "columns": dimension, "type": self._dtype.str}, sort_keys=True)
        digest = blake2b(text.encode(), digest_size=16).digest()
        self._crc = zlib.crc32(digest)
        self._locks = (threading.Lock(), threading.Lock())
        self._over = [False, False]  # for reading, for writing
        self._writer, self._namespace = open_cache_file(self.name, digest, text)
        self._reader, _ = open_cache_file(self.name, digest, text)

    def get_many(self, texts: Sequence[str]) -> list[NDArray[Any] | None]:
        """Give the embedding [dimension] of each text, None where there is none."""
        if self._over[0] or not texts:
            return [None] * len(texts)
        keys = [_key(text) for text in texts]
        found: dict[bytes, NDArray[Any]] = {}
        with self._locks[0], self._trouble_ends(0):
            self._read(keys, found)
        return [found.get(key) for key in keys]

    def put_many(self, texts: Sequence[str], vectors: NDArray[Any]) -> None:
        """Keep embeddings.

        Args:
            texts: whose they are.
            vectors: [texts, dimension], of the cache's type.
        """
        if self._over[1] or not texts:
            return
        assert vectors.shape == (len(texts), *self._shape)
        assert vectors.dtype == self._dtype
        vectors = np.ascontiguousarray(vectors)
        with self._locks[1], self._trouble_ends(1):
            self._write(texts, vectors)

    def close(self) -> None:
        """Close the file."""
        for lock, connection in zip(self._locks, (self._reader, self._writer), strict=True):
            with lock:
                self._over = [True, True]
                connection.close()

    def _read(self, keys: list[bytes], found: dict[bytes, NDArray[Any]]) -> None:
        wanted = sorted(set(keys))  # near in the index, near in time
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            part = wanted[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            for key, crc, vector in self._reader.execute(
                f"SELECT key, crc, vector FROM vectors WHERE namespace = ? AND key IN ({marks})",
                (self._namespace, *part),
            ):
                if len(vector) == self._bytes and self._checksum(key, vector) == crc:
                    found[key] = np.frombuffer(vector, self._dtype)

    def _write(self, texts: Sequence[str], vectors: NDArray[Any]) -> None:
        for start in range(0, len(texts), _ROWS_PER_COMMIT):
            part = slice(start, start + _ROWS_PER_COMMIT)
            with transaction(self._writer):
                self._writer.executemany(_INSERT, self._rows(texts[part], vectors[part]))

    def _rows(
        self, texts: Sequence[str], vectors: NDArray[Any]
    ) -> Iterator[tuple[int, bytes, int, bytes]]:
        for text, vector in zip(texts, vectors, strict=True):
            key, value = _key(text), vector.tobytes()
            yield self._namespace, key, self._checksum(key, value), value

    def _checksum(self, key: bytes, vector: bytes) -> int:
        return zlib.crc32(vector, zlib.crc32(key, self._crc))

    @contextlib.contextmanager
    def _trouble_ends(self, side: int) -> Iterator[None]:
        """Read (side 0) or write (1) inside; the first failure is the last one."""
        try:
            yield
        except sqlite3.Error as error:
            if self._over[side]:  # closed meanwhile, or told already
                return
            self._over = [True, True] if is_damage(error) else [self._over[0] or side == 0, True]
            what = "used" if self._over[0] else "added to"
            warnings.warn(
                f"{self.name}: the cache is not {what} any more ({error}); the job goes on",
                stacklevel=4,
            )


def _key(text: str) -> bytes:
    # A lone surrogate is refused by the engine, not here.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
