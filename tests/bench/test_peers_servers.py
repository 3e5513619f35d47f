"""Servers as peers: asked for the engine's vectors by their own APIs, on connections that stay."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request, Response
from peer_sessions import assert_measured, entries_of, open_written

from c2v_engine import Causal2Vec
from c2v_engine.bench.providers import remote
from c2v_engine.bench.providers.base import Spec
from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.service import EmbeddingService, ServiceOptions

SERVING = Path(__file__).parents[1] / "serving"


@pytest.fixture(scope="module")
def running():
    """``running(app)`` is a context that gives the address of an app that is served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SERVING)
        from running import running
    return running


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return open_written(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def ours(session, running):
    """The address of ``c2v serve`` with the session's model, at most 10 texts a request."""
    engine = Causal2Vec.from_pretrained(session.source.directory, device="cpu", dtype="float32")
    service = EmbeddingService(engine, ServiceOptions(truncate=True))  # as infinity does
    service.warm_up()
    with running(create_app(service, HttpOptions(("served",), max_texts=10))) as url:
        yield url
    service.close()


def answering(running, **routes):
    """A server with routes of text-embeddings-inference that are the test's own."""
    app = FastAPI()

    async def info():
        return {"model_id": "stub", "max_client_batch_size": 4}

    app.add_api_route("/info", routes.get("info", info), methods=["GET"])
    if "embed" in routes:
        app.add_api_route("/embed", routes["embed"], methods=["POST"])
    return running(app)


def test_a_server_with_the_same_model_agrees_and_is_timed(session, ours):
    spec = Spec("tei", "float32", url=ours)
    entry = entries_of(session, spec, tokens=3000, prompt_tokens=3)[spec.name]
    assert_measured(entry)
    assert "in float32, at most 10 texts a request, 8 at once" in entry["note"]
    assert entry["texts"] > 30


def test_the_api_of_openai_gives_the_same(session, ours):
    spec = Spec("infinity", "float32", url=f"{ours}/v1/")
    entry = entries_of(session, spec, texts_per_call=9)[spec.name]
    assert_measured(entry)
    assert entry["note"].startswith("served, ")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("mistral", "cosines to the first provider are"), ("qwen2", "64 wide, the first one's 96")],
)
def test_a_server_with_another_model_is_wrong(tmp_path, ours, architecture, reason):
    other = open_written(tmp_path / "model", architecture)
    spec = Spec("tei", "bfloat16", url=ours)
    entry = entries_of(other, spec)[spec.name]
    assert entry["status"] == "wrong"
    assert reason in entry["reason"]
    assert "seconds" not in entry


def test_vectors_come_back_in_the_order_of_the_texts(session, running):
    asked = []

    async def embed(request: Request):
        texts = (await request.json())["inputs"]
        asked.append(texts)
        return [[float(len(text)), 1.0] for text in texts]

    texts = ["x" * length for length in (3, 9, 1, 7, 5, 2, 8, 4, 6)]
    with answering(running, embed=embed) as url:
        peer = remote.open_tei(session, Spec("tei", url=url))
        vectors = peer.embed(SimpleNamespace(calls=lambda: [texts], prompt="p"))
        peer.close()
    assert (vectors[:, 0] / vectors[:, 1]).round().tolist() == [len(t) + 1 for t in texts]
    assert sorted(map(len, asked)) == [1, 4, 4]


def test_an_error_of_the_server_is_the_reason(session, running):
    async def embed():
        return Response('{"error": "model is overloaded"}', status_code=429)

    with answering(running, embed=embed) as url:
        spec = Spec("tei", "float32", url=url)
        entry = entries_of(session, spec)[spec.name]
        session.keep([])
    assert entry["status"] == "failed"
    assert "/embed answers 429" in entry["reason"]
    assert "model is overloaded" in entry["reason"]


def test_fewer_vectors_than_texts_are_an_error(session, running):
    async def embed():
        return [[1.0, 2.0]]

    with answering(running, embed=embed) as url:
        spec = Spec("tei", "float32", url=url)
        entry = entries_of(session, spec)[spec.name]
        session.keep([])
    assert "other than a vector for a text" in entry["reason"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "needs the address of a server"),
        ("localhost:8080", "no address of a server"),
        ("ftp://localhost", "no address of a server"),
    ],
)
def test_what_is_no_address_says_so(session, url, reason):
    spec = Spec("tei", "float32", url=url)
    entry = entries_of(session, spec)[spec.name]
    assert entry["status"] == "unusable"
    assert reason in entry["reason"]


def test_where_no_server_answers_it_is_unusable(session):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    spec = Spec("tei", "float32", url=url)
    entry = entries_of(session, spec)[spec.name]
    assert entry["status"] == "unusable"
    assert "no server of tei at" in entry["reason"]


def test_a_server_of_another_api_is_unusable(session, running):
    with running(FastAPI()) as url:
        for kind in ("tei", "infinity"):
            spec = Spec(kind, "float32", url=url)
            entry = entries_of(session, spec)[spec.name]
            assert entry["status"] == "unusable"
            assert "answers 404" in entry["reason"]


def test_a_connection_that_was_closed_while_idle_is_opened_again(session, running):
    async def embed(request: Request):
        texts = (await request.json())["inputs"]
        return Response(
            str([[1.0]] * len(texts)),
            media_type="application/json",
            headers={"Connection": "close"},
        )

    with answering(running, embed=embed) as url:
        peer = remote.open_tei(session, Spec("tei", url=url))
        for _ in range(3):
            assert len(peer.request(["a", "b"])) == 2
        peer.close()
