"""The GPU run without a GPU: its refusal, its time table, its processes and its test files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import gpu_parts
import gpu_tests
import pytest
from gpu_parts import PARTS, Part, Run
from gpu_tests import FIRST, MOST_CASES, gpu_test_files, run_test_files
from outcomes_plugin import chosen_names
from processes import Ended, end_all, run_command

from c2v_engine.bench.record import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, Record(tmp_path / "gpu.json"), (9, 0))


def contents(run):
    return json.loads(run.record.path.read_text(encoding="utf-8"))


def test_without_a_gpu_it_ends_with_one_clear_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "error: torch finds no CUDA GPU; there is nothing to measure\n"
    assert not (tmp_path / "out").exists()


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    monkeypatch.setattr(
        gpu, "NEEDS", {"no-such-package": (1, 0), "torch": (99, 0), "numpy": (1, 0)}
    )
    reason = gpu.why_not()
    assert "no-such-package 1.0 or newer is not installed" in reason
    assert "torch 99.0 or newer is needed" in reason
    assert "numpy" not in reason


def test_the_parts_fit_into_ten_minutes_in_the_order_of_what_matters():
    assert sum(part.seconds for part in PARTS) == 560
    names = [part.name for part in PARTS]
    assert names == ["build", "tests", "attention", "engine", "kernels", "sanitizer"]


def test_a_part_gets_its_own_time_and_what_is_left_of_the_others(run):
    allowed = {}

    def note(name, lasts=0.0):
        def carry_out(run, seconds):
            allowed[name] = seconds
            time.sleep(lasts)
            return {"did": name}

        return carry_out

    parts = (
        Part("a", 10.0, note("a")),
        Part("b", 20.0, note("b", 0.3)),
        Part("c", 30.0, note("c")),
    )
    gpu.carry_out(run, parts, 6.0)
    assert allowed["a"] == pytest.approx(1.0, abs=0.2)
    assert allowed["b"] == pytest.approx(3.0, abs=0.2)
    assert allowed["c"] == pytest.approx(5.7, abs=0.2)
    assert contents(run)["parts"] == {name: {"did": name} for name in "abc"}
    assert contents(run)["passed"] is True


def test_a_part_that_raises_is_a_problem_and_the_next_runs(run):
    def fails(run, seconds):
        raise OSError("no space")

    def finds(run, seconds):
        run.problems.append("second: wrong")
        return {}

    gpu.carry_out(run, (Part("first", 1.0, fails), Part("second", 1.0, finds)), 5.0)
    assert contents(run)["problems"] == ["first: OSError: no space", "second: wrong"]
    assert contents(run)["passed"] is False


def test_a_part_cut_midway_has_left_its_name_in_the_file(run):
    def stopped(run, seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.carry_out(run, (Part("done", 1.0, lambda run, s: {}), Part("cut", 1.0, stopped)), 5.0)
    assert contents(run)["running"] == "cut"
    assert contents(run)["parts"] == {"done": {}}
    assert "passed" not in contents(run)


def test_a_command_is_ended_with_all_that_it_started_when_its_time_is_up(tmp_path):
    mark = tmp_path / "child"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    parent = (
        "import subprocess, sys, time; print('begun', flush=True); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    ended = run_command([sys.executable, "-c", parent], 1.5, tmp_path / "log")
    assert ended.status is None
    assert ended.note.startswith("cut after")
    assert "begun" in ended.output
    assert ended.seconds < 10
    time.sleep(3)
    assert not mark.exists()


def test_a_command_s_status_and_output_are_kept_after_what_the_log_held(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['MARK']); sys.exit(4)"
    ended = run_command([sys.executable, "-c", code], 60, log, {"MARK": "x1"})
    assert (ended.status, ended.output, ended.note) == (4, "x1\n", "ended with status 4")
    assert log.read_text() == "before\nx1\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_on_a_signal_nothing_is_left_running(number, tmp_path):
    script = tmp_path / "stand_in.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(ROOT / "benchmarks")!r}]
from pathlib import Path
from processes import end_all, end_on_signals, run_command
end_on_signals()
child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
try:
    run_command([sys.executable, "-c", child], 60, Path({str(tmp_path / "log")!r}))
finally:
    end_all()
"""
    )
    process = subprocess.Popen([sys.executable, str(script)])
    log = tmp_path / "log"
    for _ in range(200):
        if log.is_file() and log.read_text().endswith("\n"):
            break
        time.sleep(0.1)
    child = int(log.read_text())
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    for _ in range(50):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    end_all()


def test_a_dropped_connection_ends_no_run_that_ignores_it(tmp_path):
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT / "benchmarks")!r}]
from processes import end_on_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
end_on_signals()
os.kill(os.getpid(), signal.SIGHUP)
print("goes on")
"""
    ended = run_command([sys.executable, "-c", code], 60, tmp_path / "log")
    assert (ended.status, ended.output) == (0, "goes on\n")


def test_the_run_ends_on_signals_before_it_starts_anything(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "end_on_signals", lambda: order.append("signals"))
    machine = {"compute_capability": [9, 0]}
    monkeypatch.setattr(gpu, "describe_machine", lambda: machine)
    monkeypatch.setattr(gpu, "carry_out", lambda *given: order.append("parts"))
    with pytest.raises(SystemExit):
        gpu.main()
    assert order == ["signals", "parts"]


TEST_FILES = {
    "test_good.py": """
