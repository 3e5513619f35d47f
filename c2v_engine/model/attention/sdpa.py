"""Scaled dot product attention over groups of like-length sequences: runs on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.packed_batch import PackedSequences

# A group may be padded by this share of its rows: attention is a few per cent of a layer's work,
# so that some waste costs less than one more call.
_MAX_PADDING = 0.15


@dataclass(frozen=True)
class _Group:
    begin: int  # first padded row
    count: int  # sequences
    length: int  # rows of each, padded
    mask: torch.Tensor | None  # bool [count or 1, 1, length, length], None: causal or all


@dataclass(frozen=True)
class SdpaPlan:
    """Groups of a batch.

    Attributes:
        groups: in the order of the padded rows.
        gather: int64 ``[padded rows]``: the packed row each is read from, or None where the
            packed rows already stand as the groups need them.
        scatter: int64 ``[tokens]``: the padded row each packed row is read back from, or None.
        causal: whether a group without a mask is causal.
    """

    groups: list[_Group]
    gather: torch.Tensor | None
    scatter: torch.Tensor | None
    causal: bool


class SdpaAttention(AttentionBackend):
    """``torch.nn.functional.scaled_dot_product_attention`` on groups padded a little."""

    name: ClassVar[str] = "sdpa"

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """It serves everywhere."""
        return None

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> SdpaPlan:
        """Group sequences of like length and lay out their padded rows."""
        lengths = sequences.lengths
        device = sequences.token_ids.device
        mask = mask.for_length(sequences.max_seqlen)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1])) if len(lengths) else lengths
        order = np.argsort(-lengths, kind="stable")
        groups: list[_Group] = []
        gather_parts: list[np.ndarray] = []
        scatter = np.empty(int(lengths.sum()), dtype=np.int64)
        padded_rows = 0
        for members in _like_lengths(lengths, order):
            longest = int(lengths[members[0]])
            columns = np.arange(longest)
            real = columns < lengths[members][:, None]
            rows = starts[members][:, None] + np.minimum(columns, lengths[members][:, None] - 1)
            gather_parts.append(rows.reshape(-1))
            slots = padded_rows + np.arange(rows.size).reshape(rows.shape)
            scatter[rows[real]] = slots[real]
            group_mask = _group_mask(mask, lengths[members], longest)
            if group_mask is not None:
                group_mask = _to_device(group_mask, device)
            groups.append(_Group(padded_rows, len(members), longest, group_mask))
            padded_rows += rows.size
        gather = np.concatenate(gather_parts) if gather_parts else np.empty(0, np.int64)
        if np.array_equal(gather, np.arange(len(scatter))):
            return SdpaPlan(groups, None, None, mask.causal)
        return SdpaPlan(
            groups,
            _to_device(torch.from_numpy(gather), device),
            _to_device(torch.from_numpy(scatter), device),
            mask.causal,
        )

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: SdpaPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        if plan.gather is not None:
            query, key, value = (x.index_select(0, plan.gather) for x in (query, key, value))
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in plan.groups:
            rows = slice(group.begin, group.begin + group.count * group.length)
            q, k, v = (
                x[rows].unflatten(0, (group.count, group.length)).transpose(1, 2)
                for x in (query, key, value)
            )
            attended = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=group.mask,
                is_causal=plan.causal and group.mask is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            output[rows] = attended.transpose(1, 2).flatten(0, 1)
        return output if plan.scatter is None else output.index_select(0, plan.scatter)


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copied without waiting for the device, which only page-locked memory allows."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _like_lengths(lengths: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Cut sequences, longest first, where padding to the group's longest would waste too much."""
    groups: list[np.ndarray] = []
    begin = 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        end, real = begin, 0
        while end < len(order):
            candidate = real + int(lengths[order[end]])
            if candidate < (1 - _MAX_PADDING) * longest * (end + 1 - begin):
                break
            end, real = end + 1, candidate
        groups.append(order[begin:end])
        begin = end
    return groups


def _group_mask(mask: AttentionMask, lengths: np.ndarray, longest: int) -> torch.Tensor | None:
    """Boolean mask of a group, or None where SDPA's own causal or full mask is right.

    Under a causal mask padding at the end needs none: no real query sees it.
    """
    padded = bool((lengths != longest).any())
    if mask.window is None and (mask.causal or not padded):
        return None
    positions = torch.arange(longest)
    distance = positions[:, None] - positions[None, :]
    visible = distance >= 0 if mask.causal else torch.ones_like(distance, dtype=torch.bool)
    if mask.window is not None:
        visible = visible & (distance.abs() < mask.window)
    visible = visible[None, None]
    if padded and not mask.causal:
        real = positions[None, :] < torch.from_numpy(lengths)[:, None]
        # A padded query keeps sight of some key, or its row would be NaN and poison nothing but
        # the eye of the reader; a windowed one may see padding only.
        visible = visible & real[:, None, None, :]
        if mask.window is not None:
            visible = visible | torch.eye(longest, dtype=torch.bool)
    return visible
