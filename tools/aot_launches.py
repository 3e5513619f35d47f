"""Records what a launcher would compile and launch on a GPU, without one.

The launchers run as they are, on tensors without values: Triton is told of a GPU that is not there,
specialises every kernel for the arguments that it is given, and hands over what it would compile
next. A launcher that needed a value from the device would fail here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

__all__ = ["Launch", "recorded_launches"]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: its function's name.
        key: what Triton keeps the compiled kernel under: launches of equal keys share it.
        capability: of the GPU, 90 for 9.0.
        grid: programs along each axis.
        source: the kernel and what it was specialised for.
        options: of the compiler.
        fusion_chosen: whether the launch says if products and sums are fused.
    """

    kernel: str
    key: str
    capability: int
    grid: tuple[int, ...]
    source: ASTSource
    options: Any
    fusion_chosen: bool

    @property
    def has_float8(self) -> bool:
        """Whether the kernel has a float8 argument, which GPUs before 8.9 can not convert."""
        return any("fp8" in str(kind) for kind in self.source.signature.values())


class _AbsentGpu:
    """What Triton asks the driver of a GPU."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        # Triton remembers the target of a device by its number.
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def recorded_launches(capability: int) -> Iterator[list[Launch]]:
    """Has every launch of a Triton kernel written down in the list, and nothing compiled or run.

    Args:
        capability: of the GPU that the launchers find, 90 for 9.0.
    """
    launches: list[Launch] = []
    run = JITFunction.run
    do_compile = JITFunction._do_compile
    under_way: dict[str, Any] = {}

    def recorded_run(kernel: JITFunction, *arguments: Any, **options: Any) -> Any:
        under_way.update(
            grid=options["grid"], fusion_chosen=options.get("enable_fp_fusion") is not None
        )
        return run(kernel, *arguments, **options)

    def recorded_compile(
        kernel: JITFunction,
        key: str,
        signature: dict[str, str],
        device: int,
        constants: dict[Any, Any],
        options: Any,
        attributes: dict[Any, Any],
        warmup: bool,
    ) -> None:
        source = ASTSource(kernel, signature, constants, attributes)
        name = kernel.fn.__name__
        # Two kernels may be specialised alike, so a key holds the kernel too.
        full_key = f"{kernel.fn.__module__}.{name} {key}"
        launches.append(
            Launch(name, full_key, capability, source=source, options=options, **under_way)
        )

    active = driver._active
    driver.set_active(_AbsentGpu(capability))
    JITFunction.run, JITFunction._do_compile = recorded_run, recorded_compile
    try:
        yield launches
    finally:
        JITFunction.run, JITFunction._do_compile = run, do_compile
        driver._active = active
