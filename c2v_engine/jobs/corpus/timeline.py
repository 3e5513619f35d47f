"""How a job went over time: a line every few seconds in its folder, of every start of the job."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from c2v_engine.jobs.corpus.folder.layout import TIMELINE_NAME
from c2v_engine.jobs.corpus.work.coordinator import Death
from c2v_engine.jobs.corpus.work.runner import Counters
from c2v_engine.jobs.output import replace_file

SAMPLE_SECONDS = 5.0
# A line has at most some 300 bytes, so that no file is larger than a megabyte.
_MOST_LINES = 2400
_MOST_SESSIONS = _MOST_LINES // 8
_MOST_DEATHS = 100
_MOST_CHARACTERS = 300
_MOST_LENGTHS = 64
_MOST_FIGURE = 1e18


@dataclass(frozen=True)
class Sample:
    """Where a start of a job stood; everything is counted from its beginning.

    Attributes:
        seconds: since it began.
        counters: of all its workers together.
    """

    seconds: float = 0.0
    counters: Counters = field(default_factory=Counters)

    @classmethod
    def of(cls, seconds: float, workers: Sequence[Counters]) -> Sample:
        """Add up what several workers have done."""
        return cls(seconds, add_counters(workers))

    def to_json(self) -> dict[str, Any]:
        """As a line of the file; what is zero is left out."""
        values = {"seconds": self.seconds, **asdict(self.counters)}
        rounded = {n: round(v, 2) if isinstance(v, float) else v for n, v in values.items()}
        return {name: value for name, value in rounded.items() if value or name == "seconds"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Sample:
        """Read what ``to_json`` gave.

        Raises:
            ValueError: it is something else; or TypeError.
        """
        given = dict(values)
        lengths = tuple(int(count) for count in given.pop("lengths", ()))
        kinds: dict[str, Any] = {one.name: type(one.default) for one in fields(Counters)}
        kinds["seconds"] = float
        figures = {name: kinds[name](value) for name, value in given.items()}
        if len(lengths) > _MOST_LENGTHS or not all(
            0 <= figure < _MOST_FIGURE for figure in (*figures.values(), *lengths)
        ):
            raise ValueError("figures that no job has")
        return cls(figures.pop("seconds"), Counters(**figures, lengths=lengths))


@dataclass
class Session:
    """A start of the job, or several that are told as one.

    Attributes:
        begun: seconds since 1970.
        devices: that worked at a time.
        starts: how many starts it tells of.
        samples: in order.
        deaths: of workers, the last ones; when (seconds since it began), worker, reason and units.
        deaths_before: of workers, that are not told of any more.
        ended: how it ended; None for one that was killed, or that goes on.
    """

    begun: float
    devices: float
    starts: int = 1
    samples: list[Sample] = field(default_factory=list)
    deaths: list[dict[str, Any]] = field(default_factory=list)
    deaths_before: int = 0
    ended: str | None = None

    @property
    def last(self) -> Sample:
        """What it is known to have done."""
        return self.samples[-1] if self.samples else Sample()

    def lines(self) -> list[dict[str, Any]]:
        """As lines of the file."""
        about = {"begun": round(self.begun, 1), "devices": self.devices, "starts": self.starts}
        if self.deaths_before:
            about["deaths_before"] = self.deaths_before
        lines: list[dict[str, Any]] = [{"session": about}]
        lines += [{"death": death} for death in self.deaths]
        lines += [sample.to_json() for sample in self.samples]
        return lines if self.ended is None else [*lines, {"end": self.ended}]


class Timeline:
    """Writes down where a job stands; a new session of a file that may have others.

    A line that can not be written does not stop the job: the folder's other files will, where that
    matters. Nothing more is written then, and ``failure`` says why.

    Args:
        folder: the job's.
        devices: that work at a time.
        every: seconds between samples, to begin with; more as the file grows.

    Attributes:
        failure: what the system said when a line could not be written.
    """

    def __init__(self, folder: Path, devices: int = 1, every: float = SAMPLE_SECONDS) -> None:
        self.path = folder / TIMELINE_NAME
        self.failure: str | None = None
        self._every = every
        self._due = every
        self._begun = time.perf_counter()
        self._lock = threading.Lock()
        self._closed = False
        with self._lock:
            sessions = self._existing()
            self._lines = sum(len(session.lines()) for session in sessions)
            if len(sessions) >= _MOST_SESSIONS:
                self._thin()
            self._write(Session(time.time(), float(devices)).lines()[0], fresh_line=True)

    def sample(self, now: Sample) -> None:
        """Write down where the job stands, if it is time for it; from any thread."""
        with self._lock:
            if now.seconds < self._due or self._closed:
                return
            self._due = now.seconds + self._every
            self._write(now.to_json())
            if self._lines > _MOST_LINES:
                self._thin()

    def death(self, death: Death) -> None:
        """Write down that a worker died."""
        seconds = round(time.perf_counter() - self._begun, 2)
        texts = {"worker": death.worker, "reason": death.reason}
        told = {name: text[:_MOST_CHARACTERS] for name, text in texts.items()}
        with self._lock:
            units = list(death.units[:_MOST_DEATHS])
            self._write({"death": {"seconds": seconds, **told, "units": units}})

    def close(self, last: Sample, ended: str) -> None:
        """Write down where the job stood when it ended, and how it did; nothing comes after."""
        with self._lock:
            if not self._closed:
                self._write(last.to_json())
                self._write({"end": ended[:_MOST_CHARACTERS]})
            self._closed = True

    def _existing(self) -> list[Session]:
        try:
            return read_timeline(self.path.parent)
        except OSError as error:
            self.failure = error.strerror or str(error)
            return []

    def _write(self, line: dict[str, Any], fresh_line: bool = False) -> None:
        if self.failure is not None:
            return
        data = _line(line)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self.path, flags, 0o666)
            try:
                if fresh_line and _is_torn(descriptor):
                    data = b"\n" + data
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.failure = error.strerror or str(error)
        self._lines += 1

    def _thin(self) -> None:
        """Write the file anew with half as many lines, or fewer."""
        try:
            sessions, self._every = thinned(read_timeline(self.path.parent), self._every)
            lines = [line for session in sessions for line in session.lines()]
            replace_file(self.path, map(_line, lines))
        except (OSError, ValueError) as error:  # an OutputError is a ValueError
            self.failure = str(error)
            return
        self._lines = len(lines)


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def add_counters(counters: Sequence[Counters]) -> Counters:
    """Sum of what several have done."""
    if not counters:
        return Counters()
    names = [one.name for one in fields(Counters) if one.name != "lengths"]
    sums = {name: sum(getattr(one, name) for one in counters) for name in names}
    most = max(len(one.lengths) for one in counters)
    lengths = [sum(one.lengths[i] for one in counters if i < len(one.lengths)) for i in range(most)]
    while lengths and not lengths[-1]:
        lengths.pop()
    return Counters(**sums, lengths=tuple(lengths))


def read_timeline(folder: Path) -> list[Session]:
    """Read the starts of a job that are known; none where no timeline is there.

    Lines that were torn by a power cut, or are anything else than a timeline's, are passed over.

    Raises:
        OSError: the file is there and can not be read.
    """
    sessions: list[Session] = []
    path = folder / TIMELINE_NAME
    if not path.exists():
        return sessions
    with open(path, "rb") as file:
        for line in file:
            try:
                _take(json.loads(line), sessions)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                continue
    return sessions


def thinned(sessions: list[Session], every: float) -> tuple[list[Session], float]:
    """Sessions with fewer samples, none of them closer than so many seconds.

    The totals stay what they were. Many sessions are told with the oldest ones as one.

    Args:
        sessions: in order.
        every: seconds between samples so far.

    Returns:
        The sessions, and the seconds that are between samples now.
    """
    many = len(sessions) - _MOST_SESSIONS // 2
    if len(sessions) >= _MOST_SESSIONS:
        sessions = [_joined(sessions[:many]), *sessions[many:]]
    _forget_deaths(sessions)
    samples = [session.samples for session in sessions]
    while sum(map(len, samples)) > max(_MOST_LINES // 2, len(sessions)):
        every *= 2
        samples = [_apart(session.samples, every) for session in sessions]
    pairs = zip(sessions, samples, strict=True)
    return [replace(session, samples=kept) for session, kept in pairs], every


def _take(line: dict[str, Any], sessions: list[Session]) -> None:
    if "session" in line:
        about = line["session"]
        begun, devices, starts = float(about["begun"]), float(about["devices"]), about["starts"]
        before = int(about.get("deaths_before", 0))
        sessions.append(Session(begun, devices, int(starts), deaths_before=before))
    elif not sessions:
        return
    elif "death" in line:
        death = line["death"]
        found = {"seconds": float(death["seconds"]), "units": [int(n) for n in death["units"]]}
        found |= {name: str(death[name]) for name in ("worker", "reason")}
        sessions[-1].deaths.append(found)
    elif "end" in line:
        sessions[-1].ended = str(line["end"])
    else:
        sample = Sample.from_json(line)
        if sample.seconds >= sessions[-1].last.seconds:
            sessions[-1].samples.append(sample)


def _apart(samples: list[Sample], every: float) -> list[Sample]:
    """Samples so many seconds apart; the last one always."""
    kept: list[Sample] = []
    for sample in samples[:-1]:
        if sample.seconds >= (kept[-1].seconds if kept else 0.0) + 0.9 * every:
            kept.append(sample)
    return [*kept, *samples[-1:]]


def _joined(sessions: list[Session]) -> Session:
    """Several sessions as one, with nothing but what they did together."""
    seconds = sum(session.last.seconds for session in sessions)
    device_seconds = sum(session.last.seconds * session.devices for session in sessions)
    return Session(
        begun=sessions[0].begun,
        devices=round(device_seconds / seconds, 3) if seconds else sessions[0].devices,
        starts=sum(session.starts for session in sessions),
        samples=[Sample.of(seconds, [session.last.counters for session in sessions])],
        deaths_before=sum(len(one.deaths) + one.deaths_before for one in sessions),
        ended=sessions[-1].ended,
    )


def _forget_deaths(sessions: list[Session]) -> None:
    left = _MOST_DEATHS
    for session in reversed(sessions):
        gone = max(0, len(session.deaths) - left)
        left -= len(session.deaths) - gone
        session.deaths_before += gone
        del session.deaths[:gone]


def _is_torn(descriptor: int) -> bool:
    """Whether a file's last line was cut off."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
