"""The table of docs/serving.md is what the script makes of the result files."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
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


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import serving_table

    return serving_table


def test_the_table_is_what_the_script_makes_of_the_results(table):
    made = table.make_tables(table.RESULTS)
    assert table.put_into(PAGE, made, table.BEGIN) == PAGE
    with pytest.raises(ValueError, match=r"has no .*serving_table"):
        table.put_into("", made, table.BEGIN)


def test_a_result_is_told_with_three_digits(table):
    setting, _, _, _, full, fourfold, _, beside = table.make_table(RESULT).splitlines()
    assert setting.startswith("A processor, 2 cores")
    assert setting.endswith("60 seconds each; commit 0123456.")
    counts = "12,345 x 200, 67 x 429"
    assert full == f"| 32 requests at any time | 543 | 96% | {counts} | 12.3, 1,230 ms |  |"
    assert "4x of offline, at random moments: 2,170 texts/s | 543 |" in fourfold
    assert "p50 12.3 ms, 1.23 ms of it outside" in beside
    assert beside.endswith("700 MiB once it had been full, 701 MiB at the end.")
