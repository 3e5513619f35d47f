"""Loads the compiled ops, ``c2v_engine._C``, once, and remembers how that went."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from functools import lru_cache
from typing import NamedTuple

import torch

MODULE = "c2v_engine._C"
# Without the options pip would take the wheel that it kept from the last time.
REINSTALL = (
    "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation c2v-engine "
    "(from a checkout: -e . in place of c2v-engine)"
)


class ExtensionStatus(NamedTuple):
    """What became of the compiled ops on this machine.

    Attributes:
        available: whether the compiled ops are loaded.
        reason: one line that says what was found and, where something serves in place of a compiled
            kernel, what serves and how to change it.
        cuda: whether the compiled ops have CUDA kernels.
    """

    available: bool
    reason: str
    cuda: bool


@lru_cache(maxsize=1)
def load_extension() -> ExtensionStatus:
    """Loads the extension, which registers its ops with torch.

    Returns:
        How the loading went; the same at every call.

    Warns:
        RuntimeWarning: the extension is there but can not be loaded, so that every op runs in its
            PyTorch form.
    """
    try:
        module = importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name == MODULE:
            return ExtensionStatus(False, _not_built(), False)
        return _broken(error)
    except (ImportError, OSError, RuntimeError) as error:
        return _broken(error)
    cuda_version: str = module.cuda_version
    if cuda_version:
        return ExtensionStatus(True, f"compiled for CPU and CUDA {cuda_version}", True)
    if torch.version.cuda is None:
        return ExtensionStatus(True, "compiled for CPU", False)
    return ExtensionStatus(
        True,
        f"compiled for CPU only, though torch has CUDA {torch.version.cuda}: on CUDA the PyTorch "
        "form of each op serves; where an nvcc of that major version is found, run "
        f"{REINSTALL}",
        False,
    )


def _not_built() -> str:
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    found = next((name for name in compilers if name and shutil.which(name)), None)
    if found is None:
        cure = f"no C++ compiler is on the PATH; install one, then run {REINSTALL}"
    else:
        cure = f"a C++ compiler ({found}) is on the PATH now; to build it, run {REINSTALL}"
    return f"not built, the PyTorch form of each op serves: {cure}"


def _broken(error: BaseException) -> ExtensionStatus:
    cause = " ".join(str(error).split())
    reason = (
        f"built but can not be loaded, the PyTorch form of each op serves: {cause}; "
        f"to build it for the torch that is installed, run {REINSTALL}"
    )
    warnings.warn(f"{MODULE} is {reason}", RuntimeWarning, stacklevel=2)
    return ExtensionStatus(False, reason, False)
