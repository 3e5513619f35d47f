"""What the public face needs of whatever embeds texts: a pipeline here, or processes elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch

from c2v_engine.errors import BackendError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import BatchRunner
from c2v_engine.runtime.stats import EncodeStats


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
