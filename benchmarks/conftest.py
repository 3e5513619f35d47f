"""Options of the benchmarks that run under pytest."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the result file of the kernel benchmark, and how much the encode benchmark embeds."""
    parser.addoption(
        "--kernel-results", type=Path, help="write the kernel benchmark's entries to this file"
    )
    parser.addoption(
        "--bench-quick",
        action="store_true",
        help="few texts and rounds, nothing that torch compiles: tries the suite in a minute",
    )
