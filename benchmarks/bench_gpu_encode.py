"""Texts per second on a GPU by attention backend, end to end: tokenising, model, copy back.

    python benchmarks/bench_gpu_encode.py --json throughput.json

The checkpoint is random: BERT-base before a Llama of 130 M. Besides texts and tokens a second it
gives the operations, 2 x non-embedding parameters x tokens, over time, and what share that is of a
bfloat16 matrix product in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from kernel_benchmark.ceilings import Ceilings, measure_ceilings  # noqa: E402
from kernel_benchmark.measure import one_line  # noqa: E402
from kernel_benchmark.record import Record, describe_machine, describe_sources  # noqa: E402
from kernel_benchmark.run import Budget  # noqa: E402
from workload import make_checkpoint, make_texts  # noqa: E402

from c2v_engine import Causal2Vec  # noqa: E402
from c2v_engine.model.attention.select import BACKENDS  # noqa: E402

TEXTS = 20_000
WARM_UP = 2_000
REPETITIONS = 3
DTYPE = "bfloat16"


def measure_backend(
    name: str, checkpoint: Path, texts: list[str], device: str, ceilings: Ceilings
) -> dict[str, Any]:
    """Seconds of every repetition and what they come to."""
    engine = Causal2Vec.from_pretrained(checkpoint, device=device, dtype=DTYPE, attention=name)
    engine.encode(texts[:WARM_UP])
    before, seconds = engine.stats, []
    tokens, encoder_tokens = before.tokens, before.encoder_tokens
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        engine.encode(texts)
        seconds.append(time.perf_counter() - start)
    model = engine._runner.checkpoint.model
    assert model.context is not None
    decoded = (engine.stats.tokens - tokens) / REPETITIONS
    encoded = (engine.stats.encoder_tokens - encoder_tokens) / REPETITIONS
    operations = 2 * (
        model.decoder.num_parameters() * decoded + model.context.encoder.num_parameters() * encoded
    )
    median = statistics.median(seconds)
    tflops = operations / median / 1e12
    return {
        "seconds": seconds,
        "texts_per_s": len(texts) / median,
        "decoder_tokens_per_s": decoded / median,
        "tflops": tflops,
        "fraction_of_gemm": tflops / ceilings.gemm_tflops,
    }


def main() -> None:
    """Measure each backend that can serve and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--budget", type=float, help="seconds after which no backend begins")
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args()
    budget, device = Budget(arguments.budget), torch.device(arguments.device)
    record = Record(arguments.json)
    record.content.update({**describe_sources(arguments.commit), **describe_machine()})
    record.content.update(texts=arguments.texts, dtype=DTYPE)
    ceilings = measure_ceilings(device, torch.bfloat16)
    record.put("ceilings", ceilings.as_json())
    texts = make_texts(arguments.texts)
    record.put("backends", {})
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder, "checkpoint"))
        for name in ("auto", *BACKENDS):
            try:
                if budget.over:
                    found: dict[str, Any] = {"note": f"cut after {budget.spent:.0f} s"}
                else:
                    found = measure_backend(name, checkpoint, texts, arguments.device, ceilings)
            except Exception as error:  # one that can not serve says why
                found = {"note": one_line(error)}
            record.put("backends", {**record.content["backends"], name: found})
            print(
                name, {key: value for key, value in found.items() if key != "seconds"}, flush=True
            )


if __name__ == "__main__":
    main()
