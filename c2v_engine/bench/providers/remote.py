"""Servers as providers: text-embeddings-inference, and those of OpenAI's API.

Several requests are under way at once, each over a connection that stays.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.workloads import Workload

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["OpenAI", "Remote", "TextEmbeddingsInference", "open_tei"]

IN_FLIGHT = 8
TIMEOUT_S = 300.0
TEXTS_PER_REQUEST = 32
"""Where a server does not say, and text-embeddings-inference's own limit by default."""
SHOWN = 200


class Connections:
    """JSON requests to one server, from many threads: a connection for each.

    Args:
        url: of the server, with the path that its routes begin with.

    Raises:
        UnusableError: it is no address of HTTP.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or not parts.hostname:
            raise UnusableError(f"{url!r} is no address of a server, as in http://localhost:8080")
        self.url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._connect = partial(kinds[parts.scheme], parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def ask(self, method: str, route: str, body: Any = None) -> Any:
        """The JSON that a route answers.

        Raises:
            OSError: the server does not answer.
            RuntimeError: it answers with an error, or with what is no JSON.
        """
        content = None if body is None else json.dumps(body).encode()
        try:
            status, text = self._exchange(method, route, content)
        except ConnectionError:  # a server closes connections that were idle for some seconds
            status, text = self._exchange(method, route, content)
        if status != http.client.OK:
            shown = " ".join(text.decode(errors="replace").split())[:SHOWN]
            raise RuntimeError(f"{self.url}{route} answers {status}: {shown}")
        try:
            return json.loads(text)
        except ValueError:
            raise RuntimeError(f"{self.url}{route} answers with what is no JSON") from None

    def _exchange(self, method: str, route: str, content: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if not hasattr(self._own, "connection"):
            self._own.connection = self._connect()
            self._all.append(self._own.connection)
        connection = self._own.connection
        try:
            connection.request(method, self._path + route, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it anew
            raise

    def close(self) -> None:
        """Closes every connection."""
        for connection in self._all:
            connection.close()


class Remote(Provider):
    """A server that embeds: its model and dtype are its own, and the check tells what they are.

    Texts are sent longest first, so that those of a request are of a length, the prompt in front.

    Args:
        connections: to it.
    """

    elsewhere = True
    most_texts = TEXTS_PER_REQUEST
    """Of a request; fewer where all connections would not have work else."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="c2v-bench")

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        return partial(self._embed_all, workload)

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        vectors = np.concatenate(self._embed_all(workload)).astype(np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def _embed_all(self, workload: Workload) -> list[np.ndarray]:
        return [self._call(texts, workload.prompt) for texts in workload.calls()]

    def _call(self, texts: list[str], prompt: str) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        share = -(-len(texts) // IN_FLIGHT)
        step = min(self.most_texts, max(share, TEXTS_PER_REQUEST))
        rows = [order[begin : begin + step] for begin in range(0, len(order), step)]
        asked = [[prompt + texts[row] for row in part] for part in rows]
        parts = []
        for sent, part in zip(asked, self._pool.map(self.request, asked), strict=True):
            if part.ndim != 2 or len(part) != len(sent):
                raise RuntimeError(f"{self._connections.url} gives other than a vector for a text")
            parts.append(part)
        vectors = np.concatenate(parts)
        result = np.empty_like(vectors)
        result[list(chain.from_iterable(rows))] = vectors
        return result

    @abstractmethod
    def request(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors ``[texts, dimension]`` by one request."""

    def close(self) -> None:
        """See the base class."""
        self._pool.shutdown(cancel_futures=True)
        self._connections.close()


class TextEmbeddingsInference(Remote):
    """A server of text-embeddings-inference's API.

    Args:
        connections: to it.
        info: what its ``/info`` answers.
    """

    def __init__(self, connections: Connections, info: dict[str, Any]) -> None:
        super().__init__(connections)
        self.most_texts = int(info.get("max_client_batch_size") or TEXTS_PER_REQUEST)
        self.note = (
            f"{info.get('model_id', 'a model')} in {info.get('model_dtype', 'some dtype')}, "
            f"at most {self.most_texts} texts a request, {IN_FLIGHT} at once"
        )

    def request(self, texts: Sequence[str]) -> np.ndarray:
        """See the base class."""
        body = {"inputs": list(texts), "normalize": True, "truncate": True}
        return np.array(self._connections.ask("POST", "/embed", body), dtype=np.float32)


class OpenAI(Remote):
    """A server of OpenAI's embeddings API; the first of its models.

    Args:
        connections: to it.
        name: of the model there.
    """

    def __init__(self, connections: Connections, name: str) -> None:
        super().__init__(connections)
        self._name = name
        self.note = f"{name}, at most {self.most_texts} texts a request, {IN_FLIGHT} at once"

    def request(self, texts: Sequence[str]) -> np.ndarray:
        """See the base class."""
        body = {"model": self._name, "input": list(texts), "encoding_format": "base64"}
        data = self._connections.ask("POST", "/embeddings", body)["data"]
        ordered = sorted(data, key=lambda item: item["index"])
        return np.stack([decode(item["embedding"]) for item in ordered])


def decode(embedding: str | list[float]) -> np.ndarray:
    """A vector in base64, or as numbers, which some servers answer whatever they are asked."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def connect(spec: Spec, route: str) -> tuple[Connections, Any]:
    """Connections to a spec's server, and what a route of it answers.

    Raises:
        UnusableError: there is none, or it answers otherwise.
    """
    if not spec.url:
        raise UnusableError(f"{spec.kind} needs the address of a server that runs")
    connections = Connections(spec.url)
    try:
        return connections, connections.ask("GET", route)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        connections.close()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableError(f"no server of {spec.kind} at {spec.url}: {reason}") from None


def open_tei(session: Session, spec: Spec) -> Provider:
    """A text-embeddings-inference server that runs already."""
    connections, info = connect(spec, "/info")
    return TextEmbeddingsInference(connections, info if isinstance(info, dict) else {})


def open_openai(spec: Spec) -> Provider:
    """A server of OpenAI's API that runs already; the address ends where ``/embeddings`` begins."""
    connections, models = connect(spec, "/models")
    try:
        name = models["data"][0]["id"]
    except (KeyError, IndexError, TypeError):
        connections.close()
        raise UnusableError(f"{spec.url}/models lists no model") from None
    return OpenAI(connections, name)
