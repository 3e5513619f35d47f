"""Compiles every Triton kernel in every launch configuration of the engine, without a GPU.

``python tools/aot.py [--arch sm_80 sm_90 sm_100] [--op NAME ...] [--json FILE]``, or ``make aot``.

1. The launcher of every op runs at the shapes of real models (``aot_cases``), on tensors without
   values and a GPU that is not there (``aot_launches``). What it would compile is written down.
2. What was written down is compiled for each architecture, each compilation once, and its machine
   code is read (``aot_code``).
3. A table shows one line for each compilation, and the exit code is 1 where something is wrong, or
   2 where nothing can be compiled as asked. Wrong is:

- a thread spills registers or uses a stack,
- a block needs more shared memory than the architecture gives it,
- a matrix product of 16-bit operands does not run on tensor cores,
- a launch leaves it to Triton's release whether products and sums are fused,
- a kernel does not compile, an op has no case here, or a case launches nothing,
- a load is narrower than is meant.

What is meant follows from the source: each of a program's threads has its share of the tile that a
load reads, and takes 16 bytes of it at once, or the whole share where that is less. Integers are
left out: ids, positions and offsets may begin anywhere, and are a thousandth of what is read. Each
load of the source is found again in the compiled code by its line and column; one that is not, or
is there without being in the source, is an error too.

The table counts loads and stores by their width in bytes, ``4x16`` for four of 16. float8 begins
with sm_89: on an older architecture no kernel that writes it is compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

try:
    import triton  # noqa: F401
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(f"error: Triton can not be imported, which compiles: {missing}", file=sys.stderr)
    sys.exit(2)

from aot_cases import CASES, cases_of
from aot_code import SHARED_MEMORY, Code, compile_launch
from aot_launches import Launch, recorded_launches

import c2v_engine.kernels
from c2v_engine.kernels._ops import TRITON_FORMS

# An op is there once its module is imported.
for module in pkgutil.iter_modules(c2v_engine.kernels.__path__):
    importlib.import_module(f"c2v_engine.kernels.{module.name}")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FIRST_FLOAT8 = 89
STOPPING = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass
class Compilation:
    """One kernel, compiled one way for one architecture.

    Attributes:
        launch: the first that needs it.
        ops: of the cases that launch it.
        cases: these cases, in words.
        code: what became of it, or None where it does not compile.
        problems: what is wrong.
    """

    launch: Launch
    ops: set[str] = field(default_factory=set)
    cases: list[str] = field(default_factory=list)
    code: Code | None = None
    problems: list[str] = field(default_factory=list)


def record(ops: Iterable[str], capability: int) -> list[Compilation]:
    """Runs the launchers of the ops at every case, for a GPU of a compute capability.

    Returns:
        What would be compiled, equal compilations once.

    Raises:
        ValueError: an op has no case, or a case launches nothing.
    """
    found: dict[str, Compilation] = {}
    for op in ops:
        if op not in CASES:
            raise ValueError(f"{op} has a Triton kernel and no case in tools/aot_cases.py")
        for case in cases_of(op):
            with recorded_launches(capability) as launches:
                TRITON_FORMS[op](*case.arguments)
            if not launches:
                raise ValueError(f"no kernel is launched by {case.label}")
            for launch in launches:
                if launch.has_float8 and capability < FIRST_FLOAT8:
                    continue
                entry = found.setdefault(launch.key, Compilation(launch))
                entry.ops.add(op)
                entry.cases.append(case.label)
    return list(found.values())


_queue: list[Compilation] = []


def _compile(index: int) -> Code | str:
    """The code of one of the queue, which a worker has from the process that it was forked from."""
    try:
        return compile_launch(_queue[index].launch)
    except Exception as error:  # a compiler's errors are of many kinds
        reason = " ".join(str(error).split())[:300]
        return f"could not be compiled and read: {type(error).__name__}: {reason}"


def compile_all(compilations: Sequence[Compilation]) -> None:
    """Compiles and judges, on every core of the machine."""
    _queue[:] = compilations
    for entry, result in zip(compilations, _compile_queue(), strict=True):
        if not entry.launch.fusion_chosen:
            entry.problems.append("the launch does not pass enable_fp_fusion")
        if isinstance(result, str):
            entry.problems.append(result)
        else:
            entry.code = result
            entry.problems += result.problems(entry.launch.capability)


def _compile_queue() -> list[Code | str]:
    """What ``_compile`` gives for all of the queue, from workers that end when this ends."""
    workers = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _end_with_parent, (os.getpid(),)) as pool:
        try:
            return list(pool.map(_compile, range(len(_queue))))
        except KeyboardInterrupt:
            _end_now(128 + signal.SIGINT)
        except SystemExit as ending:
            _end_now(int(ending.code or 0))


def _end_now(code: int) -> NoReturn:
    """Ends workers and process: the pool would wait for its queue, and nothing is left to tidy."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Has the kernel end this worker with its parent, however that ends."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the parent, which ends us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def as_row(entry: Compilation) -> dict[str, Any]:
    """One line of the table; the same goes into the JSON file."""
    code = entry.code
    row: dict[str, Any] = {
        "kernel": entry.launch.kernel,
        "arch": f"sm_{entry.launch.capability}",
        "ops": sorted(entry.ops),
        "cases": entry.cases,
    }
    if code is not None:
        row |= {
            "warps": code.warps,
            "stages": code.stages,
            "registers": code.registers,
            "stack": code.stack,
            "shared": code.shared,
            "loads": _sorted(code.load_widths),
            "stores": _sorted(code.stores),
            "tensor_cores": dict(code.tensor_cores),
        }
    return row | {"problems": entry.problems}


