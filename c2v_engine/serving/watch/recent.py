"""The last two minutes: what was computed in each second, and how long requests took."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HISTORY_SECONDS = 120
LATENCY_SECONDS = 60
_RATE_SECONDS = 5
_MOST_REQUESTS = 4096


@dataclass(frozen=True)
class Latency:
    """How long the requests of the last minute took, at most the last 4096 of them.

    Attributes:
        requests: that were answered with embeddings.
        p50: seconds that half of them took at most; None without requests.
        p99: likewise 99 of a hundred.
    """

    requests: int
    p50: float | None
    p99: float | None


class Recent:
    """Counts of whole seconds, and the last requests; of fixed size, for any number of threads.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._lock = threading.Lock()
        # One more than the whole seconds, for the one that is not over.
        self._seconds = np.full(HISTORY_SECONDS + 1, -1, dtype=np.int64)
        self._counts = np.zeros((HISTORY_SECONDS + 1, 2))
        self._requests: deque[tuple[float, float]] = deque(maxlen=_MOST_REQUESTS)

    @property
    def uptime(self) -> float:
        """Seconds since this was made."""
        return self._clock() - self._begun

    def add_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch that is done, evenly over the seconds it took."""
        stop = self._clock()
        start = max(stop - seconds, stop - HISTORY_SECONDS, 0.0)
        count = np.array([texts, tokens], dtype=np.float64)
        with self._lock:
            for second in range(int(start), int(stop) + 1):
                inside = min(stop, second + 1.0) - max(start, float(second))
                share = inside / (stop - start) if stop > start else 1.0
                self._slot(second)[:] += count * share

    def add_request(self, seconds: float) -> None:
        """Count a request that was answered with embeddings."""
        with self._lock:
            self._requests.append((self._clock(), seconds))

    def history(self) -> np.ndarray:
        """Texts and tokens of each of the last whole seconds, the oldest first.

        Returns:
            float64 ``[seconds, 2]``.
        """
        now = int(self._clock())
        wanted = np.arange(now - HISTORY_SECONDS, now)
        with self._lock:
            slots = wanted % len(self._seconds)
            return np.where((self._seconds[slots] == wanted)[:, None], self._counts[slots], 0.0)

    def rates(self) -> tuple[float, float]:
        """Texts and tokens a second, over the last few whole seconds."""
        texts, tokens = self.history()[-_RATE_SECONDS:].mean(axis=0).tolist()
        return texts, tokens

    def latency(self) -> Latency:
        """Of the requests that ended in the last minute."""
        oldest = self._clock() - LATENCY_SECONDS
        with self._lock:
            seconds = sorted(took for ended, took in self._requests if ended >= oldest)
        if not seconds:
            return Latency(0, None, None)
        p50, p99 = (seconds[math.ceil(share * len(seconds)) - 1] for share in (0.5, 0.99))
        return Latency(len(seconds), p50, p99)

    def _slot(self, second: int) -> np.ndarray:
        slot = second % len(self._seconds)
        if self._seconds[slot] != second:
            self._seconds[slot] = second
            self._counts[slot] = 0.0
        counts: np.ndarray = self._counts[slot]
        return counts
