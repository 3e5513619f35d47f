"""``c2v mine``: hard negatives for training pairs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import (
    BackendOption,
    BatchTokensOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    ModelOption,
    QuietOption,
    load_model,
)
from c2v_engine.cli.output import print_facts, size_text

if TYPE_CHECKING:
    from c2v_engine.jobs.mine import MineJob, MineReport


class Sampling(str, Enum):
    """Which of the candidates that may be negatives become ones."""

    TOP = "top"
    RANDOM = "random"


@app.command()
def mine(
    source: Annotated[
        Path, typer.Argument(metavar="DATA", help=".jsonl or .parquet: query, positive, ...")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Of the same format.")],
    model: ModelOption = None,
    corpus: Annotated[
        Path | None, typer.Option(help="File of candidates; else all positives of DATA.")
    ] = None,
    corpus_column: Annotated[
        str | None, typer.Option(help="Its column with the texts; else 'text'.")
    ] = None,
    num_negatives: Annotated[int, typer.Option(min=1, help="Most for a pair, a row each.")] = 1,
    range_min: Annotated[int, typer.Option(min=0, help="First rank taken, from 0.")] = 10,
    range_max: Annotated[int, typer.Option(min=1, help="Rank after the last taken.")] = 100,
    max_score: Annotated[float | None, typer.Option(help="Most a negative may score.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Least it may.")] = None,
    absolute_margin: Annotated[
        float | None, typer.Option(min=0.0, help="By which it scores less than the positive.")
    ] = None,
    relative_margin: Annotated[
        float, typer.Option(min=0.0, help="The same, as a part of the positive's score.")
    ] = 0.05,
    sampling: Annotated[Sampling, typer.Option(help="The nearest, or any.")] = Sampling.TOP,
    seed: Annotated[int, typer.Option(min=0, help="Of random sampling.")] = 0,
    query_prompt_name: Annotated[
        str | None, typer.Option(help="Else 'query', where the model has it.")
    ] = None,
    document_prompt_name: Annotated[
        str | None, typer.Option(help="Else 'document', 'passage' or 'corpus', where it has one.")
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    devices: DevicesOption = None,
    attention: BackendOption = "auto",
    batch_tokens: BatchTokensOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an output that exists.")] = False,
    overwrite_negatives: Annotated[
        bool, typer.Option(help="Replace the column 'negative' of DATA.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Find hard negatives for pairs of query and positive."""
    from c2v_engine.jobs.interrupts import stop_signals

    job: MineJob | None = None

    def on_stop() -> str:
        return f"interrupted: {output} was not written" if job is None else job.interrupt()

    with stop_signals(on_stop):
        from c2v_engine.jobs.mine import MineJob, MineOptions
        from c2v_engine.jobs.negatives import NegativeRules
        from c2v_engine.jobs.progress import choose_progress

        rules = NegativeRules(
            num_negatives,
            range_min,
            range_max,
            max_score,
            min_score,
            absolute_margin,
            relative_margin,
            sampling.value,
            seed,
        )
        job = MineJob(
            source,
            output,
            corpus=corpus,
            corpus_column=corpus_column,
            overwrite=overwrite,
            overwrite_negatives=overwrite_negatives,
            options=MineOptions(rules, query_prompt_name, document_prompt_name, batch_tokens),
        )
        with job:
            engine = load_model(model, device, dtype, attention, devices)
            report = job.run(engine, choose_progress(quiet=quiet))
    if not quiet:
        print_facts(_facts(report))


def _facts(report: MineReport) -> dict[str, Any]:
    got = ", ".join(
        f"{pairs:,} got {number or 'none'}" for number, pairs in sorted(report.by_count.items())
    )
    without = report.by_count.get(0, 0)
    facts = {
        "pairs": f"{report.pairs:,} of {report.queries:,} queries",
        "candidates": f"{report.candidates:,}",
        "negatives": f"{report.negatives:,} rows ({got})",
        "mean score": f"positives {report.positive_score:.3f}",
    }
    if report.negative_score is not None:
        facts["mean score"] += f", negatives {report.negative_score:.3f}"
    if without:
        facts["left out"] = (
            f"{without:,} pairs without negatives: {report.without_candidates:,} had no candidate "
            f"at these ranks, {report.too_near:,} none within margins and scores"
        )
    facts["model"] = report.model
    facts["time"] = f"{report.seconds:,.1f} s"
    facts["output"] = f"{report.output} ({size_text(report.size)})"
    return facts