def _sorted(widths: Counter[int]) -> dict[str, int]:
    return {str(width): widths[width] for width in sorted(widths, reverse=True)}


_COLUMNS = {
    "arch": 6, "warps": 5, "stages": 6, "registers": 9, "stack": 5, "shared": 7,
    "loads": 18, "stores": 18, "tensor_cores": 19,
}  # fmt: skip


def as_text(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{row['kernel']:24}"]
    for name, width in _COLUMNS.items():
        value = row.get(name, "-")
        if isinstance(value, dict):
            value = " ".join(f"{count}x{key}" for key, count in value.items())
        cells.append(f"{value:<{width}}")
    more = len(row["cases"]) - 1
    cells.append(row["cases"][0] + (f"; and {more} more" if more else ""))
    return "  ".join(cells)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line, and tries the file to be written, which comes last of all."""
    known = [f"sm_{capability}" for capability in SHARED_MEMORY]
    parser = _Parser(description="Compile every Triton kernel without a GPU.")
    parser.add_argument("--arch", nargs="+", choices=known, default=ARCHITECTURES)
    parser.add_argument("--op", nargs="+", choices=sorted(TRITON_FORMS), default=list(TRITON_FORMS))
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="where the table also goes, with all cases"
    )
    options = parser.parse_args(arguments)
    if options.json is not None:
        new = not options.json.exists()
        try:
            options.json.open("a").close()
        except OSError as error:
            parser.error(f"--json {options.json} can not be written: {error.strerror}")
        if new:
            options.json.unlink()
    return options


def stop(number: int, frame: object) -> NoReturn:
    """Ends on a signal as on ctrl-C, so that what was begun is ended."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where something is wrong."""
    options = parse(arguments)
    try:
        compilations = [
            entry for arch in options.arch for entry in record(options.op, int(arch[3:]))
        ]
    except ValueError as error:
        print(f"FAIL {error}", file=sys.stderr)
        return 1
    compile_all(compilations)
    compilations.sort(
        key=lambda entry: (sorted(entry.ops), entry.cases[0], entry.launch.capability)
    )
    rows = [as_row(entry) for entry in compilations]
    print(
        as_text({"kernel": "kernel", "cases": ["launched by"]} | {name: name for name in _COLUMNS})
    )
    for row in rows:
        print(as_text(row))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    wrong = [row for row in rows if row["problems"]]
    for row in wrong:
        for problem in row["problems"]:
            print(f"FAIL {row['kernel']} {row['arch']} ({row['cases'][0]}): {problem}")
    print(f"{len(rows)} compilations of {len(options.op)} ops, {len(wrong)} with something wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    for stopping in STOPPING:
        if signal.getsignal(stopping) != signal.SIG_IGN:  # as under nohup
            signal.signal(stopping, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
