"""What no route sees: heads without end, requests for other protocols, and trailers."""

import contextlib
import json
import re
import socket
import threading
import time

import pytest
from fastapi import FastAPI, Request
from running import running

from c2v_engine.serving.connections import HEAD_BYTES, Connection

BODY = b'{"a": 1}'
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQA\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n8\r\n" + BODY + b"\r\n0\r\n"


class Impatient(Connection):
    """Waits for a head no longer than a test may."""

    head_seconds = 0.2


left = threading.Event()


@pytest.fixture(scope="module")
def port():
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request):
        body = await request.body()
        return {"body": body.decode(), "headers": dict(request.headers)}

    @app.post("/wait")
    async def wait(request: Request):
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left.set()

    with running(app, http=Impatient) as url:
        yield int(url.rsplit(":", 1)[1])


@pytest.fixture
def client(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def answers(client, count):
    """That many answers: statuses and bodies."""
    got = b""
    while got.count(b"}}") < count:
        got += client.recv(65536)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", got)
    bodies = [json.loads(body) for body in re.findall(rb'{"body".*?}}', got)]
    return [int(status) for status in statuses], bodies


def rest(client):
    """All that comes until the server closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):  # it had not read all that was sent
        while part := client.recv(65536):
            got += part
    return got


@pytest.mark.parametrize("size", [1, 10**6], ids=["in small parts", "at once"])
def test_a_request_to_go_on_by_another_protocol_keeps_its_body(client, size):
    sent = (HEAD + H2C + LENGTH + b"\r\n" + BODY) * 3
    for begin in range(0, len(sent), size):
        client.sendall(sent[begin : begin + size])
    statuses, bodies = answers(client, 3)
    assert statuses == [200] * 3
    assert [body["body"] for body in bodies] == [BODY.decode()] * 3
    assert "upgrade" not in bodies[0]["headers"]


def test_a_tunnel_is_refused(client):
    client.sendall(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert rest(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("start", [b"GET /", HEAD + b"X-A: ", HEAD + b"X-A: 1\r\n" * 10**4])
def test_a_head_without_end_is_refused(client, start):
    client.sendall(start)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(b"a" * (HEAD_BYTES + 2**21))  # more than the server reads at a time
    got = rest(client)
    assert not got or got.startswith(b"HTTP/1.1 431 ")


def test_a_head_of_a_proxy_that_adds_much_is_taken(client):
    client.sendall(HEAD + b"X-A: %s\r\n" % (b"a" * (HEAD_BYTES // 2)) + LENGTH + b"\r\n" + BODY)
    assert answers(client, 1)[0] == [200]


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHo"], ids=["none of it", "half of it"])
def test_a_head_that_does_not_come_frees_its_connection(client, sent):
    client.sendall(sent)
    assert rest(client).startswith(b"HTTP/1.1 408 " if sent else b"")


def test_a_second_head_that_does_not_come_frees_its_connection(client):
    client.sendall(HEAD + LENGTH + b"\r\n" + BODY + b"POST / HT")
    assert re.findall(rb"HTTP/1.1 (\d+)", rest(client)) == [b"200", b"408"]


def test_a_client_that_leaves_after_several_requests_is_seen_by_the_first(client):
    request = HEAD.replace(b"/", b"/wait", 1) + LENGTH + b"\r\n" + BODY
    client.sendall(request * 3)
    time.sleep(0.1)
    client.close()
    assert left.wait(10)


def test_trailers_are_no_headers(client):
    client.sendall(HEAD + CHUNKS + b"Authorization: Bearer k\r\n\r\n")
    statuses, [body] = answers(client, 1)
    assert statuses == [200]
    assert body["body"] == BODY.decode()
    assert "authorization" not in body["headers"]


def test_trailers_without_end_cut_the_connection(client):
    client.sendall(HEAD + CHUNKS)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"X-A: 1\r\n" * 10**7)


def test_a_body_in_chunks_of_one_byte_is_taken(client):
    body = b"a" * HEAD_BYTES
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert len(answers(client, 1)[1][0]["body"]) == len(body)
