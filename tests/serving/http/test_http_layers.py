"""Errors, keys, origins, binary answers, probes, and what listeners are told."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi import APIRouter, Response
from starlette.testclient import TestClient

from c2v_engine.errors import InputError, TextError
from c2v_engine.serving.contract import State, Timings
from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.refusals import (
    ComputeError,
    OverloadedError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)

JSON = {"content-type": "application/json"}
OPENAI = ("/v1/embeddings", {"input": ["a", "b"], "model": "fake"})
TEI = ("/embed", {"inputs": ["a", "b"]})


@pytest.mark.parametrize(
    ("error", "status", "code", "kind", "retry_after"),
    [
        (InputError("no"), 422, "invalid_value", "Validation", None),
        (TextError(1, "no"), 422, "invalid_text", "Tokenizer", None),
        (TextTooLongError(1, "no"), 413, "text_too_long", "Validation", None),
        (RequestTooLargeError("no"), 413, "request_too_large", "Validation", None),
        (OverloadedError("no", 7), 429, "rate_limit_exceeded", "Overloaded", "7"),
        (UnavailableError("no", 3), 503, "unavailable", "Unhealthy", "3"),
        (UnavailableError("no"), 503, "unavailable", "Unhealthy", None),
        (TimedOutError("no"), 504, "timed_out", "Overloaded", None),
        (ComputeError("no"), 500, "compute_failed", "Backend", None),
        (RuntimeError("secret"), 500, "internal_error", "Backend", None),
    ],
)
def test_each_refusal_has_its_status_in_both_dialects(
    client, service, records, error, status, code, kind, retry_after
):
    service.error = error
    openai, tei = client.post(OPENAI[0], json=OPENAI[1]), client.post(TEI[0], json=TEI[1])
    assert (openai.status_code, tei.status_code) == (status, status)
    assert openai.json()["error"]["code"] == code
    assert tei.json()["error_type"] == kind
    assert openai.json()["error"]["message"] == tei.json()["error"]
    assert openai.headers.get("retry-after") == retry_after == tei.headers.get("retry-after")
    assert "secret" not in openai.text
    assert [record.error for record in records] == [code, code]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b'{"input":"\\ud800","model":"fake"}',
        b'{"input":"\x00","model":"fake"}',
        b'{"input":"\xff","model":"fake"}',
        b'{"input":"a","model":"fake"} more',
        b'{"input":"a","model":"fake","input":"b"}',
        b"[" * 10_000,
    ],
)
def test_broken_json_is_400(client, service, body):
    answer = client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert not service.asked


def test_a_text_may_quote_the_name_of_a_field(client, service):
    body = r'{"model":"fake","input":"\"input\": \"input\" and \"model\" : 1"}'
    assert client.post("/v1/embeddings", content=body.encode(), headers=JSON).status_code == 200
    assert service.asked[0][0] == ['"input": "input" and "model" : 1']


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_taken(client, headers):
    body = b'{"inputs":"a"}'
    assert client.post("/embed", content=body, headers=headers).status_code == 415


def test_a_charset_of_utf_8_is_taken(client):
    headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
    assert client.post("/embed", content=b'{"inputs":"a"}', headers=headers).status_code == 200


def test_a_long_body_is_refused_by_its_word_and_by_its_bytes(client_of):
    client = client_of(max_body_bytes=100)
    body = b'{"inputs":"%s"}' % (b"a" * 200)
    assert client.post("/embed", content=body, headers=JSON).status_code == 413
    answer = client.post("/embed", content=iter([body[:60], body[60:]]), headers=JSON)
    assert answer.status_code == 413
    assert "100 bytes" in answer.json()["error"]


@pytest.mark.parametrize(("path", "body"), [OPENAI, TEI])
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", "<f4"),
        ("float16", "<f2"),
        ("int8", "i1"),
        ("uint8", "u1"),
        ("binary", "i1"),
        ("ubinary", "u1"),
    ],
)
def test_raw_numbers_come_to_those_who_ask(client, service, path, body, precision, dtype):
    accept = {"accept": f"application/octet-stream;precision={precision}"}
    answer = client.post(path, json=body, headers=accept)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-c2v-precision"] == precision
    shape = tuple(map(int, answer.headers["x-c2v-shape"].split(",")))
    read = np.frombuffer(answer.content, dtype).reshape(shape)
    assert np.array_equal(read, service.vectors(["a", "b"], precision=precision))


@pytest.mark.parametrize(
    ("accept", "status", "media"),
    [
        ("*/*", 200, "application/json"),
        ("", 200, "application/json"),
        ("application/*", 200, "application/json"),
        ("application/octet-stream", 200, "application/octet-stream"),
        ("text/html, */*;q=0.1", 200, "application/json"),
        ("application/json;q=0.5, application/octet-stream", 200, "application/octet-stream"),
        ("application/json, application/octet-stream;q=0.9", 200, "application/json"),
        ("text/html", 406, "application/json"),
        ("application/json;q=0", 406, "application/json"),
        ("application/octet-stream;precision=bfloat16", 406, "application/json"),
        ("application/octet-stream;precision=float64", 406, "application/json"),
    ],
)
def test_accept_chooses_the_form(client, accept, status, media):
    answer = client.post(TEI[0], json=TEI[1], headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (status, media)


def test_any_of_the_keys_opens_the_guarded_routes(client_of):
    client = client_of(api_keys=("one", "zwölf"))
    for key in ("one", "zwölf"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert client.post(TEI[0], json=TEI[1], headers=headers).status_code == 200


@pytest.mark.parametrize("value", [None, "one", "Bearer", "Bearer two", "Basic one", "Bearer one2"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/", "/tokenize", "/nowhere"])
def test_without_a_key_nothing_guarded_is_told(client_of, service, records, path, value):
    client = client_of(api_keys=("one",))
    headers = {} if value is None else {"authorization": value}
    answer = client.post(path, json={"inputs": "a"}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"] == records[0].id
    assert records[0].error == "invalid_api_key"
    assert not service.asked


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/openapi.json"])
def test_some_routes_need_no_key(client_of, path):
    assert client_of(api_keys=("one",)).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/info"])
def test_reading_needs_a_key_too(client_of, path):
    assert client_of(api_keys=("one",)).get(path).status_code == 401


def test_other_origins_are_let_in_only_when_named(client, client_of):
    origin = {"origin": "https://a.example"}
    asked = {**origin, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.get("/info", headers=origin).headers
    named = client_of(cors_origins=("https://a.example",), api_keys=("one",))
    assert named.options("/embed", headers=asked).status_code == 200
    answer = named.post(TEI[0], json=TEI[1], headers=origin)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    other = named.get("/health", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("state", "health", "live", "ready"),
    [
        (State.READY, 200, 200, 200),
        (State.WARMING, 503, 200, 503),
        (State.DRAINING, 200, 200, 503),
        (State.FAILED, 503, 503, 503),
    ],
)
def test_probes_follow_the_state(client, service, state, health, live, ready):
    service.state = state
    if state is State.FAILED:
        service.error, service.reason = UnavailableError("it does not work"), "it does not work"
    answers = [client.get(path) for path in ("/health", "/health/live", "/health/ready")]
    assert [answer.status_code for answer in answers] == [health, live, ready]
    heads = [client.head(path) for path in ("/health", "/health/live", "/health/ready")]
    assert [answer.status_code for answer in heads] == [health, live, ready]
    for answer in answers:
        if answer.status_code == 503:
            assert (service.reason or state.value) in answer.json()["error"]


def test_listeners_are_told_of_a_request(client, records):
    headers = {"x-request-id": "mine-1", "traceparent": "00-ab-cd-01"}
    answer = client.post(OPENAI[0], json=OPENAI[1], headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    (record,) = records
    assert (record.id, record.method, record.route) == ("mine-1", "POST", "/v1/embeddings")
    assert (record.status, record.texts, record.tokens, record.error) == (200, 2, 6, None)
    assert record.timings == Timings(0.001, 0.002, 0.003)
    assert 0 < record.asked < record.seconds
    assert record.bytes_in == len(answer.request.content)
    assert record.bytes_out == len(answer.content)
    assert record.traceparent == "00-ab-cd-01"
    assert 0 < record.seconds < 60


def test_a_method_that_a_path_does_not_take_is_told_those_it_takes(service):
    router = APIRouter()

    @router.get("/")
    def page():
        return Response("a page")

    client = TestClient(create_app(service, HttpOptions(("fake",)), routers=[router]))
    assert client.get("/").text == "a page"
    for path, allowed in (("/", "GET, POST"), ("/embed", "POST"), ("/v1/models/fake", "GET")):
        answer = client.delete(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_routes_are_told_by_their_template(client, records):
    for path in ("/v1/models/fake", "/nowhere", "/nowhere/else"):
        client.get(path)
    assert [record.route for record in records] == ["/v1/models/{id}", "unmatched", "unmatched"]
    assert [record.error for record in records] == [None, "not_found", "not_found"]


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "naïve"])
def test_an_id_is_made_where_none_will_do(client, given):
    headers = {} if given is None else {"x-request-id": given.encode()}
    answer = client.get("/health/ready", headers=headers)
    assert len(answer.headers["x-request-id"]) == 32


def test_a_listener_that_fails_harms_nobody(service, caplog):
    told = []

    class Bad:
        def request(self, record):
            raise RuntimeError("no")

    class Good:
        def request(self, record):
            told.append(record)

    app = create_app(service, HttpOptions(("fake",)), listeners=[Bad(), Good()])
    assert TestClient(app).post(TEI[0], json=TEI[1]).status_code == 200
    assert len(told) == 1
    assert "Bad failed" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"model_names": ()},
        {"model_names": ("",)},
        {"model_names": ("a",), "api_keys": ("",)},
        {"model_names": ("a",), "max_texts": 0},
    ],
)
def test_options_that_can_not_be_are_refused(options):
    with pytest.raises(InputError):
        HttpOptions(**options)
