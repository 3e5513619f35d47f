"""How another process opens an engine: what it is called with, in a form that travels there."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from c2v_engine import Causal2Vec


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

    def open(self) -> Causal2Vec:
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
