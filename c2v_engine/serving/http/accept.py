"""What form of answer a client asks for by its ``Accept`` header."""

from __future__ import annotations

from functools import lru_cache
from typing import cast, get_args

from c2v_engine.kernels.dual_token_pool import Precision
from c2v_engine.serving.http.errors import refuse

JSON = "application/json"
BINARY = "application/octet-stream"
PRECISIONS = tuple(name for name in get_args(Precision) if name != "bfloat16")


@lru_cache(maxsize=256)
def wanted_precision(accept: str | None) -> Precision | None:
    """The precision of the raw numbers that are asked for; None for JSON.

    The range of the greatest ``q`` counts, of several the first; ``*/*`` gives JSON.

    Raises:
        RefusedError: 406: neither form will do, or there is no such precision.
    """
    if accept is None or not accept.strip():
        return None
    best, chosen = 0.0, ""
    for text in accept.split(","):
        media, quality = _quality(text)
        kind = media.partition(";")[0].strip().lower()
        if kind in (JSON, BINARY, "*/*", "application/*") and quality > best:
            best, chosen = quality, media
    kind, _, rest = chosen.partition(";")
    if not kind:
        raise refuse(
            406, f"Accept is {accept!r}, expected {JSON} or {BINARY}", "not_acceptable", "Accept"
        )
    return _precision(rest) if kind.strip().lower() == BINARY else None


def _quality(text: str) -> tuple[str, float]:
    """A media range without its ``q``, and that."""
    parts = [part.strip() for part in text.split(";")]
    quality = 1.0
    for part in parts[1:]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
            parts.remove(part)
            break
    return ";".join(parts), quality


def _precision(parameters: str) -> Precision:
    for part in parameters.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() != "precision":
            continue
        value = value.strip().strip('"')
        if value not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise refuse(
                406,
                f"Accept asks for precision {value!r}, expected one of: {known}",
                "not_acceptable",
                "Accept",
            )
        return cast(Precision, value)
    return "float32"
