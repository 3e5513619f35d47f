"""``c2v encode`` and ``c2v calibrate``: texts in."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2v_engine.cli.app import app, fail
from c2v_engine.cli.corpus_job import encode_folder, is_folder, needs_folder
from c2v_engine.cli.options import (
    BackendOption,
    BatchTokensOption,
    ColumnOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    EngineOptions,
    ModelOption,
    Precision,
    PromptNameOption,
    QuietOption,
    TruncateOption,
    load_model,
)
from c2v_engine.cli.output import print_facts, size_text

if TYPE_CHECKING:
    from c2v_engine.jobs.encode import EncodeJob, EncodeReport


class OnError(str, Enum):
    """What becomes of rows that can not be embedded."""

    FAIL = "fail"
    SKIP = "skip"
    NULL = "null"


class ShardFormat(str, Enum):
    """Of the shards in a folder."""

    PARQUET = "parquet"
    ARROW = "arrow"
    SAFETENSORS = "safetensors"
    NPY = "npy"


@app.command()
def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help=".txt, .jsonl, .csv, .parquet; also .gz, .zst. Where the output is a folder, also "
            "Arrow, .bz2, .lz4, several files, folders, globs and URLs.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help=".npy or .parquet, or a folder of shards.")
    ],
    model: ModelOption = None,
    column: ColumnOption = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column with the ids; else the row number, from 0.")
    ] = None,
    prompt_name: PromptNameOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt, instead of a named one.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the output.")] = Precision.FLOAT32,
    truncate_dim: TruncateOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    devices: DevicesOption = None,
    attention: BackendOption = "auto",
    batch_tokens: BatchTokensOption = None,
    deterministic: Annotated[
        bool, typer.Option(help="The same bits for a text, whatever is embedded beside it.")
    ] = False,
    keep: Annotated[
        list[str] | None, typer.Option(help="Folder: a column to pass through; repeatable.")
    ] = None,
    shard_format: Annotated[
        ShardFormat | None, typer.Option("--format", help="Folder: of the shards; else parquet.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Folder: rows of a shard; else 32,768 at most.")
    ] = None,
    on_error: Annotated[
        OnError | None, typer.Option(help="Folder: what becomes of bad rows; else fail.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder: file of known embeddings, read and added to.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Folder: so many processes on the CPU, or Ray actors.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Folder: a Ray cluster: auto, its address, or local, one of its own."),
    ] = None,
    redo_changed: Annotated[
        bool | None,
        typer.Option(
            "--redo-changed", help="Folder: do units again whose input files have changed."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace an output that exists; begin a folder's job anew.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Embed texts into a file, or a corpus into a folder of shards.

    A folder is a job: the same command goes on with it, whatever stopped it. See docs/corpora.md.
    """
    engine = EngineOptions(model, device, dtype, attention, devices, deterministic)
    encode_options = {
        "prompt_name": prompt_name,
        "prompt": prompt,
        "precision": precision.value,
        "truncate_dim": truncate_dim,
        "batch_tokens": batch_tokens,
    }
    folder_options = {
        "keep": keep,
        "format": shard_format and shard_format.value,
        "shard_rows": shard_rows,
        "on_error": on_error and on_error.value,
        "cache": cache,
        "workers": workers,
        "ray": ray,
        "redo_changed": redo_changed,
    }
    given = {name: value for name, value in folder_options.items() if value is not None}
    columns = {"column": column, "id_column": id_column, "overwrite": overwrite}
    if is_folder(output):
        encode_folder(sources, output, engine, encode_options, {**columns, **given}, quiet=quiet)
        return
    for name in given:
        flag = f"--{name.replace('_', '-')}"
        fail(f"{flag} goes with a folder as output, and {output} is a file's name")
    if len(sources) > 1:
        fail(f"{len(sources)} inputs, and the output {output} is a file's name: name a folder")
    if needs_folder(sources[0]):
        fail(f"{sources[0]}: goes with a folder as output, and {output} is a file's name")
    _encode_file(sources[0], output, engine, encode_options, columns, quiet=quiet)


def _encode_file(
    source: str,
    output: str,
    chosen: EngineOptions,
    encode_options: dict[str, Any],
    columns: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    from c2v_engine.jobs.interrupts import stop_signals

    job: EncodeJob | None = None

    def on_stop() -> str:
        if job is not None:
            return job.interrupt()
        return f"interrupted: nothing was written to {output} (0 texts done)"

    with stop_signals(on_stop):
        from c2v_engine.jobs.encode import EncodeJob, EncodeOptions
        from c2v_engine.jobs.progress import choose_progress

        job = EncodeJob(source, output, **columns, options=EncodeOptions(**encode_options))
        with job:
            report = job.run(chosen.load(), choose_progress(quiet=quiet))
    if report.duplicates:
        rows = "1 row repeats" if report.duplicates == 1 else f"{report.duplicates:,} rows repeat"
        note = f"{rows} an id that an earlier row has"
        print(f"note: {source}: {note} (column {columns['id_column']!r})", file=sys.stderr)
    if not quiet:
        _print_report(report)


@app.command()
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Texts like those that will be embedded.")
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="The model's folder.")],
    column: ColumnOption = None,
    prompt_name: PromptNameOption = None,
    truncate_dim: TruncateOption = None,
    max_texts: Annotated[int, typer.Option(min=1, help="Read at most so many texts.")] = 100_000,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    attention: BackendOption = "auto",
) -> None:
    """Store the ranges that int8 and uint8 output needs."""
    from c2v_engine.jobs.calibrate import calibrate_file
    from c2v_engine.jobs.interrupts import stop_signals

    with stop_signals(lambda: f"interrupted: nothing was written to {model}"):
        if not (model / "config.json").is_file():
            fail(f"{model}: not a model folder: ranges are stored in it")
        engine = load_model(str(model), device, dtype, attention)
        texts, ranges = calibrate_file(
            engine,
            source,
            column=column,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_texts=max_texts,
        )
    engine.save_ranges(model)
    print(f"ranges of {len(ranges[0]):,} dimensions from {texts:,} texts stored in {model}")


def _print_report(report: EncodeReport) -> None:
    speed = f"{report.texts_per_second:,.0f} texts/s, {report.tokens_per_second:,.0f} tokens/s"
    facts = {
        "rows": f"{report.rows:,}",
        "dimension": f"{report.dimension:,} ({report.precision})",
        "model": report.model,
        "time": f"{report.seconds:,.1f} s",
        "speed": speed,
        "output": f"{report.output} ({size_text(report.size)})",
    }
    print_facts(facts)
