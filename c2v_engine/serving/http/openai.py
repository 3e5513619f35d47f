"""OpenAI's routes: ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from c2v_engine.errors import InputError
from c2v_engine.serving.contract import EmbedResult
from c2v_engine.serving.http.accept import JSON
from c2v_engine.serving.http.bodies import BodyReader, listed
from c2v_engine.serving.http.document import (
    BODY_ERRORS,
    WORK_ERRORS,
    add_route,
    embeddings_answer,
    errors,
    request_body,
    request_schema,
)
from c2v_engine.serving.http.embedding import embed_response
from c2v_engine.serving.http.encoding import openai_json
from c2v_engine.serving.http.errors import refuse
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.http.schemas import (
    OpenAIEmbeddings,
    OpenAIEmbeddingsRequest,
    OpenAIError,
    OpenAIModel,
    OpenAIModels,
)

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService


_TAG = "OpenAI"


def served_models(service: EmbeddingService, options: HttpOptions) -> dict[str, str | None]:
    """The prompt of every name by which clients may ask: of NAME none, of NAME:PROMPT that one.

    Raises:
        InputError: a name that means a prompt of another one.
    """
    names: dict[str, str | None] = dict.fromkeys(options.model_names)
    for name in options.model_names:
        for prompt in service.prompts:
            both = f"{name}:{prompt}"
            if both in options.model_names:
                raise InputError(f"name {both!r} means prompt {prompt!r} of {name!r}: leave it out")
            names[both] = prompt
    return names


def add_openai_routes(app: FastAPI, service: EmbeddingService, options: HttpOptions) -> None:
    """Give an app OpenAI's routes."""
    routes = _OpenAIRoutes(service, options)
    keys = (401,) if options.api_keys else ()
    add_route(
        app,
        "POST",
        "/v1/embeddings",
        routes.embeddings,
        _TAG,
        "Embed texts",
        {
            **embeddings_answer(OpenAIEmbeddings),
            **errors(OpenAIError, *BODY_ERRORS, *WORK_ERRORS, *keys, 404, 406),
        },
        openapi_extra=request_body(routes.schema()),
    )
    answers = {200: {"model": OpenAIModels}, **errors(OpenAIError, *keys)}
    add_route(app, "GET", "/v1/models", routes.models, _TAG, "Names of the model", answers)
    name = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    add_route(
        app,
        "GET",
        "/v1/models/{id:path}",
        routes.model,
        _TAG,
        "One name of the model",
        {200: {"model": OpenAIModel}, **errors(OpenAIError, *keys, 404)},
        openapi_extra={"parameters": [name]},
    )


class _OpenAIRoutes:
    def __init__(self, service: EmbeddingService, options: HttpOptions) -> None:
        self._service = service
        self._options = options
        self._models = served_models(service, options)
        self._reader = BodyReader(OpenAIEmbeddingsRequest, options)
        self._created = int(time.time())

    def schema(self) -> dict[str, Any]:
        schema = request_schema(
            OpenAIEmbeddingsRequest,
            self._service,
            self._options.max_texts,
            {"model": {"enum": list(self._models)}},
        )
        names: dict[str | None, list[str]] = {}
        for name, prompt in self._models.items():
            names.setdefault(prompt, []).append(name)
        schema["anyOf"] = [
            {
                "properties": {
                    "model": {"enum": named},
                    **({} if prompt is None else {"prompt_name": {"enum": [prompt, None]}}),
                }
            }
            for prompt, named in names.items()
        ]
        return schema

    async def embeddings(self, request: Request) -> Response:
        body: OpenAIEmbeddingsRequest = await self._reader.read(request)
        options = body.options(self._prompt_name(body))

        def as_json(result: EmbedResult) -> bytes:
            encoding = body.encoding_format or "float"
            return openai_json(result.embeddings, encoding, body.model, int(result.tokens.sum()))

        texts = listed(body.input, self._options)
        return await embed_response(request, self._service, texts, options, as_json)

    async def models(self) -> Response:
        data = [self._describe(name) for name in self._models]
        return _json({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self._models:
            raise self._unknown(name)
        return _json(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "c2v-engine"}

    def _prompt_name(self, body: OpenAIEmbeddingsRequest) -> str | None:
        if body.model not in self._models:
            raise self._unknown(body.model)
        suffix = self._models[body.model]
        if suffix is not None and body.prompt_name not in (None, suffix):
            raise refuse(
                422,
                f"model is {body.model!r} and prompt_name is {body.prompt_name!r}, expected only "
                "one prompt",
                "invalid_value",
                "prompt_name",
            )
        return suffix if suffix is not None else body.prompt_name

    def _unknown(self, name: str) -> Exception:
        known = ", ".join(self._models)
        return refuse(
            404, f"model is {name!r}, expected one of: {known}", "model_not_found", "model"
        )


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type=JSON)
