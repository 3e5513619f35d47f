"""What became of the tests of a run on a GPU, and how long it took."""

from __future__ import annotations

from figures_registry.kernels import FOLDERS
from figures_registry.registry import figure
from figures_registry.results import read


@figure
def run_seconds(run: str) -> str:
    """Seconds of the whole run."""
    return f"{read(f'{FOLDERS[run]}/gpu.json')['seconds']:.0f}"


@figure
def run_tests(run: str, outcome: str) -> str:
    """How many tests ``passed``, ``failed``, were ``skipped`` or ``left_out``."""
    return f"{read(f'{FOLDERS[run]}/tests.json')[outcome]:,}"
