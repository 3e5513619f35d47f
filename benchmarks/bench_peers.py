"""The peers on a CPU: decoders of 130 M and 0.5 B, in bfloat16 and float32, in one run.

    python benchmarks/bench_peers.py                       # a quarter of an hour on two cores
    python benchmarks/bench_peers.py --small -o folder     # tries it on tiny models

What ``c2v bench`` measures, with for each model as many texts as its cases need: enough of
log-normal length that whoever sorts texts and pads them in batches finds neighbours of like
length. llama.cpp takes part where it is installed, at last-token checkpoints. Everything goes into
one result file, with the page and the pictures beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from command_line import Parser  # noqa: E402

from c2v_engine.bench.budget import Budget  # noqa: E402
from c2v_engine.bench.case import Case  # noqa: E402
from c2v_engine.bench.command import KIND, open_record  # noqa: E402
from c2v_engine.bench.machine.ceilings import measure_ceilings_by_dtype  # noqa: E402
from c2v_engine.bench.measure import troubles  # noqa: E402
from c2v_engine.bench.models.shapes import shape_named  # noqa: E402
from c2v_engine.bench.models.source import ModelSource, StoredCheckpoint  # noqa: E402
from c2v_engine.bench.models.written import write_checkpoint  # noqa: E402
from c2v_engine.bench.plan import Plan, make_case  # noqa: E402
from c2v_engine.bench.report import Results, summary_lines, write_report  # noqa: E402
from c2v_engine.bench.report.tables import entry_line  # noqa: E402
from c2v_engine.bench.run import run_cases  # noqa: E402

DTYPES = ("bfloat16", "float32")
PADDED = ("padded", "sentence-transformers")
LLAMA_CPP = ("llama.cpp", "engine:int8", "llama.cpp:q8_0")
# Shape, method, providers, and the rows of a call by workload: sentence-transformers, which chooses
# its batches, stands for padded transformers where these are left out.
MODELS = (
    ("llama-130m", "causal2vec", ("sentence-transformers",), {"128": 1024, "passages": 2048}),
    ("llama-130m", "last-token", (*PADDED, *LLAMA_CPP), {"128": 1024, "passages": 2048}),
    (
        "qwen2.5-0.5b",
        "last-token",
        ("sentence-transformers", *LLAMA_CPP),
        {"128": 512, "passages": 1024},
    ),
)
SMALL = (("tiny-qwen2", "last-token", PADDED, {"128": 256, "passages": 256}),)


def main() -> None:
    """Measure, write and print; status 1 where vectors are wrong."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/peers-cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny models, to try it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(1 if run(arguments, Path(folder)) else 0)


def run(arguments: argparse.Namespace, models: Path) -> list[str]:
    """Measure all cases; what is wrong."""
    device = torch.device("cpu")
    sources: dict[str, ModelSource] = {}
    cases: list[Case] = []
    for shape, method, providers, rows in SMALL if arguments.small else MODELS:
        name = f"{shape} {method}"
        directory = write_checkpoint(models / name, shape_named(shape), method)
        source = sources[name] = StoredCheckpoint(directory, device, name)
        plan = Plan(tuple(rows), DTYPES, providers)
        plan.check()
        cases += [
            make_case(plan, name, source, workload, rows[workload], dtype, workload == "128")
            for dtype in DTYPES
            for workload in rows
        ]
    settings = {"device": "cpu", "dtypes": list(DTYPES), "repetitions_asked": arguments.repetitions}
    record = open_record(arguments.output, KIND, settings)
    dtypes = [getattr(torch, name) for name in DTYPES]
    record.put("ceilings", measure_ceilings_by_dtype(device, dtypes, tiny=arguments.small))
    run_cases(
        cases,
        device,
        record,
        Budget(None),
        lambda case: sources[case.model],
        arguments.repetitions,
        lambda entry: print(entry_line(entry), flush=True),
    )
    record.put("ceilings_at_end", measure_ceilings_by_dtype(device, dtypes, tiny=arguments.small))
    results = Results(record.content)
    paths = write_report(results, record.path.parent)
    print("\n".join(("", *summary_lines(results), *map(str, paths))))
    return troubles(record.content)


if __name__ == "__main__":
    main()
