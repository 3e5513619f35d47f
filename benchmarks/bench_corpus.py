"""The corpus job against ``Causal2Vec.encode``: rows a second, and memory by the number of rows.

    python benchmarks/bench_corpus.py --json corpus.json                # a million rows: minutes
    python benchmarks/bench_corpus.py --rows 2000 20000 --repeats 1     # to try it

A tiny model (decoder and encoder of one layer, 32 wide, the default model's tokenizers) embeds
short rows, so that what is not the model shows. For each number of rows a job reads a file of JSON
lines and writes a folder of Parquet shards, in a process of its own whose memory is watched. For
the speed, encode and the job take turns on the same texts, each in a process of its own; encode
has them in memory, the job reads and writes files, and its time is from the opened model to the
last record.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernel_benchmark.record import processor_name
from workload import git_commit

LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}


def make_model(folder: Path) -> Path:
    """A checkpoint of random weights with the default model's tokenizers."""
    import shutil

    from transformers import AutoModel, BertConfig, LlamaConfig

    from c2v_engine import Causal2Vec
    from c2v_engine.engine import default_model_path

    default = default_model_path()
    for part, config_class in (("decoder", LlamaConfig), ("encoder", BertConfig)):
        stored = json.loads((default / part / "config.json").read_text(encoding="utf-8"))
        names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: stored[name] for name in names if stored.get(name) is not None}
        model = AutoModel.from_config(config_class(**ids, **LAYER, **HEADS))
        model.save_pretrained(folder / part)
        for path in (default / part).glob("tokenizer*"):
            shutil.copy(path, folder / part)
    return Causal2Vec.create(folder / "model", folder / "decoder", folder / "encoder")


def text_of(row: int) -> str:
    """A short text, another for every row."""
    return f"row {row} of it"


def make_corpus(path: Path, rows: int) -> Path:
    """Rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": f"r{row}", "text": text_of(row)}) + "\n")
    return path


def run_encode(model: Path, rows: int) -> dict[str, Any]:
    """Embed texts that are in memory."""
    from c2v_engine import Causal2Vec

    engine = Causal2Vec.from_pretrained(model, device="cpu")
    texts = [text_of(row) for row in range(rows)]
    engine.encode(texts[:1000])
    start = time.perf_counter()
    engine.encode(texts, show_progress_bar=False)
    return {"rows": rows, "seconds": time.perf_counter() - start}


def run_job(model: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Embed a file into a folder."""
    from c2v_engine import Causal2Vec
    from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions

    options = CorpusOptions(id_column="id")
    with CorpusJob([str(source)], folder, options, note=print) as job:
        engine = Causal2Vec.from_pretrained(model, device="cpu")
        engine.encode([text_of(row) for row in range(1000)])
        start = time.perf_counter()
        summary = job.run(engine)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": summary.rows, "seconds": seconds, "peak_mib": peak, "bytes": summary.size}


def in_process(*arguments: object) -> dict[str, Any]:
    """Run a part of this script in a process of its own."""
    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--speed-rows", type=int, default=100_000, help="of the comparison")
    parser.add_argument("--repeats", type=int, default=5, help="of the comparison")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        kind, model, *rest = arguments.part
        if kind == "encode":
            print(json.dumps(run_encode(Path(model), int(rest[0]))))
        else:
            print(json.dumps(run_job(Path(model), Path(rest[0]), Path(rest[1]))))
        return
    result: dict[str, Any] = {
        "commit": git_commit(),
        "cpu": processor_name(),
        "model": {**LAYER, **HEADS},
        "scaling": [],
        "speed": [],
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = make_model(work / "checkpoint")
        for rows in arguments.rows:
            source = make_corpus(work / f"{rows}.jsonl", rows)
            found = in_process("job", model, source, work / f"out-{rows}")
            result["scaling"].append(found)
            rate = found["rows"] / found["seconds"]
            print(f"{rows:>10,} rows: {rate:8,.0f} rows/s, peak {found['peak_mib']:,.0f} MiB")
        rows = arguments.speed_rows
        source = make_corpus(work / "speed.jsonl", rows)
        for repeat in range(arguments.repeats):
            encoded = in_process("encode", model, rows)
            job = in_process("job", model, source, work / f"speed-{repeat}")
            ratio = encoded["seconds"] / job["seconds"]
            result["speed"].append({"encode": encoded, "job": job, "ratio": ratio})
            print(
                f"{rows:>10,} rows: encode {rows / encoded['seconds']:8,.0f} rows/s, "
                f"job {rows / job['seconds']:8,.0f} rows/s, {ratio:.1%}"
            )
    if result["speed"]:
        ratios = [one["ratio"] for one in result["speed"]]
        result["median_ratio"] = statistics.median(ratios)
        print(f"the job's speed, of encode's: {result['median_ratio']:.1%} (median)")
    least, most = result["scaling"][0], result["scaling"][-1]
    print(f"memory: {most['peak_mib'] - least['peak_mib']:+,.0f} MiB from least to most rows")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
