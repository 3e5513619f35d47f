"""Rounding row counts on a CPU, where every new one costs memory for good.

oneDNN compiles a matrix product for each number of rows that it meets and keeps it (about a
megabyte each), and the allocator's heap is torn by tensors of ever new sizes. Packed batches would
have another number of rows each time, and a corpus would grow the process by hundreds of megabytes.
So large counts are rounded up to a few sizes an octave. What is added are rows of no text, whose
results nobody reads.
"""

from __future__ import annotations

_FEWEST_TOKENS = 1024
_TOKEN_STEPS = 4
_FEWEST_POOLED = 16
_POOLED_STEPS = 2


def rounded_tokens(tokens: int) -> int:
    """Rows of a whole batch: 16 sizes an octave from 1,024 on, 3% more rows on average at most."""
    return tokens if tokens < _FEWEST_TOKENS else _round_up(tokens, _TOKEN_STEPS)


def rounded_pooled(rows: int) -> int:
    """Pooled rows, of which there are few: 4 sizes an octave."""
    return rows if rows < _FEWEST_POOLED else _round_up(rows, _POOLED_STEPS)


def _round_up(rows: int, steps: int) -> int:
    """The next multiple of the octave's size over ``2 ** steps``."""
    quantum = 1 << ((rows - 1).bit_length() - 1 - steps)
    return -(-rows // quantum) * quantum
