"""Errors by which one request ends without its embeddings, while the others go on."""

from __future__ import annotations

from c2v_engine.errors import C2VError, InputError, TextError


class TextTooLongError(TextError):
    """A text that is longer than the model reads, where it was not to be shortened."""


class RequestTooLargeError(InputError):
    """A request that could never be taken, however little else there is to do."""


class OverloadedError(C2VError):
    """There is more to do than can wait.

    Attributes:
        retry_after: seconds after which it is worth asking again, at least 1.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class UnavailableError(C2VError):
    """Nothing can be embedded now: warming up, shutting down, or failed.

    Attributes:
        retry_after: seconds after which it is worth asking again; None where nobody knows.
    """

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class TimedOutError(C2VError):
    """A request that was not done in its time."""


class ComputeError(C2VError):
    """The model failed, or gave numbers that are not finite; no fault of the request's."""
