"""Which methods a path takes, where one route has some of them and another the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from c2v_engine.serving.http.errors import answer_error


def answer_method(
    routes: Iterable[BaseRoute],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """An exception handler for 405, whose ``Allow`` has the methods of all routes of the path.

    Args:
        routes: all of them; of paths that vary, each has one route.
    """
    methods: dict[str, set[str]] = {}
    for route in routes:
        path, taken = getattr(route, "path", None), getattr(route, "methods", None)
        if path is not None and taken:
            methods.setdefault(path, set()).update(taken)

    async def answer(request: Request, error: Exception) -> Response:
        allowed = methods.get(request.scope["path"])
        if allowed is not None and isinstance(error, HTTPException):
            error = HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        return await answer_error(request, error)

    return answer
