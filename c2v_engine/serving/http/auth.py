"""API keys: who may ask for embeddings."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from c2v_engine.serving.http.access import notes_of

# What watches the server, or is read before there is a key.
_OPEN_PATHS = ("/", "/health", "/metrics", "/status", "/openapi.json", "/docs")
_OPEN_PREFIXES = ("/health/",)
_OPEN_METHODS = ("GET", "HEAD")


class KeyMiddleware:
    """Refuses a request to a guarded route that brings none of the keys.

    Args:
        app: the layer below.
        keys: any of which will do.
        refusal: the answer to a request for a path that brings none.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], refusal: Callable[[str], Response]
    ) -> None:
        self.app = app
        self.digests = [_digest(key.encode()) for key in keys]
        self.refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if (
            scope["type"] != "http"
            or is_open_operation(scope["method"], scope["path"])
            or self.holds_key(scope)
        ):
            await self.app(scope, receive, send)
            return
        notes_of(scope).error = "invalid_api_key"
        await self.refusal(scope["path"])(scope, receive, send)

    def holds_key(self, scope: Scope) -> bool:
        """Whether a request brings one of the keys, in a time that does not tell which."""
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        # Header bytes are latin-1 to Starlette; a key may be any text.
        digest = _digest(token.strip().encode("latin-1"))
        found = False
        for known in self.digests:
            found |= hmac.compare_digest(known, digest)
        return found and scheme.lower() == "bearer"


def is_open_operation(method: str, path: str) -> bool:
    """Whether a method of a path needs no key."""
    known = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES)
    return known and method in _OPEN_METHODS


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
