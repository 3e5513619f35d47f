"""The server's load test: its client against a server of a few lines, its figures, and a run."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import bench_serving
import numpy as np
import pytest
from serving_benchmark.client import (
    Client,
    Load,
    Outcome,
    Reply,
    closed_loop,
    one_by_one,
    open_loop,
    parse_timings,
)
from serving_benchmark.mix import docstrings, make_requests
from serving_benchmark.report import describe_load, describe_memory, describe_overhead, quantiles

ROOT = Path(__file__).resolve().parents[2]
GOOD = b'{"data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":7,"total_tokens":7}}'
EMPTY = b'{"data":[{"embedding":null}],"usage":{"prompt_tokens":7,"total_tokens":7}}'


def answer(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Gives prepared answers in turn; None breaks the connection instead."""

    def __init__(self, *answers, seconds=0.0):
        self._answers = list(answers)
        self._seconds = seconds
        self.bodies = []
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.client = Client(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *error):
        self.client.close()
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            self.bodies.append(json.loads(await reader.readexactly(length)))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(self._seconds)
            self.at_once -= 1
            given = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if given is None:
                break
            writer.write(given)
        writer.close()


@pytest.fixture(scope="module")
def requests():
    return make_requests(docstrings(20), 20, "m", "h:1", seed=0)


def send(server, requests):
    async def run():
        async with server:
            return [await server.client.send(request) for request in requests]

    return asyncio.run(run())


def test_requests_are_queries_and_several_documents_in_turn(requests):
    assert [request.kind for request in requests[:4]] == ["query", "document"] * 2
    assert {len(request.texts) for request in requests[::2]} == {1}
    assert all(8 <= len(request.texts) <= 32 for request in requests[1::2])
    texts = [text for request in requests[1::2] for text in request.texts]
    assert len(set(texts)) == len(texts)  # equal ones would cost less
    head, _, body = requests[1].payload.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/embeddings HTTP/1.1\r\nHost: h:1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {
        "model": "m",
        "input": list(requests[1].texts),
        "prompt_name": "document",
        "encoding_format": "base64",
        "truncate": True,
    }
    assert requests[1].payload == make_requests(docstrings(20), 20, "m", "h:1", seed=0)[1].payload


def test_a_connection_is_kept_and_the_answer_read(requests):
    timing = "Server-Timing: tokenize;dur=0.5, queue;dur=1, compute;dur=2.25"
    server = Server(answer(200, GOOD, timing), answer(429, b"{}"))
    first, second = send(server, requests[:2])
    assert server.connections == 1
    stages = {"tokenize": 0.0005, "queue": 0.001, "compute": 0.00225}
    assert first.reply == Reply(200, 7, stages)
    assert second.reply == Reply(429)
    assert (second.kind, second.texts) == ("document", len(requests[1].texts))
    assert first.due == first.sent < first.ended <= second.sent
    assert server.bodies[0]["input"] == requests[0].texts[0]


def test_a_broken_connection_and_an_empty_embedding_are_not_answers(requests):
    server = Server(None, answer(200, EMPTY), answer(200, GOOD))
    outcomes = send(server, requests[:3])
    assert [outcome.reply.status for outcome in outcomes] == [0, 1, 200]


def test_a_kept_connection_that_was_closed_is_not_used_again(requests):
    server = Server(answer(200, GOOD), None, answer(200, GOOD))
    outcomes = send(server, requests[:3])
    assert [outcome.reply.status for outcome in outcomes] == [200, 0, 200]
    assert (server.connections, len(server.bodies)) == (2, 3)  # nothing is sent twice
    server = Server(answer(200, GOOD, "Connection: close"))
    send(server, requests[:2])
    assert server.connections == 2


def test_random_moments_do_not_wait_for_answers(requests):
    async def run():
        async with Server(answer(200, GOOD), seconds=0.2) as server:
            load = await open_loop(server.client, requests, 200, 0.3, Random(0))
            return load, server

    load, server = asyncio.run(run())
    assert 30 <= len(load.outcomes) <= 90  # of 60, give or take four deviations
    assert server.most_at_once > 20
    assert all(load.began <= one.due <= load.began + 0.3 for one in load.outcomes)
    assert all(one.due <= one.sent for one in load.outcomes)
    again = asyncio.run(run())[0]
    dues, others = (sorted(o.due - one.began for o in one.outcomes) for one in (load, again))
    np.testing.assert_allclose(dues[:20], others[:20], atol=1e-6)  # chosen by the seed


