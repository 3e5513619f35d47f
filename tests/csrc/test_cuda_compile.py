"""The CUDA kernels compile for every architecture of the wheels, GPU or not, and stay in registers.

``nvcc`` is the one on the PATH, or comes with the test extra, whose ``nvidia-cuda-nvcc`` installs
it in the environment. Nothing is run.
"""

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = 6  # three dtypes, each with and without 16-byte loads
SOURCE = CSRC / "dual_token_pool_cuda.cu"


@functools.cache
def compiler():
    """The path of ``nvcc``; where a package should have brought it and did not, the test fails."""
    found = shutil.which("nvcc")
    if found is not None:
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc")
    except importlib.metadata.PackageNotFoundError:
        return None
    brought = [file.locate() for file in files or () if file.name in ("nvcc", "nvcc.exe")]
    assert brought, "the package nvidia-cuda-nvcc holds no nvcc"
    return os.fspath(brought[0])


@pytest.fixture(scope="module", params=["sm_80", "sm_90", "sm_100"])
def cubin(request, tmp_path_factory):
    """(path of the compiled kernels, what ptxas says of them) for one architecture."""
    nvcc = compiler()
    if nvcc is None:
        pytest.skip("nvcc is neither on the PATH nor installed: pip install c2v-engine[test]")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    if request.param not in known.stdout.split():
        pytest.skip(f"this nvcc does not know {request.param}")
    path = tmp_path_factory.mktemp("cubin") / f"{request.param}.cubin"
    flags = ["-O3", "-std=c++17", f"-arch={request.param}", "-Xptxas", "-v", "-cubin"]
    result = subprocess.run(
        [nvcc, *flags, "-o", path, SOURCE], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return path, result.stdout + result.stderr


def disassembler():
    """``cuobjdump``, from the toolkit or from the triton package."""
    found = shutil.which("cuobjdump")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
        found = shutil.which("cuobjdump", path=str(folder))
    return found


def test_no_kernel_spills_or_needs_a_stack_frame(cubin):
    _, report = cubin
    used = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert used == [("0", "0", "0")] * KERNELS, report


def test_hidden_states_are_read_sixteen_bytes_at_a_time(cubin):
    path, _ = cubin
    tool = disassembler()
    if tool is None:
        pytest.skip("no cuobjdump in the toolkit or in triton to read the machine code with")
    sass = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    functions = re.split(r"^\s*Function : ", sass, flags=re.MULTILINE)[1:]
    assert len(functions) == KERNELS
    # The template's bool is in the mangled name: Lb1 reads vectors, Lb0 single values.
    vectorised = [code for code in functions if "Lb1E" in code.splitlines()[0]]
    assert len(vectorised) == KERNELS // 2
    for code in vectorised:
        # Four loads in flight in the norm's unrolled loop, and one more to accumulate.
        assert len(re.findall(r"\bLDG\.E\.128\b", code)) >= 5
