"""Request bodies: read within bounds, then parsed and checked in one pass."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request

from c2v_engine.serving.http.errors import ClientLeftError, RefusedError, refuse
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.refusals import RequestTooLargeError, TextTooLongError

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")

# Below this parsing takes less than a hop to a thread and back does.
_INLINE_BYTES = 64 * 2**10
_CLOSE = (("Connection", "close"),)
_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class BodyReader:
    """Reads one route's requests.

    Args:
        model: what a body must be.
        options: bounds of it.
    """

    def __init__(self, model: type[Body], options: HttpOptions) -> None:
        self._adapter: TypeAdapter[Body] = TypeAdapter(model)
        self._options = options
        self._names = [
            (name, b'"%s"' % name.encode()) for name in model.model_json_schema()["properties"]
        ]

    async def read(self, request: Request) -> Any:
        """The body of a request, checked.

        Raises:
            RefusedError: not JSON, or not what the route takes.
            ClientLeftError: the client left before it was whole.
        """
        check_media_type(request)
        raw = await read_bytes(request, self._options)
        return await off_loop(len(raw) > _INLINE_BYTES, self.parse, raw)

    def parse(self, raw: bytes) -> Any:
        """A body from its bytes.

        Raises:
            RefusedError: as ``read`` does.
        """
        try:
            body = self._adapter.validate_json(raw)
        except ValidationError as error:
            raise self._refusal(error) from None
        for name, quoted in self._names:
            # Two of a name in JSON text are a key twice, or a text that holds the quoted name with
            # its quotes escaped, which a second look tells apart.
            if raw.count(quoted) > 1 and len(re.findall(quoted + rb"\s*:", raw)) > 1:
                raise refuse(400, f"{name} is given twice, expected once", "invalid_json", name)
        return body

    def _refusal(self, error: ValidationError) -> RefusedError:
        problems = error.errors(include_url=False)
        first = problems[0]
        if first["type"] == "json_invalid":
            reason = first["ctx"]["error"]
            return refuse(400, f"the body is not JSON: {reason}", "invalid_json")
        if not first["loc"]:
            return refuse(422, "the body is no JSON object, expected one", "invalid_type")
        name = str(first["loc"][0])
        # Of a union each member complains; the one that came furthest knows best what is wrong, and
        # of several the last, which takes lists.
        same = [problem for problem in problems if problem["loc"][0] == first["loc"][0]]
        worst = max(reversed(same), key=lambda problem: len(problem["loc"]))
        message = _input_line(worst) or _line(name, worst)
        code = {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(
            worst["type"], "invalid_type" if "type" in worst["type"] else "invalid_value"
        )
        return refuse(422, message, code, name)


def listed(given: str | list[str], options: HttpOptions) -> list[str]:
    """The texts of a request, which may give one as it is.

    Raises:
        RequestTooLargeError: more than ``max_texts``.
        TextTooLongError: one of more than ``max_characters``.
    """
    texts = [given] if isinstance(given, str) else given
    if len(texts) > options.max_texts:
        raise RequestTooLargeError(
            f"the request has {len(texts)} texts, expected at most {options.max_texts}"
        )
    if max(map(len, texts)) > options.max_characters:
        row = next(row for row, text in enumerate(texts) if len(text) > options.max_characters)
        raise TextTooLongError(
            row,
            f"has {len(texts[row])} characters, expected at most {options.max_characters}",
        )
    return texts


def check_media_type(request: Request) -> None:
    """Raise unless a request says that its body is plain JSON.

    Raises:
        RefusedError: another media type, character set or coding.
    """
    given = request.headers.get("content-type", "")
    if given != "application/json":
        kind, _, parameters = given.partition(";")
        kind = kind.strip().lower()
        charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", parameters, re.IGNORECASE)
        if kind != "application/json" or (charset and charset[1].lower() not in ("utf-8", "utf8")):
            raise refuse(
                415,
                f"Content-Type is {given!r}, expected application/json in UTF-8",
                "unsupported_media_type",
            )
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("identity", ""):
        raise refuse(
            415, f"Content-Encoding is {coding!r}, expected a plain body", "unsupported_media_type"
        )


async def read_bytes(request: Request, options: HttpOptions) -> bytes:
    """A request's body, counted as it arrives.

    Raises:
        RefusedError: it is longer than ``max_body_bytes``, did not arrive in ``body_seconds``, or
            found no room beside those of others.
        ClientLeftError: the client left.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > options.max_body_bytes:
        raise _too_large(options)
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(options.body_seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                part = message.get("body", b"")
                size += len(part)
                if size > options.max_body_bytes:
                    raise _too_large(options)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise refuse(
            408,
            f"the body did not arrive in {options.body_seconds:g} seconds",
            "body_timed_out",
            headers=_CLOSE,
        ) from None


async def off_loop(heavy: bool, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function: in a thread where it is heavy, so that other requests go on, else here."""
    if not heavy:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _too_large(options: HttpOptions) -> RefusedError:
    return refuse(
        413,
        f"the body is longer than {options.max_body_bytes} bytes, the most of a request",
        "request_too_large",
    )


def _input_line(problem: Any) -> str | None:
    """Says what texts may be, and of token ids what to do about them; None of another problem."""
    name, *where = problem["loc"]
    if name in ("input", "inputs") and problem["type"] == "too_short":
        return f"{name} is an empty list, expected at least one text"
    if name not in ("input", "inputs") or problem["type"] not in ("string_type", "list_type"):
        return None
    first = problem["input"]
    if isinstance(first, list) and first:
        first = first[0]
    if type(first) is int:
        return (
            f"{name} holds token ids, expected text: this model reads each text by two tokenizers "
            "(LangChain's OpenAIEmbeddings: set check_embedding_ctx_length=False)"
        )
    place = "".join(f".{part}" for part in where if isinstance(part, int))
    kind = _JSON_NAMES.get(type(problem["input"]), "something else")
    return f"{name}{place} is {kind}, expected text, or a list of texts"


def _line(name: str, problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if isinstance(part, int))
    what = f"{name}.{where}" if where else name
    if problem["type"] == "missing":
        return f"{name} is missing, expected it in the body"
    if problem["type"] == "extra_forbidden":
        return f"{name} is no field of this route"
    given = repr(problem["input"])
    shown = given if len(given) <= 60 else given[:57] + "..."
    reason = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{what} is {shown}, expected {reason}"
