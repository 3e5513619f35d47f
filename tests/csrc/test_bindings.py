"""The extension keeps to torch's stable ABI, and its CUDA build compiles where torch has none."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def symbols_from_elsewhere() -> list[str]:
    """What the built extension needs of other libraries, demangled, one symbol a line."""
    spec = importlib.util.find_spec("c2v_engine._C")
    if spec is None or spec.origin is None:
        pytest.skip("the extension is not built")
    if shutil.which("nm") is None:
        pytest.skip("nm is not on the PATH")
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", spec.origin]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_get_size" in symbols  # the C shims are what it is made of
    return symbols.splitlines()


def test_the_extension_needs_no_cpp_symbol_of_torch():
    unstable = [
        line
        for line in symbols_from_elsewhere()
        if any(name in line for name in ("at::", "c10::", "torch::"))
    ]
    assert unstable == []


def test_the_extension_uses_no_stream():
    """libtorch exports parts of its own, and those of two C++ libraries end a message, or crash."""
    used = [line for line in symbols_from_elsewhere() if "std::" in line]
    if not used:
        # Headers of torch include <iostream>, which brings streams in, though nobody calls one.
        pytest.skip("the C++ library was linked into the extension, and hides what is used of it")
    assert [line for line in used if "stream" in line] == []


def test_the_extension_needs_no_symbol_outside_of_the_stable_python_abi():
    spec = importlib.util.find_spec("c2v_engine._C")
    if spec is None or spec.origin is None:
        pytest.skip("the extension is not built")
    assert ".abi3." in Path(spec.origin).name


def test_the_cuda_bindings_compile_without_a_cuda_build_of_torch():
    compiler = next(filter(shutil.which, ["c++", "g++", "clang++"]), None)
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    includes = [*include_paths(), sysconfig.get_path("include"), str(CSRC)]
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror=unused-function"]
    macros = ["-DUSE_CUDA", "-DPy_LIMITED_API=0x030A0000", '-DC2V_CUDA_VERSION="13.0"']
    macros.append("-DTORCH_TARGET_VERSION=0x020b000000000000")
    command = [compiler, *flags, *macros, *(f"-I{path}" for path in includes)]
    result = subprocess.run(
        [*command, CSRC / "bindings.cpp"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
