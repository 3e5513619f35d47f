"""What ``pyproject.toml`` promises to installers and to other programs is in the package."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from c2v_engine.integrations.vllm import register

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY_POINTS = [
    pytest.param(EntryPoint(name, value, group), id=group)
    for group, points in {
        "console_scripts": PROJECT["scripts"],
        **PROJECT["entry-points"],
    }.items()
    for name, value in points.items()
]


@pytest.mark.parametrize("point", ENTRY_POINTS)
def test_entry_points_lead_to_something_to_call(point):
    assert callable(point.load())


def test_vllm_finds_the_plugin():
    points = PROJECT["entry-points"]["vllm.general_plugins"]
    [point] = [EntryPoint(name, value, "") for name, value in points.items()]
    assert point.load() is register


def test_extras_that_an_error_names_are_there():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "c2v_engine").rglob("*.py")]
    calls = re.findall(r'MissingPackageError\(\s*"[^"]+",\s*"([^"]+)"\s*\)', "\n".join(sources))
    assert {"langchain", "ray", "vllm"} <= set(calls) <= set(PROJECT["optional-dependencies"])
