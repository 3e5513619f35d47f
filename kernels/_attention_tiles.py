"""How the Triton kernels of ``packed_attention`` are launched.

The figures behind the choices are those of the compiled code: registers, shared memory and spills.
On a GPU no other tile has been measured beside these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from c2v_engine.kernels._triton import FP_FUSION, next_power_of_2

__all__ = ["AttentionTile", "all_rows_tile", "chosen_rows_tile"]

_MIN_SIDE = 16  # the smallest side of a tensor-core product


@dataclass(frozen=True)
class AttentionTile:
    """What one program of an attention kernel works on.

    Attributes:
        rows: queries, a power of two.
        keys: keys of a block, a power of two.
        columns: the head size rounded up to a power of two.
        num_warps: warps of a program.
        num_stages: blocks of keys and values that are in use or on their way at a time.
    """

    rows: int
    keys: int
    columns: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the launch: the tile's constants and the compiler's options."""
        return {
            "ROWS": self.rows,
            "KEYS": self.keys,
            "COLUMNS": self.columns,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": FP_FUSION,
        }


def all_rows_tile(head_dim: int, dtype: torch.dtype) -> AttentionTile:
    """The tile for all rows; neither the batch nor the mask ever changes it.

    16 bits: 64 rows are the fewest that a warp group of Hopper multiplies. A larger tile would read
    the keys of a long sequence fewer times, but of short ones more of its scores, and of those in
    blocks of over 32 keys, lie between two sequences and are thrown away. From 256 columns on the
    sums do not fit into the registers of four warps.

    Float32 has no tensor cores here, and its products are unrolled: a thread keeps 32 sums at up to
    64 columns and 16 beyond, with blocks of 16 keys, or it spills.
    """
    columns = _columns(head_dim)
    if dtype == torch.float32:
        warps = 4 if columns <= 64 else 8
        return AttentionTile(min(64, 4096 // columns), 16, columns, warps, num_stages=2)
    return AttentionTile(64, 32, columns, num_warps=4 if columns <= 128 else 8, num_stages=2)


def chosen_rows_tile(head_dim: int, dtype: torch.dtype) -> AttentionTile:
    """The tile for chosen rows; the number and lengths of the sequences never change it.

    One or two rows of a sequence with their query heads fit into the 16 rows of the smallest
    product; for more the keys are read again. What counts is to have many keys on their way: blocks
    of 16 KB in 16 bits leave room for several programs on a multiprocessor. Float32 has the largest
    blocks that do not spill.
    """
    columns = _columns(head_dim)
    if dtype == torch.float32:
        warps, keys = 4 if columns <= 64 else 8, 16 if columns <= 128 else 32
    else:
        warps, keys = 4 if columns <= 128 else 8, min(64, 8192 // columns)
    return AttentionTile(_MIN_SIDE, keys, columns, warps, num_stages=2)


def _columns(head_dim: int) -> int:
    return max(_MIN_SIDE, next_power_of_2(head_dim))
