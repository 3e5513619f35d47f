"""What is watched, by no more than is read of it: the service, and its requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # it brings torch, which a log does not need
    from c2v_engine.serving.contract import Snapshot, Timings

# Routes that machines ask again and again: they are counted, but neither logged nor traced while
# all is well, or nobody would find the requests between them.
READY_ROUTE = "/health/ready"
QUIET_ROUTES = frozenset({"/status", "/metrics", "/health", "/health/live", READY_ROUTE})


class WatchedService(Protocol):
    """The service, as far as it is watched."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def dimension(self) -> int:
        """Of an embedding."""

    @property
    def max_length(self) -> int:
        """Most rows of the decoder that a text has."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """The checkpoint's, by name."""

    @property
    def info(self) -> Mapping[str, Any]:
        """``Causal2Vec.info()``."""

    def snapshot(self) -> Snapshot:
        """The service at this moment."""


class RequestRecord(Protocol):
    """A request that ended: its response was sent, or its client left."""

    @property
    def id(self) -> str:
        """Of the request, as its response names it."""

    @property
    def method(self) -> str:
        """Of HTTP."""

    @property
    def route(self) -> str:
        """Template of the path, ``unmatched`` where there is none."""

    @property
    def status(self) -> int:
        """Of the response; 499 where the client left."""

    @property
    def texts(self) -> int:
        """That were embedded or tokenised; 0 for a request without."""

    @property
    def tokens(self) -> int:
        """Likewise."""

    @property
    def timings(self) -> Timings | None:
        """Of its embeddings; None where there were none."""

    @property
    def asked(self) -> float:
        """Seconds from its arrival until its embeddings were asked for."""

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""

    @property
    def bytes_in(self) -> int:
        """Of its body."""

    @property
    def bytes_out(self) -> int:
        """Of the response's body."""

    @property
    def error(self) -> str | None:
        """Code of the error it ended with."""

    @property
    def traceparent(self) -> str | None:
        """The header of that name (W3C Trace Context)."""


def is_quiet(record: RequestRecord, routes: Collection[str] = QUIET_ROUTES) -> bool:
    """Whether a request only says again that all is well, or that it is not time yet."""
    if record.route not in routes:
        return False
    # Not to be ready is an answer, not a fault: every start and every end has its time of it.
    return record.status < 400 or record.route == READY_ROUTE
