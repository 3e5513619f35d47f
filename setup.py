"""Builds the compiled ops; every other setting of the package is in ``pyproject.toml``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NO_TORCH = (
    "c2v-engine builds against the torch that is installed, and none can be imported here: "
    "pip install torch first, then pip install --no-build-isolation c2v-engine"
)
# Without the options pip would take the wheel that it kept from the last time.
REINSTALL = (
    "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation c2v-engine "
    "(from a checkout: -e . in place of c2v-engine)"
)
TORCH_TARGET_VERSION = "0x020b000000000000"  # the stable ABI of torch 2.11


def sources(pattern: str) -> list[str]:
    """The files of ``csrc/`` that match, in a fixed order, as setuptools wants their paths."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"csrc/{pattern}"))


def announce(message: str) -> None:
    """Says on the build's output what the user will miss, framed so that it is not overlooked."""
    frame = "*" * 100
    print(f"\n{frame}\nWARNING: {message}\n{frame}\n", file=sys.stderr, flush=True)


def nvcc_version(cuda_home: str) -> tuple[int, int] | None:
    """The (major, minor) of the toolkit's ``nvcc``, or None where it does not run."""
    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--version"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", result.stdout)
    return (int(found[1]), int(found[2])) if found else None


def usable_cuda(torch_cuda: str | None, cuda_home: str | None) -> tuple[int, int] | None:
    """The toolkit to compile the CUDA kernels with, if there is one that fits torch.

    torch and the toolkit decide, not a visible GPU: building on a machine without one is normal.
    """
    if torch_cuda is None:
        return None
    version = nvcc_version(cuda_home) if cuda_home else None
    serves = "The CPU kernels are built alone; on CUDA the PyTorch form of each op serves."
    if version is None:
        announce(f"torch is built for CUDA {torch_cuda}, but no nvcc was found. {serves}")
    elif version[0] != int(torch_cuda.split(".")[0]):
        found = f"nvcc is of CUDA {version[0]}.{version[1]}"
        announce(f"torch is built for CUDA {torch_cuda}, but {found}. {serves}")
        version = None
    return version


def default_architectures(nvcc: tuple[int, int]) -> str:
    """Ampere, Hopper and Blackwell, with PTX for what comes after."""
    return "8.0;9.0;10.0+PTX" if nvcc >= (12, 8) else "8.0;9.0+PTX"


def torch_extension() -> tuple[list[Extension], dict[str, Any]]:
    """The extension and the command that builds it, for the torch that is installed."""
    import torch
    from torch.utils import cpp_extension

    nvcc = usable_cuda(torch.version.cuda, cpp_extension.CUDA_HOME)
    macros: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    optimise = ["/O2"] if os.name == "nt" else ["-O3", "-g0"]
    kind = cpp_extension.CppExtension
    files = sources("*.cpp")
    if nvcc is not None:
        kind = cpp_extension.CUDAExtension
        files += sources("*.cu")
        macros += [("USE_CUDA", None), ("C2V_CUDA_VERSION", f'"{nvcc[0]}.{nvcc[1]}"')]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(nvcc))
    extension = kind(
        "c2v_engine._C",
        files,
        depends=sources("*.h"),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": optimise, "nvcc": ["-O3"]},
        py_limited_api=True,
    )

    class BuildOptionalExtension(cpp_extension.BuildExtension):
        """Builds the extension, or says why not and lets the install go on without it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["use_ninja"] = cpp_extension.is_ninja_available()
            super().__init__(*args, **kwargs)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                self.leave_out(error)

        def leave_out(self, error: Exception) -> None:
            """Removes what an older build left, so that no stale kernel is loaded in its place."""
            for extension in self.extensions:
                built = Path(self.get_ext_fullpath(extension.name))
                in_place = ROOT.joinpath(*extension.name.split(".")).parent / built.name
                for path in (built, in_place):
                    path.unlink(missing_ok=True)
            self.extensions = []
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            announce(
                f"the compiled ops of c2v-engine could not be built ({reason}). The install goes "
                "on without them: the PyTorch form of each op serves, slower. For the compiled "
                f"ops, install a C++ compiler, then run {REINSTALL}. `c2v doctor` tells which "
                "serves."
            )

    return [extension], {"build_ext": BuildOptionalExtension}


class TorchIsMissing(build_ext):
    """Takes the place of the build where torch is not there to build against."""

    def run(self) -> None:
        raise SystemExit(NO_TORCH)


def extension() -> tuple[list[Extension], dict[str, Any]]:
    """The extension where this run may build it; metadata and sdist need no torch."""
    if {"egg_info", "dist_info", "sdist"} & set(sys.argv):
        return [], {}
    try:
        return torch_extension()
    except ImportError:
        return [Extension("c2v_engine._C", sources("*.cpp"))], {"build_ext": TorchIsMissing}


ext_modules, cmdclass = extension()
setup(
    packages=[*find_packages(include=["c2v_engine", "c2v_engine.*"]), "c2v_engine.kernels"],
    package_dir={"c2v_engine.kernels": "kernels"},
    package_data={
        "c2v_engine": [
            "py.typed",
            "model/attention/*.json",
            "serving/watch/*.html",
            "default_model/**/*.json",
            "default_model/**/*.safetensors",
            "default_model/**/*.txt",
            "default_model/README.md",
        ]
    },
    include_package_data=False,
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
