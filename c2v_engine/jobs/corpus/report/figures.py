"""The figures of a report, from what a job knows and from its timeline."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from c2v_engine.jobs.corpus.records import Reject
from c2v_engine.jobs.corpus.timeline import Sample, Session, add_counters

# The timeline is told in so many parts of equal length, or in one for each start.
_PARTS = 120
_LEAST_PART_SECONDS = 0.5
_MOST_REASONS = 1000
OTHER_REASONS = "other reasons"


@dataclass(frozen=True)
class JobFacts:
    """What a job knows at its end, apart from its timeline.

    Attributes:
        rows: of the input.
        written: rows of the shards.
        rejects: rows that were not embedded.
        tokens: decoder rows of all units.
        shards: how many.
        size: of their files, in bytes.
        dimension: columns of an embedding.
        precision: of the output.
        format: of the shards.
        files: of the input.
        reasons: how many rows were rejected for which reason; see ``count_reasons``.
        model: as ``Causal2Vec.info`` gives it.
        options: what else decides the output: prompt, columns and so on.
        versions: of what computed it.
    """

    rows: int
    written: int
    rejects: int
    tokens: int
    shards: int
    size: int
    dimension: int
    precision: str
    format: str = "parquet"
    files: int = 1
    reasons: Mapping[str, int] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Count rejected rows by reason, most first; numbers in reasons make no difference.

    Of very many different reasons those that come late are counted together.
    """
    counts: dict[str, int] = {}
    for reject in rejects:
        reason = re.sub(r"\d+", "N", reject.reason)
        if reason not in counts and len(counts) >= _MOST_REASONS:
            reason = OTHER_REASONS
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def make_report(facts: JobFacts, sessions: Sequence[Session]) -> dict[str, Any]:
    """Put a report together.

    Args:
        facts: what the job knows at its end.
        sessions: its starts, as the timeline tells them.

    Returns:
        Names and plain values. Seconds and what is counted by them are of all starts together;
        work that was lost when one of them was killed is in them, so that a unit may be counted
        twice there, and never in ``rows`` and ``tokens``.
    """
    total = add_counters([session.last.counters for session in sessions])
    wall = sum(session.last.seconds for session in sessions)
    device_seconds = sum(session.last.seconds * session.devices for session in sessions)
    parts = list(_parts(sessions))
    idle = None
    if device_seconds and total.busy_seconds:
        idle = max(0.0, 1.0 - total.busy_seconds / device_seconds)
    return {
        "rows": facts.rows,
        "rows_written": facts.written,
        "rows_rejected": facts.rejects,
        "rows_from_cache": total.cached,
        "tokens": facts.tokens,
        "shards": facts.shards,
        "bytes": facts.size,
        "format": facts.format,
        "dimension": facts.dimension,
        "precision": facts.precision,
        "input_files": facts.files,
        "starts": sum(session.starts for session in sessions),
        "worker_deaths": sum(len(one.deaths) + one.deaths_before for one in sessions),
        "wall_seconds": round(wall, 3),
        "device_seconds": round(device_seconds, 3),
        "device_idle_share": None if idle is None else round(idle, 4),
        "stage_seconds": {
            "read": round(total.read_seconds, 3),
            "tokenize": round(total.tokenize_seconds, 3),
            "device": round(total.busy_seconds, 3),
            "wait": round(total.wait_seconds, 3),
            "write": round(total.write_seconds, 3),
        },
        "rows_per_second": _rates(total.rows, wall, [part["rows_per_second"] for part in parts]),
        "tokens_per_second": _rates(
            total.tokens, wall, [part["tokens_per_second"] for part in parts]
        ),
        "rejected_by_reason": dict(facts.reasons),
        "lengths": [
            {"from": 2**power, "to": 2 ** (power + 1) - 1, "texts": count}
            for power, count in enumerate(total.lengths)
        ],
        "sessions": [_session(session) for session in sessions],
        "speed": parts,
        "model": _plain(facts.model),
        "options": _plain(facts.options),
        "versions": _plain(facts.versions),
    }


def _rates(count: int, seconds: float, parts: Sequence[float]) -> dict[str, float] | None:
    """Mean over the whole time, and the median of its parts."""
    if not seconds:
        return None
    median = statistics.median(parts) if parts else count / seconds
    return {"mean": round(count / seconds, 2), "median": round(median, 2)}


def _session(session: Session) -> dict[str, Any]:
    last = session.last
    return {
        "begun": _moment(session.begun),
        "starts": session.starts,
        "devices": session.devices,
        "seconds": last.seconds,
        "rows": last.counters.rows,
        "tokens": last.counters.tokens,
        "ended": session.ended,
        "worker_deaths": len(session.deaths) + session.deaths_before,
        "deaths": session.deaths,
    }


def _moment(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # of a clock, or a file, that is wrong
        return "unknown"
    return moment.isoformat(timespec="seconds")


def _parts(sessions: Sequence[Session]) -> Iterator[dict[str, Any]]:
    """Speed over time: each start in parts of about equal length, one after the other."""
    wall = sum(session.last.seconds for session in sessions)
    length = max(_LEAST_PART_SECONDS, wall / _PARTS)
    begin = 0.0
    for number, session in enumerate(sessions):
        seconds = session.last.seconds
        if not seconds:
            continue
        count = max(1, min(round(seconds / length), len(session.samples)))
        edges = [seconds * i / count for i in range(count + 1)]
        rows = _at(edges, session.samples, "rows")
        tokens = _at(edges, session.samples, "tokens")
        for i in range(count):
            step = edges[i + 1] - edges[i]
            yield {
                "session": number,
                "from": round(begin + edges[i], 3),
                "to": round(begin + edges[i + 1], 3),
                "rows_per_second": round((rows[i + 1] - rows[i]) / step, 2),
                "tokens_per_second": round((tokens[i + 1] - tokens[i]) / step, 2),
            }
        begin += seconds


def _at(edges: Sequence[float], samples: Sequence[Sample], name: str) -> list[float]:
    """A counter at some moments, as if what comes in blocks had come evenly."""
    import numpy as np

    seconds, values = [0.0], [0.0]
    for sample in samples:
        value = getattr(sample.counters, name)
        if value > values[-1]:
            seconds.append(sample.seconds)
            values.append(float(value))
    return [float(value) for value in np.interp(edges, seconds, values)]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that JSON has; anything else as its text."""
    kinds = (str, int, float, bool, list, dict)
    return {
        name: value if value is None or isinstance(value, kinds) else str(value)
        for name, value in values.items()
    }