def test_a_full_server_has_always_the_same_number_of_requests(requests):
    async def run():
        async with Server(answer(200, GOOD), seconds=0.01) as server:
            load = await closed_loop(server.client, requests, 5, 0.2, Random(0))
            alone = await one_by_one(server.client, requests, 0.0)
            return load, alone, server

    load, alone, server = asyncio.run(run())
    assert server.most_at_once == server.connections == 5
    assert len(load.outcomes) > 5
    assert len(alone) == 1


def test_timings_are_read_in_seconds():
    assert parse_timings('a;dur=1.5, b;desc="x";dur=2, c, ') == {"a": 0.0015, "b": 0.002}


def outcome(kind, texts, due, ended, status=200, tokens=10, stages=None):
    return Outcome(kind, texts, due, due + 0.001, ended, Reply(status, tokens, stages or {}))


def test_rates_are_of_what_ended_while_requests_were_sent():
    outcomes = [
        outcome("query", 1, 0.0, 0.5),  # in the first tenth
        outcome("query", 1, 2.0, 3.0),
        outcome("document", 8, 4.0, 5.0),
        outcome("document", 8, 9.0, 11.0),  # too late
        outcome("query", 1, 6.0, 6.25, status=429),
        outcome("query", 1, 7.0, 7.0, status=0),
    ]
    row = describe_load(Load(0.0, 10.0, outcomes, 1.0))
    assert row["offered_texts_per_second"] == pytest.approx(2.0)
    assert row["texts_per_second"] == pytest.approx(9 / 9)
    assert row["tokens_per_second"] == pytest.approx(20 / 9)
    assert row["statuses"] == {"0": 1, "200": 4, "429": 1}
    assert row["query_ms"]["count"] == row["document_ms"]["count"] == 2
    assert row["document_ms"]["p50"] == 1500
    assert row["refusal_ms"]["p50"] == 250
    assert row["client_processors"] == 0.1
    empty = describe_load(Load(0.0, 10.0, [], 0.0))
    assert (empty["texts_per_second"], empty["query_ms"]) == (0, None)


def test_overhead_is_what_the_stages_leave_of_the_latency():
    stages = {"tokenize": 0.001, "queue": 0.002, "compute": 0.004}
    found = describe_overhead([outcome("query", 1, 0.0, 0.011, stages=stages)])
    assert found["latency_ms"]["p50"] == 10  # from when it was sent
    assert found["overhead_ms"]["p50"] == 5
    assert found["stages_ms"]["queue"]["p50"] == 2
    assert describe_overhead([outcome("query", 1, 0.0, 0.01)])["overhead_ms"] is None


def test_memory_is_told_from_a_moment_on():
    samples = [(0.0, 10.0), (30.0, 50.0), (60.0, 60.0), (90.0, 55.0)]
    found = describe_memory(samples, since=30.0)
    assert found == {
        "first_mib": 50,
        "last_mib": 55,
        "most_mib": 60,
        "mib_per_minute": pytest.approx(5),
    }
    assert describe_memory(samples, since=100.0)["first_mib"] == 55


def test_percentiles_are_milliseconds():
    assert quantiles([0.001 * i for i in range(1, 102)]) == {
        "p50": 51,
        "p90": 91,
        "p99": 100,
        "count": 101,
    }
    assert quantiles([]) is None


def test_a_short_run_gives_a_whole_result(tmp_path):
    command = [sys.executable, "benchmarks/bench_serving.py", "--json", str(tmp_path / "r.json")]
    command += ["--seconds", "1", "--repeats", "1", "--loads", "4", "--requests", "40"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert result["least_cosine"] >= 0.999
    assert result["exit_status"] == 0
    assert result["alone"]["latency_ms"]["count"] == result["alone"]["overhead_ms"]["count"] > 0
    [full], [offered] = result["saturated"], result["offered"]
    assert set(full["statuses"]) == {"200"}
    assert set(offered["statuses"]) <= {"200", "429"}
    assert offered["load"] == 4
    assert result["offline"]["tokens_per_second"] > 0
    assert full["ratio"] > 0
    assert result["memory"]["most_mib"] > 100
    assert "4x:" in done.stdout


def test_a_wrong_command_line_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_serving.py", "--seconds", "0"])
    with pytest.raises(SystemExit, match="2"):
        bench_serving.parse_arguments()
    error = capsys.readouterr().err
    assert error.startswith("error: --seconds must be over 0")
    assert error.count("\n") == 1
