"""``c2v encode`` with a folder as output: which workers, what is said, how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2v_engine.cli.app import fail
from c2v_engine.cli.options import EngineOptions
from c2v_engine.cli.output import print_facts, size_text

if TYPE_CHECKING:
    from c2v_engine.jobs.corpus.job import CorpusJob, CorpusSummary
    from c2v_engine.jobs.corpus.work.fleet import Fleet
    from c2v_engine.jobs.encode import EncodeOptions, Encoder


def is_folder(output: str) -> bool:
    """Whether an output is a folder: one that is there, or a name with no extension."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output) or not Path(output).suffix


def needs_folder(source: str) -> bool:
    """Whether an input can not be embedded into one file: a folder, a glob or a URL."""
    if "://" in source or os.path.isdir(source):
        return True
    return has_magic(source) and not os.path.exists(source)


def encode_folder(
    sources: Sequence[str],
    output: str,
    engine: EngineOptions,
    encode_options: dict[str, Any],
    options: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    """Begin a job, or go on with it.

    Args:
        sources: of the texts.
        output: the folder for the shards.
        engine: which, and where.
        encode_options: of ``EncodeOptions``.
        options: of ``CorpusOptions``, as far as they were given, and ``workers`` and ``ray``.
        quiet: print nothing but problems.
    """
    from c2v_engine.jobs.interrupts import stop_signals

    job: CorpusJob | None = None
    folder = Path(output)
    if "://" in output:
        fail(f"{output}: the output is a folder of this machine's file systems, not a URL")

    def on_stop() -> str:
        return f"interrupted: {folder}: nothing was begun" if job is None else job.interrupt()

    with stop_signals(on_stop):
        from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions
        from c2v_engine.jobs.encode import EncodeOptions
        from c2v_engine.jobs.progress import choose_progress

        workers, ray = options.pop("workers", None), options.pop("ray", None)
        options["keep"] = tuple(options.get("keep", ()))
        encode = EncodeOptions(**encode_options)
        corpus = CorpusOptions(**options, deterministic=engine.deterministic, encode=encode)
        job = CorpusJob(sources, folder, corpus, note=_note)
        with job:
            summary = job.run(
                choose_engine(engine, encode, workers, ray), choose_progress(quiet=quiet)
            )
    if not quiet:
        _print_summary(summary)


def choose_engine(
    chosen: EngineOptions, encode: EncodeOptions, workers: int | None, ray: str | None
) -> Encoder | Fleet:
    """The engine in this process, or the workers that the options ask for."""
    if chosen.devices is not None and (workers is not None or ray is not None):
        fail("--devices and " + ("--workers" if ray is None else "--ray") + " exclude each other")
    if chosen.devices is None and workers is None and ray is None:
        return chosen.load()
    from c2v_engine.jobs.corpus.work.fleet import ProcessFleet
    from c2v_engine.opener import EngineSpec

    spec = EngineSpec(
        chosen.model, chosen.device, chosen.dtype, chosen.attention, chosen.deterministic
    )
    if ray is not None:
        from c2v_engine.jobs.corpus.work.ray_fleet import RayFleet

        return RayFleet(spec, encode, address=ray, workers=workers)
    if workers is not None:
        if chosen.device not in ("auto", "cpu"):
            fail(f"--workers starts processes on the CPU, and --device is {chosen.device}")
        threads = max(1, (os.cpu_count() or 1) // workers)
        openers = [spec.on("cpu", threads)] * workers
        return ProcessFleet(openers, [f"worker {i}" for i in range(workers)], encode)
    from c2v_engine.runtime.workers import device_names

    names = device_names(chosen.device_names or [])
    on_cpu = names.count("cpu")
    threads = max(1, (os.cpu_count() or 1) // max(1, on_cpu))
    openers = [spec.on(name, threads if name == "cpu" else None) for name in names]
    return ProcessFleet(openers, [f"worker {i} ({n})" for i, n in enumerate(names)], encode)


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def _print_summary(summary: CorpusSummary) -> None:
    rows = f"{summary.rows:,}"
    if summary.done_before:
        rows += f" ({summary.done_before:,} of them by earlier starts)"
    here = summary.rows - summary.done_before
    speed = (
        f"{here / summary.seconds:,.0f} rows/s, {summary.tokens / summary.seconds:,.0f} tokens/s"
    )
    if not here:
        speed = "nothing was left to do"
    info = summary.facts.info
    facts = {
        "rows": rows,
        "rejected": f"{summary.rejects:,} (see {summary.folder / 'rejected.jsonl'})",
        "dimension": f"{summary.facts.dimension:,} ({summary.precision})",
        "model": info["model"],
        "time": f"{summary.seconds:,.1f} s",
        "speed": speed,
        "output": f"{summary.shards:,} shards in {summary.folder} ({size_text(summary.size)})",
        "report": str(summary.folder / "report.html"),
    }
    if not summary.rejects:
        del facts["rejected"]
    print_facts(facts)
