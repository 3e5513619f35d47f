"""``c2v train``: a checkpoint made from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import QuietOption
from c2v_engine.cli.output import print_facts


@app.command()
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's YAML file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the output's last checkpoint.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model on pairs of texts; the YAML file says how."""
    from c2v_engine.training.config import TrainConfig
    from c2v_engine.training.run import train as train_model

    report = train_model(TrainConfig.load(run), resume=resume, quiet=quiet)
    if quiet:
        return
    facts = {
        "steps": f"{report.steps:,}",
        "pairs": f"{report.pairs:,}",
        "time": f"{report.seconds:,.0f} s",
    }
    if report.loss is not None:
        facts["loss"] = f"{report.loss:.4f}"
    facts |= {name: f"{value:.4f}" for name, value in report.metrics.items()}
    print_facts({**facts, "model": str(report.model)})
