"""Whether a request is let in: how much may wait, and how fast it goes."""

from __future__ import annotations

import math

from c2v_engine.serving.refusals import OverloadedError, RequestTooLargeError

# Of the average speed: seconds of computing after which a measurement counts half.
_HALF_LIFE = 5.0
_LONGEST_RETRY = 60


class Speed:
    """Tokens per second of the device in batches that are at least half full, lately.

    Smaller ones say little: a single short text takes as long as many, and when much waits batches
    are full.

    Args:
        batch_tokens: of a full one.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._half = batch_tokens // 2
        self._tokens = 0.0
        self._seconds = 0.0
        self._last = -math.inf

    def add(self, tokens: int, launched: float, finished: float) -> None:
        """A batch was computed.

        Args:
            tokens: of it.
            launched: when.
            finished: when; seconds in which the batch before it ran as well count once.
        """
        seconds = max(0.0, finished - max(launched, self._last))
        self._last = finished
        if tokens < self._half:
            return
        kept = 0.5 ** (seconds / _HALF_LIFE)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first such batch."""
        return self._tokens / self._seconds if self._seconds > 0 else None


class Admission:
    """Lets requests in as long as there is room and they can be done in time.

    Args:
        capacity: most tokens that may wait.
        timeout: seconds in which a request must be done.
        batch_tokens: of a full batch.
    """

    def __init__(self, capacity: int, timeout: float, batch_tokens: int) -> None:
        self.capacity = capacity
        self.speed = Speed(batch_tokens)
        self._timeout = timeout

    def check(self, tokens: int, waiting: int) -> None:
        """Let a request in, or refuse it.

        Args:
            tokens: of it, by an estimate.
            waiting: tokens that are there already.

        Raises:
            RequestTooLargeError: it would not fit into an empty queue.
            OverloadedError: it does not fit now, or would not be done in time.
        """
        if tokens > self.capacity:
            raise RequestTooLargeError(
                f"the request has about {tokens} tokens, more than the {self.capacity} that may "
                "wait at once: send it in parts"
            )
        full = waiting + tokens > self.capacity
        speed = self.speed.tokens_per_second
        # A large request waits for small ones that come after it, too: with as much of them as of
        # itself, twice as long.
        late = speed is not None and 2 * waiting / speed > self._timeout
        if full or late:
            raise OverloadedError(
                f"{waiting} tokens wait already, too many to take more: ask again later",
                self.retry_after(waiting),
            )

    def retry_after(self, waiting: int) -> int:
        """Seconds in which half of what waits will be done."""
        speed = self.speed.tokens_per_second
        seconds = 1.0 if speed is None else waiting / speed / 2
        return max(1, min(_LONGEST_RETRY, math.ceil(seconds)))
