"""Triton's interpreter for the tests: kernels on CPU tensors, rounding as the hardware does.

Where a GPU is, the kernels are compiled and run there, and nothing of this is needed.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest
import torch

TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
}
FLOAT8_MAX = 448.0


def request_interpreter():
    """Has Triton interpret where no GPU is; call it before a kernel's module is imported."""
    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    interpreter._convert_float = _convert_float
    interpreter.InterpreterBuilder.create_dot = _create_dot


def _convert_float(values, input_dtype, output_dtype, rounding_mode):
    """Stands in for the interpreter's conversion, which truncates to bfloat16 and float8.

    A GPU rounds to nearest even, and saturates in float8.
    """
    size = input_dtype.primitive_bitwidth // 8
    bits = torch.from_numpy(np.array(values).view(f"int{8 * size}"))
    wide = bits.view(TORCH_DTYPES[input_dtype.name])
    if output_dtype.name == "fp8e4nv":
        wide = wide.float().clamp(-FLOAT8_MAX, FLOAT8_MAX)
    narrow = wide.to(TORCH_DTYPES[output_dtype.name])
    size = output_dtype.primitive_bitwidth
    return narrow.view(getattr(torch, f"int{size}")).numpy().view(f"uint{size}")


def _create_dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """Stands in for the interpreter's product, which takes bfloat16 bits for integers."""
    from triton.runtime.interpreter import TensorHandle

    wide = [_convert_float(x.data, x.dtype.scalar, FLOAT32, None).view(np.float32) for x in (a, b)]
    return TensorHandle(np.matmul(*wide) + d.data, d.dtype.scalar)


class _Float32:
    name, primitive_bitwidth = "fp32", 32


FLOAT32 = _Float32()


@contextmanager
def triton_on_cpu():
    """Has every op that has a Triton form run it on CPU tensors, in the interpreter.

    Yields a counter of the calls of each, by the op's name.
    """
    from c2v_engine.kernels import _ops

    calls = Counter()

    def counted(name, form):
        def run(*arguments):
            calls[name] += 1
            return form(*arguments)

        return run

    library = torch.library.Library("c2v", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name, form in _ops.TRITON_FORMS.items():
                library.impl(name, counted(name, form), "CPU", allow_override=True)
        yield calls
    finally:
        library._destroy()


@contextmanager
def counted_launches():
    """Yields a counter of the interpreted kernels' launches, by the kernel's name."""
    from triton.runtime.interpreter import GridExecutor

    launches = Counter()
    run = GridExecutor.__call__

    def counted(executor, *arguments, **options):
        launches[executor.fn.__name__] += 1
        return run(executor, *arguments, **options)

    GridExecutor.__call__ = counted
    try:
        yield launches
    finally:
        GridExecutor.__call__ = run


@dataclass(frozen=True)
class Form:
    """One form of an op, called as the op is, and the device of its tensors."""

    name: str
    op: Callable
    device: str

    def __call__(self, *arguments, **options):
        with triton_on_cpu() if self.name == "interpreted" else nullcontext():
            return self.op(*arguments, **options)


def triton_form(op):
    """The op by its Triton kernel: on a GPU where there is one, else in the interpreter."""
    if torch.cuda.is_available():
        return Form("cuda", op, "cuda")
    return Form("interpreted", op, "cpu")


def forms(op, reference):
    """Parameters for a test: the op on the CPU, its reference, and its Triton kernel."""
    found = [Form("cpu", op, "cpu"), Form("reference", reference, "cpu")]
    if find_spec("triton") is not None:
        found.append(triton_form(op))
    return [pytest.param(form, id=form.name) for form in found]


@contextmanager
def poisoned_memory():
    """Has torch fill new memory with NaN (the largest value of integers), so that a gap shows."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled
