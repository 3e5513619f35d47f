"""``c2v verify`` and ``c2v merge``: what becomes of the folder that ``c2v encode`` writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import QuietOption
from c2v_engine.cli.output import print_facts, size_text

if TYPE_CHECKING:
    from c2v_engine.jobs.corpus.folder.merge import MergeJob

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="That c2v encode wrote to.")]


@app.command()
def verify(folder: FolderArgument, quiet: QuietOption = False) -> None:
    """Check a folder of shards: every row once, in order, every byte as it was written."""
    from c2v_engine.jobs.corpus.folder.verify import verify_job

    found = verify_job(folder)
    for line in found.notes:
        if not quiet:
            print(f"note: {line}", file=sys.stderr)
    for line in found.problems:
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
    if not quiet and found.units:
        totals = found.totals
        facts: dict[str, Any] = {
            "rows": f"{totals.rows:,} of {found.rows:,}",
            "written": f"{totals.written:,}",
            "rejected": f"{totals.rejects:,}",
            "shards": f"{found.checked:,} of {found.units:,} ({size_text(totals.size)})",
            "problems": f"{len(found.problems):,}" if found.problems else "none",
        }
        print_facts(facts)
    if not found.good:
        raise typer.Exit(2)


@app.command()
def merge(
    folder: FolderArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=".parquet, .arrow, .npy or .safetensors."),
    ],
    overwrite: Annotated[bool, typer.Option(help="Replace an output that exists.")] = False,
    unfinished: Annotated[
        bool, typer.Option(help="Take what is there of a job that is not finished.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Join a folder of shards into one file."""
    from c2v_engine.jobs.interrupts import stop_signals

    job: MergeJob | None = None

    def on_stop() -> str:
        return f"interrupted: {output} was not written" if job is None else job.interrupt()

    with stop_signals(on_stop):
        from c2v_engine.jobs.corpus.folder.merge import MergeJob

        job = MergeJob(folder, output, overwrite=overwrite, unfinished=unfinished)
        with job:
            report = job.run()
    if quiet:
        return
    facts: dict[str, Any] = {"rows": f"{report.rows:,}"}
    if report.shards < report.units:
        facts["shards"] = f"{report.shards:,} of {report.units:,}: the job is not finished"
    else:
        facts["shards"] = f"{report.shards:,}"
    names = " and ".join(map(str, report.files))
    print_facts({**facts, "output": f"{names} ({size_text(report.size)})"})
