"""Instructions that a thread retires, where the processor's counters can be had."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import NamedTuple

__all__ = ["INSTRUCTIONS", "Event", "EventCounter", "UncountedError"]

_SYSCALLS = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_SIZE = 64  # of the first version of struct perf_event_attr, which every kernel takes
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ENABLE, _DISABLE = 0x2400, 0x2401


class UncountedError(RuntimeError):
    """Events that can not be counted here, and why."""


class Event(NamedTuple):
    """What is counted, by perf_event_open(2): its type and its number in it."""

    kind: int
    number: int


INSTRUCTIONS = Event(0, 1)
"""``PERF_COUNT_HW_INSTRUCTIONS``."""


class EventCounter:
    """Counts events of the calling thread, outside the kernel, between ``with`` and its end.

    Args:
        event: what is counted.

    Attributes:
        count: of the last stretch.

    Raises:
        UncountedError: the system does not let this process count them.
    """

    def __init__(self, event: Event = INSTRUCTIONS) -> None:
        number = _SYSCALLS.get(platform.machine())
        if platform.system() != "Linux" or number is None:
            raise UncountedError(f"there is no perf_event_open on {platform.system()}")
        self.count = 0
        flags = _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
        attributes = struct.pack("=IIQQQQQ", event.kind, _SIZE, event.number, 0, 0, 0, flags)
        self._libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(attributes.ljust(_SIZE, b"\0"), _SIZE)
        here, any_processor, no_group = 0, -1, -1
        self._file = self._libc.syscall(
            ctypes.c_long(number), buffer, here, any_processor, no_group, ctypes.c_ulong(0)
        )
        if self._file < 0:
            reason = os.strerror(ctypes.get_errno())
            raise UncountedError(f"perf_event_open gives no counter of instructions: {reason}")

    def __enter__(self) -> EventCounter:
        self._before = self._read()
        self._libc.ioctl(self._file, ctypes.c_ulong(_ENABLE), 0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._libc.ioctl(self._file, ctypes.c_ulong(_DISABLE), 0)
        self.count = self._read() - self._before

    def close(self) -> None:
        """Give the counter back."""
        os.close(self._file)

    def _read(self) -> int:
        count: int = struct.unpack("=Q", os.read(self._file, 8))[0]
        return count
