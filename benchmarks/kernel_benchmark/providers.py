"""Who computes an op: our op, PyTorch eager, ``torch.compile``, and what else a case knows."""

from __future__ import annotations

from typing import Any

import torch

from c2v_engine.kernels._ops import OLDEST_CAPABILITIES, TRITON_FORMS
from c2v_engine.kernels._triton import triton_serves, triton_status
from kernel_benchmark.case import Arguments, Case, Provider, Unusable

__all__ = ["all_providers", "form_of"]


def form_of(name: str, device: torch.device) -> str:
    """Which form of an op serves on a device: ``triton``, ``csrc`` or ``pytorch``."""
    if device.type == "cuda" and name in TRITON_FORMS:
        return "triton" if triton_serves(device, OLDEST_CAPABILITIES[name]) else "pytorch"
    key = {"cuda": "CUDA", "cpu": "CPU"}[device.type]
    compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"c2v::{name}", key)
    return "csrc" if compiled else "pytorch"


def all_providers(
    case: Case, arguments: Arguments, compiler: str | None = "inductor"
) -> list[Provider | Unusable]:
    """The providers of a case, ours first.

    Args:
        case: the case.
        arguments: of one call; tells the device.
        compiler: the backend of ``torch.compile``, or None to leave it out.
    """
    tensors = (value for value in arguments.values() if isinstance(value, torch.Tensor))
    device = next(tensors).device
    op = case.op
    found: list[Provider | Unusable] = [ours(case, device)]
    found += op.rivals(case, arguments) if op.rivals is not None else []
    found.append(Provider("eager", lambda given: op.plain(**given)))
    if compiler is not None:
        found.append(compiled_plain(case, compiler))
    return found


def ours(case: Case, device: torch.device) -> Provider | Unusable:
    """Our op; on CUDA a kernel of ours, or it would be PyTorch under our name."""
    op = case.op
    form = form_of(op.name, device)
    if device.type == "cuda" and form == "pytorch":
        return Unusable("ours", f"no kernel serves on this GPU: {why_none(op.name)}")
    return Provider("ours", lambda given: op.launcher(**op.own(given)), form=form)


def why_none(name: str) -> str:
    """Why an op has no kernel on a GPU."""
    if name not in OLDEST_CAPABILITIES:
        return f"Triton is {triton_status().reason}"
    oldest = ".".join(map(str, OLDEST_CAPABILITIES[name]))
    return f"its Triton kernel needs compute capability {oldest}"


def compiled_plain(case: Case, compiler: str) -> Provider:
    """``torch.compile`` of what eager PyTorch runs, for the sizes of this case alone."""
    # Beyond a handful of compilations of one function torch gives up on it without a word.
    torch.compiler.reset()
    compiled: Any = torch.compile(case.op.plain, dynamic=False, backend=compiler)
    return Provider("compile", lambda given: compiled(**given))
