"""How the ops are served, and what is said of it, with and without the compiled extension."""

import subprocess
import sys


def run_python(code):
    """Runs a script in a fresh interpreter that turns no warning off."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=120
    )


CALL = """
import torch
from c2v_engine.kernels.dual_token_pool import dual_token_pool, extension_status
index = lambda *values: torch.tensor(values, dtype=torch.int32)
args = (torch.arange(12.0).reshape(3, 4), index(0, 2), index(0, 1, 2), torch.ones(4))
embeddings, norms = dual_token_pool(*args, eps=1e-6, segments=2, keep=2)
torch.library.opcheck(torch.ops.c2v.dual_token_pool.default, (*args, 1e-6, 2, 2, True, 0, None))
print([round(value, 4) for value in embeddings[0].tolist()])
print(extension_status())
"""


def test_without_the_extension_the_pytorch_form_serves_under_the_same_op():
    hidden = "import sys\nsys.modules['c2v_engine._C'] = None\n"
    with_extension, without = run_python(CALL), run_python(hidden + CALL)
    assert without.returncode == 0, without.stderr
    vector, status = without.stdout.splitlines()
    assert vector == with_extension.stdout.splitlines()[0]
    assert "available=False" in status
    assert "not built" in status
    assert "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation" in status


def test_an_extension_that_can_not_be_loaded_is_warned_of_once_and_reported():
    broken = """
import sys
class Broken:
    def find_spec(name, path=None, target=None):
        if name == "c2v_engine._C":
            raise ImportError("_C.abi3.so: undefined symbol: torch_library_impl")
sys.meta_path.insert(0, Broken)
"""
    result = run_python(broken + CALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning: c2v_engine._C is built but can not be loaded") == 1
    assert "available=False" in result.stdout
    assert "undefined symbol: torch_library_impl" in result.stdout
