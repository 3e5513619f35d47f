"""Cosine similarity of embeddings."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.errors import InputError


def cosine_similarity(
    first: np.ndarray | torch.Tensor, second: np.ndarray | torch.Tensor
) -> torch.Tensor:
    """Cosine similarity of every pair.

    Args:
        first: float or int8 embeddings ``[n, dimensions]`` or ``[dimensions]``. Packed ``binary``
            ones are int8 too and can not be told apart: compare those by Hamming distance.
        second: likewise, ``[m, dimensions]``.

    Returns:
        Float32 ``[n, m]``.

    Raises:
        InputError: uint8 embeddings, or widths that differ.
    """
    a, b = _rows(first), _rows(second)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"embeddings are {a.shape[1]} and {b.shape[1]} wide, expected the same")
    return F.normalize(a) @ F.normalize(b).T


def _rows(embeddings: np.ndarray | torch.Tensor) -> torch.Tensor:
    rows = torch.as_tensor(embeddings)
    if rows.dtype == torch.uint8:
        raise InputError(
            "similarity of uint8 embeddings is not defined: they are packed bits or shifted "
            "levels; compare float or int8 ones"
        )
    if rows.ndim not in (1, 2):
        raise InputError(f"embeddings have {rows.ndim} dimensions, expected 1 or 2")
    return (rows if rows.ndim == 2 else rows.unsqueeze(0)).float()
