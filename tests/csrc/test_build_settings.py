"""What ``setup.py`` decides about a build, and what it says where none came of it."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

from c2v_engine.kernels import _extension

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(monkeypatch):
    """Runs ``setup.py`` up to its call of ``setup``, whose arguments it gives."""

    def run():
        given = {}
        monkeypatch.setattr(setuptools, "setup", given.update)
        monkeypatch.setattr("sys.argv", ["setup.py", "build_ext"])
        runpy.run_path(str(ROOT / "setup.py"))
        return given

    return run


@pytest.fixture
def toolkit(monkeypatch):
    """A torch that is built for the CUDA of the toolkit on the PATH; (major, minor) of that."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH")
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, re.search(r"release (\d+)\.(\d+)", output).groups())
    monkeypatch.setattr(torch.version, "cuda", f"{major}.{minor}")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(Path(nvcc).parents[1]))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    return major, minor


@pytest.mark.parametrize("visible", [False, True])
def test_the_architectures_follow_the_toolkit_and_not_a_visible_gpu(
    visible, toolkit, settings, monkeypatch
):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    (extension,) = settings()["ext_modules"]
    assert "csrc/dual_token_pool_cuda.cu" in extension.sources
    newest = "10.0+PTX" if toolkit >= (12, 8) else "9.0+PTX"
    assert os.environ["TORCH_CUDA_ARCH_LIST"].split(";")[-1] == newest


@pytest.mark.usefixtures("toolkit")
def test_architectures_that_the_user_names_are_kept(settings):
    settings()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"


def test_a_build_that_fails_tells_the_command_that_builds_again(settings, capsys):
    command = settings()["cmdclass"]["build_ext"](setuptools.Distribution())
    command.extensions = []  # nothing to remove
    command.leave_out(RuntimeError("no compiler"))
    message = capsys.readouterr().err
    assert "could not be built (no compiler)" in message
    assert _extension.REINSTALL in message  # the same as at run time
    for option in ("--force-reinstall", "--no-deps", "--no-cache-dir", "--no-build-isolation"):
        assert option in message
