"""Choosing among backends by what GPUs have measured: the table, and the backend that follows it.

The table is ``measured.json`` beside this file, written by ``tools/attention_table.py`` from the
results of the kernel benchmark. Nobody edits it by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.packed_batch import PackedSequences

TABLE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Measurement:
    """What one GPU has shown for sequences up to a length.

    Attributes:
        gpu: its name.
        capability: its compute capability, as in ``"9.0"``.
        dtype: of the tensors.
        head_dim: the head size.
        group: query heads of a key head.
        mask: ``causal`` or ``bidirectional``.
        mean_length_up_to: for batches whose mean sequence length is not above it.
        backends: names, the fastest first.
        result: the result file that holds the measurement.
        commit: of what was measured.
    """

    gpu: str
    capability: str
    dtype: str
    head_dim: int
    group: int
    mask: str
    mean_length_up_to: int
    backends: tuple[str, ...]
    result: str
    commit: str


class Gpu(NamedTuple):
    """What a table is looked up by."""

    name: str
    capability: str

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """The name and compute capability of a CUDA device."""
        major, minor = torch.cuda.get_device_capability(device)
        return cls(torch.cuda.get_device_name(device), f"{major}.{minor}")


class Heads(NamedTuple):
    """What a model brings to the choice: dtype, head size and query heads of a key head."""

    dtype: torch.dtype
    head_dim: int
    group: int


@cache
def read_table(path: Path = TABLE) -> tuple[Measurement, ...]:
    """The measurements of a table."""
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return tuple(Measurement(**{**e, "backends": tuple(e["backends"])}) for e in entries)


def measurements_for(
    table: Sequence[Measurement], gpu: Gpu, heads: Heads, mask: AttentionMask
) -> list[Measurement]:
    """What is known for a GPU and a model, shortest sequences first.

    A GPU that is not in the table is taken for the first in it of its compute capability.
    """
    like = (
        str(heads.dtype).removeprefix("torch."),
        heads.head_dim,
        heads.group,
        "causal" if mask.causal else "bidirectional",
    )
    found = [m for m in table if (m.dtype, m.head_dim, m.group, m.mask) == like]
    names = [m.gpu for m in found if m.gpu == gpu.name]
    names += [m.gpu for m in found if m.capability == gpu.capability]
    return sorted(
        (m for m in found if m.gpu in names[:1]), key=lambda entry: entry.mean_length_up_to
    )


class Step(NamedTuple):
    """A backend, and the mean sequence length of a batch up to which it serves."""

    mean_length_up_to: int
    backend: AttentionBackend


class _Chosen(NamedTuple):
    """A backend, and its plan for a batch."""

    backend: AttentionBackend
    plan: Any


class MeasuredAttention(AttentionBackend):
    """For each batch the backend that was the fastest at its mean sequence length.

    Args:
        steps: by whether the mask is causal, shortest sequences first.
        otherwise: serves batches of longer sequences than any that were measured.
    """

    name: ClassVar[str] = "measured"

    def __init__(self, steps: Mapping[bool, Sequence[Step]], otherwise: AttentionBackend) -> None:
        self._steps = steps
        self._otherwise = otherwise
        chosen = [otherwise, *(step.backend for found in steps.values() for step in found)]
        self.capturable = all(backend.capturable for backend in chosen)

    @classmethod
    def why_not(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """What it chooses from has been asked."""
        return None

    def backend_for(self, sequences: PackedSequences, mask: AttentionMask) -> AttentionBackend:
        """The backend for a batch."""
        mean_length = sequences.num_tokens / max(len(sequences.lengths), 1)
        for step in self._steps.get(mask.causal, ()):
            if mean_length <= step.mean_length_up_to:
                return step.backend
        return self._otherwise

    def plan(self, sequences: PackedSequences, mask: AttentionMask) -> _Chosen:
        """Choose, and make the chosen backend's plan."""
        backend = self.backend_for(sequences, mask)
        return _Chosen(backend, backend.plan(sequences, mask))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Any, scale: float
    ) -> torch.Tensor:
        """See the base class."""
        assert isinstance(plan, _Chosen)
        return plan.backend.attend(query, key, value, plan.plan, scale)


def measured_attention(
    table: Sequence[Measurement],
    gpu: Gpu,
    heads: Heads,
    usable: Callable[[str], AttentionBackend | None],
    otherwise: AttentionBackend,
) -> AttentionBackend:
    """The backend that follows a table, or ``otherwise`` where the table says nothing else.

    Where a CUDA graph can hold ``otherwise``, none is chosen that a graph can not hold: it would
    take their graphs from small batches, which take several times as long without.

    Args:
        table: the measurements.
        gpu: that will run.
        heads: of the model.
        usable: gives the backend of a name, or None where it can not serve.
        otherwise: what serves where nothing is measured.
    """
    steps: dict[bool, list[Step]] = {}
    for causal in (True, False):
        for entry in measurements_for(table, gpu, heads, AttentionMask(causal)):
            ranked = filter(None, map(usable, entry.backends))
            fit = (b for b in ranked if b.capturable or not otherwise.capturable)
            backend = next(fit, otherwise)
            steps.setdefault(causal, []).append(Step(entry.mean_length_up_to, backend))
    if all(step.backend.name == otherwise.name for found in steps.values() for step in found):
        return otherwise
    return MeasuredAttention(steps, otherwise)
