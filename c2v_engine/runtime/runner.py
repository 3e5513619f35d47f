"""What the public face needs of whatever embeds texts: a pipeline here, or processes elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from c2v_engine.errors import BackendError
from c2v_engine.model.pooling import OutputFormat

if TYPE_CHECKING:
    from c2v_engine.runtime.batch_runner import BatchRunner

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


class Runner(ABC):
    """Embeds texts with one model.

    Attributes:
        stats: what has gone through.
    """

    stats: EncodeStats

    @abstractmethod
    def run(
        self,
        texts: Iterable[str],
        prompt: str,
        batch_tokens: int | None,
        output: OutputFormat,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Embed texts of any number, in order, with bounded memory.

        Args:
            texts: any iterable; read some thousands of texts ahead of what is returned.
            prompt: of all of them.
            batch_tokens: most rows of a batch; None for as many as suit the device.
            output: the format of the embeddings.
            report: called with the number of texts of each batch that is done.

        Yields:
            Blocks of embeddings on the CPU, ``[texts, columns]``, in the order of the input.

        Raises:
            TextError: a text that can not be embedded, or whose embedding is not finite.
        """

    def warmup(self, prompt: str, output: OutputFormat) -> None:
        """Have small batches of every size be fast from the first on.

        Args:
            prompt: of the texts that will come.
            output: their format.

        Raises:
            BackendError: this runner can not; see there.
        """
        raise BackendError("worker processes warm up by their first texts, not by warmup()")

    def batch_runner(self) -> BatchRunner:
        """What runs single batches that its caller forms.

        Raises:
            BackendError: this runner can not.
        """
        raise BackendError("worker processes form their batches themselves: open it on one device")

    @abstractmethod
    def info(self) -> dict[str, str]:
        """Where and how the model runs, for people: names and plain values."""

    @abstractmethod
    def close(self) -> None:
        """End what was started for it."""
