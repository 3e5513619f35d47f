"""Who embeds the texts: what every provider answers to, and how one is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from c2v_engine.bench.workloads import Workload

__all__ = ["Provider", "Spec", "UnusableError"]


class UnusableError(RuntimeError):
    """A provider that can not be had here, and why."""


@dataclass(frozen=True)
class Spec:
    """A provider that a case asks for.

    Attributes:
        kind: a name in ``registry.OPENERS``, such as ``engine`` or ``padded``.
        dtype: of the computation; ``float8`` or ``int8`` for the engine's linear layers in it.
        deterministic: an option of the engine.
        cuda_graphs: likewise.
        share_prompts: likewise.
        url: of a server that embeds.
    """

    kind: str
    dtype: str = "bfloat16"
    deterministic: bool = False
    cuda_graphs: bool = True
    share_prompts: bool = True
    url: str | None = None

    @property
    def name(self) -> str:
        """In results: kind, dtype, and options that are not the default."""
        words = [self.kind, self.dtype]
        words += ["deterministic"] if self.deterministic else []
        words += [] if self.cuda_graphs else ["no-graphs"]
        words += [] if self.share_prompts else ["unshared"]
        return " ".join(words)


class Provider(ABC):
    """Embeds workloads with one model."""

    note = ""
    """What a reader should know of how it works here."""
    elsewhere = False
    """Whether another process computes: this one's memory then tells nothing of it."""
    settles = False
    """Whether ``prepare`` chooses how it computes: its vectors are then compared again."""

    @abstractmethod
    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """The call that is timed: returns when the work is done."""

    @abstractmethod
    def embed(self, workload: Workload) -> torch.Tensor:
        """Normalised vectors ``[texts, dimension]``, float32 on the CPU, in the texts' order."""

    def close(self) -> None:  # noqa: B027  (most have nothing to let go of)
        """Lets go of what is not memory alone: a process, a server, a file."""
