"""Progress of a job: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

LINE_SECONDS = 5.0
TICK_SECONDS = 0.5
# What counts as the recent past, by which speed and time left are told: rows come in blocks, and
# with a large model a block may take minutes, so it is never less than some blocks.
_RECENT_SECONDS = 60.0
_RECENT_STEPS = 8


@dataclass(frozen=True)
class Snapshot:
    """Where a job stands.

    Attributes:
        rows: texts done.
        tokens: decoder rows computed for them.
        seconds: time since the first text.
        fraction: part of the input done, None where it has no known size.
        unit: what the rows are; other rows than texts and rows of input have no tokens.
        before: rows that were done by an earlier start of the job.
        total: rows of the whole input, where that is known; those done before among them.
        rejects: rows that could not be embedded.
    """

    rows: int
    tokens: int
    seconds: float
    fraction: float | None
    unit: str = "texts"
    before: int = 0
    total: int | None = None
    rejects: int = 0

    @property
    def texts_per_second(self) -> float:
        """Texts a second since the beginning."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoder rows a second since the beginning."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Speed:
    """How fast a job goes.

    Attributes:
        rows: a second.
        tokens: a second.
        left: seconds until the end; None where nobody can tell.
    """

    rows: float
    tokens: float
    left: float | None


class Pace:
    """Tells a job's speed in the recent past from where it stood then.

    While the next rows are under way the speed stays what it was; when they take longer than the
    last ones did it falls.
    """

    def __init__(self) -> None:
        # Seconds, rows, tokens and fraction, of the moments at which there were new rows.
        self._steps: deque[tuple[float, int, int, float | None]] = deque()

    def update(self, now: Snapshot) -> Speed:
        """Take note of where the job stands, and tell its speed."""
        steps = self._steps
        if not steps:
            begun = now.before / now.total if now.total else 0.0
            steps.append((0.0, 0, 0, None if now.fraction is None else begun))
        if (now.rows, now.fraction) != (steps[-1][1], steps[-1][3]):
            steps.append((now.seconds, now.rows, now.tokens, now.fraction))
        while len(steps) > _RECENT_STEPS and steps[1][0] < now.seconds - _RECENT_SECONDS:
            steps.popleft()
        (begin, first_rows, first_tokens, first), (end, rows, tokens, last) = steps[0], steps[-1]
        usual = (end - begin) / max(1, len(steps) - 1)
        seconds = max(end, now.seconds - usual) - begin
        if seconds <= 0:
            return Speed(0.0, 0.0, None)
        left = None
        if first is not None and last is not None and last > first:
            left = max(0.0, (1.0 - last) * seconds / (last - first) - (now.seconds - end))
        return Speed((rows - first_rows) / seconds, (tokens - first_tokens) / seconds, left)


class Progress:
    """Shows nothing; the others derive from it."""

    def update(self, now: Snapshot) -> None:
        """Show where the job stands."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class TerminalProgress(Progress):
    """A bar with the time left, texts, texts/s and tokens/s."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._bar = RichProgress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
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
        speed = self._pace.update(now)
        figures = _figures(now, speed)
        if speed.left is not None:  # first, for a narrow terminal cuts off what is last
            figures = f"{_duration(speed.left)} left, {figures}"
        self._bar.update(self._task, completed=now.fraction or 0.0, figures=figures)

    def close(self) -> None:
        """Take the bar away; another update brings a new one."""
        self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._pace = Pace()


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
        self._pace = Pace()

    def update(self, now: Snapshot) -> None:
        """Print a line, if it is time for one."""
        speed = self._pace.update(now)
        time_now = self._clock()
        if time_now < self._next:
            return
        self._next = time_now + self._every
        line = _figures(now, speed)
        if now.fraction:
            line = f"{now.fraction:.0%}, {line}"
        if speed.left is not None:
            line = f"{line}, {_duration(speed.left)} left"
        with contextlib.suppress(OSError):  # no one reads the log any more
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Forget the pace; another update begins anew."""
        self._pace = Pace()


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


def _figures(now: Snapshot, speed: Speed) -> str:
    of_total = "" if now.total is None else f" of {now.total:,}"
    figures = f"{now.before + now.rows:,}{of_total} {now.unit}, {speed.rows:,.0f} {now.unit}/s"
    if now.unit in ("texts", "rows"):
        figures += f", {speed.tokens:,.0f} tokens/s"
    return figures + (f", {now.rejects:,} rejected" if now.rejects else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
