"""A run's metrics: what was logged in ``metrics.jsonl``, and a picture of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

METRICS = "metrics.jsonl"
PICTURE = "metrics.png"


class MetricsWriter(TrainerCallback):  # type: ignore[misc]
    """Writes what the trainer logs, and plots it at every validation.

    Only the main process has one.
    """

    def __init__(self, folder: Path, metric: str | None, resumed_step: int) -> None:
        """Open a run's metrics; lines after the step that is resumed are taken out."""
        self.path = folder / METRICS
        self.metric = metric
        lines = read_metrics(self.path) if resumed_step and self.path.is_file() else []
        kept = [line for line in lines if line["step"] <= resumed_step]
        folder.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        beside.replace(self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write one line."""
        if not logs:
            return
        line = {"step": state.global_step, **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if any(name.startswith("eval_") for name in logs):
            self.plot()

    def plot(self) -> None:
        """Draw the picture."""
        plot_metrics(read_metrics(self.path), self.metric, self.path.with_name(PICTURE))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last one cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def plot_metrics(lines: list[dict[str, Any]], metric: str | None, path: Path) -> None:
    """Draw loss and learning rate over the steps, and the validation metric where there is one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    rates = [(line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]
    scores = [(line["step"], line[f"eval_{metric}"]) for line in lines if f"eval_{metric}" in line]
    panels = [("training loss", losses), ("learning rate", rates)]
    if scores:
        panels.insert(1, (f"validation {metric}", scores))
    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, points) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        steps, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, values, marker="o" if len(points) < 40 else None, markersize=3)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    figure.savefig(path, dpi=120)
