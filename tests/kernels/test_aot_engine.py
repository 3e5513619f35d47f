"""What ``make aot`` compiles is what the engine launches, all of it."""

import json
from pathlib import Path

import pytest
from compiling import run_compiler

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def launches():
    result = run_compiler(Path(__file__).with_name("engine_launches.py"))
    # The forward runs on tensors without values: one that asked the device for a value would fail.
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_engine_launches_nothing_that_is_not_compiled_ahead(launches):
    assert launches["unknown"] == {}


def test_the_engine_launches_every_kernel(launches):
    assert launches["launched"] == launches["compiled"]
