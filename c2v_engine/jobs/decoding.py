"""From stored rows to unit vectors that a float question can be multiplied with.

float32 and float16 are taken as they are. int8 and uint8 become the middle of the step that their
level stands for in the stored ranges. binary and ubinary become +1 and -1, a dimension each: the
question stays a float vector, which ranks better than the Hamming distance of its own bits, and is
what sentence-transformers rescores packed embeddings with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError

Decode = Callable[[NDArray[Any]], NDArray[np.float32]]

PRECISIONS = {
    "float32": ("float32",),
    "float16": ("float16",),
    "int8": ("int8", "binary"),
    "uint8": ("uint8", "ubinary"),
}
RANGED = ("int8", "uint8")
PACKED = ("binary", "ubinary")


def resolve_precision(name: str, dtype: np.dtype[Any], stored: object, given: str | None) -> str:
    """What the rows of a file mean.

    Args:
        name: of the file, for messages.
        dtype: of its embeddings.
        stored: the precision that the file itself states, None where it states none.
        given: what the user says.

    Raises:
        InputError: they contradict each other, or nobody says whether bytes are levels or bits.
    """
    possible = PRECISIONS[str(dtype)]
    if stored is not None and stored not in possible:
        raise InputError(f"{name}: states precision {stored!r}, but its embeddings are {dtype}")
    if given is not None and given not in possible:
        raise InputError(f"{name}: precision {given} is asked for, but its embeddings are {dtype}")
    if None not in (stored, given) and stored != given:
        raise InputError(f"{name}: precision {given} is asked for, but the file states {stored}")
    chosen = stored or given or (possible[0] if len(possible) == 1 else None)
    if chosen is None:
        raise InputError(
            f"{name}: does not say whether its {dtype} embeddings are levels or packed bits: pass "
            f"--precision {possible[0]} or --precision {possible[1]}"
        )
    return str(chosen)


def decoder_of(precision: str, dimension: int, ranges: NDArray[Any] | None) -> Decode:
    """Make what turns stored rows [rows, columns] into float32 [rows, dimension], of any length.

    Args:
        precision: as ``c2v encode`` names it.
        dimension: of the question; of packed bits, those past it are filling.
        ranges: float32 [2, dimension] for int8 and uint8.
    """
    if precision in RANGED:
        assert ranges is not None
        low, high = np.asarray(ranges, dtype=np.float32)
        step = (high - low) / np.float32(255)
        # In the middle of a step; of a dimension that never varied there is only its one value.
        offset = low + (128.5 if precision == "int8" else 0.5) * step
        return lambda block: block * step + offset
    if precision in PACKED:
        return lambda block: _signs(block, dimension)
    return lambda block: np.asarray(block, dtype=np.float32)


def unit_rows(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], int | None]:
    """Scale rows [rows, dimensions] to unit length; a row of zeros stays one.

    Returns:
        The rows, and the index of the first that is not finite, None where all are.
    """
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    finite = np.isfinite(largest)
    if not finite.all():
        return values, int(np.argmin(finite))
    # By the largest value first: squares of very large or small ones are no float32.
    units = values / np.where(largest > 0, largest, np.float32(1))[:, None]
    norms = np.sqrt(np.einsum("ij,ij->i", units, units))
    units /= np.maximum(norms, np.float32(1))[:, None]
    return units, None


def _signs(block: NDArray[Any], dimension: int) -> NDArray[np.float32]:
    packed = block if block.dtype == np.uint8 else block.view(np.uint8) ^ np.uint8(128)
    signs = np.unpackbits(packed, axis=1, count=dimension).astype(np.float32)
    signs *= 2
    signs -= 1
    return signs
