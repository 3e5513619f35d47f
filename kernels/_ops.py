"""What the ops share: how their arguments are checked and how an op is completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._extension import load_extension
from c2v_engine.kernels._triton import OLDEST_CAPABILITY, triton_serves, triton_status, use_device

__all__ = [
    "FLOATS",
    "OLDEST_CAPABILITIES",
    "TRITON_FORMS",
    "as_the_compiled_op",
    "can_validate",
    "check_apart",
    "check_eps",
    "check_like",
    "check_rows",
    "complete_op",
    "refuse",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that the engine computes in."""


def refuse(name: str, given: Tensor, expected: str) -> None:
    """Raises the error for an argument that is not as expected.

    Raises:
        InputError: always, with the tensor's shape, dtype and device.
    """
    dtype = str(given.dtype).removeprefix("torch.")
    raise InputError(
        f"{name} is {list(given.shape)} {dtype} on {given.device}; expected {expected}"
    )


def check_rows(
    name: str,
    given: Tensor,
    *,
    written: bool = False,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> None:
    """Checks the argument that decides the dtype and device of the others.

    Args:
        name: of the argument.
        given: the tensor, ``[rows, columns]``.
        written: whether the op writes it in place.
        dtypes: that it may have, by default the engine's floating ones.

    Raises:
        InputError: it is not ``[rows, columns]`` in such a dtype, has no column, or is to be
            written though its rows are not contiguous or overlap.
    """
    _check_tensor(name, given)
    if given.ndim != 2 or given.shape[1] < 1 or given.dtype not in dtypes:
        *most, last = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        named = " or ".join(filter(None, (", ".join(most), last)))
        refuse(name, given, f"[rows, columns >= 1] {named}")
    if written:
        row_stride, column_stride = given.stride()
        scattered = given.shape[1] > 1 and column_stride != 1
        if scattered or (given.shape[0] > 1 and row_stride < given.shape[1]):
            raise InputError(
                f"{name} is written in place but has strides {list(given.stride())}; expected "
                "contiguous rows that do not overlap"
            )


def check_like(
    name: str,
    given: Tensor,
    shape: tuple[int, ...],
    main: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Checks the shape of an argument, and that its dtype and device are those of ``main``.

    Args:
        name: of the argument.
        given: the tensor.
        shape: that it is to have.
        main: the tensor that decides the rest.
        dtype: that it is to have in place of that of ``main``.

    Raises:
        InputError: they are not.
    """
    _check_tensor(name, given)
    dtype = dtype or main.dtype
    if given.shape != shape or given.dtype != dtype or given.device != main.device:
        named = str(dtype).removeprefix("torch.")
        refuse(name, given, f"{list(shape)} {named} on {main.device}")


def _check_tensor(name: str, given: object) -> None:
    if not isinstance(given, Tensor) or given.layout is not torch.strided:
        what = given.layout if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"{name} is {what}; expected a dense torch.Tensor")


def check_eps(eps: float) -> None:
    """Checks the epsilon of a norm.

    Raises:
        InputError: it is negative or not finite.
    """
    if not (math.isfinite(eps) and eps >= 0):
        raise InputError(f"eps is {eps}; expected a finite number that is not negative")


def check_apart(name: str, given: Tensor | None, written_name: str, written: Tensor) -> None:
    """Checks that an argument lies apart from one whose rows the op writes in place.

    The very same tensor may be given twice: each element is then read before it is written.

    Raises:
        InputError: they share memory, so that the result would depend on the order of the rows.
    """
    if given is None or not can_validate(given, written):
        return
    if given.untyped_storage().data_ptr() != written.untyped_storage().data_ptr():
        return
    same = given.shape == written.shape and given.stride() == written.stride()
    if (same and given.data_ptr() == written.data_ptr()) or _lie_apart(given, written):
        return
    raise InputError(
        f"{name} shares memory with {written_name}, which is written in place; give a copy"
    )


def _lie_apart(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one storage have no element in common, as far as is easily told."""
    if not (one.numel() and other.numel()):
        return True
    start, other_start = one.storage_offset(), other.storage_offset()
    if start + _extent(one) <= other_start or other_start + _extent(other) <= start:
        return True
    if one.ndim != 2 or other.ndim != 2 or one.stride() != other.stride() or one.stride(1) != 1:
        return False
    # Columns of the same rows, side by side.
    gap = (other_start - start) % one.stride(0) if one.stride(0) else 0
    return one.shape[1] <= gap <= one.stride(0) - other.shape[1]


def _extent(tensor: Tensor) -> int:
    """Elements from a tensor's first to its last in memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


@contextmanager
def as_the_compiled_op(name: str) -> Iterator[None]:
    """Has a check of values fail in a PyTorch form as it does in a compiled op."""
    try:
        yield
    except InputError as error:
        raise RuntimeError(f"{name}: {error}") from None


def can_validate(*tensors: Tensor) -> bool:
    """Whether values can be read: not while torch traces, and not of tensors without values."""
    without = any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors)
    return not (without or torch.compiler.is_compiling())


def complete_op(
    name: str,
    schema: str,
    pytorch_form: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    triton_form: Callable[..., Any] | None = None,
    oldest_capability: tuple[int, int] = OLDEST_CAPABILITY,
    compiled: bool = True,
) -> None:
    """Completes ``c2v::name``: a form for every device, and a fake kernel.

    Args:
        name: of the op.
        schema: its arguments and results; the extension, where it has the op, has defined the same.
        pytorch_form: the op in PyTorch, taking what the schema says; it serves wherever no kernel
            does.
        fake: the same for tensors without values.
        triton_form: the same by a Triton kernel, for CUDA.
        oldest_capability: the first compute capability that the kernel can be compiled for.
        compiled: whether the extension has a kernel for this op, on the CPU at least.
    """
    qualified = f"c2v::{name}"
    if not (compiled and load_extension().available):
        torch.library.define(qualified, schema)
    torch.library.impl(qualified, "default", pytorch_form)
    torch.library.register_fake(qualified, fake)
    if triton_form is not None and triton_status().available:
        _triton_forms[name] = triton_form
        _oldest_capabilities[name] = oldest_capability
        torch.library.impl(
            qualified, "cuda", _cuda_form(pytorch_form, triton_form, oldest_capability)
        )


_triton_forms: dict[str, Callable[..., Any]] = {}
TRITON_FORMS: Mapping[str, Callable[..., Any]] = MappingProxyType(_triton_forms)
"""The Triton form of every op that has one, by its name, taking what its schema says."""

_oldest_capabilities: dict[str, tuple[int, int]] = {}
OLDEST_CAPABILITIES: Mapping[str, tuple[int, int]] = MappingProxyType(_oldest_capabilities)
"""The first compute capability that each Triton form can be compiled for, by the op's name."""


def _cuda_form(
    pytorch_form: Callable[..., Any],
    triton_form: Callable[..., Any],
    oldest_capability: tuple[int, int],
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        main = next(argument for argument in arguments if isinstance(argument, Tensor))
        if not triton_serves(main.device, oldest_capability):
            return pytorch_form(*arguments)
        with use_device(main):
            return triton_form(*arguments)

    return run
