"""What clients ask: single queries, and requests of several documents, encoded ahead."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

__all__ = ["FEWEST_DOCUMENTS", "MOST_DOCUMENTS", "Request", "docstrings", "make_requests"]

ROOT = Path(__file__).resolve().parents[2]
FEWEST_DOCUMENTS, MOST_DOCUMENTS = 8, 32
_QUERY_CHARACTERS = 120


@dataclass(frozen=True)
class Request:
    """A request for embeddings.

    Attributes:
        kind: ``query`` (one text) or ``document`` (several); the prompt of its texts.
        texts: to embed.
        payload: all its bytes, head and body.
        number: its place among all requests.
    """

    kind: str
    texts: tuple[str, ...]
    payload: bytes
    number: int = 0


def docstrings(requests: int) -> list[str]:
    """Docstrings of the standard library, each once: as many as so many requests may need."""
    sys.path.insert(0, str(ROOT / "examples"))
    from stdlib_docstrings import standard_library

    most = requests * (1 + MOST_DOCUMENTS) // 2
    return list(dict.fromkeys(text for _, text in islice(standard_library(), most)))


def make_requests(
    texts: Sequence[str], count: int, model: str, host: str, seed: int
) -> list[Request]:
    """So many requests, every other one a query.

    Args:
        texts: documents are drawn from them, each once until all were; a query is the beginning of
            one.
        count: of requests.
        model: name that they ask for.
        host: and port that they are sent to.
        seed: of the draw.
    """
    generator = random.Random(seed)
    drawn: list[str] = []

    def draw(number: int) -> tuple[str, ...]:
        while len(drawn) < number:
            drawn[:0] = generator.sample(list(texts), len(texts))
        return tuple(drawn.pop() for _ in range(number))

    requests = []
    for row in range(count):
        if row % 2:
            kind = "document"
            chosen = draw(generator.randint(FEWEST_DOCUMENTS, MOST_DOCUMENTS))
        else:
            kind = "query"
            chosen = (" ".join(draw(1)[0].split("\n\n")[0].split())[:_QUERY_CHARACTERS],)
        requests.append(Request(kind, chosen, encode(kind, chosen, model, host), row))
    return requests


def encode(kind: str, texts: Sequence[str], model: str, host: str) -> bytes:
    """The bytes of a request to the OpenAI route."""
    body = json.dumps(
        {
            "model": model,
            "input": texts[0] if kind == "query" else list(texts),
            "prompt_name": kind,
            "encoding_format": "base64",
            "truncate": True,
        }
    ).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
