"""Every way in which a request ends without its embeddings, and how each API says so."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from c2v_engine.errors import C2VError, InputError, TextError
from c2v_engine.serving.http.access import notes_of
from c2v_engine.serving.refusals import (
    ComputeError,
    OverloadedError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)

OPENAI_PREFIX = "/v1/"
# What a request gave may be quoted, and that may be as long as its body.
_MOST_CHARACTERS = 1000

# Status, and the code under which it is counted and told: the first class that fits.
_REFUSALS: tuple[tuple[type[C2VError], int, str], ...] = (
    (TextTooLongError, 413, "text_too_long"),
    (TextError, 422, "invalid_text"),
    (RequestTooLargeError, 413, "request_too_large"),
    (InputError, 422, "invalid_value"),
    (OverloadedError, 429, "rate_limit_exceeded"),
    (UnavailableError, 503, "unavailable"),
    (TimedOutError, 504, "timed_out"),
    (ComputeError, 500, "compute_failed"),
)
# Options of the engine of which its messages speak first, as requests name them.
_FIELDS = {"truncate_dim": "dimensions", "prompt_name": "prompt_name"}
_ROUTING = {
    404: ("not_found", "there is no such path: /openapi.json lists those that there are"),
    405: (
        "method_not_allowed",
        "the path does not take this method: the header Allow names its own",
    ),
}
_OPENAI_TYPES = {429: "rate_limit_error"}
_TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}


class RefusedError(C2VError):
    """A request that HTTP itself refuses.

    Attributes:
        problem: what is said of it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ClientLeftError(Exception):
    """The client closed its connection before there was an answer."""


@dataclass(frozen=True)
class Problem:
    """One error, before it is put as one or the other API puts it.

    Attributes:
        status: of HTTP.
        message: a line for people.
        code: a name for programs.
        param: the field that is at fault.
        headers: to send along.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def refuse(
    status: int,
    message: str,
    code: str,
    param: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> RefusedError:
    """The exception that ends a request with a problem."""
    return RefusedError(Problem(status, message, code, param, headers))


def problem_of(error: Exception) -> Problem:
    """What is said of an exception; one that nobody foresaw gives nothing of itself away."""
    if isinstance(error, RefusedError):
        return error.problem
    if isinstance(error, HTTPException):
        headers = tuple((error.headers or {}).items())
        code, message = _ROUTING.get(error.status_code, ("http_error", str(error.detail)))
        return Problem(error.status_code, message, code, headers=headers)
    for kind, status, code in _REFUSALS:
        if isinstance(error, kind):
            option, _, rest = str(error).partition(" is ")
            param = _FIELDS.get(option)
            message = str(error) if param is None else f"{param} is {rest}"
            return Problem(status, message, code, param, _retry_after(error))
    return Problem(500, "the server failed; its log says why", "internal_error")


def problem_response(problem: Problem, path: str) -> Response:
    """A problem as the API that was asked puts it: OpenAI's below ``/v1/``, else that of TEI."""
    message = _shortened(problem.message)
    body: dict[str, object]
    if path.startswith(OPENAI_PREFIX):
        body = {
            "error": {
                "message": message,
                "type": _OPENAI_TYPES.get(
                    problem.status,
                    "server_error" if problem.status >= 500 else "invalid_request_error",
                ),
                "param": None if problem.param is None else _shortened(problem.param),
                "code": problem.code,
            }
        }
    else:
        kind = "Tokenizer" if problem.code == "invalid_text" else "Validation"
        body = {"error": message, "error_type": _TEI_TYPES.get(problem.status, kind)}
    # Text of the request may be quoted, surrogates and all.
    response = Response(_dumps(body), status_code=problem.status, media_type="application/json")
    for name, value in problem.headers:
        response.headers[name] = value
    return response


async def answer_error(request: Request, error: Exception) -> Response:
    """An exception handler, for every exception that is raised on purpose."""
    problem = problem_of(error)
    notes_of(request.scope).error = problem.code
    return problem_response(problem, request.scope["path"])


async def answer_nobody(request: Request, _: Exception) -> Response:
    """An exception handler for a client that left: 499 is for the log, nobody reads it."""
    notes_of(request.scope).error = "client_left"
    return Response(status_code=499)


def _retry_after(error: Exception) -> tuple[tuple[str, str], ...]:
    seconds = getattr(error, "retry_after", None)
    return () if seconds is None else (("Retry-After", str(max(1, int(seconds)))),)


def _shortened(text: str) -> str:
    """With its middle left out where it is long: what is wrong and what was expected both stay."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} ... {text[-half:]}"


def _dumps(body: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        import json

        return json.dumps(body).encode("ascii")
