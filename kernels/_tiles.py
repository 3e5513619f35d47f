"""How the Triton kernels over rows are launched: which tile of them is one program's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from c2v_engine.kernels._triton import FP_FUSION, cdiv, next_power_of_2

__all__ = [
    "MAX_FLOAT8_NORM_COLUMNS",
    "MAX_TILE_COLUMNS",
    "RowTile",
    "element_tile",
    "row_tile",
]

MAX_TILE_COLUMNS = 32768
"""The widest row that a program keeps in registers: 32 values of each of 1,024 threads.

Twice as many would not fit into the 64 registers that each of so many threads has. A wider row is
left to the PyTorch form.
"""

MAX_FLOAT8_NORM_COLUMNS = MAX_TILE_COLUMNS // 2
"""The same for a norm that converts its row to float8, which takes registers of its own."""

# Two 16-byte loads of a 16-bit dtype, four of float32: enough in flight to hide the latency of the
# memory, with few registers.
_ELEMENTS_PER_THREAD = 16
_MIN_WARPS = 4
_MAX_WARPS = 32
_WARP = 32
# Of an element-wise tile: a thread's elements are half a kilobyte of a row or more for each warp,
# which the memory delivers in full bursts.
_BLOCK_COLUMNS = (1024, 512, 256)


@dataclass(frozen=True)
class RowTile:
    """What one program of a row-wise kernel works on: some rows, whole or a block of their columns.

    Attributes:
        rows: of a tile, a power of two.
        columns: of a tile, a power of two.
        num_warps: warps of a program.
        blocks: of columns that cover a row.
    """

    rows: int
    columns: int
    num_warps: int
    blocks: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the launch: the tile's constants and the compiler's options."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "num_warps": self.num_warps,
            "enable_fp_fusion": FP_FUSION,
        }

    def grid(self, tokens: int) -> tuple[int, int]:
        """Programs for so many rows; tokens stand on the axis that has no limit of 65,535."""
        return cdiv(tokens, self.rows), self.blocks


def row_tile(width: int, *, per_thread: int = _ELEMENTS_PER_THREAD) -> RowTile:
    """The tile for rows of a width; the number of rows in a batch never changes it.

    A row is read once and kept in registers, so that the reduction and the result need no second
    pass. Narrow rows share a program: fewer than four warps leave a multiprocessor's slots for
    blocks full before its threads are. The sum of a row is formed in an order that this tile alone
    decides, so a row's result does not depend on the batch.

    Args:
        width: of a row, up to ``MAX_TILE_COLUMNS``.
        per_thread: elements of a thread; an op asks for fewer where its registers would spill.
    """
    columns = next_power_of_2(width)
    assert columns <= MAX_TILE_COLUMNS
    rows = max(1, _MIN_WARPS * _WARP * per_thread // columns)
    warps = rows * columns // (_WARP * per_thread)
    return RowTile(rows, columns, min(max(warps, _MIN_WARPS), _MAX_WARPS))


def element_tile(width: int) -> RowTile:
    """The tile for rows of a width, of which no program needs the whole.

    Its block of columns is the widest that leaves the fewest threads without a column: 1,024 for
    rows of 3,072 or 4,096, 256 for rows of 768. A narrow row is one block.
    """
    if width <= _BLOCK_COLUMNS[-1]:
        columns = next_power_of_2(width)
    else:
        columns = min(_BLOCK_COLUMNS, key=lambda size: cdiv(width, size) * size)
    rows = _MIN_WARPS * _WARP * _ELEMENTS_PER_THREAD // columns
    return RowTile(rows, columns, _MIN_WARPS, blocks=cdiv(width, columns))
