"""How many rows a batch is computed with: rows of no text may be added to those of its texts.

On a CPU every new number of rows costs memory for good. oneDNN compiles a matrix product for each
that it meets and keeps it (about a megabyte each), and the allocator's heap is torn by tensors of
ever new sizes. Packed batches would have another number each time, and a corpus would grow the
process by hundreds of megabytes. So large counts are rounded up to a few sizes an octave.

In deterministic mode products are made in blocks of one shape, so counts are whole blocks.

What is added are rows of no text, whose results nobody reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class Rounding(ABC):
    """Rounds row counts up.

    Attributes:
        block_rows: rows of every product, None where a product takes all rows there are.
    """

    block_rows: int | None = None

    @abstractmethod
    def tokens(self, tokens: int) -> int:
        """Rows of a whole batch."""

    @abstractmethod
    def pooled(self, rows: int) -> int:
        """Rows that are pooled, or texts: of these there are few."""


class NoRounding(Rounding):
    """As many rows as there are."""

    def tokens(self, tokens: int) -> int:
        """See the base class."""
        return tokens

    def pooled(self, rows: int) -> int:
        """See the base class."""
        return rows


class FewSizes(Rounding):
    """A few sizes an octave for large counts, for CPUs."""

    _FEWEST_TOKENS = 1024
    _TOKEN_STEPS = 4
    _FEWEST_POOLED = 16
    _POOLED_STEPS = 2

    def tokens(self, tokens: int) -> int:
        """16 sizes an octave from 1,024 on, 3% more rows on average at most."""
        return tokens if tokens < self._FEWEST_TOKENS else _round_up(tokens, self._TOKEN_STEPS)

    def pooled(self, rows: int) -> int:
        """4 sizes an octave from 16 on."""
        return rows if rows < self._FEWEST_POOLED else _round_up(rows, self._POOLED_STEPS)


@dataclass(frozen=True)
class WholeBlocks(Rounding):
    """Whole blocks of rows, for deterministic mode."""

    block_rows: int

    def tokens(self, tokens: int) -> int:
        """See the base class."""
        return -(-tokens // self.block_rows) * self.block_rows

    def pooled(self, rows: int) -> int:
        """See the base class."""
        return self.tokens(rows)


# A block on a CPU: with weights that oneDNN has laid out 64 rows multiply nearly as fast as 1,024,
# and one short text costs no more than these. A GPU needs more rows to fill its multiprocessors.
_BLOCK_ROWS = {"cpu": 64, "cuda": 1024}


def rounding_for(device: torch.device, *, deterministic: bool) -> Rounding:
    """How a model on a device rounds its row counts."""
    if deterministic:
        return WholeBlocks(_BLOCK_ROWS.get(device.type, 64))
    return FewSizes() if device.type == "cpu" else NoRounding()


def in_pieces(rows: int, longest: int) -> list[int]:
    """Lengths of sequences of no text, none longer than a real one, that make up so many rows."""
    assert rows >= 0, rows
    whole, rest = divmod(rows, longest)
    return [longest] * whole + [rest] * (rest > 0)


def _round_up(rows: int, steps: int) -> int:
    """The next multiple of the octave's size over ``2 ** steps``."""
    quantum = 1 << ((rows - 1).bit_length() - 1 - steps)
    return -(-rows // quantum) * quantum
