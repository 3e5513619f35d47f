"""Embeddings of a request, in the form that its client asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from c2v_engine.serving.contract import EmbedOptions, EmbedResult, Timings
from c2v_engine.serving.http.accept import BINARY, JSON, wanted_precision
from c2v_engine.serving.http.access import notes_of
from c2v_engine.serving.http.bodies import off_loop
from c2v_engine.serving.http.disconnect import unless_left
from c2v_engine.serving.http.encoding import raw_bytes

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService

# Numbers that are written as JSON in less time than a hop to a thread and back takes.
_INLINE_NUMBERS = 8192


async def embed_response(
    request: Request,
    service: EmbeddingService,
    texts: Sequence[str],
    options: EmbedOptions,
    as_json: Callable[[EmbedResult], bytes],
) -> Response:
    """Embed texts and answer with them.

    Args:
        request: whose body has been read; its ``Accept`` chooses JSON or raw numbers.
        service: embeds.
        texts: at least one.
        options: of all of them; the precision is the client's choice.
        as_json: writes float32 embeddings.

    Raises:
        RefusedError: neither form is acceptable.
        ClientLeftError: the client left; the work was given up.
        C2VError: as ``EmbeddingService.embed``.
    """
    precision = wanted_precision(request.headers.get("accept"))
    if precision is not None:
        options = replace(options, precision=precision)
    notes = notes_of(request.scope)
    notes.asked = time.perf_counter()
    result = await unless_left(request, service.embed(texts, options))
    notes.texts, notes.tokens = len(texts), int(result.tokens.sum())
    notes.timings = result.timings
    headers = {"Server-Timing": server_timing(result.timings)}
    if precision is not None:
        shape = ",".join(map(str, result.embeddings.shape))
        headers |= {"X-C2V-Shape": shape, "X-C2V-Precision": precision}
        return Response(raw_bytes(result.embeddings), media_type=BINARY, headers=headers)
    body = await off_loop(result.embeddings.size > _INLINE_NUMBERS, as_json, result)
    return Response(body, media_type=JSON, headers=headers)


def server_timing(timings: Timings) -> str:
    """The stages of a request in milliseconds, as browsers and clients read them in a header."""
    stages = ((name, getattr(timings, name)) for name in ("tokenize", "queue", "compute"))
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages)