import pytest
def test_passes(): pass
@pytest.mark.skip(reason="not here")
def test_is_skipped(): pass
""",
    "test_bad.py": """
def test_passes(): pass
def test_fails(): assert 1 == 2
""",
    "test_broken.py": "import no_such_module_at_all\n",
    "test_crashes.py": """
import os
def test_passes(): pass
def test_takes_the_process(): os._exit(7)
""",
    "test_hangs.py": """
import time
def test_passes(): pass
def test_never_ends(): time.sleep(600)
""",
}


def test_each_test_file_is_told_whatever_becomes_of_it(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in TEST_FILES.items():
        (folder / name).write_text(text)
    record = Record(tmp_path / "tests.json")
    totals = run_test_files(sorted(folder.glob("test_*.py")), record, 20, jobs=2)
    entries = {Path(entry["file"]).name: entry for entry in record.content["files"]}
    good, bad, broken, crashes, hangs = (
        entries[f"test_{name}.py"] for name in ("good", "bad", "broken", "crashes", "hangs")
    )
    assert (good["passed"], good["failed"], good["skipped"]) == (1, 0, 1)
    assert good["skips"] == {"Skipped: not here": 1}
    assert (bad["passed"], bad["failed"]) == (1, 1)
    assert "assert 1 == 2" in bad["failures"][0]["message"]
    assert broken["failed"] == 1
    assert "no_such_module_at_all" in broken["failures"][0]["message"]
    assert not crashes["complete"]
    assert (crashes["passed"], crashes["note"]) == (1, "ended with status 7")
    assert crashes["running"][0].endswith("test_takes_the_process")
    assert not hangs["complete"]
    assert hangs["passed"] == 1
    assert hangs["note"].startswith("cut after")
    assert hangs["running"][0].endswith("test_never_ends")
    assert totals["passed"] == 4
    assert len(totals["problems"]) == 4
    assert json.loads(record.path.read_text())["problems"] == totals["problems"]


MANY_CASES = """
import pytest
@pytest.mark.parametrize("form", ["cpu", "cuda"])
@pytest.mark.parametrize("number", range(40))
def test_many(number, form): pass
@pytest.mark.parametrize("number", range(3))
def test_few(number): pass
"""


def test_with_little_time_some_cases_of_each_function_run_and_the_others_are_counted(tmp_path):
    path = tmp_path / "test_many.py"
    path.write_text(MANY_CASES)
    record = Record(tmp_path / "tests.json")
    totals = run_test_files([path], record, 60)
    assert totals["passed"] == MOST_CASES + 3
    assert totals["left_out"] == 80 - MOST_CASES
    assert totals["problems"] == []
    slow = run_test_files([path], Record(tmp_path / "all.json"), 600)
    assert (slow["passed"], slow["left_out"]) == (83, 0)


def test_cases_that_need_a_gpu_are_chosen_evenly():
    names = [f"test[{number}-{form}]" for number in range(9) for form in ("cpu", "cuda")]
    assert chosen_names(names, 3) == ["test[0-cuda]", "test[4-cuda]", "test[8-cuda]"]
    assert chosen_names(names, 18) == names[1::2]
    assert chosen_names(["test[a]", "test[b]", "other"], 1) == ["test[a]", "other"]


def test_the_shards_of_a_file_are_all_of_its_tests(tmp_path, monkeypatch):
    path = tmp_path / "test_many.py"
    path.write_text(MANY_CASES)
    monkeypatch.setitem(gpu_tests.SHARDS, path.name, 3)
    record = Record(tmp_path / "tests.json")
    assert run_test_files([path], record, 600)["passed"] == 83
    assert len(record.content["files"]) == 3


def test_a_file_that_is_not_begun_is_a_problem(tmp_path):
    path = tmp_path / "test_good.py"
    path.write_text(TEST_FILES["test_good.py"])
    totals = run_test_files([path], Record(tmp_path / "tests.json"), 0)
    assert totals["passed"] == 0
    assert "not begun" in totals["problems"][0]


def test_the_files_that_a_gpu_is_for_are_found():
    found = [path.relative_to(ROOT).as_posix() for path in gpu_test_files()]
    assert "tests/gpu/test_cuda_engine.py" in found
    assert "tests/kernels/test_add_rms_norm.py" in found
    assert "tests/csrc/test_bindings.py" in found


def test_the_files_to_know_first_begin_first_and_each_once():
    found = gpu_test_files()
    assert [path.name for path in found[: len(FIRST)]] == list(FIRST)
    assert len(set(found)) == len(found)


class Commands:
    """Stands in for the commands of a run: writes the file they would and gives their status."""

    def __init__(self, run, *steps):
        self.commands, self._run, self._steps = [], run, list(steps)

    def __call__(self, part, command, seconds, **extra):
        self.commands.append((list(command), extra))
        status, change = self._steps.pop(0)
        change()
        ended = Ended(status, 1.0, "first line\nlast line\n")
        return ended, {"status": status, "seconds": 1.0, "note": ended.note}


def entry(case, status, **fields):
    return {"case": case, "provider": "ours", "status": status, "reason": "why", **fields}


def test_the_benchmark_goes_on_in_a_new_process_where_the_gpu_was_lost(run, monkeypatch):
    path = run.out / "kernels.json"

    def write(**content):
        return lambda: path.write_text(json.dumps(content))

    crash = {"case": "a", "provider": "ours", "reason": "illegal"}
    first = write(crashes=[crash], results=[])
    second = write(crashes=[crash], results=[entry("a", "crashed"), entry("b", "ok")], cut=None)
    commands = Commands(run, (3, first), (-11, first), (1, second))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    found = gpu_parts.kernels(run, 300.0)
    assert len(commands.commands) == 3
    assert all("--resume" in command for command, _ in commands.commands)
    assert found["results"] == 2
    assert found["crashes"] == [crash]
    assert run.problems == ["kernels: a, ours: crashed: why"]


def test_a_benchmark_that_measures_nothing_is_a_problem(run, monkeypatch):
    commands = Commands(run, (1, lambda: None))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    gpu_parts.attention(run, 100.0)
    assert run.problems == ["attention: nothing was measured"]


def test_the_engine_benchmark_s_findings_are_problems_and_its_goals_are_told(run, monkeypatch):
    wrong = {"case": "m/128", "provider": "padded bfloat16", "status": "wrong", "reason": "far"}
    good = {"case": "m/128", "provider": "engine bfloat16", "status": "ok", "reason": ""}
    content = {"results": [good, wrong], "cut": {"after_s": 9.0, "not_measured": ["m/32"]}}
    path = run.out / "engine.json"
    path.write_text("of an earlier run")
    commands = Commands(run, (1, lambda: path.write_text(json.dumps(content))))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    found = gpu_parts.engine(run, 100.0)
    ((command, _),) = commands.commands
    assert command[1:3] == ["benchmarks/bench_engine.py", "--json"]
    assert (
        float(command[command.index("--budget") + 1]) == 100.0 - gpu_parts.START_AND_END_OF_ENGINE
    )
    assert run.problems == ["engine: m/128, padded bfloat16: wrong: far"]
    assert found["results"] == 2
    assert found["cut"]["not_measured"] == ["m/32"]
    assert any("float8 against bfloat16" in line for line in found["goals"])


def test_an_engine_benchmark_that_writes_nothing_is_a_problem(run, monkeypatch):
    (run.out / "engine.json").write_text(json.dumps({"results": [entry("a", "ok")]}))
    commands = Commands(run, (-9, lambda: None))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    gpu_parts.engine(run, 100.0)
    assert run.problems == ["engine: nothing was measured", "engine: ended with status -9"]


def test_a_benchmark_that_was_cut_but_agrees_is_no_problem(run, monkeypatch):
    content = {"results": [entry("b", "ok")], "cut": {"after_s": 9.0, "not_measured": ["c"]}}
    path = run.out / "kernels.json"
    commands = Commands(run, (None, lambda: path.write_text(json.dumps(content))))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    found = gpu_parts.kernels(run, 100.0)
    assert run.problems == []
    assert found["cut"]["not_measured"] == ["c"]


def test_the_build_is_for_this_gpu_and_the_built_op_is_asked(run, monkeypatch):
    commands = Commands(run, (0, lambda: None), (1, lambda: None))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    gpu_parts.build(run, 100.0)
    (first, extra), (second, _) = commands.commands
    assert first[1:] == ["setup.py", "build_ext", "--inplace"]
    assert extra == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    assert second[1:] == ["benchmarks/check_pooling.py"]
    assert run.problems == [
        "build: the compiled pooling op ended with status 1: last line",
    ]


def test_the_sanitizer_is_left_out_where_it_is_not_and_its_errors_are_problems(run, monkeypatch):
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name: None)
    assert gpu_parts.sanitizer(run, 10.0) == {"note": "compute-sanitizer is not on the PATH"}
    assert run.problems == []
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name: f"/bin/{name}")
    commands = Commands(run, (9, lambda: None))
    monkeypatch.setattr(Run, "command", lambda self, *a, **k: commands(*a, **k))
    assert gpu_parts.sanitizer(run, 10.0)["last"] == ["last line"]
    assert run.problems == ["sanitizer: ended with status 9: last line"]


def test_what_a_command_prints_goes_into_the_log(run, capsys):
    ended, fields = run.command("part", [sys.executable, "-c", "print('hello')"], 60.0)
    assert ended.status == 0
    assert fields["note"] == "ok"
    assert "hello" in (run.out / "gpu.log").read_text()
    assert "hello" in capsys.readouterr().out


def test_the_folder_never_holds_more_than_eight_files():
    names = {"gpu.json", "tests.json", "kernels.json", "attention.json", "engine.json"}
    assert all(name in gpu.__doc__ for name in names)
    assert gpu.__doc__.count(".json") == len(names)
