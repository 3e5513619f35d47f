"""Rows of a table in plain PyTorch, for the forms of the ops that no kernel serves."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

__all__ = ["gather_known_rows", "gather_rows"]


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table, where an id out of range is an IndexError on the CPU."""
    if not len(table) and len(ids):  # torch would name the table's dimension, in a RuntimeError
        raise IndexError(f"index out of range: the table has no rows, and {len(ids)} are asked for")
    return F.embedding(ids, table)


def gather_known_rows(table: Tensor, ids: Tensor) -> Tensor:
    """The same with NaN for an id out of range, so that no step needs a value on the host."""
    outside = (ids < 0) | (ids >= len(table))
    table = table if len(table) else table.new_zeros((1, table.shape[1]))
    return F.embedding(ids.masked_fill(outside, 0), table).masked_fill_(outside[:, None], torch.nan)
