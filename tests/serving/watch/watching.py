"""A service and an app for the tests of what watches them, without a model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from c2v_engine.serving.contract import Snapshot, State, Timings
from c2v_engine.serving.watch.metrics import Metrics
from c2v_engine.serving.watch.status import watch_router

SNAPSHOT = Snapshot(
    state=State.READY,
    reason=None,
    queue_tokens=120,
    queue_capacity=1000,
    queued_texts=7,
    requests=3,
    tokens_per_second=None,
    batch_tokens=512,
    texts=40,
    tokens=900,
    batches=5,
)
TIMINGS = Timings(tokenize=0.001, queue=0.002, compute=0.004)


@dataclass
class FakeService:
    """What is watched of a service, to be set by hand."""

    name: str = "tiny"
    dimension: int = 3
    max_length: int = 64
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "q: ", "document": ""})
    info: dict[str, object] = field(
        default_factory=lambda: {"device": "cpu", "dtype": "float32", "directory": "/secret/place"}
    )
    now: Snapshot = SNAPSHOT

    def snapshot(self) -> Snapshot:
        return self.now

    def set(self, **fields: object) -> None:
        self.now = replace(self.now, **fields)


@dataclass(frozen=True)
class Record:
    """A request that ended."""

    id: str = "r-1"
    method: str = "POST"
    route: str = "/v1/embeddings"
    status: int = 200
    texts: int = 2
    tokens: int = 9
    timings: Timings | None = TIMINGS
    asked: float = 0.001
    seconds: float = 0.01
    bytes_in: int = 50
    bytes_out: int = 700
    error: str | None = None
    traceparent: str | None = None


@dataclass
class FakeApp:
    """Embeds a text as its counts of the letters a, b and c, for the page to rank."""

    service: FakeService = field(default_factory=FakeService)
    refuse: tuple[int, dict[str, str], str] | None = None
    key: str | None = None
    asked: list[dict] = field(default_factory=list)
    statuses: int = 0

    def make(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        self.metrics = Metrics(self.service)
        app.include_router(watch_router(self.service, self.metrics, needs_key=self.key is not None))

        @app.middleware("http")
        async def count(request: Request, call_next):
            self.statuses += request.url.path == "/status"
            return await call_next(request)

        @app.post("/v1/embeddings")
        async def embed(request: Request):
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "no such key"}}, 401)
            if self.refuse:
                status, headers, message = self.refuse
                return JSONResponse({"error": {"message": message}}, status, headers)
            body = await request.json()
            self.asked.append(body)
            vectors = [[text.count(letter) for letter in "abc"] for text in body["input"]]
            data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
            return {"data": data, "usage": {"total_tokens": len(vectors)}}

        return app


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """An app on a port of its own; gives its address."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
