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
    count: int  # sequences
    queries: slice  # padded rows of all of them
    keys: slice  # likewise
    mask: torch.Tensor | None  # bool [count or 1, 1, queries, keys], None: causal or all


@dataclass(frozen=True)
class _Padding:
    """How packed rows become rows padded group by group, and back.

    Attributes:
        gather: int64 ``[padded rows]``: the packed row each is read from, or None where the
            packed rows already stand as the groups need them.
        scatter: int64 ``[tokens]``: the padded row each packed row is read back from, or None.
    """

    gather: torch.Tensor | None
    scatter: torch.Tensor | None

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.gather is None else x.index_select(0, self.gather)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.scatter is None else x.index_select(0, self.scatter)


@dataclass(frozen=True)
class SdpaPlan:
    """Groups of a batch.

    Attributes:
        groups: in the order of the padded rows.
        queries: how queries are padded.
        keys: how keys are.
        causal: whether a group without a mask is causal.
    """

    groups: list[_Group]
    queries: _Padding
    keys: _Padding
    causal: bool


class SdpaAttention(AttentionBackend):
    """``torch.nn.functional.scaled_dot_product_attention`` on groups padded a little."""

    name: ClassVar[str] = "sdpa"
    _alone = False

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """It serves everywhere."""
        return None

    def make_deterministic(self) -> str | None:
        """Takes every sequence by itself, so that a call's shape tells nothing of the others."""
        self._alone, self.max_keys = True, 0
        return None

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> SdpaPlan:
        """Group sequences of like length and lay out their padded rows."""
        keys = sequences.attended
        lengths, key_lengths = sequences.lengths, keys.lengths
        device = sequences.cu_seqlens.device
        order = np.lexsort((-key_lengths, -lengths))
        members = [order[i : i + 1] for i in range(len(order))]
        if not self._alone:
            members = _like_lengths(lengths, key_lengths, order)
        groups: list[_Group] = []
        begin = key_begin = 0
        for group in members:
            longest, longest_keys = int(lengths[group[0]]), int(key_lengths[group].max())
            end, key_end = begin + longest * len(group), key_begin + longest_keys * len(group)
            group_mask = _group_mask(mask, lengths[group], key_lengths[group])
            if group_mask is not None:
                group_mask = _to_device(group_mask, device)
            groups.append(
                _Group(len(group), slice(begin, end), slice(key_begin, key_end), group_mask)
            )
            begin, key_begin = end, key_end
        padding = _padding(lengths, members, device)
        key_padding = padding if sequences.keys is None else _padding(key_lengths, members, device)
        return SdpaPlan(groups, padding, key_padding, mask.causal)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: SdpaPlan,
        scale: float,
    ) -> torch.Tensor:
        """See the base class."""
        query, key, value = plan.queries.pad(query), plan.keys.pad(key), plan.keys.pad(value)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in plan.groups:
            q, k, v = (
                x[rows].unflatten(0, (group.count, -1)).transpose(1, 2)
                for x, rows in ((query, group.queries), (key, group.keys), (value, group.keys))
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
            output[group.queries] = attended.transpose(1, 2).flatten(0, 1)
        return plan.queries.unpad(output)


def _padding(lengths: np.ndarray, groups: list[np.ndarray], device: torch.device) -> _Padding:
    """How packed rows become those of groups of sequences, each padded to its longest."""
    starts = np.cumsum(lengths) - lengths
    gather_parts: list[np.ndarray] = []
    scatter = np.empty(int(lengths.sum()), dtype=np.int64)
    padded_rows = 0
    for members in groups:
        columns = np.arange(int(lengths[members].max()))
        real = columns < lengths[members][:, None]
        rows = starts[members][:, None] + np.minimum(columns, lengths[members][:, None] - 1)
        gather_parts.append(rows.reshape(-1))
        slots = padded_rows + np.arange(rows.size).reshape(rows.shape)
        scatter[rows[real]] = slots[real]
        padded_rows += rows.size
    gather = np.concatenate(gather_parts) if gather_parts else np.empty(0, np.int64)
    if np.array_equal(gather, np.arange(len(scatter))):
        return _Padding(None, None)
    tables = (torch.from_numpy(table) for table in (gather, scatter))
    return _Padding(*(_to_device(table, device) for table in tables))


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copied without waiting for the device, which only page-locked memory allows."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _like_lengths(
    lengths: np.ndarray, key_lengths: np.ndarray, order: np.ndarray
) -> list[np.ndarray]:
    """Cut sequences, longest first, where padding to the group's longest would waste too much."""
    groups: list[np.ndarray] = []
    begin = 0
    while begin < len(order):
        longest, longest_keys = int(lengths[order[begin]]), 0
        end, real, real_keys = begin, 0, 0
        while end < len(order):
            keys = int(key_lengths[order[end]])
            candidate, candidate_keys = real + int(lengths[order[end]]), real_keys + keys
            # Summary tokens have as many queries, one, but any number of keys.
            longest_keys = max(longest_keys, keys)
            full = (1 - _MAX_PADDING) * (end + 1 - begin)
            if candidate < full * longest or candidate_keys < full * longest_keys:
                break
            end, real, real_keys = end + 1, candidate, candidate_keys
        groups.append(order[begin:end])
        begin = end
    return groups


def _group_mask(
    mask: AttentionMask, lengths: np.ndarray, key_lengths: np.ndarray
) -> torch.Tensor | None:
    """Boolean mask of a group, or None where SDPA's own causal or full mask is right.

    Under a causal mask padding at the end needs none: no real query sees it.

    Args:
        mask: what a query sees.
        lengths: of the queries, the last rows of their keys' sequence.
        key_lengths: of the keys.
    """
    longest, longest_keys = int(lengths.max()), int(key_lengths.max())
    before = np.unique(key_lengths - lengths)  # keys before the first query's own
    padded = bool((lengths != longest).any()) or len(before) > 1
    if mask.window is None and not before.any() and (mask.causal or not padded):
        return None
    if len(before) > 1:  # each sequence has its own
        before = key_lengths - lengths
    keys = torch.arange(longest_keys)
    positions = torch.arange(longest) + torch.from_numpy(before)[:, None]
    distance = (positions[:, :, None] - keys)[:, None]
    visible = distance >= 0 if mask.causal else torch.ones_like(distance, dtype=torch.bool)
    if mask.window is not None:
        visible = visible & (distance.abs() < mask.window)
    if padded and not mask.causal:
        real = keys[None, :] < torch.from_numpy(key_lengths)[:, None]
        # A padded query keeps sight of some key, or its row would be NaN and poison nothing but
        # the eye of the reader; a windowed one may see padding only.
        visible = visible & real[:, None, None, :]
        if mask.window is not None:
            visible = visible | (distance == 0)
    return visible
