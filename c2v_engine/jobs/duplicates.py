"""Counts repeated ids in eight bytes a row."""

from __future__ import annotations

from array import array
from hashlib import blake2b

import numpy as np


class DuplicateCounter:
    """Keeps a 64-bit hash of every id and counts the repeats at the end.

    Two different ids fall together once in about 2^64 / n^2 runs of n rows; only the count that
    is said would be wrong then.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, ids: list[str | int]) -> None:
        """Take the ids of the next rows."""
        self._hashes.extend(map(_hash64, ids))

    def count(self) -> int:
        """Count the rows whose id an earlier row has."""
        if not self._hashes:
            return 0
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        hashes.sort()  # in place: no second copy of a long column
        return int(np.count_nonzero(hashes[1:] == hashes[:-1]))


def _hash64(key: str | int) -> int:
    if isinstance(key, int):
        return key & 0xFFFF_FFFF_FFFF_FFFF
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
