"""What is measured, and on which machine: commit, sources, CPU, GPU, versions."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from c2v_engine._version import __version__

__all__ = [
    "describe_machine",
    "describe_sources",
    "digest_sources",
    "git_commit",
    "processor_name",
]

ROOT = Path(__file__).resolve().parents[3]
"""A checkout; of an installed package whatever it was installed into."""
SOURCES = ("kernels/*.py", "csrc/*", "c2v_engine/**/*.py", "benchmarks/**/*.py", "setup.py")
WATCHED = ("kernels", "csrc", "c2v_engine", "benchmarks", "setup.py", ":!benchmarks/results")


def describe_sources(commit: str | None = None) -> dict[str, Any]:
    """What is measured: the commit, whether files differ from it, and a digest of the sources.

    Args:
        commit: for a copy without its ``.git``, which can not tell.
    """
    found = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", *WATCHED)
    return {
        "version": __version__,
        "commit": commit or found or "unknown",
        "dirty": None if changed is None else bool(changed),
        "sources_sha256": digest_sources(ROOT),
    }


def digest_sources(root: Path) -> str:
    """The SHA-256 of the names and contents of what is measured, of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        if path.is_file():
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def describe_machine() -> dict[str, Any]:
    """GPU, driver, CUDA, torch and Triton; fields of what is not there are None."""
    import torch

    from c2v_engine.kernels._triton import triton

    gpu: dict[str, Any] = dict.fromkeys(
        ("gpu", "compute_capability", "multiprocessors", "memory_bytes", "l2_bytes", "driver")
    )
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": properties.name,
            "compute_capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "driver": driver_version(),
        }
    return {
        **gpu,
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "triton": None if triton is None else triton.__version__,
        "python": platform.python_version(),
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git(*arguments: str) -> str | None:
    """What git says of this checkout, or None where it says nothing, or there is none."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def driver_version() -> str | None:
    """The GPU driver's, from its tool or the kernel's module."""
    if shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout.split()[0]
    module = Path("/proc/driver/nvidia/version")
    if module.is_file():
        numbers = [word for word in module.read_text().split() if word[:1].isdigit()]
        return numbers[0] if numbers else None
    return None


def processor_name() -> str:
    """What the CPU calls itself, where the system says so."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str:
    """The commit that is measured, with a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
