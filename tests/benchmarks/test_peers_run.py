"""The script behind ``make peers``, on tiny models."""

import json
import sys

import pytest


def test_it_measures_every_workload_in_both_dtypes_into_one_folder(tmp_path, monkeypatch, capsys):
    import bench_peers

    monkeypatch.setattr(
        sys, "argv", ["bench_peers.py", "--small", "--repetitions", "1", "-o", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as caught:
        bench_peers.main()
    assert not caught.value.code
    content = json.loads((tmp_path / "results.json").read_text())
    assert [(entry["case"], entry["provider"]) for entry in content["results"]] == [
        (f"tiny-qwen2 last-token/{workload}/{dtype}", f"{kind} {dtype}")
        for dtype in ("bfloat16", "float32")
        for workload in ("128", "passages")
        for kind in ("engine", "padded", "sentence-transformers")
    ]
    assert {entry["status"] for entry in content["results"]} == {"ok"}
    assert (content["kind"], content["dtypes"]) == ("bench", ["bfloat16", "float32"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "peers.png")
