"""The OpenAPI document's parts that depend on the model that is served, or that routes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import Response

from c2v_engine.serving.http.accept import BINARY
from c2v_engine.serving.http.auth import is_open_operation
from c2v_engine.serving.http.schemas import OpenAIError, TeiError

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService

Schema = dict[str, Any]

_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "No valid API key.",
    404: "No such model.",
    406: "The form that `Accept` asks for is not there.",
    408: "The body did not arrive in time.",
    413: "Too long: the body, the list, or a text that is not to be truncated.",
    415: "Not plain JSON in UTF-8.",
    422: "A field is missing, unknown, or has a value that can not be.",
    429: "Too much waits already; `Retry-After` says when to ask again.",
    500: "The model failed.",
    503: "Nothing can be embedded now: warming up, shutting down, or failed.",
    504: "Not done in time.",
}
# Of a field, what stays when its values are narrowed.
_TOLD = ("description", "default")
BODY_ERRORS = (400, 408, 413, 415, 422)
WORK_ERRORS = (429, 500, 503, 504)


def add_route(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Callable[..., Awaitable[Response]],
    tag: str,
    summary: str,
    answers: dict[int | str, Schema],
    **more: Any,
) -> None:
    """Give an app a route that makes its responses itself.

    Args:
        app: to give it.
        method: of HTTP.
        path: of the route.
        endpoint: answers a request.
        tag: under which the document lists it.
        summary: of it there.
        answers: likewise, by their status.
        more: of ``FastAPI.add_api_route``.
    """
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        tags=[tag],
        summary=summary,
        response_model=None,
        responses=answers,
        **more,
    )


def errors(model: type[BaseModel], *statuses: int) -> dict[int | str, Schema]:
    """The answers of a route that are not 200."""
    assert model in (OpenAIError, TeiError)
    return {
        status: {"model": model, "description": _DESCRIPTIONS[status]}
        for status in sorted(statuses)
    }


def embeddings_answer(model: Any) -> dict[int | str, Schema]:
    """The 200 of a route that embeds: JSON of a model, or raw numbers."""
    return {
        200: {
            "model": model,
            "description": "Embeddings. `Accept: application/octet-stream` gives them as raw "
            "little-endian numbers, row by row; `;precision=` chooses float32, float16, int8, "
            "uint8, binary or ubinary.",
            "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "Server-Timing": {
                    "description": "Milliseconds of the stages: tokenize, queue, compute.",
                    "schema": {"type": "string"},
                },
                "X-C2V-Shape": {
                    "description": "texts,columns of raw numbers.",
                    "schema": {"type": "string", "pattern": "^[0-9]+,[0-9]+$"},
                },
                "X-C2V-Precision": {
                    "description": "Of raw numbers.",
                    "schema": {"type": "string"},
                },
            },
        }
    }


def request_body(schema: Schema) -> Schema:
    """A JSON body that a route needs."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def request_schema(
    model: type[BaseModel],
    service: EmbeddingService,
    max_texts: int,
    narrowed: dict[str, Schema] | None = None,
) -> Schema:
    """The schema of a request's body, as narrow as the model that is served makes it.

    Args:
        model: what checks it.
        service: whose dimensions and prompts are taken.
        max_texts: of a request.
        narrowed: fields of the route's own.
    """
    schema = model.model_json_schema()
    fields = schema["properties"]
    width = {
        "type": "integer",
        "minimum": service.segments,
        "maximum": service.dimension,
        "multipleOf": service.segments,
    }
    shared: dict[str, Schema] = {
        "prompt_name": {"enum": [*service.prompts, None]},
        "dimensions": {"anyOf": [width, {"type": "null"}]},
    }
    for name, values in {**shared, **(narrowed or {})}.items():
        if name in fields:
            told = {key: fields[name][key] for key in _TOLD if key in fields[name]}
            fields[name] = {**values, **told}
    for name in ("input", "inputs"):
        if name in fields:
            # Told in words: a longer list is 413, which is no complaint about its form.
            fields[name]["description"] += f" At most {max_texts}."
    return schema


def write_openapi(app: FastAPI, guarded: bool) -> None:
    """Have an app tell its document, with the key of guarded routes in it."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            if guarded:
                _guard(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _guard(document: Schema) -> None:
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if not is_open_operation(method.upper(), path):
                operation["security"] = [{"key": []}]
