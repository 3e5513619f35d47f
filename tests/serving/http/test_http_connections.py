"""What only shows on a real connection: clients that leave, that stall, that say too much."""

from __future__ import annotations

import socket
import time

import pytest
from fake_service import FakeService
from running import running

from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions

BODY = b'{"inputs":"a"}'


def head(length: int | str) -> bytes:
    return (
        b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %s\r\n\r\n" % str(length).encode()
    )


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def service():
    return FakeService()


@pytest.fixture(scope="module")
def records():
    return []


@pytest.fixture(scope="module")
def address(service, records):
    class Listener:
        def request(self, record):
            records.append(record)

    options = HttpOptions(("fake",), max_body_bytes=1000, body_seconds=0.3)
    with running(create_app(service, options, listeners=[Listener()])) as url:
        name, port = url.removeprefix("http://").split(":")
        yield name, int(port)


@pytest.fixture
def connection(address):
    with socket.create_connection(address, timeout=10) as connected:
        yield connected


def answer(connection: socket.socket) -> bytes:
    """The head of an answer, and its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_a_client_that_leaves_frees_the_work(connection, service, records):
    service.hang, before = True, len(service.asked)
    try:
        connection.sendall(head(len(BODY)) + BODY)
        until(lambda: len(service.asked) > before)
        cancelled, told = service.cancelled, len(records)
        connection.close()
        until(lambda: service.cancelled == cancelled + 1)
        until(lambda: len(records) > told)
        assert (records[-1].status, records[-1].error) == (499, "client_left")
    finally:
        service.hang = False


def test_a_client_that_leaves_within_its_body_is_told_of(connection, records):
    told = len(records)
    connection.sendall(head(100) + BODY)
    connection.close()
    until(lambda: len(records) > told)
    assert records[-1].status == 499


def test_a_body_that_does_not_come_is_408_and_the_connection_closed(connection):
    connection.sendall(head(100) + BODY)
    told = answer(connection)
    assert told.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in told.lower()
    assert connection.recv(1) == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_a_connection_goes_on_after_a_body_that_is_too_long(connection, chunked):
    long = b'{"inputs":"%s"}' % (b"a" * 5000)
    if chunked:
        start = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        pieces = b"".join(b"%x\r\n%s\r\n" % (500, long[i : i + 500]) for i in range(0, 5000, 500))
        connection.sendall(start + pieces + b"0\r\n\r\n")
    else:
        connection.sendall(head(len(long)) + long)
    assert answer(connection).startswith(b"HTTP/1.1 413")
    connection.sendall(head(len(BODY)) + BODY)
    assert answer(connection).startswith(b"HTTP/1.1 200")


def test_requests_that_were_sent_together_are_answered_in_turn(connection):
    connection.sendall((head(len(BODY)) + BODY) * 2)
    data = b""
    while data.count(b"HTTP/1.1 200") < 2:
        data += connection.recv(65536)
