"""The folder ``kernels/`` at the repository root and the Hugging Face package of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_at_root(code, *path):
    """The output of a script run at the repository root, with `path` last on ``sys.path``."""
    extend = f"import sys; sys.path.extend({[str(entry) for entry in path]!r})\n"
    result = subprocess.run(
        [sys.executable, "-c", extend + code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_package_named_kernels_elsewhere_wins_over_the_folder(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("def get_kernel(): return 'hub'\n")
    code = "import kernels; print(kernels.__file__, kernels.get_kernel())"
    assert run_at_root(code, tmp_path) == f"{package / '__init__.py'} hub"


def test_the_folder_is_no_regular_package():
    assert not list((ROOT / "kernels").glob("__init__.*"))


def test_the_ops_are_imported_as_part_of_the_package():
    code = "import c2v_engine.kernels.dual_token_pool as op; print(op.__name__)"
    assert run_at_root(code) == "c2v_engine.kernels.dual_token_pool"
