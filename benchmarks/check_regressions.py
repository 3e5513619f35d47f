"""Whether a change made the engine do more work, or do it slower than others in the same run.

    python benchmarks/check_regressions.py                          # counts and ratios
    python benchmarks/check_regressions.py --counts-only            # a busy machine will do
    python benchmarks/check_regressions.py --update [--counts-only] # store what is found

Compares with benchmarks/results/regressions.json and prints what moved: what was stored, what was
found, the change and what is allowed. Seconds are neither stored nor compared. Counts (operators
that torch dispatches, operations of matrix products, bytes, Python calls) are judged where releases
and machine let them be the same; ratios where the processor is the same, and a quiet machine is
theirs alone to have. What is better fails nothing, and is stored by --update.

Ends with status 0, 1 where something became worse beyond what is allowed, 2 where nothing can be
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
# torch's profiler, which counts bytes, says otherwise when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from command_line import Parser  # noqa: E402

from c2v_engine.bench.counts import count_work, describe_counting  # noqa: E402
from c2v_engine.bench.machine.facts import describe_machine, describe_sources  # noqa: E402
from c2v_engine.bench.ratios import cpu_cases, measure_ratios  # noqa: E402
from c2v_engine.bench.record import Record, RecordError  # noqa: E402
from c2v_engine.bench.regressions import (  # noqa: E402
    Moved,
    check_stored,
    compare_counts,
    compare_ratios,
    table,
)

STORE = ROOT / "benchmarks" / "results" / "regressions.json"
REPETITIONS = 7
KIND = "regressions"
Comparison = Callable[[Any, Any], list[Moved]]
COMPARISONS: dict[str, Comparison] = {"counts": compare_counts, "ratios": compare_ratios}


def parse(given: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and what is stored."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts-only", action="store_true", help="measure no ratios")
    parser.add_argument("--update", action="store_true", help="store what is found")
    parser.add_argument("--store", type=Path, default=STORE, help="the file that it is in")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="turns of a ratio")
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args(given)
    if arguments.repetitions < 2:
        parser.error(f"argument --repetitions: {arguments.repetitions} is less than 2")
    path = arguments.store
    if not path.exists() and arguments.update:
        return arguments, {"kind": KIND}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{path} can not be read, --update writes it: {error}")
    if not isinstance(stored, dict) or stored.get("kind") != KIND:
        parser.error(f"{path} holds no counts and ratios: its kind is not {KIND!r}")
    if not arguments.update and "counts" not in stored:
        parser.error(f"{path} holds no counts: --counts-only --update stores them")
    try:
        for kind in COMPARISONS.keys() & stored.keys():
            check_stored(kind, stored[kind])
    except ValueError as error:
        parser.error(f"{path} can not be compared with: {error}")
    return arguments, stored


def describe(commit: str | None) -> dict[str, Any]:
    """What is measured, and all that its figures depend on."""
    python = ".".join(platform.python_version_tuple()[:2])  # a patch release calls what it called
    facts = {**describe_sources(commit), **describe_machine(), **describe_counting()}
    return {**facts, "python": python}


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is found, by kind."""
    facts = describe(arguments.commit)
    print("counts of fixed texts, in one thread", flush=True)
    found = {"counts": {"facts": {**facts, "threads": 1}, "cases": count_work()}}
    if not arguments.counts_only:
        say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
        ratios = measure_ratios(cpu_cases(), arguments.repetitions, say=say)
        found["ratios"] = {"facts": facts, "cases": ratios}
    return found


def report(stored: dict[str, Any], found: dict[str, dict[str, Any]]) -> bool:
    """Print what moved; whether any of it is worse."""
    worse = False
    for kind, measured in found.items():
        if kind not in stored:
            print(f"\n{kind}: nothing is stored to compare them with, --update stores them")
            continue
        old = stored[kind]
        moved = COMPARISONS[kind](old, measured)
        bad = sum(each.verdict == "worse" for each in moved)
        worse = worse or bad > 0
        sizes = f"{len(measured['cases'])} cases, stored at {old['facts']['commit'][:12]}"
        print(f"\n{kind} of {sizes}: {len(moved)} moved, {bad} of them are worse")
        print("\n".join(table(moved)), end="\n" if moved else "")
    return worse


def main(given: Sequence[str] | None = None) -> None:
    """Measure, compare and print, or store; the exit status says whether anything is worse."""
    arguments, stored = parse(given)
    found = measure(arguments)
    worse = report(stored, found)
    if not arguments.update:
        sys.exit(1 if worse else 0)
    try:
        record = Record(arguments.store)
    except RecordError as error:
        sys.exit(f"error: {error}")
    record.content = {**stored, **found}
    record.put("kind", KIND)
    print(f"\nstored in {arguments.store}: {', '.join(found)}")


if __name__ == "__main__":
    main()
