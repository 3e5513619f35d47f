"""Progress of a job: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_SECONDS = 5.0
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Snapshot:
    """Where a job stands.

    Attributes:
        rows: texts done.
        tokens: decoder rows computed for them.
        seconds: time since the first text.
        fraction: part of the input done, None where it has no known size.
        unit: what the rows are; other rows than texts have no tokens.
    """

    rows: int
    tokens: int
    seconds: float
    fraction: float | None
    unit: str = "texts"

    @property
    def texts_per_second(self) -> float:
        """Texts a second since the beginning."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoder rows a second since the beginning."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Progress:
    """Shows nothing; the others derive from it."""

    def update(self, now: Snapshot) -> None:
        """Show where the job stands."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class TerminalProgress(Progress):
    """A bar with texts, texts/s, tokens/s and the time left."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def update(self, now: Snapshot) -> None:
        """Redraw the bar."""
        total = None if now.fraction is None else 1.0
        if self._task is None:
            self._task = self._bar.add_task("", total=total, figures="")
            self._bar.start()
        self._bar.update(self._task, completed=now.fraction or 0.0, figures=_figures(now))

    def close(self) -> None:
        """Take the bar away; another update brings a new one."""
        self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


class LineProgress(Progress):
    """A plain line every few seconds, for logs.

    Args:
        stream: where to; standard error when none is given.
        every: seconds between lines.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._clock = clock
        self._next = clock() + every

    def update(self, now: Snapshot) -> None:
        """Print a line, if it is time for one."""
        time_now = self._clock()
        if time_now < self._next:
            return
        self._next = time_now + self._every
        line = _figures(now)
        if now.fraction:
            left = now.seconds * (1.0 - now.fraction) / now.fraction
            line = f"{now.fraction:.0%}, {line}, {_duration(left)} left"
        with contextlib.suppress(OSError):  # no one reads the log any more
            print(line, file=self._stream, flush=True)


@contextlib.contextmanager
def ticking(
    progress: Progress, now: Callable[[], Snapshot], every: float = TICK_SECONDS
) -> Iterator[None]:
    """Update a progress from a thread of its own, and once more at the end.

    The engine may take long over one block of texts; its counters move all the while.

    Args:
        progress: what is updated, and closed on leaving.
        now: says where the job stands; called in that thread.
        every: seconds between updates.
    """
    over = threading.Event()

    def tick() -> None:
        while not over.wait(every):
            progress.update(now())

    ticker = threading.Thread(target=tick, name="c2v-progress", daemon=True)
    ticker.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        over.set()
        ticker.join()
        if finished:
            progress.update(now())
        progress.close()


def choose_progress(*, quiet: bool) -> Progress:
    """Pick the kind of progress that fits standard error."""
    if quiet:
        return Progress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress(every=LINE_SECONDS)


def _figures(now: Snapshot) -> str:
    figures = f"{now.rows:,} {now.unit}, {now.texts_per_second:,.0f} {now.unit}/s"
    return figures + (f", {now.tokens_per_second:,.0f} tokens/s" if now.unit == "texts" else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
