"""Stock transformers, padded, through ``torch.compile``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from c2v_engine.bench.machine.trouble import one_line
from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.forms import no_stock_form, refuse_other_dtypes
from c2v_engine.bench.providers.stock import PADDED_BATCH, Padded, StockModel
from c2v_engine.bench.workloads import Workload

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["Compiled", "open_compiled"]

MOST_GRAPHS = 64


def open_compiled(session: Session, spec: Spec) -> Provider:
    """Decoder and encoder compiled for any shape; nothing is compiled before they run."""
    refuse_other_dtypes(spec)
    why_not = no_stock_form(session.description.config)
    if why_not:
        raise UnusableError(why_not)
    refuse_without_compiler(session.device)
    return Compiled(session.stock_model(spec.dtype))


def refuse_without_compiler(device: torch.device) -> None:
    """Compiles next to nothing.

    Raises:
        UnusableError: that does not work here: no C++ compiler, no Triton.
    """
    try:
        torch.compile(lambda values: values.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:  # whatever a compiler, a linker or Triton says
        raise UnusableError(f"torch.compile does not work here: {one_line(error)}") from None


class Compiled(Padded):
    """As ``Padded``, the modules compiled with dynamic shapes.

    All texts go longest first in batches of one size, so that a shape is met whose batch is another
    only at the end. The check and the round that is not timed compile what every shape needs.

    Args:
        model: the modules, which stay as they are for whoever shares them.
    """

    def __init__(self, model: StockModel) -> None:
        decoder, encoder = (
            None if part is None else torch.compile(part, dynamic=True)
            for part in (model.decoder, model.encoder)
        )
        super().__init__(replace(model, decoder=decoder, encoder=encoder))
        self._compiling_s = 0.0
        self._graphs = 0

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class; notes what is compiled."""
        from torch._dynamo import config as dynamo_config
        from torch._dynamo.utils import counters

        start, before = time.perf_counter(), counters["stats"]["unique_graphs"]
        # Models of one architecture count together, and past a limit they would run uncompiled.
        with dynamo_config.patch(recompile_limit=MOST_GRAPHS, fail_on_recompile_limit_hit=True):
            vectors = super().embed(workload)
        made = counters["stats"]["unique_graphs"] - before
        self._graphs += made
        self._compiling_s += time.perf_counter() - start if made else 0.0
        self.note = (
            f"graphs: {self._graphs}, compiled in {self._compiling_s:.0f} s, "
            f"batches of {PADDED_BATCH}"
        )
        return vectors
