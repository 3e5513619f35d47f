"""Equal texts found by a hash of eight bytes each."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


class TextHashes:
    """Hashes of texts, equal where the texts are once white space is left out of account.

    Two different texts fall together once in about 2^64 / n^2 sets of n texts.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, text: str) -> None:
        """Take the next text."""
        digest = blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))

    def values(self) -> NDArray[np.uint64]:
        """The hashes [texts]."""
        return np.array(self._hashes, dtype=np.uint64)


@dataclass(frozen=True)
class Distinct:
    """The distinct ones of some texts, numbered as they first appear.

    Attributes:
        of_text: int64 [texts], the number of each.
        is_first: bool [texts], whether none before is equal.
        hashes: uint64 [distinct texts].
    """

    of_text: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> Distinct:
        """Number texts by their hashes [texts]."""
        values, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        number = np.empty(len(order), dtype=np.int64)
        number[order] = np.arange(len(order))
        is_first = np.zeros(len(hashes), dtype=np.bool_)
        is_first[firsts] = True
        return cls(number[inverse.reshape(-1)], is_first, values[order])

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The numbers of other texts by their hashes, -1 where they are not among these."""
        order = np.argsort(self.hashes)
        places = np.searchsorted(self.hashes, hashes, sorter=order)
        numbers = order[np.minimum(places, len(order) - 1)]
        return np.where(self.hashes[numbers] == hashes, numbers, -1)
