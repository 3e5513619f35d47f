"""What the backends on our own kernels share."""

from __future__ import annotations

from typing import Any

import torch

from c2v_engine.model.attention.base import (
    AttentionBackend,
    AttentionMask,
    PackedPlan,
    attend_packed,
)
from c2v_engine.model.packed_batch import KeySequences, PackedSequences


class PackedBackend(AttentionBackend):
    """``c2v_engine.kernels.packed_attention`` for all rows and for chosen ones."""

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> PackedPlan:
        """See the base class."""
        return PackedPlan.of(sequences, mask)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Any,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        return attend_packed(query, key, value, plan, scale)

    def plan_rows(
        self, keys: PackedSequences | KeySequences, rows: torch.Tensor, mask: AttentionMask
    ) -> PackedPlan:
        """See the base class."""
        return PackedPlan.of_rows(keys, rows, mask)

    def attend_rows(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Any,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        return attend_packed(query, key, value, plan, scale)
