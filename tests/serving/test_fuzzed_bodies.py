"""A thousand bodies that no client should send: each is refused, and the server goes on."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections import Counter

import pytest

BODIES = 1000
ROUTES = (b"/v1/embeddings", b"/embed", b"/", b"/tokenize")
NAMES = {b"/v1/embeddings": "input"}
JSON = b"application/json"
WORDS = ["a", "the cat", "Grüße", "\U0001f44b", "0", ""]


class Request:
    """One request's bytes, and whether the connection is of any use after it."""

    def __init__(self, path, body, kind=JSON, headers=(), length=None, chunked=False, ends=False):
        lines = [b"POST %s HTTP/1.1" % path, b"Host: fuzz"]
        if kind is not None:
            lines.append(b"Content-Type: " + kind)
        lines.extend(headers)
        if chunked:
            lines.append(b"Transfer-Encoding: chunked")
            parts = [body[i : i + 7777] for i in range(0, len(body), 7777)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            lines.append(b"Content-Length: %d" % (len(body) if length is None else length))
        self.data = b"\r\n".join(lines) + b"\r\n\r\n" + body
        self.ends = ends


def right(path, **fields):
    body = {NAMES.get(path, "inputs"): "a cat", **fields}
    if path == b"/v1/embeddings":
        body.setdefault("model", "default")
    return body


def dumped(body):
    return json.dumps(body).encode()


def anything(rng, depth=0):
    """A JSON value that is neither a text nor a list of texts."""
    kind = rng.randrange(8 if depth < 4 else 4)
    if kind < 4:
        return [None, rng.random() < 0.5, rng.randrange(-5, 10**6), rng.random()][kind]
    inner = [anything(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
    return inner if kind % 2 else {rng.choice("abc"): value for value in inner}


def broken_json(rng, path):
    body = bytearray(dumped(right(path)))
    kind = rng.randrange(4)
    if kind == 0:
        del body[rng.randrange(len(body)) :]  # never whole
    elif kind == 1:
        body[rng.randrange(1, len(body) - 1) :] = rng.randbytes(rng.randrange(1, 30)) + b"\xff"
    elif kind == 2:
        body += rng.choice([b"}", b"]", b"0", b"null", bytes(body)])
    else:
        body = rng.randbytes(rng.randrange(200)) + b"\x01"
    return Request(path, bytes(body))


def wrong_types(rng, path):
    if rng.random() < 0.2:
        return Request(path, dumped(anything(rng)))
    name = NAMES.get(path, "inputs")
    body = right(path)
    body[name] = anything(rng)
    if rng.random() < 0.3:
        body[name] = [*rng.choices(WORDS, k=rng.randrange(1, 9)), anything(rng)]
    return Request(path, dumped(body))


def wrong_fields(rng, path):
    fields = {
        "prompt_name": rng.choice(["nothing", "", 5, ["query"], {}, "query\x00"]),
        "extra": 1,
        "": None,
        "Input": "a",
    }
    if path != b"/tokenize":
        fields |= {
            "dimensions": rng.choice([0, -2, 3, 514, 2.5, "8", True, [8], 10**30]),
            "normalize": rng.choice([0, "true", [], {}]),
            "truncate": rng.choice([0, "Left", [], {}]),
            "encoding_format": rng.choice(["hex", 0, "", "Base64"]),
        }
    name = rng.choice(list(fields))
    return Request(path, dumped(right(path, **{name: fields[name]})))


def missing_fields(rng, path):
    body = right(path)
    del body[rng.choice(list(body))]
    return Request(path, dumped(body))


def surrogates(rng, path):
    lone = rng.choice([r"\ud800", r"\udfff", r"\udc00\ud800", r"\uD83D", r"a\ud83dx"])
    texts = rng.choice(['"%s"', '["a","%s"]', '"b%sc"']) % lone
    body = dumped(right(path)).replace(b'"a cat"', texts.encode())
    if rng.random() < 0.3:
        body = dumped(right(path)).replace(b"a cat", rng.choice([b"\xed\xa0\x80", b"\xc3\x28"]))
    return Request(path, body)


def null_bytes(rng, path):
    body = bytearray(dumped(right(path)))
    body.insert(rng.randrange(len(body) + 1), 0)
    return Request(path, bytes(body))


def deep(rng, path):
    depth = rng.choice([300, 5000, 200_000])
    opened = rng.choice([b"[", b'{"a":'])
    value = opened * depth + (b"1" + {b"[": b"]"}.get(opened, b"}") * depth) * rng.randrange(2)
    return Request(path, dumped(right(path)).replace(b'"a cat"', value))


def numbers(rng, path):
    literal = rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"01"])
    body = dumped(right(path))
    if path != b"/tokenize" and rng.random() < 0.5:
        return Request(path, body[:-1] + b', "dimensions": ' + literal + b"}")
    return Request(path, body.replace(b'"a cat"', literal))


def twice(rng, path):
    body = dumped(right(path))
    again = rng.choice([body[1:], b'"%s": "a"}' % NAMES.get(path, "inputs").encode()])
    return Request(path, body[:-1] + b", " + again)


def wrong_media(rng, path):
    kind = rng.choice(
        [None, b"text/plain", b"application/x-www-form-urlencoded", b"", b"json", b"\xff",
         b"multipart/form-data; boundary=x", b"application/json; charset=utf-16"]
    )  # fmt: skip
    return Request(path, dumped(right(path)), kind)


def zipped(rng, path):
    body = gzip.compress(dumped(right(path)), mtime=0)
    headers = rng.choice([[], [b"Content-Encoding: gzip"], [b"Content-Encoding: br"]])
    return Request(path, body, headers=headers, chunked=rng.random() < 0.3)


def lying_length(rng, path):
    body = dumped(right(path))
    kind = rng.randrange(4)
    if kind == 0:
        return Request(path, body, length=rng.randrange(1, len(body)), ends=True)
    if kind == 1:
        return Request(path, body, length=10 ** rng.randrange(8, 30), ends=True)
    if kind == 2:
        lie = rng.choice([b"Content-Length: 3", b"Content-Length: -1", b"Content-Length: x"])
        return Request(path, body, headers=[lie], ends=True)
    return Request(path, body, headers=[b"Transfer-Encoding: chunked"], ends=True)


def broken_chunks(rng, path):
    whole = Request(path, b"", chunked=True).data.removesuffix(b"0\r\n\r\n")
    broken = Request(path, b"", ends=True)
    broken.data = whole + rng.choice([b"zz\r\nab\r\n", b"-1\r\n\r\n", b"5\r\nab", b"\r\n\r\n\r\n"])
    if broken.data.endswith(b"5\r\nab"):
        broken.data += b"cdeXX\r\n0\r\n\r\n"
    return broken


def long_text(rng, path):
    text = rng.choice([b"x", b"word ", "ä".encode(), b"\\n"]) * 6_000_000
    body = dumped(right(path)).replace(b"a cat", text[: 10_000_000 // 2 * 2])
    return Request(path, body, chunked=rng.random() < 0.5)


def many_texts(rng, path):
    text = rng.choice([b'"a"', b'""', b"1", b'"a b"'])
    body = dumped(right(path)).replace(b'"a cat"', b"[" + b",".join([text] * 100_000) + b"]")
    return Request(path, body, chunked=rng.random() < 0.5)


# How many of each thousand.
KINDS = {
    broken_json: 250,
    wrong_types: 200,
    wrong_fields: 150,
    missing_fields: 30,
    surrogates: 70,
    null_bytes: 50,
    deep: 30,
    numbers: 50,
    twice: 40,
    wrong_media: 40,
    zipped: 30,
    lying_length: 20,
    broken_chunks: 16,
    long_text: 4,
    many_texts: 20,
}


class Connection:
    """Sends requests one after the other, on a new connection where the last one is used up."""

    def __init__(self, url):
        host, port = url.removeprefix("http://").split(":")
        self.address = host, int(port)
        self.socket = None

    def ask(self, request):
        """The status and body of the answer."""
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=30)
        self.socket.sendall(request.data)
        status, headers, body = self.read()
        if request.ends or headers.get("connection") == "close":
            self.close()
        return status, body

    def read(self):
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(65536)
            assert part, f"no answer, only {data!r}"
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if headers.get("transfer-encoding") == "chunked":  # uvicorn's own answer to broken HTTP
            while not body.endswith(b"0\r\n\r\n"):
                body += self.socket.recv(65536)
        while len(body) < int(headers.get("content-length", 0)):
            body += self.socket.recv(65536)
        return int(first.split(" ")[1]), headers, body

    def close(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None


@pytest.fixture
def connection(served):
    connection = Connection(served.url)
    yield connection
    connection.close()


def requests():
    rng = random.Random(7)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    assert len(kinds) == BODIES
    rng.shuffle(kinds)
    for kind in kinds:
        path = rng.choice(ROUTES)
        yield kind.__name__, kind(rng, path)


def test_a_thousand_fuzzed_bodies_are_refused_and_the_server_goes_on(connection):
    good = Request(b"/embed", dumped(right(b"/embed")))
    _, wanted = connection.ask(good)
    statuses = Counter()
    for number, (kind, request) in enumerate(requests()):
        status, body = connection.ask(request)
        assert 400 <= status < 500, (number, kind, status, request.data[:300], body[:300])
        statuses[status] += 1
        if number % 10 == 0 or kind in ("deep", "long_text", "many_texts", "lying_length"):
            assert connection.ask(good) == (200, wanted), (number, kind)
    assert connection.ask(good) == (200, wanted)
    assert statuses.keys() >= {400, 413, 415, 422}
