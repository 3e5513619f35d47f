"""The corpus job against ``Causal2Vec.encode``: rows a second, and memory by the number of rows.

    python benchmarks/bench_corpus.py --json corpus.json                # a million rows: minutes
    python benchmarks/bench_corpus.py --rows 2000 20000 --repeats 1     # to try it

A tiny model (decoder and encoder of one layer, 32 wide, the default model's tokenizers) embeds
short rows, so that what is not the model shows. For each number of rows a job reads a file of JSON
lines and writes a folder of Parquet shards, in a process of its own whose memory is watched. For
the speed, encode and the job take turns on the same texts, each in a process of its own; encode
has them in memory, the job reads and writes files, and its time is from the opened model to the
last record. With --model default the shipped model embeds docstrings of the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from c2v_engine.bench.machine.facts import git_commit, processor_name  # noqa: E402
from c2v_engine.engine import Causal2Vec, default_model_path  # noqa: E402

LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
WARM_UP_TEXTS = 1000


def make_model(folder: Path) -> Path:
    """A checkpoint of random weights with the default model's tokenizers."""
    import shutil

    from transformers import AutoModel, BertConfig, LlamaConfig

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


def make_corpus(path: Path, rows: int, kind: str) -> Path:
    """Rows as JSON lines, no two texts alike: short ones, or docstrings with a number before."""
    sys.path.insert(0, str(ROOT / "examples"))
    from stdlib_docstrings import standard_library

    docstrings = [text for _, text in standard_library()] if kind == "docstrings" else []
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            text = (
                f"{row} {docstrings[row % len(docstrings)]}" if docstrings else f"row {row} of it"
            )
            file.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")
    return path


def texts_of(source: Path) -> list[str]:
    """The texts of a corpus."""
    with source.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def run_encode(model: Path, device: str, source: Path) -> dict[str, Any]:
    """Embed texts that are in memory."""
    engine = Causal2Vec.from_pretrained(model, device=device)
    texts = texts_of(source)
    engine.encode(texts[:WARM_UP_TEXTS])
    tokens = engine.stats.tokens
    start = time.perf_counter()
    engine.encode(texts, show_progress_bar=False)
    seconds = time.perf_counter() - start
    return {"rows": len(texts), "seconds": seconds, "tokens": engine.stats.tokens - tokens}


def run_job(model: Path, device: str, source: Path, folder: Path) -> dict[str, Any]:
    """Embed a file into a folder."""
    from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions

    options = CorpusOptions(id_column="id")
    with CorpusJob([str(source)], folder, options, note=print) as job:
        engine = Causal2Vec.from_pretrained(model, device=device)
        with source.open(encoding="utf-8") as file:
            engine.encode([json.loads(line)["text"] for line in islice(file, WARM_UP_TEXTS)])
        start = time.perf_counter()
        summary = job.run(engine)
        seconds = time.perf_counter() - start
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {
        "rows": summary.rows,
        "seconds": seconds,
        "tokens": summary.tokens,
        "bytes": summary.size,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stage_seconds": report["stage_seconds"],
        "device_idle_share": report["device_idle_share"],
    }


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
    parser.add_argument("--model", choices=("tiny", "default"), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--commit", help="of a copy without its .git")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        kind, device, *paths = arguments.part
        model, source, *folder = map(Path, paths)
        part = (
            run_job(model, device, source, *folder) if folder else run_encode(model, device, source)
        )
        print(json.dumps(part))
        return
    result: dict[str, Any] = {
        "commit": arguments.commit or git_commit(),
        "cpu": processor_name(),
        "threads": os.cpu_count(),
        "device": arguments.device,
        "model": arguments.model,
        "scaling": [],
        "speed": [],
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        device, kind = arguments.device, "docstrings" if arguments.model == "default" else "short"
        model = default_model_path() if kind == "docstrings" else make_model(work / "checkpoint")
        if device != "cpu":
            import torch

            result["gpu"] = torch.cuda.get_device_name()
        for rows in arguments.rows:
            source = make_corpus(work / f"{rows}.jsonl", rows, kind)
            found = in_process("job", device, model, source, work / f"out-{rows}")
            result["scaling"].append(found)
            rate = found["rows"] / found["seconds"]
            print(f"{rows:>10,} rows: {rate:8,.0f} rows/s, peak {found['peak_mib']:,.0f} MiB")
        rows = arguments.speed_rows
        source = make_corpus(work / "speed.jsonl", rows, kind)
        for repeat in range(arguments.repeats):
            encoded = in_process("encode", device, model, source)
            job = in_process("job", device, model, source, work / f"speed-{repeat}")
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
