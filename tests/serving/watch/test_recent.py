"""The last two minutes."""

from __future__ import annotations

import numpy as np
import pytest

from c2v_engine.serving.watch.recent import HISTORY_SECONDS, Recent


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recent(clock):
    return Recent(clock)


def test_without_work_all_is_zero(recent):
    assert recent.history().shape == (HISTORY_SECONDS, 2)
    assert not recent.history().any()
    assert recent.rates() == (0.0, 0.0)
    assert recent.latency().p50 is None


def test_a_batch_is_counted_in_the_second_it_was_computed_in(recent, clock):
    clock.now = 1000.9
    recent.add_batch(3, 40, 0.2)
    clock.now = 1001.0
    assert recent.history()[-1].tolist() == pytest.approx([3, 40])
    assert recent.history()[:-1].sum() == 0


def test_a_long_batch_is_spread_over_its_seconds(recent, clock):
    clock.now = 1010.5
    recent.add_batch(10, 100, 2.5)  # from 1008.0
    clock.now = 1011.0
    assert recent.history()[-3:, 0].tolist() == pytest.approx([4, 4, 2])
    assert recent.history().sum(axis=0).tolist() == pytest.approx([10, 100])


def test_the_second_that_is_not_over_is_left_out(recent, clock):
    recent.add_batch(5, 50, 0.0)
    assert not recent.history().any()
    clock.now = 1001.0
    assert recent.history()[-1].tolist() == [5, 50]


def test_what_is_older_is_forgotten(recent, clock):
    recent.add_batch(5, 50, 0.0)
    recent.add_request(1.0)
    clock.now = 1000.0 + HISTORY_SECONDS
    assert recent.history()[0].tolist() == [5, 50]
    assert recent.latency().requests == 0
    clock.now += 1
    assert not recent.history().any()
    recent.add_batch(7, 70, 0.0)  # in a slot that was used before
    clock.now += 1
    assert recent.history().sum(axis=0).tolist() == [7, 70]


def test_a_batch_longer_than_the_history_fills_it(recent, clock):
    recent.add_batch(120, 1200, 900.0)
    assert np.ptp(recent.history()[1:, 0]) == pytest.approx(0)


def test_rates_are_those_of_the_last_five_seconds(recent, clock):
    for second in range(10):
        clock.now = 1000.0 + second
        recent.add_batch(10 * second, 100, 0.0)
    clock.now = 1010.0
    assert recent.rates() == (70.0, 100.0)


def test_percentiles_are_requests_that_were_there(recent):
    for milliseconds in range(1, 101):
        recent.add_request(milliseconds / 1e3)
    latency = recent.latency()
    assert (latency.requests, latency.p50, latency.p99) == (100, 0.05, 0.099)


def test_the_number_of_requests_that_are_kept_is_bounded(recent):
    for _ in range(10_000):
        recent.add_request(0.1)
    assert recent.latency().requests == 4096
