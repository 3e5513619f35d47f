"""What is installed on this machine, what the engine will use of it, and why not the rest."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import NamedTuple

import torch

from c2v_engine._version import __version__
from c2v_engine.kernels._triton import triton_serves, triton_status
from c2v_engine.kernels.dual_token_pool import extension_status
from c2v_engine.kernels.linear_int8 import why_not_int8
from c2v_engine.model.attention.measured import read_table
from c2v_engine.model.attention.select import BACKENDS, select_attention
from c2v_engine.model.device import (
    cpu_has_bfloat16,
    resolve_device,
    resolve_dtype,
    why_not_float8,
)
from c2v_engine.model.linear import onednn_serves

# A head size that most decoders have; a model of another may rule some backends out.
_HEAD_DIM = 128
_LIBRARIES = (
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "triton",
    "flash-attn",
    "peft",
)


class Finding(NamedTuple):
    """One line of the report."""

    section: str
    name: str
    value: str
    note: str = ""


def report() -> list[Finding]:
    """Look at the machine; takes no model."""
    return [*_machine(), *_extension(), *_triton(), *_attention(), *_linear(), *_choices()]


def _machine() -> list[Finding]:
    findings = [
        Finding("machine", "c2v-engine", __version__),
        Finding("machine", "python", platform.python_version(), sys.executable),
        Finding("machine", "torch", torch.__version__),
        *(Finding("machine", name, *_installed(name)) for name in _LIBRARIES),
        Finding(
            "machine",
            "cpu",
            f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
            "multiplies bfloat16" if cpu_has_bfloat16() else "no bfloat16 instructions: float32",
        ),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            value = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
            note = f"compute capability {gpu.major}.{gpu.minor}"
            findings.append(Finding("machine", f"cuda:{index}", value, note))
    elif torch.version.cuda is None:
        findings.append(Finding("machine", "cuda", "no", "this torch is built without CUDA"))
    else:
        note = f"torch is built for CUDA {torch.version.cuda} but finds no GPU or driver"
        findings.append(Finding("machine", "cuda", "no", note))
    return findings


def _installed(name: str) -> tuple[str, str]:
    try:
        return metadata.version(name), ""
    except metadata.PackageNotFoundError:
        return "not installed", "optional" if name in ("triton", "flash-attn", "peft") else ""


def _extension() -> list[Finding]:
    status = extension_status()
    value = "compiled" if status.available else "not compiled: the PyTorch form of each op serves"
    findings = [Finding("extension", "c2v_engine._C", value, status.reason)]
    if status.available:
        findings.append(Finding("extension", "CUDA kernels", "yes" if status.cuda else "no"))
    return findings


def _triton() -> list[Finding]:
    status = triton_status()
    if not status.available:
        return [Finding("triton", "kernels", "not usable", status.reason)]
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not devices:
        return [Finding("triton", "kernels", "no GPU", status.reason)]
    unfit = "not usable: compute capability below 8.0, the PyTorch form of each op serves"
    return [
        Finding("triton", f"on {device}", "used" if triton_serves(device) else unfit, status.reason)
        for device in devices
    ]


def _attention() -> list[Finding]:
    findings = []
    for kind in ("cpu", "cuda"):
        device = torch.device(kind)
        dtype = torch.float32 if kind == "cpu" else torch.bfloat16
        there = kind == "cpu" or torch.cuda.is_available()
        chosen = select_attention("auto", device, dtype, _HEAD_DIM).name if there else None
        if there and kind == "cuda" and read_table():
            chosen = None
            note = "the fastest measured for the model's heads and the batch's lengths"
            findings.append(Finding(f"attention on {kind}", "auto", "by measurement", note))
        for name, backend in BACKENDS.items():
            reason = backend.why_not(device, dtype, _HEAD_DIM) if there else "no GPU"
            used = "used" if name == chosen else "usable" if reason is None else "not usable"
            findings.append(Finding(f"attention on {kind}", name, used, reason or ""))
    return findings


def _linear() -> list[Finding]:
    """What the linear layers can multiply in beside the dtypes that every device has."""
    findings = []
    for dtype in (torch.float32, torch.bfloat16):
        laid_out = "laid out once for oneDNN" if onednn_serves(dtype) else "as in the checkpoint"
        name = str(dtype).removeprefix("torch.")
        findings.append(Finding("linear layers", f"{name} on cpu", laid_out))
    reason = why_not_int8()
    usable = "usable" if reason is None else "not usable"
    findings.append(Finding("linear layers", "int8 on cpu", usable, reason or ""))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in [torch.device("cuda", index) for index in range(count)]:
        reason = why_not_float8(device)
        usable = "usable" if reason is None else "not usable"
        findings.append(Finding("linear layers", f"float8 on {device}", usable, reason or ""))
    return findings


def _choices() -> list[Finding]:
    device = resolve_device("auto")
    stored = {name: resolve_dtype("auto", device, dtype)[0] for name, dtype in _STORED.items()}
    notes = ", ".join(
        f"{name} checkpoints in {str(dtype).removeprefix('torch.')}"
        for name, dtype in stored.items()
    )
    return [Finding("will use", "device", str(device)), Finding("will use", "dtype", notes)]


_STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32}
