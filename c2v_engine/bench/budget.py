"""How long a run may take."""

from __future__ import annotations

import time

__all__ = ["Budget"]


class Budget:
    """Seconds that a part of a run may take.

    Args:
        seconds: from now on; None for no end.
    """

    def __init__(self, seconds: float | None) -> None:
        self._start = time.monotonic()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether nothing more may begin."""
        return self._seconds is not None and self.spent >= self._seconds
