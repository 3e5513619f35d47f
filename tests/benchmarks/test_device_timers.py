"""The timers of a device, on a stand-in for it: what is captured, how often, and what when not."""

import contextlib

import pytest
import torch

from c2v_engine.bench.machine import clock
from c2v_engine.bench.machine.clock import EventTimer, GraphTimer, device_timer


class Device:
    """Stands in for ``torch.cuda``: counts what is captured and replayed, refuses what it must.

    A call of a graph takes it 20 microseconds, by its own clock.
    """

    def __init__(self):
        self.milliseconds = 0.0
        self.captures, self.replays, self.recording = [], 0, None
        self.refusal = None
        self.sync_mode = "default"

    def install(self, monkeypatch):
        device = self

        class Graph:
            def replay(self):
                device.replays += 1
                device.milliseconds += 0.02 * len(self.calls)

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.milliseconds

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return other.at - self.at

        @contextlib.contextmanager
        def graph(graph):
            graph.calls = device.recording = []
            try:
                yield
                if device.refusal:
                    raise RuntimeError(device.refusal)
            finally:
                device.recording = None
            device.captures.append(graph.calls)

        for name, value in {
            "CUDAGraph": Graph,
            "Event": Event,
            "graph": graph,
            "synchronize": lambda: None,
            "set_sync_debug_mode": lambda mode: setattr(device, "sync_mode", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return device

    def call(self, arguments):
        if self.recording is not None:
            self.recording.append(arguments["number"])
        else:
            self.milliseconds += 0.05
        return object()

    def waiting_call(self, arguments):
        if self.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        assert self.recording is None
        return object()


@pytest.fixture
def device(monkeypatch):
    return Device().install(monkeypatch)


@pytest.fixture
def sets():
    return [{"number": number, "x": torch.ones(1)} for number in range(4)]


def test_calls_are_captured_round_the_sets_until_a_replay_is_long_enough(device, sets):
    timer = device_timer(device.call, sets)
    timer.lengthen()
    assert isinstance(timer, GraphTimer)
    assert timer.note == ""
    assert device.captures[0] == [0, 1, 2, 3]
    last = device.captures[-1]
    assert len(last) == timer.calls > 4
    assert [last.count(number) for number in range(4)] == [timer.calls // 4] * 4
    replays = device.replays
    assert timer.repetition() == pytest.approx(0.02)
    assert timer.calls * 0.02 >= clock.SHORTEST_MS
    assert device.replays == replays + 1


def test_a_call_that_waits_for_the_device_is_timed_call_by_call_and_says_so(device, sets):
    timer = device_timer(device.waiting_call, sets)
    assert isinstance(timer, EventTimer)
    assert timer.note == "a call waits for the device"
    assert device.captures == []
    assert device.sync_mode == "default"


def test_a_capture_that_is_refused_is_told(device, sets):
    device.refusal = "operation not permitted\nwhen stream is capturing"
    timer = device_timer(device.call, sets)
    assert isinstance(timer, EventTimer)
    assert timer.note == "not captured: operation not permitted when stream is capturing"
    assert timer.repetition() == pytest.approx(0.05)


def test_a_repetition_has_an_end_however_short_a_call_is(device, sets, monkeypatch):
    monkeypatch.setattr(clock, "SHORTEST_MS", 1e9)
    monkeypatch.setattr(clock, "MOST_CALLS", 40)
    timer = device_timer(device.call, sets)
    timer.lengthen()
    assert 40 <= timer.calls < 40 * 100
