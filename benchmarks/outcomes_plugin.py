"""A pytest plugin that writes each test's outcome as it comes, one JSON object a line.

    pytest -p outcomes_plugin --outcomes FILE [--shard 1/3] [--most-cases 24]

Of a file that is shared out, a shard runs every third test, say. With a bound on the cases of a
test function, those that need no GPU are left out where others of the function need one, and of
too many that remain some evenly; how many were is a line too. So a run that is cut, or that takes
the process with it, has said how far it came.
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
    parser.addoption("--shard", default="1/1", help="which part of the tests to run")
    parser.addoption("--most-cases", type=int, help="of a test function")


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

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leaves out what is asked for."""
        number, shards = map(int, config.getoption("--shard").split("/"))
        kept = items[number - 1 :: shards]
        most = config.getoption("--most-cases")
        if most is not None:
            chosen = set(chosen_names([item.nodeid for item in kept], most))
            self._write(outcome="left out", count=len(kept) - len(chosen))
            kept = [item for item in kept if item.nodeid in chosen]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

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


def chosen_names(names: list[str], most: int) -> list[str]:
    """Some cases of each test function.

    Args:
        names: ids of tests, ``function[case]``.
        most: of a function.
    """
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    chosen: list[str] = []
    for cases in functions.values():
        cases = [name for name in cases if "cuda" in name.partition("[")[2]] or cases
        step = max(1.0, (len(cases) - 1) / max(most - 1, 1))
        chosen += [cases[round(i * step)] for i in range(min(most, len(cases)))]
    return chosen


def message_of(report: Any) -> str:
    """Why a test did not pass, shortened."""
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:MOST_CHARACTERS]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else str(crash.message)
    return text[:MOST_CHARACTERS]
