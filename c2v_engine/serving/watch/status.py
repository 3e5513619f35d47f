"""Routes for those who watch: ``/metrics`` for Prometheus, ``/status`` for programs, ``/``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from c2v_engine._version import __version__
from c2v_engine.errors import MissingPackageError
from c2v_engine.serving.watch.metrics import Metrics
from c2v_engine.serving.watch.page import load_page
from c2v_engine.serving.watch.recent import HISTORY_SECONDS, LATENCY_SECONDS, Recent
from c2v_engine.serving.watch.watched import WatchedService

try:
    import orjson
    from fastapi import APIRouter, Request, Response
except ImportError as error:
    raise MissingPackageError("fastapi", "serve") from error

_METRICS_MEDIA = ("text/plain", "application/openmetrics-text")
_NOT_KEPT = {"Cache-Control": "no-store"}


def watch_router(
    service: WatchedService,
    metrics: Metrics,
    *,
    model: str | None = None,
    needs_key: bool = False,
) -> APIRouter:
    """The routes by which a server is watched; none needs a key, none shows a text.

    Args:
        service: that is watched.
        metrics: that are told what it does.
        model: name by which requests ask for it; None for the service's own.
        needs_key: whether requests for embeddings need a key, so that the page asks for it.

    Returns:
        A router with ``/metrics``, ``/status`` and ``/``.
    """
    router = APIRouter(tags=["watching"])
    page = load_page()
    name = service.name if model is None else model

    async def read_metrics(request: Request) -> Response:
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={**_NOT_KEPT, "Content-Type": content_type})

    async def read_status() -> Response:
        body = orjson.dumps(make_status(service, metrics.recent, name, needs_key))
        return Response(body, media_type="application/json", headers=_NOT_KEPT)

    async def read_page() -> Response:
        return Response(page.body, media_type="text/html", headers=dict(page.headers))

    _add(router, "/metrics", read_metrics, "Metrics for Prometheus", *_METRICS_MEDIA)
    _add(router, "/status", read_status, "How it goes", "application/json")
    _add(router, "/", read_page, "A page that shows how it goes", "text/html")
    return router


def _add(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Awaitable[Response]],
    summary: str,
    *media: str,
) -> None:
    """A route of some media types, and its head alone; each is an operation of the document."""
    body = {"type": "object" if media == ("application/json",) else "string"}
    answers: dict[str, dict[str, Any]] = {
        "GET": {"content": {kind: {"schema": body} for kind in media}},
        "HEAD": {},
    }
    for method, answer in answers.items():
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            operation_id=f"{endpoint.__name__}_{method.lower()}",
            summary=summary if method == "GET" else f"{summary}: the head alone",
            response_class=Response,
            response_model=None,
            responses={200: {"description": "It is always there.", **answer}},
        )


def make_status(
    service: WatchedService, recent: Recent, model: str, needs_key: bool
) -> dict[str, Any]:
    """What ``/status`` says: plain values for JSON, times in the unit of their names."""
    now = service.snapshot()
    latency = recent.latency()
    texts_per_second, tokens_per_second = recent.rates()
    history = recent.history().round(1)
    return {
        "state": now.state.value,
        "reason": now.reason,
        "uptime_seconds": round(recent.uptime, 1),
        "version": __version__,
        "needs_key": needs_key,
        "model": _model(service, model),
        "queue": {
            "tokens": now.queue_tokens,
            "capacity": now.queue_capacity,
            "texts": now.queued_texts,
        },
        "requests_active": now.requests,
        "done": {"texts": now.texts, "tokens": now.tokens, "batches": now.batches},
        "batch_tokens": now.batch_tokens,
        "device_tokens_per_second": now.tokens_per_second,
        "texts_per_second": round(texts_per_second, 1),
        "tokens_per_second": round(tokens_per_second, 1),
        "latency": {
            "seconds": LATENCY_SECONDS,
            "requests": latency.requests,
            "p50_ms": _milliseconds(latency.p50),
            "p99_ms": _milliseconds(latency.p99),
        },
        "history": {
            "seconds": HISTORY_SECONDS,
            "texts": history[:, 0].tolist(),
            "tokens": history[:, 1].tolist(),
        },
    }


def _model(service: WatchedService, name: str) -> Mapping[str, Any]:
    info = service.info
    return {
        "name": name,
        "dimension": service.dimension,
        "max_length": service.max_length,
        "prompts": list(service.prompts),
        "device": info.get("device"),
        "dtype": info.get("dtype"),
        "fingerprint": info.get("fingerprint"),
        "decoder": info.get("decoder"),
        "encoder": info.get("encoder"),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
