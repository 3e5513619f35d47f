"""The routes for those who watch."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from watching import FakeService, Record

from c2v_engine._version import __version__
from c2v_engine.serving.contract import BatchReport, State
from c2v_engine.serving.watch.metrics import Metrics
from c2v_engine.serving.watch.status import watch_router


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def metrics(service):
    return Metrics(service)


@pytest.fixture
def client(service, metrics):
    app = FastAPI()
    app.include_router(watch_router(service, metrics, model="served"))
    return TestClient(app)


def test_the_status_says_what_the_service_does(client, metrics):
    metrics.request(Record(seconds=0.01234))
    status = client.get("/status").json()
    assert status["state"] == "ready"
    assert status["reason"] is None
    assert status["version"] == __version__
    assert status["needs_key"] is False
    assert status["queue"] == {"tokens": 120, "capacity": 1000, "texts": 7}
    assert status["requests_active"] == 3
    assert status["done"] == {"texts": 40, "tokens": 900, "batches": 5}
    assert status["latency"] == {"seconds": 60, "requests": 1, "p50_ms": 12.34, "p99_ms": 12.34}
    assert status["model"]["name"] == "served"
    assert status["model"]["prompts"] == ["query", "document"]
    assert len(status["history"]["texts"]) == len(status["history"]["tokens"]) == 120


def test_the_status_has_no_place_of_the_server_and_no_prompt(client):
    said = client.get("/status").text
    assert "secret" not in said
    assert "q: " not in said


def test_a_failed_service_has_a_status_too(client, service):
    service.set(state=State.FAILED, reason="out of memory")
    answer = client.get("/status")
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["reason"]) == ("failed", "out of memory")


def test_metrics_are_those_of_this_server(client, metrics):
    metrics.batch(BatchReport(texts=8, tokens=256, budget=512, seconds=0.02))
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "c2v_batch_texts_sum 8.0\n" in answer.text
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert client.get("/metrics", headers=accept).text.endswith("# EOF\n")


def test_the_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.count("'sha256-") == 2
    assert "http" not in policy
    assert 'src="' not in answer.text
    assert " style=" not in answer.text
    assert answer.text.count("innerHTML") == 0


@pytest.mark.parametrize("path", ["/", "/status", "/metrics"])
def test_what_watches_may_ask_for_the_head_alone(client, path):
    assert client.head(path).status_code == 200
    assert client.post(path).status_code == 405


def test_they_are_in_the_openapi_document(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths.keys() == {"/", "/metrics", "/status"}
    assert all(operations.keys() == {"get", "head"} for operations in paths.values())
