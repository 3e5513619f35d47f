"""The engine benchmark: whole models, from texts to vectors, against stock transformers.

    python benchmarks/bench_engine.py --json engine.json             # a GPU's sizes, or a CPU's
    python benchmarks/bench_engine.py --json e.json --small          # tries it on any machine
    python benchmarks/bench_engine.py --json e.json --case 0.5b/128

The models have the shapes of Mistral-7B, S-LLaMA-1.3B and Qwen2.5-0.5B (on a CPU of the last and
of a Llama of 130 M), each with a BERT-base encoder, and random weights that are made on the device.
Every provider's vectors are compared with the engine's before it is timed; a wrong one is reported
and not timed. Providers take turns in every repetition. Useful operations are 2 x parameters
without embeddings x tokens of decoder and encoder, given as a fraction of a bfloat16 matrix product
in the same run. The end of the output says where the engine's time goes and what has become of the
goals. The file is whole at any moment.

Ends with status 0 where all that ran agrees, 1 where something is wrong, 2 where nothing can be
measured as asked.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from command_line import Parser  # noqa: E402
from engine_benchmark.attention import follow_result  # noqa: E402
from engine_benchmark.cases import cpu_cases, full_cases, small_cases  # noqa: E402
from engine_benchmark.report import line, summary  # noqa: E402
from processes import end_on_signals  # noqa: E402

from c2v_engine.bench.budget import Budget  # noqa: E402
from c2v_engine.bench.case import Case  # noqa: E402
from c2v_engine.bench.machine.ceilings import measure_ceilings  # noqa: E402
from c2v_engine.bench.machine.facts import describe_machine, describe_sources  # noqa: E402
from c2v_engine.bench.measure import troubles  # noqa: E402
from c2v_engine.bench.models.shapes import MODELS  # noqa: E402
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint  # noqa: E402
from c2v_engine.bench.record import Record, RecordError  # noqa: E402
from c2v_engine.bench.run import run_cases  # noqa: E402

REPETITIONS = 3


def parse(given: Sequence[str] | None) -> tuple[argparse.Namespace, list[Case], Record]:
    """The options, the cases that they choose, and the file."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True, help="the result file")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--case", action="append", default=[], help="cases whose name has this")
    parser.add_argument("--small", action="store_true", help="tiny models, to try it")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--budget", type=float, help="seconds after which no case begins")
    parser.add_argument(
        "--attention", type=Path, help="a kernel benchmark's result by which attention is chosen"
    )
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA GPU; cpu measures on the processor")
    if arguments.repetitions < 1:
        parser.error(f"argument --repetitions: {arguments.repetitions} is less than 1")
    budget = arguments.budget
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        parser.error(f"argument --budget: {budget} is not a finite number of seconds above 0")
    real_sizes = cpu_cases if arguments.device == "cpu" else full_cases
    cases = (small_cases if arguments.small else real_sizes)(arguments.dtype)
    for part in arguments.case:
        if not any(part in case.name for case in cases):
            names = ", ".join(case.name for case in cases)
            parser.error(f"argument --case: no case's name has {part!r}; there are {names}")
    if arguments.case:
        cases = [case for case in cases if any(part in case.name for part in arguments.case)]
    try:
        record = Record(arguments.json)
    except RecordError as error:
        parser.error(str(error))
    settings = {name: getattr(arguments, name) for name in ("device", "dtype", "small")}
    record.describe({**describe_sources(arguments.commit), **describe_machine(), **settings})
    if arguments.attention is not None:
        try:
            record.put("attention", follow_result(arguments.attention))
        except (OSError, ValueError) as error:
            parser.error(f"argument --attention: {error}")
    return arguments, cases, record


def sources(folder: Path, device: torch.device) -> Callable[[Case], SyntheticCheckpoint]:
    """Writes the checkpoint directories that cases ask for into a folder, without weights."""

    def open_source(case: Case) -> SyntheticCheckpoint:
        directory = Path(tempfile.mkdtemp(dir=folder)) / "model"
        return SyntheticCheckpoint.write(directory, MODELS[case.model], device, case.template)

    return open_source


def main(given: Sequence[str] | None = None) -> None:
    """Measure, write and print; the exit status says whether all that ran agrees."""
    arguments, cases, record = parse(given)
    end_on_signals()
    budget, device = Budget(arguments.budget), torch.device(arguments.device)
    ceilings = measure_ceilings(device, torch.bfloat16, tiny=arguments.small)
    record.put("ceilings", ceilings.as_json())
    print(
        f"ceilings: copy {ceilings.copy_gb_per_s:.0f} GB/s, bfloat16 matrix product "
        f"{ceilings.gemm_tflops:.3g} TFLOP/s",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        run_cases(
            cases,
            device,
            record,
            budget,
            sources(Path(folder), device),
            arguments.repetitions,
            lambda entry: print(line(entry, ceilings.gemm_tflops), flush=True),
        )
    if not record.content.get("lost"):
        at_end = measure_ceilings(device, torch.bfloat16, tiny=arguments.small)
        record.put("ceilings_at_end", at_end.as_json())
    print("\n".join(("", *summary(record.content))), flush=True)
    status = 1 if troubles(record.content) else 0
    if record.content.get("lost"):
        sys.stdout.flush()
        os._exit(status)  # cleaning up would call the device again
    sys.exit(status)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; the file holds what was measured", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
