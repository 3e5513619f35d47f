"""text-embeddings-inference's routes: ``/embed``, ``/tokenize``, ``/info`` and its other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from c2v_engine._version import __version__
from c2v_engine.serving.contract import EmbedResult, Token
from c2v_engine.serving.http.accept import JSON, PRECISIONS
from c2v_engine.serving.http.access import notes_of
from c2v_engine.serving.http.bodies import BodyReader, listed, off_loop
from c2v_engine.serving.http.disconnect import unless_left
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
from c2v_engine.serving.http.encoding import tei_json
from c2v_engine.serving.http.errors import refuse
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.http.schemas import (
    TeiEmbedRequest,
    TeiError,
    TeiInfo,
    TeiToken,
    TeiTokenizeRequest,
)

if TYPE_CHECKING:
    from c2v_engine.serving.service import EmbeddingService

_TAG = "text-embeddings-inference"
# Of text-embeddings-inference's routes, those that a Causal2Vec model has no answer to.
_REFUSED = {
    "/embed_all": "the model gives one embedding for each text, not one for each token: use /embed",
    "/embed_sparse": "the model gives dense embeddings, not sparse ones: use /embed",
    "/rerank": "the model embeds texts and is no re-ranker: use /embed and compare",
    "/predict": "the model embeds texts and is no classifier: use /embed",
    "/similarity": "the server does not compare embeddings: use /embed and compare",
    "/decode": "the server takes text and no token ids: use /tokenize to see them",
}
_MANY_TOKENS = 1024


def add_tei_routes(app: FastAPI, service: EmbeddingService, options: HttpOptions) -> None:
    """Give an app text-embeddings-inference's routes."""
    routes = _TeiRoutes(service, options)
    keys = (401,) if options.api_keys else ()
    # huggingface_hub posts to the address it was given.
    for path, name, note in (("/embed", "embed", ""), ("/", "embed_root", ", as /embed does")):
        add_route(
            app,
            "POST",
            path,
            routes.embed,
            _TAG,
            f"Embed texts{note}",
            {
                **embeddings_answer(list[list[float]]),
                **errors(TeiError, *BODY_ERRORS, *WORK_ERRORS, *keys, 406),
            },
            operation_id=name,
            openapi_extra=request_body(routes.embed_schema()),
        )
    add_route(
        app,
        "POST",
        "/tokenize",
        routes.tokenize,
        _TAG,
        "Tokens that the decoder reads",
        {
            200: {"model": list[list[TeiToken]]},
            **errors(TeiError, *BODY_ERRORS, *WORK_ERRORS, *keys),
        },
        openapi_extra=request_body(routes.tokenize_schema()),
    )
    answers = {200: {"model": TeiInfo}, **errors(TeiError, *keys)}
    add_route(app, "GET", "/info", routes.info, _TAG, "The model, and bounds of requests", answers)
    for path in _REFUSED:
        app.add_api_route(path, refuse_route, methods=["POST"], include_in_schema=False)


class _TeiRoutes:
    def __init__(self, service: EmbeddingService, options: HttpOptions) -> None:
        self._service = service
        self._options = options
        self._embed_reader = BodyReader(TeiEmbedRequest, options)
        self._tokenize_reader = BodyReader(TeiTokenizeRequest, options)

    def embed_schema(self) -> dict[str, Any]:
        return request_schema(
            TeiEmbedRequest,
            self._service,
            self._options.max_texts,
            {"truncation_direction": {"enum": ["Right", "right", None]}},
        )

    def tokenize_schema(self) -> dict[str, Any]:
        return request_schema(TeiTokenizeRequest, self._service, self._options.max_texts)

    async def embed(self, request: Request) -> Response:
        body: TeiEmbedRequest = await self._embed_reader.read(request)
        if body.truncation_direction in ("Left", "left"):
            raise refuse(
                422,
                f"truncation_direction is {body.truncation_direction!r}, expected 'Right': texts "
                "are shortened at their end",
                "invalid_value",
                "truncation_direction",
            )
        options = body.options(body.prompt_name)
        texts = listed(body.inputs, self._options)
        return await embed_response(request, self._service, texts, options, _embeddings_json)

    async def tokenize(self, request: Request) -> Response:
        body: TeiTokenizeRequest = await self._tokenize_reader.read(request)
        texts = listed(body.inputs, self._options)
        work = self._service.tokenize(texts, body.prompt_name, body.add_special_tokens)
        rows = await unless_left(request, work)
        notes = notes_of(request.scope)
        notes.texts, notes.tokens = len(texts), sum(map(len, rows))
        content = await off_loop(notes.tokens > _MANY_TOKENS, _tokens_json, rows)
        return Response(content, media_type=JSON)

    async def info(self) -> Response:
        return Response(orjson.dumps(self._describe()), media_type=JSON)

    def _describe(self) -> dict[str, Any]:
        service, snapshot = self._service, self._service.snapshot()
        return {
            "model_id": service.name,
            "model_sha": service.fingerprint,
            "model_dtype": str(service.info.get("dtype", "unknown")),
            "served_model_name": self._options.model_names[0],
            "model_type": {"embedding": {"pooling": "causal2vec"}},
            "max_concurrent_requests": None,
            "max_input_length": service.max_length,
            "max_batch_tokens": snapshot.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": self._options.max_texts,
            "auto_truncate": service.truncates,
            "tokenization_workers": None,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "dimension": service.dimension,
            "segments": service.segments,
            "normalize": service.normalizes,
            "prompts": service.prompts,
            "fingerprint": service.fingerprint,
            "precisions": list(PRECISIONS),
            "max_body_bytes": self._options.max_body_bytes,
            "max_characters": self._options.max_characters,
        }


async def refuse_route(request: Request) -> Response:
    """Say why a route of text-embeddings-inference is not there."""
    path = request.scope["path"]
    raise refuse(422, f"{path} is refused: {_REFUSED[path]}", "unsupported_route")


def _embeddings_json(result: EmbedResult) -> bytes:
    return tei_json(result.embeddings)


def _tokens_json(rows: list[list[Token]]) -> bytes:
    return orjson.dumps([[token._asdict() for token in row] for row in rows])
