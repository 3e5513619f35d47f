"""What a GPU says of this engine, in one run of less than ten minutes and without a network.

    python benchmarks/gpu.py --out FOLDER          # make gpu OUT=FOLDER

Parts, what matters most first: build the extension in place against the installed torch; the tests
that a GPU is for; attention by backend; the engine benchmark, from texts to vectors, which chooses
its attention by what was just measured; the kernel benchmark; compute-sanitizer on the compiled
pooling op, where it is on the PATH. Each has its time, gets what those before it did not use, and
is cut with a note when it is up. With less time than all tests take, some cases of each test
function run. Every result is written as it comes:

    gpu.json          machine, sources, how each part went, and what is wrong
    tests.json        each test file: counts, failures, reasons of skips
    kernels.json      the kernel benchmark, every repetition
    attention.json    likewise
    engine.json       the engine benchmark, every repetition, stages
    gpu.log           what the parts printed

Ends with status 0 only where the build, all tests and every agreement with a reference passed.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_parts import PARTS, Part, Run  # noqa: E402
from processes import end_all, end_on_signals  # noqa: E402

from c2v_engine.bench.machine.facts import describe_machine, describe_sources  # noqa: E402
from c2v_engine.bench.record import Record, RecordError  # noqa: E402

NEEDS = {
    "torch": (2, 11),
    "triton": (3, 6),
    "transformers": (5, 0),
    "tokenizers": (0, 22),
    "safetensors": (0, 4),
    "numpy": (1, 24),
    "pytest": (8, 0),
    "pytest-benchmark": (4, 0),
}


def missing_packages() -> list[str]:
    """What is not installed for this interpreter, or is too old."""
    found = []
    for name, oldest in NEEDS.items():
        wanted = f"{name} {'.'.join(map(str, oldest))} or newer"
        try:
            given = version(name)
        except PackageNotFoundError:
            found.append(f"{wanted} is not installed")
            continue
        numbers = tuple(int(part) for part in given.split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < oldest:
            found.append(f"{wanted} is needed, {given} is installed")
    return found


def why_not() -> str | None:
    """Why nothing can be measured here, in one line, or None where it can."""
    missing = missing_packages()
    if missing:
        return f"{sys.executable} lacks what a GPU run needs: {'; '.join(missing)}"
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU; there is nothing to measure"
    return None


def carry_out(run: Run, parts: tuple[Part, ...], seconds: float) -> None:
    """Carries the parts out, each in its own time and what those before it left.

    Args:
        run: what they share.
        parts: in their order.
        seconds: for all; their own are stretched or shortened to it.
    """
    start = time.monotonic()
    factor = seconds / sum(part.seconds for part in parts)
    outcomes: dict[str, object] = {}
    for number, part in enumerate(parts):
        reserved = factor * sum(later.seconds for later in parts[number + 1 :])
        allowed = seconds - (time.monotonic() - start) - reserved
        print(f"== {part.name}, {allowed:.0f} s at most", flush=True)
        run.record.put("running", part.name)
        try:
            outcomes[part.name] = part.carry_out(run, allowed)
        except Exception as error:
            run.problems.append(f"{part.name}: {type(error).__name__}: {error}")
            outcomes[part.name] = {"note": "failed"}
        run.record.content["problems"] = run.problems
        run.record.put("parts", outcomes)
    run.record.content.update(running=None, seconds=round(time.monotonic() - start, 1))
    run.record.put("passed", not run.problems)


def main() -> None:
    """Run the parts; the last lines say what is wrong, if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for all parts")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(f"error: {reason}")
    end_on_signals()
    machine = describe_machine()
    try:
        record = Record(arguments.out.resolve() / "gpu.json")
    except RecordError as error:
        sys.exit(f"error: {error}")
    record.content.update({**describe_sources(arguments.commit), **machine})
    run = Run(record.path.parent, record, tuple(machine["compute_capability"]), arguments.commit)
    (run.out / "gpu.log").unlink(missing_ok=True)
    try:
        carry_out(run, tuple(p for p in PARTS if p.name in arguments.parts), arguments.budget)
    finally:
        end_all()
    print("\n".join((f"== results in {run.out}", *(run.problems or ["everything passed"]))))
    sys.exit(1 if run.problems else 0)


if __name__ == "__main__":
    main()
