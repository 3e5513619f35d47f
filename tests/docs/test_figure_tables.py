"""Tables and figures say what their result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LATENCIES = {"p50": 12.345, "p90": 20.0, "p99": 1234.5, "count": 10}
ROW = {
    "texts_per_second": 543.21,
    "offered_texts_per_second": 2172.8,
    "ratio": 0.957,
    "statuses": {"200": 12345, "429": 67},
    "query_ms": LATENCIES,
    "document_ms": None,
}
RESULT = {
    "cpu": "A processor", "threads": 2, "model": "default", "device": "cpu", "seconds": 60.0,
    "commit": "0123456789", "connections": 32, "saturated": [ROW], "offered": [{"load": 4, **ROW}],
    "alone": {"latency_ms": LATENCIES, "overhead_ms": {"p50": 1.234}},
    "memory": {"first_mib": 700.12, "last_mib": 701.34},
}  # fmt: skip


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def test_figures_have_three_digits():
    from figures_registry.formats import joined, rounded

    values = (0.5123, 3.375, 11.42, 100.4, 2743.5, 82305.0, 999.6)
    assert [rounded(value) for value in values] == [
        "0.512", "3.38", "11.4", "100", "2,740", "82,300", "1,000",
    ]  # fmt: skip
    assert (joined([0.5123]), joined([1.0, 2, 1150])) == ("0.512", "1.00, 2.00 and 1,150")


def test_the_hours_of_a_billion_rows_follow_from_the_rate():
    from figures_registry.corpora import all_costs
    from figures_registry.results import RESULTS

    costs = all_costs(RESULTS)
    assert costs
    for cost in costs:
        assert cost.hours * 3600 * cost.rate == pytest.approx(1e9)


def test_a_server_under_load_is_told_with_three_digits():
    from figures_registry.serving import make_table

    setting, _, _, _, full, fourfold, _, beside = make_table(RESULT).splitlines()
    assert setting.startswith("A processor, 2 cores")
    assert setting.endswith("60 seconds each; commit 0123456.")
    counts = "12,345 x 200, 67 x 429"
    assert full == f"| 32 requests at any time | 543 | 96% | {counts} | 12.3, 1,230 ms | |"
    assert "4x of offline, at random moments: 2,170 texts/s | 543 |" in fourfold
    assert "p50 12.3 ms, 1.23 ms of it outside" in beside
    assert beside.endswith("700 MiB once it had been full, 701 MiB at the end.")


def test_the_goals_that_the_run_printed_are_those_of_the_page():
    """The benchmark computes them by code of its own."""
    run = ROOT / "benchmarks" / "results" / "h100-2026-11-26-f38528f" / "gpu.json"
    goals = json.loads(run.read_text())["parts"]["engine"]["goals"][1:]
    measured = [line[58:].split()[0] for line in goals if "not measured" not in line]
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(measured) == 12
    assert [figure for figure in measured if figure.removesuffix("x") not in page] == []


def test_a_result_that_is_not_there_is_an_error_that_names_the_mark():
    from figures_registry.registry import FigureError, make_figure

    for call, words in (
        (
            "times h100 mistral-7b/128 int8 engine",
            "h100 has timed no engine int8 at mistral-7b/128",
        ),
        ("job_peak_mib no-such.json 10", "no-such.json"),
        ("no_such_figure", "is no figure"),
        ("times h100", "missing a required argument"),
    ):
        with pytest.raises(FigureError, match=words):
            make_figure(call)


def test_a_file_says_its_machine_and_commit_wherever_it_keeps_them():
    from figures_registry.results import commit, facts, setting

    cpu = {
        "commit": "0123456789ab-dirty",
        "cpu": "A processor",
        "threads": 2,
        "torch": "2.13.0+cpu",
    }
    gpu = {**cpu, "gpu": "A GPU", "triton": "3.6.0"}
    for content in (cpu, {"setting": cpu}):
        assert setting(facts(content)) == "A processor, 2 cores, torch 2.13.0"
        assert commit(facts(content)) == "0123456"
    assert setting(gpu) == "A GPU, 2 processors, torch 2.13.0, Triton 3.6.0"
    assert setting(facts({"results": []})) == ""
