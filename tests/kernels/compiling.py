"""Runs scripts in which Triton compiles, which the interpreter of this process can not."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def run_compiler(*command, timeout=900):
    """The finished run of a Python script, which can import the modules of ``tools/``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # The package may be used from the checkout, built in place and not installed.
    paths = [str(TOOLS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, *(str(part) for part in command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def output_of(script, path):
    """What a script prints; it is written to ``path``, since Triton reads its kernels' source."""
    path.write_text(script)
    result = run_compiler(path)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
