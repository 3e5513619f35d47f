"""Options of the benchmarks that run under pytest."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the result file of the kernel benchmark."""
    parser.addoption(
        "--kernel-results", type=Path, help="write the kernel benchmark's entries to this file"
    )
