"""Whether the server lives, and whether to send it requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI
from starlette.responses import Response

from c2v_engine.serving.contract import State
from c2v_engine.serving.http.accept import JSON
from c2v_engine.serving.http.document import add_route, errors
from c2v_engine.serving.http.schemas import Health, TeiError
from c2v_engine.serving.refusals import UnavailableError

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService


def add_health_routes(app: FastAPI, service: EmbeddingService) -> None:
    """Give an app its probes."""
    routes = _HealthRoutes(service)
    for path, endpoint, summary in (
        ("/health", routes.health, "Whether a text can be embedded now"),
        ("/health/live", routes.live, "Whether the server is to be left running"),
        ("/health/ready", routes.ready, "Whether the server is to be sent requests"),
    ):
        # Many load balancers ask for the head alone.
        for method, told in (("GET", summary), ("HEAD", f"{summary}: the head alone")):
            add_route(
                app,
                method,
                path,
                endpoint,
                "health",
                told,
                {200: {"model": Health}, **errors(TeiError, 503)},
                operation_id=f"{endpoint.__name__}_{method.lower()}",
            )


class _HealthRoutes:
    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def health(self) -> Response:
        """A text is embedded, ahead of those that wait; what came of it is told for a second."""
        if self._service.snapshot().state is State.WARMING:
            raise UnavailableError("the service is warming up", retry_after=1)
        await self._service.probe()
        return self._answer()

    async def live(self) -> Response:
        """As ``/health``, but a server that warms up is left to it."""
        if self._service.snapshot().state is not State.WARMING:
            await self._service.probe()
        return self._answer()

    async def ready(self) -> Response:
        """Nothing is embedded: the state alone decides."""
        snapshot = self._service.snapshot()
        if snapshot.state is not State.READY:
            why = f": {snapshot.reason}" if snapshot.reason else ""
            raise UnavailableError(f"the service is {snapshot.state.value}{why}")
        return self._answer()

    def _answer(self) -> Response:
        state = self._service.snapshot().state.value
        return Response(orjson.dumps({"state": state}), media_type=JSON)
