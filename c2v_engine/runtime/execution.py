"""Running batches: on the host at once, on a GPU some ahead of what has come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Lock
from typing import NamedTuple

import torch

from c2v_engine.model.causal2vec import PackedCausal2Vec
from c2v_engine.model.decoder import PromptStates
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.packing import HostBatch, PackingRules, lay_out
from c2v_engine.runtime.tokenization import TokenizedText


class Embedded(NamedTuple):
    """What a batch gave, on the host.

    Attributes:
        embeddings: ``[texts, columns]``.
        norms: float32 ``[texts]``, not finite where the embedding is not.
    """

    embeddings: torch.Tensor
    norms: torch.Tensor


class UnderWay(ABC):
    """A batch that was launched."""

    @abstractmethod
    def result(self) -> Embedded:
        """Wait for it; the same every time."""


class _Done(UnderWay):
    """A batch that was computed as it was launched."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded

    def result(self) -> Embedded:
        """See the base class."""
        return self._embedded


class Execution(ABC):
    """Runs the batches of one model; may be used from several threads.

    Args:
        model: on its device.
        rules: how its batches are packed.
        batch_tokens: most rows of a batch where a call asks for none.

    Attributes:
        ahead: how many batches are worth launching before the first is waited for.
    """

    ahead: int = 0

    def __init__(self, model: PackedCausal2Vec, rules: PackingRules, batch_tokens: int) -> None:
        self.model = model
        self.rules = rules
        self.batch_tokens = batch_tokens
        # Batches of several threads share the graphs, the prompts' states and the workspace.
        self._lock = Lock()

    @abstractmethod
    def launch(
        self,
        texts: list[TokenizedText],
        output: OutputFormat,
        batch_tokens: int,
        prompt: tuple[int, ...],
    ) -> UnderWay:
        """Launch one batch.

        Args:
            texts: at least one.
            output: the format of the embeddings.
            batch_tokens: most tokens of an encoder's pass.
            prompt: ids of the rows that all of the texts begin with and that are computed once.

        Raises:
            torch.OutOfMemoryError: it does not fit in the device's memory.
        """

    def _prompt_states(self, batch: HostBatch) -> PromptStates | None:
        """What its sequences begin with, where they were packed without it."""
        return self.model.prompt_states(batch.prompt) if batch.prompt else None

    def close(self) -> None:  # noqa: B027  (there may be nothing to end)
        """Wait for what is under way, and let go of what was kept for later batches."""

    def out_of_memory(self) -> None:  # noqa: B027  (nothing to do is right for most)
        """Give back what memory can be, after a batch did not fit and the others are done."""


class HostExecution(Execution):
    """On the CPU: a launch computes."""

    def launch(
        self,
        texts: list[TokenizedText],
        output: OutputFormat,
        batch_tokens: int,
        prompt: tuple[int, ...],
    ) -> UnderWay:
        """See the base class."""
        batch = lay_out(texts, self.rules, batch_tokens, self.model.rounding, prompt)
        return _Done(self.run(batch, output))

    def run(self, batch: HostBatch, output: OutputFormat) -> Embedded:
        """Compute a batch that was laid out."""
        with self._lock:
            states = self._prompt_states(batch)
            on_host = batch.on(torch.from_numpy(batch.buffer))
            try:
                embeddings, norms = self.model.forward(on_host, output, states)
            except RuntimeError as error:
                if "can't allocate memory" not in str(error):
                    raise
                raise torch.OutOfMemoryError(str(error)) from None
        return Embedded(embeddings[: batch.num_texts], norms[: batch.num_texts])
