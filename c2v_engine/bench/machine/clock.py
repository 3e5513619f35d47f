"""The time of a call: on the device where there is one, by replaying a captured graph of calls.

A call of a few microseconds would otherwise be timed by how fast the host can launch it. The calls
of a graph go round the argument sets, and as many results as there are sets are alive at a time, so
that neither is found in a cache from the call before.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

__all__ = ["Arguments", "Timer", "elapsed_on_device", "make_timer"]

Arguments = dict[str, Any]
"""Of a call that is timed, by name."""

# A repetition lasts this long at least, so that its own start counts for little.
SHORTEST_MS = 2.0
MOST_CALLS = 4000
WARM_UP_CALLS = 3


class Timer(ABC):
    """Times one provider.

    Attributes:
        method: how.
        calls: made in a repetition; each argument set is used as often as the others.
        note: why not by a better method, where that is so.
    """

    method: ClassVar[str]
    note = ""

    def __init__(self, call: Callable[[Arguments], Any], sets: Sequence[Arguments]) -> None:
        self._call = call
        self._sets = sets
        self.calls = len(sets)

    def repetition(self) -> float:
        """Milliseconds of a call, the mean of a repetition."""
        return self._elapsed() / self.calls

    def lengthen(self) -> None:
        """Has a repetition make enough calls to last long enough."""
        while self.calls < MOST_CALLS:
            elapsed = self._elapsed()
            if elapsed >= SHORTEST_MS:
                break
            # What is timed first may be slower than what follows: go on until it is so.
            wanted = int(self.calls * min(SHORTEST_MS / max(elapsed, 1e-6), 100.0)) + 1
            self._resize(-(-wanted // len(self._sets)) * len(self._sets))

    def _resize(self, calls: int) -> None:
        self.calls = calls

    def _go_round(self) -> None:
        alive: deque[Any] = deque(maxlen=len(self._sets))
        for index in range(self.calls):
            alive.append(self._call(self._sets[index % len(self._sets)]))

    @abstractmethod
    def _elapsed(self) -> float:
        """Milliseconds of all calls of a repetition."""


class HostTimer(Timer):
    """By the host's clock, for the CPU."""

    method = "host clock"

    def _elapsed(self) -> float:
        start = time.perf_counter()
        self._go_round()
        return 1e3 * (time.perf_counter() - start)


class EventTimer(Timer):
    """Between two device events around calls launched one by one; the host may be the slower."""

    method = "events"

    def _elapsed(self) -> float:
        return elapsed_on_device(self._go_round)


class GraphTimer(Timer):
    """Between two device events around the replay of a graph that holds all calls."""

    method = "graph"

    def __init__(self, call: Callable[[Arguments], Any], sets: Sequence[Arguments]) -> None:
        super().__init__(call, sets)
        self._capture()

    def _resize(self, calls: int) -> None:
        super()._resize(calls)
        self._capture()

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._go_round()
        elapsed_on_device(self._graph.replay)

    def _elapsed(self) -> float:
        return elapsed_on_device(self._graph.replay)


def elapsed_on_device(launch: Callable[[], Any]) -> float:
    """Milliseconds of what a function launches on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds


def make_timer(call: Callable[[Arguments], Any], sets: Sequence[Arguments]) -> Timer:
    """Warms a provider up and makes the timer that suits it.

    Args:
        call: the provider's.
        sets: arguments for it, all on one device.
    """
    device = next(v for v in sets[0].values() if isinstance(v, torch.Tensor)).device
    for index in range(WARM_UP_CALLS):
        call(sets[index % len(sets)])
    timer = HostTimer(call, sets) if device.type == "cpu" else device_timer(call, sets)
    timer.lengthen()
    return timer


def device_timer(call: Callable[[Arguments], Any], sets: Sequence[Arguments]) -> Timer:
    """A graph's timer, or where none can be captured one of single launches that says why."""
    note = "a call waits for the device"
    if not waits_for_device(call, sets[0]):
        try:
            return GraphTimer(call, sets)
        except RuntimeError as error:
            torch.cuda.synchronize()
            note = f"not captured: {' '.join(str(error).split())[:200]}"
    timer = EventTimer(call, sets)
    timer.note = note
    return timer


def waits_for_device(call: Callable[[Arguments], Any], arguments: Arguments) -> bool:
    """Whether a call asks the device for a value, which no graph can capture."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(arguments)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
