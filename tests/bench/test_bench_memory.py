"""The most memory of a stretch of work."""

import numpy as np
import pytest

from c2v_engine.bench.machine import memory
from c2v_engine.bench.machine.memory import PeakMemory

SIZE = 2**27


def test_the_peak_is_that_of_the_stretch_alone():
    np.ones(4 * SIZE, dtype=np.uint8)  # was there, and went, before
    watch = PeakMemory()
    if watch.whole_process:
        pytest.skip("the system keeps no peak but the process's")
    assert watch.bytes - watch.before < SIZE
    np.ones(SIZE, dtype=np.uint8)
    assert SIZE * 0.9 < watch.bytes - watch.before < 2 * SIZE


def test_where_it_can_not_be_reset_the_peak_is_the_whole_process_s(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "clear_refs")
    watch = PeakMemory()
    assert watch.whole_process
    assert watch.bytes >= watch.before > 0
