"""Runs over cases: budgets, interruptions, crashes, and what the result file holds after each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_benchmark import run as runs
from kernel_benchmark.catalogue import small_cases
from kernel_benchmark.measure import DeviceLostError
from kernel_benchmark.report import line, summary, verdict
from kernel_benchmark.run import run_cases

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.machine.facts import describe_machine, describe_sources
from c2v_engine.bench.record import Record

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def cases():
    wanted = ("silu_and_mul", "add_rms_norm", "prefix_concat")
    return [case for case in small_cases(torch.bfloat16) if case.op.name in wanted]


def read(record):
    return json.loads(record.path.read_text(encoding="utf-8"))


def measured(content):
    return list(dict.fromkeys(entry["case"] for entry in content["results"]))


def test_all_cases_are_measured_and_written(cases, settings, tmp_path):
    record = Record(tmp_path / "new" / "kernels.json")
    run_cases(cases, settings, record, Budget(None))
    content = read(record)
    assert measured(content) == [case.name for case in cases]
    assert (content["cut"], content["running"]) == (None, None)
    assert verdict(content) == []
    assert [path.name for path in record.path.parent.iterdir()] == ["kernels.json"]


def test_a_spent_budget_begins_nothing_and_says_what_is_left(cases, settings, tmp_path):
    record = Record(tmp_path / "kernels.json")
    run_cases(cases, settings, record, Budget(0.0))
    content = read(record)
    assert content["cut"]["not_measured"] == [case.name for case in cases]
    assert verdict(content) == ["nothing was measured"]


def test_a_budget_that_ends_midway_keeps_what_was_measured(cases, settings, tmp_path):
    class OneCase(Budget):
        asked = 0

        @property
        def over(self):
            self.asked += 1
            return self.asked > 1

    record = Record(tmp_path / "kernels.json")
    run_cases(cases, settings, record, OneCase(None))
    content = read(record)
    assert measured(content) == [cases[0].name]
    assert content["cut"]["not_measured"] == [case.name for case in cases[1:]]
    assert any("cut after" in text for text in summary(content))


def test_an_interrupted_run_keeps_what_it_had_and_is_resumed(cases, settings, tmp_path):
    record = Record(tmp_path / "kernels.json")

    def interrupt(entry):
        if entry["case"] == cases[1].name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cases(cases, settings, record, Budget(None), interrupt)
    before = read(record)
    assert measured(before) == [case.name for case in cases[:2]]
    resumed = Record(record.path, resume=True)
    run_cases(cases, settings, resumed, Budget(None))
    after = read(resumed)
    assert measured(after) == [case.name for case in cases]
    assert after["results"][: len(before["results"])] == before["results"]
    entries = [(entry["case"], entry["provider"]) for entry in after["results"]]
    assert len(set(entries)) == len(entries)


def killed(path, case, provider, settings, monkeypatch):
    """Leaves the file as a process does that is killed while a provider is at work."""

    class Killed(BaseException):
        pass

    def measure(case, given):
        given.announce(provider)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs, "measure_case", measure)
        with pytest.raises(Killed):
            run_cases([case], settings, Record(path, resume=True), Budget(None))
    assert json.loads(path.read_text())["running"] == {"case": case.name, "provider": provider}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_was_stopped_on_purpose_is_measured_again(
    stop, cases, settings, tmp_path, monkeypatch
):
    def measure(case, given):
        given.announce("timing")
        raise stop

    path = tmp_path / "kernels.json"
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "measure_case", measure)
            with pytest.raises(stop):
                run_cases(cases[:1], settings, Record(path, resume=True), Budget(None))
        assert json.loads(path.read_text())["running"] is None
    record = Record(path, resume=True)
    run_cases(cases[:1], settings, record, Budget(None))
    assert {entry["status"] for entry in read(record)["results"]} == {"ok"}


@pytest.mark.parametrize("provider", ["ours", "timing"])
def test_what_was_killed_once_is_tried_once_more(provider, cases, settings, tmp_path, monkeypatch):
    path = tmp_path / "kernels.json"
    killed(path, cases[0], provider, settings, monkeypatch)
    record = Record(path, resume=True)
    run_cases(cases[:1], settings, record, Budget(None))
    assert {entry["status"] for entry in read(record)["results"]} == {"ok"}
    assert verdict(read(record)) == []


def test_a_provider_that_ended_the_process_twice_is_left_out_of_its_case(
    cases, settings, tmp_path, monkeypatch
):
    path = tmp_path / "kernels.json"
    for _ in range(2):
        killed(path, cases[0], "ours", settings, monkeypatch)
    resumed = Record(path, resume=True)
    run_cases(cases[:2], settings, resumed, Budget(None))
    entries = {(e["case"], e["provider"]): e for e in read(resumed)["results"]}
    crashed = entries.pop((cases[0].name, "ours"))
    assert crashed["status"] == "crashed"
    assert "the process ended" in crashed["reason"]
    assert {entry["status"] for entry in entries.values()} == {"ok"}
    assert len(verdict(read(resumed))) == 1


@pytest.mark.parametrize("stage", ["arguments", "timing"])
def test_a_case_that_ended_the_process_twice_by_no_provider_s_fault_is_skipped(
    stage, cases, settings, tmp_path, monkeypatch
):
    path = tmp_path / "kernels.json"
    for _ in range(2):
        killed(path, cases[0], stage, settings, monkeypatch)
    record = Record(path, resume=True)
    run_cases(cases[:2], settings, record, Budget(None))
    entries = read(record)["results"]
    assert [entry["status"] for entry in entries if entry["case"] == cases[0].name] == ["crashed"]
    assert measured(read(record)) == [case.name for case in cases[:2]]


def test_a_lost_device_ends_the_run_and_is_laid_to_the_provider(
    cases, settings, tmp_path, monkeypatch
):
    def lose(case, given):
        given.announce("ours")
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(runs, "measure_case", lose)
    monkeypatch.setattr(runs, "device_answers", lambda device: False)
    record = Record(tmp_path / "kernels.json")
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        run_cases(cases, settings, record, Budget(None))
    monkeypatch.undo()
    assert read(record)["crashes"][0]["provider"] == "ours"
    resumed = Record(record.path, resume=True)
    run_cases(cases[:1], settings, resumed, Budget(None))
    statuses = {entry["provider"]: entry["status"] for entry in read(resumed)["results"]}
    assert statuses == {"ours": "crashed", "eager": "ok"}


def test_a_case_that_fails_leaves_the_others(cases, settings, tmp_path, monkeypatch):
    measure = runs.measure_case

    def fail_once(case, given):
        if case is cases[0]:
            raise MemoryError("too large")
        return measure(case, given)

    monkeypatch.setattr(runs, "measure_case", fail_once)
    record = Record(tmp_path / "kernels.json")
    run_cases(cases, settings, record, Budget(None))
    entries = read(record)["results"]
    assert entries[0]["status"] == "failed"
    assert "too large" in entries[0]["reason"]
    assert measured(read(record)) == [case.name for case in cases]
    assert any("failed" in problem for problem in verdict(read(record)))


def test_the_file_is_replaced_as_a_whole(tmp_path):
    record = Record(tmp_path / "result.json")
    record.put("a", 1)
    kept = record.path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        record.put("b", object())
    assert record.path.read_text(encoding="utf-8") == kept


def test_a_rival_that_fails_is_no_problem_but_a_wrong_one_is():
    entry = {"case": "c", "provider": "flash_attn_2", "reason": "because"}
    assert verdict({"results": [{**entry, "status": "failed"}]}) == []
    assert verdict({"results": [{**entry, "status": "unusable"}]}) == []
    assert verdict({"results": [{**entry, "status": "wrong"}]}) == [
        "c, flash_attn_2: wrong: because"
    ]
    ours = {**entry, "provider": "ours"}
    assert len(verdict({"results": [{**ours, "status": "unusable"}]})) == 1


def test_an_entry_is_told_in_one_line(cases, settings, tmp_path):
    record = Record(tmp_path / "kernels.json")
    run_cases(cases[:1], settings, record, Budget(None))
    for entry in read(record)["results"]:
        text = line(entry)
        assert "\n" not in text
        assert "GB/s" in text
        assert "of copy" in text


def test_sources_and_machine_are_told():
    sources = describe_sources()
    assert len(sources["sources_sha256"]) == 64
    assert sources["dirty"] in (True, False, None)
    assert describe_sources("abc123")["commit"] == "abc123"
    machine = describe_machine()
    assert {"gpu", "driver", "cuda", "torch", "triton", "l2_bytes"} <= machine.keys()
    assert machine["torch"] == torch.__version__


def test_the_same_cases_run_under_pytest_benchmark(tmp_path):
    own, theirs = tmp_path / "own.json", tmp_path / "theirs.json"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts="]
    command += ["benchmarks/test_kernel_benchmark.py", "-p", "no:cacheprovider"]
    command += ["-k", "silu_and_mul-tiny and not compile", "--kernel-results", str(own)]
    command += ["--benchmark-json", str(theirs)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    entries = json.loads(own.read_text(encoding="utf-8"))["results"]
    assert [entry["provider"] for entry in entries] == ["ours", "eager"]
    benchmarks = json.loads(theirs.read_text(encoding="utf-8"))["benchmarks"]
    for entry, benchmark in zip(entries, benchmarks, strict=True):
        assert benchmark["extra_info"]["gb_per_s"] == entry["gb_per_s"]
        assert benchmark["stats"]["median"] == pytest.approx(entry["median_ms"] / 1e3)
