"""What is asked of the service, and what it answers and reports: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from c2v_engine.kernels.dual_token_pool import Precision
from c2v_engine.runtime.tokenization import Token

__all__ = [
    "BatchReport",
    "EmbedOptions",
    "EmbedResult",
    "Observer",
    "Snapshot",
    "State",
    "Timings",
    "Token",
]


@dataclass(frozen=True)
class EmbedOptions:
    """How the texts of a request are embedded.

    Attributes:
        prompt_name: one of the checkpoint's prompts; None for its default one.
        normalize: None for the checkpoint's setting.
        truncate_dim: dimensions to keep of the whole vector, as ``Causal2Vec.encode`` means it.
        precision: of the embeddings; all but bfloat16.
        truncate: whether a text that is longer than the model reads is shortened, else it is
            refused; None for the server's setting.
    """

    prompt_name: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: Precision = "float32"
    truncate: bool | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds of a request's stages, one after the other.

    Attributes:
        tokenize: from its arrival until its texts are tokenised, waiting for a thread included.
        queue: until the first of its texts is launched.
        compute: until the last of its embeddings is there.
    """

    tokenize: float
    queue: float
    compute: float


@dataclass(frozen=True, eq=False)
class EmbedResult:
    """The embeddings of a request.

    Attributes:
        embeddings: ``[texts, columns]``, as ``Causal2Vec.encode`` gives them.
        tokens: int64 ``[texts]``: rows of the decoder, those of the prompt and single ones
            included.
        timings: of the request.
    """

    embeddings: np.ndarray
    tokens: np.ndarray
    timings: Timings


class State(str, Enum):
    """Of the service."""

    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True)
class Snapshot:
    """The service at one moment.

    Attributes:
        state: what it does.
        reason: why it failed.
        queue_tokens: waiting to be launched, or to be tokenised by an estimate.
        queue_capacity: most of them.
        queued_texts: likewise texts.
        requests: that are in the service.
        tokens_per_second: of the device in batches at least half full, lately; None before the
            first of them.
        batch_tokens: most tokens of a batch.
        texts: embedded so far.
        tokens: likewise.
        batches: likewise.
    """

    state: State
    reason: str | None
    queue_tokens: int
    queue_capacity: int
    queued_texts: int
    requests: int
    tokens_per_second: float | None
    batch_tokens: int
    texts: int
    tokens: int
    batches: int


@dataclass(frozen=True)
class BatchReport:
    """A batch that was computed.

    Attributes:
        texts: in it.
        tokens: in it, by the budget's measure.
        budget: most tokens of a batch.
        seconds: from its launch until its embeddings were there.
    """

    texts: int
    tokens: int
    budget: int
    seconds: float


class Observer(Protocol):
    """Is told what the service does, in its compute thread: must be quick and not raise."""

    def batch(self, report: BatchReport) -> None:
        """A batch was computed."""

    def failure(self, reason: str) -> None:
        """The model failed, or its numbers were not finite."""
