"""How many bytes of bodies there are at a time: they come before their tokens can be counted."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from c2v_engine.serving.http.errors import refuse

# Of the longest bodies, so many find room.
_BODIES = 32
_RETRY_AFTER = (("Retry-After", "1"),)


class BodyRoomMiddleware:
    """Refuses a request whose body comes while those of others take all the room.

    Args:
        app: the layer below, which answers a ``RefusedError``.
        max_body_bytes: of one body.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.most = _BODIES * max_body_bytes
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its body is held until then."""
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self.held += size
            if size and self.held > self.most:
                raise refuse(
                    429,
                    f"bodies of {self.most} bytes are held already, too many to take more: ask "
                    "again later",
                    "rate_limit_exceeded",
                    headers=_RETRY_AFTER,
                )
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= held
