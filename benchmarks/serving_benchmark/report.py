"""What outcomes come to: rates, shares and percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving_benchmark.client import Load, Outcome

__all__ = [
    "describe_load",
    "describe_memory",
    "describe_overhead",
    "print_load",
    "quantiles",
    "ramp_seconds",
]

PERCENTILES = (50, 90, 99)
_RAMP_SHARE, _RAMP_SECONDS = 0.1, 2.0


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Percentiles in milliseconds, and how many there were; None of nothing."""
    if not seconds:
        return None
    values = np.percentile(np.array(seconds) * 1000, PERCENTILES)
    found = {f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, values, strict=True)}
    return {**found, "count": len(seconds)}


def ramp_seconds(seconds: float) -> float:
    """How long what is under way grows, at the begin of a load of so many seconds."""
    return min(_RAMP_SECONDS, _RAMP_SHARE * seconds)


def describe_load(load: Load) -> dict[str, Any]:
    """A load's rates, statuses and latencies.

    Rates are of answers that ended while requests were sent, without the first tenth of that time
    (2 s at most), in which what is under way grows. Latencies count from when a request was due.
    """
    ramp = ramp_seconds(load.seconds)
    begin, end = load.began + ramp, load.began + load.seconds
    good = [one for one in load.outcomes if one.reply.status == 200]
    counted = [one for one in good if begin <= one.ended < end]
    window = end - begin
    refused = [one for one in load.outcomes if one.reply.status == 429]
    return {
        "seconds": load.seconds,
        "offered_texts_per_second": sum(one.texts for one in load.outcomes) / load.seconds,
        "texts_per_second": sum(one.texts for one in counted) / window,
        "tokens_per_second": sum(one.reply.tokens for one in counted) / window,
        "answered": [one.number for one in counted],
        "statuses": dict(sorted(Counter(str(o.reply.status) for o in load.outcomes).items())),
        "query_ms": quantiles([one.ended - one.due for one in good if one.kind == "query"]),
        "document_ms": quantiles([one.ended - one.due for one in good if one.kind == "document"]),
        "refusal_ms": quantiles([one.ended - one.due for one in refused]),
        "sent_late_ms": quantiles([one.sent - one.due for one in load.outcomes]),
        "client_processors": load.client_seconds / load.seconds,
    }


def describe_overhead(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of queries that came alone: the client's latency, and what of it is not the engine's.

    The overhead is the latency without what the server says of tokenising and computing, so the
    way through both network stacks and the client are in it. It is None where no server says so.
    """
    good = [one for one in outcomes if one.reply.status == 200]
    said = [one for one in good if {"tokenize", "compute"} <= set(one.reply.stages)]
    stages = [one.reply.stages for one in said]
    return {
        "latency_ms": quantiles([one.ended - one.sent for one in good]),
        "overhead_ms": quantiles(
            [
                one.ended - one.sent - one.reply.stages["tokenize"] - one.reply.stages["compute"]
                for one in said
            ]
        ),
        "stages_ms": {
            name: quantiles([stage[name] for stage in stages if name in stage])
            for name in sorted({name for stage in stages for name in stage})
        },
    }


def describe_memory(samples: Sequence[tuple[float, float]], since: float) -> dict[str, Any]:
    """Resident memory from a moment on: first, last and most MiB, and its slope.

    Args:
        samples: seconds and MiB.
        since: seconds.
    """
    kept = [(moment, size) for moment, size in samples if moment >= since] or list(samples[-1:])
    if not kept:
        return {}
    moments, sizes = (np.array(column) for column in zip(*kept, strict=True))
    slope = np.polyfit(moments, sizes, 1)[0] * 60 if len(kept) > 1 else 0.0
    return {
        "first_mib": float(sizes[0]),
        "last_mib": float(sizes[-1]),
        "most_mib": float(sizes.max()),
        "mib_per_minute": round(float(slope), 3),
    }


def print_load(name: str, row: dict[str, Any]) -> None:
    """A line or two for people."""
    statuses = ", ".join(f"{count:,} x {status}" for status, count in row["statuses"].items())
    print(
        f"{name}: {row['texts_per_second']:,.0f} of {row['offered_texts_per_second']:,.0f} texts/s "
        f"offered, {row['computed_tokens_per_second']:,.0f} tokens/s computed, "
        f"{row['ratio']:.1%} of offline; "
        f"{statuses}"
    )
    for kind in ("query", "document", "refusal"):
        found = row[f"{kind}_ms"]
        if found:
            figures = ", ".join(f"p{p} {found[f'p{p}']:,.1f} ms" for p in PERCENTILES)
            print(f"    {kind:<9}{figures}")
    late = row["sent_late_ms"]
    print(
        f"    processors: server {row['server_processors']:.2f}, client "
        f"{row['client_processors']:.2f}; sent late by p99 {late['p99'] if late else 0:,.1f} ms",
        flush=True,
    )
