"""A pytest plugin that writes each test's outcome as it comes, one JSON object a line.

    pytest -p outcomes_plugin --outcomes FILE

So a run that is cut, or that takes the process with it, has said how far it came.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MOST_CHARACTERS = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--outcomes", type=Path, help="write each test's outcome to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Starts writing where the option is given."""
    path = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(Outcomes(path))


class Outcomes:
    """Writes the lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def _write(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self._file, flush=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Names the test that runs from now on."""
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes the outcome of a test, or of its set-up or tear-down where that is not a pass."""
        if report.when == "call" or not report.passed:
            self._write(
                test=report.nodeid,
                outcome=report.outcome,
                seconds=round(report.duration, 3),
                message=message_of(report),
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Writes what could not be collected; a file that skips itself counts as one skip."""
        if not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, message=message_of(report))


def message_of(report: Any) -> str:
    """Why a test did not pass, shortened."""
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:MOST_CHARACTERS]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else str(crash.message)
    return text[:MOST_CHARACTERS]
