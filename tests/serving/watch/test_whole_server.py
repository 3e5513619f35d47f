"""What watches, on the whole server: the shipped model, its service and its routes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families
from watching import served

from c2v_engine import Causal2Vec
from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.service import EmbeddingService
from c2v_engine.serving.watch.access_log import AccessLog
from c2v_engine.serving.watch.metrics import Metrics
from c2v_engine.serving.watch.status import watch_router

KEY = "k-1"


@dataclass
class Server:
    address: str
    client: httpx.Client
    metrics: Metrics
    log: StringIO

    def samples(self) -> dict[tuple, float]:
        """Every sample of /metrics by its name and its labels' values."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    service = EmbeddingService(Causal2Vec.from_pretrained(device="cpu"))
    metrics, stream = Metrics(service), StringIO()
    service.add_observer(metrics)
    log = AccessLog("json", stream)
    app = create_app(
        service,
        HttpOptions(model_names=("shipped",), api_keys=(KEY,)),
        listeners=[metrics, log],
        routers=[watch_router(service, metrics, model="shipped", needs_key=True)],
    )
    service.warm_up()
    headers = {"Authorization": f"Bearer {KEY}"}
    with served(app) as address, httpx.Client(base_url=address, headers=headers) as client:
        yield Server(address, client, metrics, stream)
    log.close()
    service.close()


def test_counts_are_exact(server):
    before = server.samples()
    texts, tokens, ok = 0, 0, 0
    for size in (1, 2, 5):
        body = {"model": "shipped", "input": ["a text of some length"] * size}
        answer = server.client.post("/v1/embeddings", json=body)
        texts += size
        tokens += answer.json()["usage"]["total_tokens"]
        ok += 1
    json_type = {"Content-Type": "application/json"}
    broken = server.client.post("/v1/embeddings", content=b"{", headers=json_type)
    assert broken.status_code == 400
    assert (
        server.client.post("/v1/embeddings", json={"model": "x", "input": "y"}).status_code == 404
    )
    assert httpx.post(f"{server.address}/v1/embeddings", json={}).status_code == 401
    assert server.client.get("/v1/models/shipped").status_code == 200
    assert server.client.get("/v1/models/other").status_code == 404
    assert server.client.get("/no/such/path").status_code == 404

    expected = {
        ("c2v_requests_total", "/v1/embeddings", "200"): ok,
        ("c2v_requests_total", "/v1/embeddings", "400"): 1,
        ("c2v_requests_total", "/v1/embeddings", "404"): 1,
        ("c2v_requests_total", "unmatched", "404"): 1,
        ("c2v_texts_total",): texts,
        ("c2v_tokens_total",): tokens,
        ("c2v_batch_texts_sum",): texts,
        **{
            ("c2v_stage_seconds_count", stage): ok
            for stage in ("tokenize", "queue", "compute", "other", "total")
        },
    }
    # Listeners are told after the answer was handed over, so the last may come a moment later.
    end = time.monotonic() + 5
    counted: dict[tuple, float] = {}
    while counted != expected and time.monotonic() < end:
        after = server.samples()
        counted = {key: after.get(key, 0) - before.get(key, 0) for key in expected}
    assert counted == expected
    named = [key for key in after if key[0] == "c2v_requests_total" and "models" in key[1]]
    assert sorted(status for _, _, status in named) == ["200", "404"]
    assert len({route for _, route, _ in named}) == 1


def test_stages_fit_in_the_total(server):
    server.client.post("/v1/embeddings", json={"model": "shipped", "input": "one text"})
    samples = server.samples()
    sums = {
        stage: samples["c2v_stage_seconds_sum", stage]
        for stage in ("tokenize", "queue", "compute", "other", "total")
    }
    assert all(seconds >= 0 for seconds in sums.values())
    total = sums.pop("total")
    assert sum(sums.values()) == pytest.approx(total, rel=1e-6)  # of sums of floats


def test_the_log_has_the_request_and_none_of_its_text(server):
    headers = {"X-Request-Id": "find-me"}
    body = {"model": "shipped", "input": "a secret text"}
    server.client.post("/v1/embeddings", json=body, headers=headers)
    end = time.monotonic() + 5
    while "find-me" not in server.log.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    (line,) = (line for line in server.log.getvalue().splitlines() if "find-me" in line)
    said = json.loads(line)
    assert (said["route"], said["status"], said["texts"]) == ("/v1/embeddings", 200, 1)
    inside = said["tokenize_ms"] + said["queue_ms"] + said["compute_ms"]
    assert 0 < inside <= said["total_ms"]
    assert "secret" not in server.log.getvalue()
    assert KEY not in server.log.getvalue()


@pytest.mark.parametrize("path", ["/", "/status", "/metrics"])
def test_who_watches_needs_no_key(server, path):
    assert httpx.get(server.address + path).status_code == 200


def test_the_page_ranks_its_example_right(server):
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.address)
        expect(page.locator("#state")).to_have_text("READY")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Rank").click()
        expect(page.locator("#ranking li")).to_have_count(5)
        ranking = page.locator("#ranking .text").all_text_contents()
        assert ranking[0] == "Iterate over the lines of a text file."
        evil = "<img src=x onerror=alert(1)>"
        page.get_by_label("Texts, one a line").fill(evil)
        page.get_by_role("button", name="Rank").click()
        expect(page.locator("#ranking .text")).to_have_text([evil])
        assert said == []
        browser.close()
