"""A wheel and an sdist, built from the tree, work where nothing of the checkout can be imported.

The environments are empty but for a link to the libraries that this one has: torch and the rest
would be the same files from an index, minutes later.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENCODE = """
import c2v_engine, sys
from c2v_engine import Causal2Vec
from c2v_engine.kernels.dual_token_pool import extension_status
assert c2v_engine.__file__.startswith(sys.prefix), c2v_engine.__file__
vector = Causal2Vec.from_pretrained(device="cpu").encode("installed")
print(vector.shape, bool(abs((vector**2).sum() - 1) < 1e-3), extension_status().available)
"""


def run(*command, **options):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what is in the repository, without anything that was built."""
    target = tmp_path_factory.mktemp("tree") / "c2v"
    built = (".venv", "venv", "build", "dist", "demo", "*.so", "*.egg-info", "__pycache__")
    left_out = shutil.ignore_patterns(".git", ".*_cache", *built)
    shutil.copytree(ROOT, target, ignore=left_out, symlinks=True)
    return target


@pytest.fixture(scope="module")
def distributions(tree):
    """The sdist, and the wheel built from the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree)
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")
    return sdist, wheel


def empty_environment(place):
    """An environment without c2v-engine that can import everything else that this one can."""
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    # A plain path: the links to an editable install that lie there are not followed.
    Path(site, "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    found = "import importlib.util as u; print(u.find_spec('c2v_engine'))"
    assert run(python, "-c", found, cwd=place).strip() == "None"
    return python


def install(python, distribution, **options):
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--no-build-isolation", distribution, **options,
    )  # fmt: skip


def test_the_wheel_holds_the_extension_the_kernels_and_the_default_model(distributions):
    names = zipfile.ZipFile(distributions[1]).namelist()
    assert any(name.startswith("c2v_engine/_C") for name in names)
    for name in (
        "c2v_engine/kernels/dual_token_pool.py",
        "c2v_engine/default_model/config.json",
        "c2v_engine/default_model/decoder/model.safetensors",
        "c2v_engine/py.typed",
    ):
        assert names.count(name) == 1, name
    assert not [name for name in names if name.startswith(("tests/", "kernels/", "csrc/"))]


def test_the_wheel_encodes_in_an_empty_environment(distributions, tmp_path):
    python = empty_environment(tmp_path / "env")
    install(python, distributions[1])
    assert run(python, "-c", ENCODE, cwd=tmp_path).strip() == "(512,) True True"
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    c2v = tmp_path / "env" / "bin" / "c2v"
    run(c2v, "encode", "texts.txt", "-o", "out.npy", cwd=tmp_path)
    assert (tmp_path / "out.npy").stat().st_size == 128 + 2 * 512 * 4


def test_the_sdist_installs_without_a_compiler_and_says_so(distributions, tmp_path):
    python = empty_environment(tmp_path / "env")
    no_compiler = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    install(python, distributions[0], env=no_compiler)
    assert run(python, "-c", ENCODE, cwd=tmp_path).strip() == "(512,) True False"
    report = run(tmp_path / "env" / "bin" / "c2v", "doctor", cwd=tmp_path)
    assert "not compiled: the PyTorch form of each op serves" in report
