"""The kernel benchmark: our ops, PyTorch eager, torch.compile and the attention backends.

    python benchmarks/bench_kernels.py --json kernels.json            # on a GPU
    python benchmarks/bench_kernels.py --json k.json --small          # tries it on any machine

Each provider is checked against the reference in float32 before it is timed; a wrong one is
reported and not timed. Providers take turns in every repetition. Rates are given in GB/s of the
fewest bytes that the op can move, and as a fraction of what the same machine copies in the same
run; attention in TFLOP/s too. The file is whole at any moment, and ``--resume`` goes on from it,
unless it was measured of other sources, on another machine or with other settings.

Ends with status 0 where all that ran agrees, 1 where something is wrong, 2 where nothing can be
measured as asked, 3 where the GPU is lost to the process, which ``--resume`` may mend.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from command_line import Parser  # noqa: E402
from kernel_benchmark.case import Case  # noqa: E402
from kernel_benchmark.catalogue import attention_cases, full_cases, small_cases  # noqa: E402
from kernel_benchmark.measure import DeviceLostError, Settings  # noqa: E402
from kernel_benchmark.report import line, summary, verdict  # noqa: E402
from kernel_benchmark.run import run_cases  # noqa: E402
from processes import end_on_signals  # noqa: E402

from c2v_engine.bench.budget import Budget  # noqa: E402
from c2v_engine.bench.machine.ceilings import measure_ceilings  # noqa: E402
from c2v_engine.bench.machine.facts import describe_machine, describe_sources  # noqa: E402
from c2v_engine.bench.record import Record, RecordError  # noqa: E402

LOST_DEVICE = 3  # exit status: a new process can go on with --resume
SMALL_REPETITIONS = 5


def parse(given: Sequence[str] | None) -> tuple[argparse.Namespace, list[Case], Record]:
    """The options, the cases that they choose, and the file, begun or resumed."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True, help="the result file")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--part", choices=("passes", "attention", "all"), default="all")
    parser.add_argument("--case", action="append", default=[], help="cases whose name has this")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument(
        "--backends-only", action="store_true", help="attention by the engine's backends alone"
    )
    parser.add_argument("--budget", type=float, help="seconds after which no case begins")
    parser.add_argument("--resume", action="store_true", help="go on with what the file holds")
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA GPU; cpu measures on the processor")
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"argument --repetitions: {arguments.repetitions} is less than 1")
    budget = arguments.budget
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        parser.error(f"argument --budget: {budget} is not a finite number of seconds above 0")
    cases = choose_cases(arguments)
    for part in arguments.case:
        if not any(part in case.name for case in cases):
            names = ", ".join(dict.fromkeys(case.op.name for case in cases))
            parser.error(
                f"argument --case: no case's name has {part!r}; there are cases of {names}"
            )
    if arguments.case:
        cases = [case for case in cases if any(part in case.name for part in arguments.case)]
    if arguments.backends_only:
        cases = [case for case in cases if case.op.rivals is not None]
        if not cases:
            parser.error("argument --backends-only: no case of attention from all rows is chosen")
    try:
        record = Record(arguments.json, resume=arguments.resume)
        settings = {name: getattr(arguments, name) for name in ("device", "dtype", "small")}
        record.describe({**describe_sources(arguments.commit), **describe_machine(), **settings})
    except RecordError as error:
        parser.error(str(error))
    return arguments, cases, record


def choose_cases(arguments: argparse.Namespace) -> list[Case]:
    """Those of the part and sizes asked for."""
    dtype = getattr(torch, arguments.dtype)
    if arguments.small:
        return small_cases(dtype)
    return {
        "passes": full_cases,
        "attention": attention_cases,
        "all": lambda dtype: full_cases(dtype) + attention_cases(dtype),
    }[arguments.part](dtype)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, write and print; the exit status says whether all that ran agrees."""
    arguments, cases, record = parse(given)
    end_on_signals()
    budget = Budget(arguments.budget)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if "ceilings" in record.content:
        record.extend("earlier_ceilings", [record.content["ceilings"]])
    ceilings = measure_ceilings(device, dtype)
    record.put("ceilings", ceilings.as_json())
    print(
        f"ceilings: copy {ceilings.copy_gb_per_s:.0f} GB/s, {arguments.dtype} matrix product "
        f"{ceilings.gemm_tflops:.1f} TFLOP/s",
        flush=True,
    )
    settings = Settings(
        device,
        ceilings,
        repetitions=arguments.repetitions or (SMALL_REPETITIONS if arguments.small else 30),
        cache_bytes=torch.cuda.get_device_properties(device).L2_cache_size
        if device.type == "cuda"
        else 0,
        compiler=None if arguments.no_compile else "inductor",
        backends_only=arguments.backends_only,
    )
    with torch.inference_mode():
        try:
            run_cases(cases, settings, record, budget, lambda entry: print(line(entry), flush=True))
        except DeviceLostError as error:
            print(f"the GPU is lost to this process: {error}", flush=True)
            # Cleaning up would call the GPU again.
            os._exit(LOST_DEVICE)
    if not budget.over:
        record.put("ceilings_at_end", measure_ceilings(device, dtype).as_json())
    print("\n".join(("", *summary(record.content))), flush=True)
    sys.exit(1 if verdict(record.content) else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; --resume goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
