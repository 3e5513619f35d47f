"""From weights on disk to layers on a device, one at a time: never more than a layer in between.

Weights are memory-mapped, and each goes straight to its place among those that it is joined with,
cast on the way, so that the host holds no second copy of anything. On CUDA they go through two
page-locked buffers in turn: while one is copied over the link, the other is filled from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from c2v_engine.model.device import WeightsDtype
from c2v_engine.model.linear import Linear, make_linear
from c2v_engine.model.lora import LoraAdapter
from c2v_engine.model.rounding import Rounding, rounding_for

_STAGING_BYTES = 64 * 2**20

Part = tuple[str, int]
"""The name of a layer's weights without their endings, and how many output features it has."""
LinearMaker = Callable[[torch.Tensor, torch.Tensor | None, str | None], Linear]


class WeightSource(Protocol):
    """What gives weights by name: a folder of safetensors files, or whatever stands in for it."""

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One weight, in the dtype and on the device that it is stored in."""
        ...

    def refuse_extra(self, ignorable: Iterable[str] = ()) -> None:
        """Refuses weights that nobody took, but for the name endings that are ignorable."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where a model computes, and how.

    Attributes:
        device: of its weights.
        dtype: of its hidden states.
        weights: what the decoder's linear layers multiply in: the dtype itself, or one of 8 bits.
        deterministic: whether a row's result may depend on nothing but the row's sequence.
    """

    device: torch.device
    dtype: torch.dtype
    weights: WeightsDtype = "dtype"
    deterministic: bool = False

    @property
    def rounding(self) -> Rounding:
        """How row counts are rounded."""
        return rounding_for(self.device, deterministic=self.deterministic)


class WeightLoader:
    """Takes weights by name, merged with their adapter, on the device that they serve on.

    Args:
        source: of the weights.
        placement: where they go.
        prefix: of all names.
        adapter: of the decoder.
        make: makes the layers, from weight, bias and activation.
    """

    def __init__(
        self,
        source: WeightSource,
        placement: Placement,
        prefix: str = "",
        adapter: LoraAdapter | None = None,
        make: LinearMaker = make_linear,
    ) -> None:
        self.source = source
        self.placement = placement
        self._prefix = prefix
        self._adapter = adapter
        self._make = make
        self._staging = _Staging() if placement.device.type == "cuda" else None

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """One weight, in memory of its own."""
        return self._join([(name, shape)])

    def linear(
        self, parts: Sequence[Part], size: int, *, bias: bool, activation: str | None = None
    ) -> Linear:
        """A linear layer of some that are joined: their outputs stand side by side.

        Args:
            parts: the layers.
            size: input features.
            bias: whether they have biases.
            activation: applied to the output.
        """
        weight = self._join([(f"{name}.weight", (out, size)) for name, out in parts])
        offset = self._join([(f"{name}.bias", (out,)) for name, out in parts]) if bias else None
        return self._make(weight, offset, activation)

    def _join(self, parts: Sequence[tuple[str, tuple[int, ...]]]) -> torch.Tensor:
        """Weights one below the other, each copied once."""
        shapes = [shape for _, shape in parts]
        rows = sum(shape[0] for shape in shapes)
        place = self.placement
        joined = torch.empty((rows, *shapes[0][1:]), dtype=place.dtype, device=place.device)
        row = 0
        for name, shape in parts:
            weight = self.source.take(self._prefix + name, shape)
            if self._adapter is not None:
                weight = self._adapter.merge(name, weight)
            self._copy(weight, joined[row : row + shape[0]])
            row += shape[0]
        return joined

    def _copy(self, weight: torch.Tensor, target: torch.Tensor) -> None:
        if self._staging is None or weight.device.type != "cpu":
            target.copy_(weight)
        else:
            self._staging.copy(weight, target)


class _Staging:
    """Copies from pageable memory to a GPU through two page-locked buffers in turn."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_STAGING_BYTES, dtype=torch.uint8).pin_memory() for _ in "ab"]
        self._copied = [torch.cuda.Event() for _ in "ab"]
        self._turn = 0

    def copy(self, weight: torch.Tensor, target: torch.Tensor) -> None:
        """Copies a contiguous weight, piece by piece; cast on the device."""
        source, flat = weight.reshape(-1), target.view(-1)
        step = _STAGING_BYTES // source.element_size()
        for begin in range(0, len(source), step):
            piece = source[begin : begin + step]
            buffer, copied = self._buffers[self._turn], self._copied[self._turn]
            copied.synchronize()
            staged = buffer.view(source.dtype)[: len(piece)]
            staged.copy_(piece)
            flat[begin : begin + step].copy_(staged.to(target.device, non_blocking=True))
            # By default an event is recorded on the current device, which may be another.
            copied.record(torch.cuda.current_stream(target.device))
            self._turn = 1 - self._turn
