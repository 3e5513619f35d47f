"""What a case of the benchmark is: an op at some sizes, its arguments, the least it must move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from c2v_engine.bench.machine.clock import Arguments

__all__ = ["Arguments", "Case", "Draw", "KernelOp", "Provider", "Sizes", "Unusable"]

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Draw:
    """Random tensors of a case.

    Attributes:
        dtype: of what is floating.
        device: of all.
        generator: on that device.
    """

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    @classmethod
    def seeded(cls, dtype: torch.dtype, device: torch.device, seed: int) -> Draw:
        """Draws that a seed decides."""
        return cls(dtype, device, torch.Generator(device).manual_seed(seed))

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normally distributed values."""
        options: dict[str, Any] = {"device": self.device, "generator": self.generator}
        return (
            torch.randn(*shape, dtype=torch.float32, **options)
            .mul_(scale)
            .add_(mean)
            .to(self.dtype)
        )

    def distinct(self, count: int, below: int) -> Tensor:
        """int32 ids, no two alike, so that each row they name is read once."""
        order = torch.randperm(below, device=self.device, generator=self.generator)
        return order[:count].to(torch.int32)

    def steps(self, count: int, length: int) -> Tensor:
        """int32 offsets of ``count`` segments of one length."""
        return torch.arange(count + 1, device=self.device, dtype=torch.int32) * length

    def cycle(self, count: int, length: int) -> Tensor:
        """int32 positions of ``count`` texts of one length, end to end."""
        return torch.arange(length, device=self.device, dtype=torch.int32).repeat(count)


@dataclass(frozen=True)
class Provider:
    """One that computes an op.

    Attributes:
        name: of it: ``ours``, ``eager``, ``compile`` or an attention backend's.
        call: computes the op of a call's arguments.
        form: what of ours serves: ``triton``, ``csrc`` or ``pytorch``; None for others.
        backend: the attention backend's name, for one that is.
    """

    name: str
    call: Callable[[Arguments], Any]
    form: str | None = None
    backend: str | None = None


@dataclass(frozen=True)
class Unusable:
    """One that can not serve here.

    Attributes:
        name: of the provider.
        reason: why not.
        backend: the attention backend's name, for one that is.
    """

    name: str
    reason: str
    backend: str | None = None


@dataclass(frozen=True)
class KernelOp:
    """What the benchmark knows of an op.

    Attributes:
        name: in ``torch.ops.c2v``.
        launcher: its public function.
        reference: its PyTorch form, taking the same arguments: what is right.
        make: the arguments of both, fresh for every call; weights and tables included.
        moved_bytes: the fewest bytes that the op moves, of the sizes and the bytes of an element:
            each input read once, each output written once.
        written: arguments that are written in place, beside what is returned.
        shared: arguments that all calls share, as layers and batches do: tables too large to
            have more than once.
        operations: floating-point operations of its matrix products, of the sizes; None for an op
            that has none, whose figure is bandwidth.
        float8: whether it returns float8 values and their scales.
        rivals: further providers, of the case and the arguments of a call.
        variant: what sets it apart from another use of the same op.
        baseline: what eager PyTorch and ``torch.compile`` run where the reference does more than
            they need, such as to guard ids on CUDA; takes all arguments.
        prepared: arguments for the baseline alone: what it may know before a call.
    """

    name: str
    launcher: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Sizes, Draw], Arguments]
    moved_bytes: Callable[[Sizes, int], int]
    written: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    operations: Callable[[Sizes], int] | None = None
    float8: bool = False
    rivals: Callable[[Case, Arguments], list[Provider | Unusable]] | None = None
    variant: str = ""
    baseline: Callable[..., Any] | None = None
    prepared: tuple[str, ...] = ()

    @property
    def plain(self) -> Callable[..., Any]:
        """What PyTorch is timed with, taking all arguments."""
        return self.reference if self.baseline is None else self.baseline

    def own(self, arguments: Arguments) -> Arguments:
        """The arguments of launcher and reference."""
        return {k: arguments[k] for k in arguments if k not in self.prepared}

    def outputs(self, arguments: Arguments, returned: Any) -> list[Tensor]:
        """Everything that a call computed: rows of what it returned and of what it wrote."""
        results = [] if returned is None else returned
        results = [results] if isinstance(results, Tensor) else list(results)
        if self.float8:
            values, scales = results
            results = [values.float() * scales]
        return results + [arguments[name] for name in self.written]


@dataclass(frozen=True)
class Case:
    """An op at the sizes of a model and a batch.

    Attributes:
        op: what is computed.
        shape: name of the model's sizes.
        sizes: all sizes by name.
        dtype: of the computation.
        goal: whether the project states a goal for it: such cases are measured first.
        compiled: whether ``torch.compile``, which takes seconds for each case, is among the
            providers.
    """

    op: KernelOp
    shape: str
    sizes: Sizes
    dtype: torch.dtype
    goal: bool = False
    compiled: bool = True

    @property
    def name(self) -> str:
        """A name of its own among all cases."""
        varying = [f"{key}{self.sizes[key]}" for key in ("length", "tokens") if key in self.sizes]
        return "-".join(filter(None, (self.op.name, self.op.variant, self.shape, *varying)))

    @property
    def moved_bytes(self) -> int:
        """The fewest bytes that a call moves."""
        return self.op.moved_bytes(self.sizes, self.dtype.itemsize)

    @property
    def operations(self) -> int | None:
        """Floating-point operations of a call, where they decide its time."""
        return None if self.op.operations is None else self.op.operations(self.sizes)

    def arguments(self, device: torch.device, seed: int) -> Arguments:
        """Fresh arguments of a call."""
        return self.op.make(self.sizes, Draw.seeded(self.dtype, device, seed))
