"""The benchmark's command: what it refuses, what it goes on with, and how it is stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench_kernels
import pytest
import torch

from c2v_engine.bench.machine.facts import describe_machine, describe_sources
from c2v_engine.bench.record import Record, RecordError

ROOT = Path(__file__).resolve().parents[2]


def small_run(path, *more):
    command = [sys.executable, "benchmarks/bench_kernels.py", "--json", str(path), "--small"]
    return [*command, "--device", "cpu", "--no-compile", *more]


def test_the_command_measures_and_writes_a_result_file(tmp_path):
    path = tmp_path / "kernels.json"
    command = small_run(path, "--case", "silu_and_mul-", "--commit", "abc123")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["commit"] == "abc123"
    assert content["ceilings"]["copy_gb_per_s"] > 0
    assert {entry["provider"] for entry in content["results"]} == {"ours", "eager"}
    assert all(len(entry["ms"]) == 5 for entry in content["results"])
    assert "others, times ours" in result.stdout


def refused(capsys, *arguments):
    """The one line with which the command refuses its arguments."""
    with pytest.raises(SystemExit) as ended:
        bench_kernels.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "cuda:0"], "--device: invalid choice: 'cuda:0'"),
        (["--device", "meta"], "--device: invalid choice: 'meta'"),
        (["--dtype", "float64"], "--dtype: invalid choice"),
        (["--repetitions", "0"], "--repetitions: 0 is less than 1"),
        (["--repetitions", "-3"], "--repetitions: -3 is less than 1"),
        (["--budget", "0"], "--budget: 0.0 is not a finite"),
        (["--budget", "-1"], "--budget: -1.0 is not a finite"),
        (["--budget", "inf"], "--budget: inf is not a finite"),
        (["--budget", "nan"], "--budget: nan is not a finite"),
        (["--case", "no_such_case"], "--case: no case's name has 'no_such_case'"),
        (["--case", "silu_and_mul", "--case", "no_such"], "--case: no case's name has 'no_such'"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(arguments, named, tmp_path, capsys):
    path = tmp_path / "new" / "kernels.json"
    assert named in refused(capsys, "--json", path, "--small", *arguments)
    assert not path.parent.exists()


def test_a_gpu_that_is_not_there_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "kernels.json"
    assert "no CUDA GPU" in refused(capsys, "--json", path, "--device", "cuda")
    assert not path.exists()


@pytest.mark.parametrize("place", ["folder", "file/kernels.json", "folder/" + "k" * 300])
def test_a_place_that_can_not_be_written_is_refused_and_nothing_left(place, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert "can not be written" in refused(capsys, "--json", tmp_path / place, "--small")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "text",
    [
        b"{", b"", b"\xff\xfe", b"[]", b"{}", b'{"results": 3}', b'{"results": [{"a": 1}]}',
        b'{"crashes": [{"case": "a"}]}', b'{"running": {"case": "a"}}', b'{"running": 7}',
    ],
)  # fmt: skip
def test_a_broken_file_is_not_resumed_and_stays_as_it_is(text, tmp_path, capsys):
    path = tmp_path / "kernels.json"
    path.write_bytes(text)
    assert "can not be resumed" in refused(capsys, "--json", path, "--small", "--resume")
    assert path.read_bytes() == text


def test_results_of_something_else_are_not_resumed(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    given = ["--json", path, "--small", "--device", "cpu", "--commit", "abc", "--resume"]
    _, _, record = bench_kernels.parse([str(part) for part in given])
    record.put("results", [])
    kept = path.read_text()
    bench_kernels.parse([str(part) for part in given])  # the same again is resumed
    assert "dtype is 'bfloat16' there and 'float16' here" in refused(
        capsys, *given, "--dtype", "float16"
    )
    assert "commit is 'abc' there and 'def' here" in refused(capsys, *given, "--commit", "def")
    given.remove("--small")
    assert "small is True there and False here" in refused(capsys, *given)
    assert path.read_text() == kept


@pytest.mark.parametrize("key", ["device", "sources_sha256", "gpu", "torch", "threads"])
def test_results_that_differ_in_a_fact_or_lack_it_are_not_resumed(key, tmp_path):
    path = tmp_path / "kernels.json"
    facts = {**describe_sources(), **describe_machine(), "device": "cpu"}
    for there in ({**facts, key: "other"}, {k: v for k, v in facts.items() if k != key}):
        path.write_text(json.dumps(there))
        with pytest.raises(RecordError, match=f"{key} is "):
            Record(path, resume=True).describe(facts)


def test_a_resumed_file_keeps_when_it_began(tmp_path):
    facts = {"commit": "abc", "started": "noon", "dirty": False}
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps(facts))
    record = Record(path, resume=True)
    record.describe({"commit": "abc", "started": "later", "dirty": True})
    assert record.content == facts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_stopped_midway_leaves_no_mark(number, tmp_path):
    path = tmp_path / "kernels.json"
    error = tmp_path / "error"
    with error.open("w") as output:
        command = small_run(path, "--repetitions", "100000", "--case", "silu_and_mul-")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=output)
    try:
        end = time.monotonic() + 120
        while not path.is_file() or "timing" not in path.read_text():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
    content = json.loads(path.read_text())
    assert content["running"] is None
    assert not content.get("crashes")
    assert "Traceback" not in error.read_text()
    assert sorted(tmp_path.iterdir()) == [error, path]
