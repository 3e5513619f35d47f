"""The engine of a worker: how it is opened, and what the job needs to know of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.encode import EncodeOptions, Encoder


@dataclass(frozen=True)
class EngineSpec:
    """What ``Causal2Vec.from_pretrained`` is called with.

    Attributes:
        model: a checkpoint's folder or Hub name; None for the default model.
        device: as there, and so are the next three.
        dtype: as there.
        attention: as there.
        deterministic: as there.
        threads: of the processor that it may use; None for all.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    deterministic: bool = False
    threads: int | None = None

    def on(self, device: str, threads: int | None = None) -> EngineSpec:
        """The same engine on another device."""
        return replace(self, device=device, threads=threads)

    def open(self) -> Encoder:
        """Open it.

        Raises:
            C2VError: it can not be.
        """
        if self.threads is not None:
            # Read when these libraries are loaded, which in a new process is now.
            for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
                os.environ[name] = str(self.threads)
        import torch

        from c2v_engine import Causal2Vec

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)  # or it would have a context on the first one too
        return Causal2Vec.from_pretrained(
            self.model,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            deterministic=self.deterministic,
        )


@dataclass(frozen=True)
class EngineFacts:
    """What a job needs to know of an engine, in a form that travels between processes.

    Attributes:
        info: as ``Causal2Vec.info`` gives it.
        dimension: columns of what it will write.
        ranges: float32 [2, dimensions] for int8 and uint8, where there are any.
    """

    info: dict[str, Any]
    dimension: int
    ranges: NDArray[np.float32] | None

    @classmethod
    def of(cls, engine: Encoder, options: EncodeOptions) -> EngineFacts:
        """Ask an engine.

        Raises:
            InputError: options that can not be.
        """
        dimension = engine.output_dimension(options.truncate_dim, options.precision)
        return cls(engine.info(), dimension, engine.ranges)
