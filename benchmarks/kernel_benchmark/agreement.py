"""Whether a provider computes the op: its worst row against the reference in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kernel_benchmark.case import Arguments, Case, Provider

__all__ = ["Agreement", "check_provider", "expected_outputs"]

# A 16-bit dtype rounds a row to within 2^-9 of its norm a few times over. float32 results come of
# float32 sums, whatever the inputs.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# E4M3 keeps three bits: a value is off by 2^-4 of itself at most, and two values that an earlier
# rounding set apart may become neighbours in float8.
FLOAT8_BOUND = 6e-2


@dataclass(frozen=True)
class Agreement:
    """How far a provider is from the reference.

    Attributes:
        error: ``||row - expected|| / ||expected||`` of the worst row; NaN where a value is NaN.
        bound: what it may be.
        complaint: what else is wrong, the number or shape of the results.
    """

    error: float
    bound: float
    complaint: str = ""

    @property
    def passed(self) -> bool:
        """Whether the provider may be timed; NaN never passes."""
        return not self.complaint and self.error <= self.bound


def expected_outputs(case: Case, arguments: Arguments) -> list[Tensor]:
    """What the op gives, by its reference on float32 copies of the arguments."""
    wide: Arguments = {}
    for name, value in case.op.own(arguments).items():
        floating = isinstance(value, Tensor) and value.is_floating_point()
        wide[name] = value.to(torch.float32, copy=True) if floating else value
    return case.op.outputs(wide, case.op.reference(**wide))


def check_provider(
    case: Case, provider: Provider, arguments: Arguments, expected: list[Tensor]
) -> Agreement:
    """Runs a provider once on copies and compares every row of every result.

    Where the provider is ours new memory is full of NaN, so that what it forgets to write shows.
    """
    copies = {**arguments, **{name: arguments[name].clone() for name in case.op.written}}
    if provider.form is None:
        outputs = case.op.outputs(copies, provider.call(copies))
    else:
        with poisoned_memory():
            outputs = case.op.outputs(copies, provider.call(copies))
    found = [list(output.shape) for output in outputs]
    right = [list(output.shape) for output in expected]
    if found != right:
        return Agreement(math.nan, 0.0, f"results of the shapes {found}; expected {right}")
    float8 = [case.op.float8] + [False] * (len(outputs) - 1)
    agreements = [
        Agreement(worst_row(output, truth), FLOAT8_BOUND if rough else BOUNDS[output.dtype])
        for output, truth, rough in zip(outputs, expected, float8, strict=True)
    ]
    return max(agreements, key=lambda found: (not found.passed, found.error / found.bound))


def worst_row(output: Tensor, expected: Tensor) -> float:
    """The largest relative distance of a row, which a norm over all rows would hide."""
    rows = expected.reshape(expected.shape[0], -1).float()
    errors = (output.reshape(rows.shape).float() - rows).norm(dim=1) / rows.norm(dim=1)
    return float(errors.max()) if bool(errors.isfinite().all()) else math.nan


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Has torch fill new memory with NaN, as it does where algorithms are to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
