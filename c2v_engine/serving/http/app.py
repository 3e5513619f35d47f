"""The FastAPI app: routes, and the layers around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from c2v_engine._version import __version__
from c2v_engine.errors import C2VError
from c2v_engine.serving.http.access import AccessMiddleware, RequestListener
from c2v_engine.serving.http.auth import KeyMiddleware
from c2v_engine.serving.http.body_room import BodyRoomMiddleware
from c2v_engine.serving.http.document import write_openapi
from c2v_engine.serving.http.errors import (
    ClientLeftError,
    Problem,
    answer_error,
    answer_nobody,
    problem_of,
    problem_response,
)
from c2v_engine.serving.http.health import add_health_routes
from c2v_engine.serving.http.methods import answer_method
from c2v_engine.serving.http.openai import add_openai_routes
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.http.tei import add_tei_routes

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService

_NO_KEY = Problem(
    401,
    "the API key is missing or wrong, expected 'Authorization: Bearer KEY'",
    "invalid_api_key",
    headers=(("WWW-Authenticate", "Bearer"),),
)
# A page of another origin may read these headers, and few others.
_EXPOSED = ("X-Request-Id", "X-C2V-Shape", "X-C2V-Precision", "Retry-After", "Server-Timing")


def create_app(
    service: EmbeddingService,
    options: HttpOptions,
    *,
    listeners: Sequence[RequestListener] = (),
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """An app that answers for a service.

    Args:
        service: embeds.
        options: the operator's.
        listeners: are told of every request once it is answered.
        routers: further routes.
    """
    app = FastAPI(
        title="C2V Engine",
        version=__version__,
        description="Causal2Vec text embeddings, by the APIs of OpenAI and of "
        "text-embeddings-inference.",
        # FastAPI's pages of documentation load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_openai_routes(app, service, options)
    add_tei_routes(app, service, options)
    add_health_routes(app, service)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(C2VError, answer_error)
    app.add_exception_handler(HTTPException, answer_error)
    app.add_exception_handler(405, answer_method(routes))
    app.add_exception_handler(ClientLeftError, answer_nobody)
    write_openapi(app, guarded=bool(options.api_keys))
    # The last one added stands outermost.
    app.add_middleware(BodyRoomMiddleware, max_body_bytes=options.max_body_bytes)
    if options.api_keys:
        app.add_middleware(KeyMiddleware, keys=options.api_keys, refusal=_refuse_key)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    app.add_middleware(AccessMiddleware, listeners=listeners, failure=_answer_failure)
    return app


def _refuse_key(path: str) -> Response:
    return problem_response(_NO_KEY, path)


def _answer_failure(error: Exception, path: str) -> tuple[Response, str]:
    problem = problem_of(error)
    return problem_response(problem, path), problem.code
