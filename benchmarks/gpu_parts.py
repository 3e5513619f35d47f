"""The parts of a GPU run: what each does, how long it may take, what of it is a problem."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_benchmark.report import goal_lines
from gpu_tests import gpu_test_files, run_test_files
from kernel_benchmark.report import verdict
from processes import Ended, run_command

from c2v_engine.bench.measure import troubles
from c2v_engine.bench.record import Record

__all__ = ["PARTS", "Part", "Run"]

LOST_DEVICE = 3  # bench_kernels: a new process can go on
MOST_ATTEMPTS = 8
# What a benchmark needs to start, and to finish the case that it is at when its time is up.
START_AND_END = 12.0
START_AND_END_OF_ENGINE = 20.0
SHOWN_LINES = 100


@dataclass
class Run:
    """One run of all parts.

    Attributes:
        out: the folder of its files.
        record: ``gpu.json``.
        capability: of the GPU.
        commit: of a copy without its ``.git``, or None.
        problems: what is wrong so far, as lines.
    """

    out: Path
    record: Record
    capability: tuple[int, int]
    commit: str | None = None
    problems: list[str] = field(default_factory=list)

    def command(
        self, part: str, command: Sequence[str], seconds: float, **extra: str
    ) -> tuple[Ended, dict[str, Any]]:
        """Runs a command, logs and shows what it printed; how it ended, and that as fields."""
        log = self.out / "gpu.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"== {part}: {' '.join(command)}\n")
        ended = run_command(command, seconds, log, extra)
        lines = ended.output.strip().splitlines()
        print("\n".join([*lines[-SHOWN_LINES:], f"-- {ended.note}"]), flush=True)
        fields = {"status": ended.status, "seconds": ended.seconds, "note": ended.note}
        return ended, fields


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: on the command line and in the record.
        seconds: that are its own; what earlier parts leave of theirs is added.
        carry_out: does it within some seconds; what it returns goes into the record.
    """

    name: str
    seconds: float
    carry_out: Callable[[Run, float], dict[str, Any]]


def build(run: Run, seconds: float) -> dict[str, Any]:
    """Builds the extension for this GPU alone and runs its op once."""
    start = time.monotonic()
    architecture = ".".join(map(str, run.capability))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    ended, fields = run.command("build", command, seconds, TORCH_CUDA_ARCH_LIST=architecture)
    if ended.status != 0:
        run.problems.append(f"build: {ended.note}")
        return fields
    # A build that fails leaves the extension out and still ends well, so the op itself is asked.
    command = [sys.executable, "benchmarks/check_pooling.py"]
    left = seconds - (time.monotonic() - start)
    checked, fields["op"] = run.command("build", command, left)
    if checked.status != 0:
        last = checked.output.strip().splitlines()[-1:]
        run.problems.append(f"build: the compiled pooling op {checked.note}: {''.join(last)}")
    return fields


def tests(run: Run, seconds: float) -> dict[str, Any]:
    """Runs the tests that a GPU is for."""
    record = Record(run.out / "tests.json")
    totals = run_test_files(gpu_test_files(), record, seconds)
    for entry in record.content.get("files", []):
        print(
            f"{entry['file']}: {entry.get('passed', 0)} passed, {entry.get('failed', 0)} failed, "
            f"{entry.get('skipped', 0)} skipped, {entry['note']}"
        )
        for failure in entry.get("failures", []):
            print(f"  {failure['test']}: {failure['message'].splitlines()[:1]}")
    run.problems += [f"tests: {problem}" for problem in totals["problems"]]
    if not totals["passed"]:
        run.problems.append("tests: none passed")
    return totals


def kernels(run: Run, seconds: float) -> dict[str, Any]:
    """Measures every op but attention."""
    return benchmark(run, "kernels", "passes", seconds)


def attention(run: Run, seconds: float) -> dict[str, Any]:
    """Measures attention by length and backend, by which the engine then chooses."""
    return benchmark(run, "attention", "attention", seconds, "--backends-only")


def benchmark(run: Run, name: str, part: str, seconds: float, *more: str) -> dict[str, Any]:
    """Runs the kernel benchmark, again where the GPU was lost to its process."""
    start = time.monotonic()
    path = run.out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/bench_kernels.py", "--json", str(path), "--part", part]
    command += [*more, "--resume", *(["--commit", run.commit] if run.commit else [])]
    attempts: list[dict[str, Any]] = []
    while len(attempts) < MOST_ATTEMPTS:
        left = seconds - (time.monotonic() - start)
        if attempts and left < START_AND_END:
            break
        budget = str(max(left - START_AND_END, 1.0))
        ended, fields = run.command(name, [*command, "--budget", budget], left)
        attempts.append(fields)
        if ended.status in (0, 1, 2, None):
            break
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    run.problems += [f"{name}: {problem}" for problem in verdict(content)]
    if attempts[-1]["status"] not in (0, 1, None):
        run.problems.append(f"{name}: {attempts[-1]['note']}")
    found = {"attempts": attempts, "results": len(content.get("results", []))}
    return {**found, "cut": content.get("cut"), "crashes": content.get("crashes", [])}


def sanitizer(run: Run, seconds: float) -> dict[str, Any]:
    """Runs the compiled pooling op under compute-sanitizer, where that is."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"note": "compute-sanitizer is not on the PATH"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
    command += [sys.executable, "benchmarks/check_pooling.py"]
    ended, fields = run.command("sanitizer", command, seconds)
    fields["last"] = ended.output.strip().splitlines()[-1:]
    if ended.status not in (0, None):
        run.problems.append(f"sanitizer: {ended.note}: {''.join(fields['last'])}")
    return fields


def engine(run: Run, seconds: float) -> dict[str, Any]:
    """Measures whole models, from texts to vectors, and what has become of the goals."""
    path = run.out / "engine.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/bench_engine.py", "--json", str(path)]
    command += ["--budget", str(max(seconds - START_AND_END_OF_ENGINE, 1.0))]
    command += ["--commit", run.commit] if run.commit else []
    measured = run.out / "attention.json"
    if measured.is_file():
        command += ["--attention", str(measured)]
    ended, fields = run.command("engine", command, seconds)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    run.problems += [f"engine: {problem}" for problem in troubles(content)]
    if ended.status not in (0, 1, None):
        run.problems.append(f"engine: {ended.note}")
    found = {**fields, "results": len(content.get("results", [])), "goals": goal_lines(content)}
    return {**found, "cut": content.get("cut"), "running": content.get("running")}


PARTS = (
    Part("build", 60.0, build),
    Part("tests", 140.0, tests),
    Part("attention", 70.0, attention),
    Part("engine", 245.0, engine),
    Part("kernels", 30.0, kernels),
    Part("sanitizer", 15.0, sanitizer),
)
"""In the order in which they run, nine minutes and twenty seconds in all."""
