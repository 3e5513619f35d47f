"""The most memory that a stretch of work had of the host, by itself where the system can tell."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["PeakMemory"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the resident set's high-water mark to what it is now


class PeakMemory:
    """Starts to watch when it is made.

    Attributes:
        whole_process: whether the peak is since the process began, for the system keeps no other.
        before: bytes resident at the start.
    """

    def __init__(self) -> None:
        try:
            CLEAR.write_text(RESET_PEAK)
            self.whole_process = False
        except OSError:
            self.whole_process = True
        self.before = status_bytes("VmRSS")

    @property
    def bytes(self) -> int:
        """The most that were resident since, in bytes."""
        if not self.whole_process:
            return status_bytes("VmHWM")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes there, else KiB


def status_bytes(field: str) -> int:
    """A field of the process's status, given there in KiB; 0 where there is none."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0
