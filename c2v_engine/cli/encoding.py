"""``c2v encode`` and ``c2v calibrate``: files of texts in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2v_engine.cli.app import app, fail
from c2v_engine.cli.options import (
    BackendOption,
    BatchTokensOption,
    ColumnOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
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


@app.command()
def encode(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help=".txt, .jsonl, .csv, .parquet; also .gz, .zst.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npy or .parquet.")],
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
    overwrite: Annotated[bool, typer.Option(help="Replace an output that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Embed a file of texts into a .npy or .parquet file."""
    from c2v_engine.jobs.interrupts import stop_signals

    job: EncodeJob | None = None

    def on_stop() -> str:
        if job is not None:
            return job.interrupt()
        return f"interrupted: nothing was written to {output} (0 texts done)"

    with stop_signals(on_stop):
        from c2v_engine.jobs.encode import EncodeJob, EncodeOptions
        from c2v_engine.jobs.progress import choose_progress

        options = EncodeOptions(prompt_name, prompt, precision.value, truncate_dim, batch_tokens)
        job = EncodeJob(
            source,
            output,
            column=column,
            id_column=id_column,
            overwrite=overwrite,
            options=options,
        )
        with job:
            engine = load_model(model, device, dtype, attention, devices, deterministic)
            report = job.run(engine, choose_progress(quiet=quiet))
    if report.duplicates:
        rows = "1 row repeats" if report.duplicates == 1 else f"{report.duplicates:,} rows repeat"
        note = f"{rows} an id that an earlier row has"
        print(f"note: {source}: {note} (column {id_column!r})", file=sys.stderr)
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
