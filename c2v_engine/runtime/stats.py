"""What has gone through an engine, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

# Entries of ``EncodeStats.lengths``: the last one begins at 2^31 rows, more than any text has.
LENGTH_BUCKETS = 32


def _no_lengths() -> np.ndarray:
    return np.zeros(LENGTH_BUCKETS, dtype=np.int64)


@dataclass(eq=False)
class EncodeStats:
    """What has gone through an engine, growing as batches finish.

    Of several devices, seconds are the sum: more than one may pass in a second.

    Attributes:
        texts: texts embedded; equal ones of a window are computed once and counted each.
        tokens: rows of the decoder that were computed.
        encoder_tokens: tokens of the encoder that were computed.
        batches: batches run.
        busy_seconds: in which the device had work. On a CPU: a batch was laid out or computed. On
            CUDA: a batch was launched and not yet collected, which includes the time until the
            caller comes to fetch what is done.
        tokenize_seconds: of all tokenizer threads together.
        wait_seconds: in which the device had no work because the next batch was not there: its
            texts were being read or tokenised. Of a worker process, while it has a unit.
        lengths: int64 ``[32]``: distinct texts computed, by decoder rows; entry i counts those of
            2^i to 2^(i+1) - 1 rows. Replaced as it grows, never changed in place.
    """

    texts: int = 0
    tokens: int = 0
    encoder_tokens: int = 0
    batches: int = 0
    busy_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    wait_seconds: float = 0.0
    lengths: np.ndarray = field(default_factory=_no_lengths)

    def add(self, other: EncodeStats) -> None:
        """Count what went through elsewhere as well."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def since(self, before: EncodeStats) -> EncodeStats:
        """What has gone through since a copy was taken."""
        names = [one.name for one in fields(self)]
        return EncodeStats(**{name: getattr(self, name) - getattr(before, name) for name in names})
