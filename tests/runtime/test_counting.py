"""What stats say: lengths in buckets, and time that was busy, waited or spent tokenising."""

from __future__ import annotations

import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import Recipe

from c2v_engine.errors import TextError
from c2v_engine.runtime import counting
from c2v_engine.runtime.counting import Counter
from c2v_engine.runtime.stats import LENGTH_BUCKETS, EncodeStats


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(counting.time, "perf_counter", lambda: now.seconds)
    return now


@pytest.fixture
def fresh(checkpoint):
    from c2v_engine import Causal2Vec

    return Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu", dtype="float32")


def batch(lengths, prompt=()):
    texts = [SimpleNamespace(token_ids=range(n), encoder_tokens=2) for n in lengths]
    return SimpleNamespace(texts=texts, prompt=prompt)


def test_lengths_stand_in_buckets_of_powers_of_two():
    counter = Counter()
    counter.add(batch([1, 2, 3, 4, 7, 8, 2**20, 2**31 - 1]), 8)
    assert counter.stats.lengths[:5].tolist() == [1, 2, 2, 1, 0]
    assert counter.stats.lengths[[20, 30]].tolist() == [1, 1]
    assert counter.stats.lengths.shape == (LENGTH_BUCKETS,)
    assert counter.stats.lengths.dtype == np.int64


def test_rows_of_a_shared_prompt_are_in_lengths_and_not_in_tokens():
    counter = Counter()
    counter.add(batch([9, 10], prompt=(1,) * 8), 5)
    assert (counter.stats.tokens, counter.stats.texts, counter.stats.encoder_tokens) == (3, 5, 4)
    assert counter.stats.lengths[3] == 2


def test_time_is_busy_once_for_batches_that_overlap(clock):
    counter = Counter()
    for change, step in ((counter.begin, 1), (counter.begin, 2), (counter.end, 4)):
        change()
        clock.seconds += step
    counter.end()
    clock.seconds += 50
    counter.begin()
    clock.seconds += 1
    counter.end()
    assert counter.stats.busy_seconds == 8
    assert counter.stats.wait_seconds == 0


def test_waiting_counts_only_while_the_device_has_nothing(clock):
    counter = Counter()
    with counter.waiting():
        clock.seconds += 3
        counter.begin()  # of another thread's call
        clock.seconds += 5
        with counter.waiting():
            counter.end()
            clock.seconds += 7
    assert (counter.stats.wait_seconds, counter.stats.busy_seconds) == (10, 5)


def test_stats_of_several_places_add_up_and_travel():
    one, two = Counter(), Counter()
    one.add(batch([1, 2]), 2)
    two.add(batch([2]), 3)
    before = pickle.loads(pickle.dumps(one.stats))
    one.stats.add(two.stats)
    assert one.stats.texts == 5
    assert one.stats.lengths[:3].tolist() == [1, 2, 0]
    assert before.lengths[:3].tolist() == [1, 1, 0]  # a copy stays what it was
    assert vars(one.stats.since(before)).keys() == vars(EncodeStats()).keys()
    assert one.stats.since(before).texts == 3


def test_an_engine_counts_its_seconds_and_every_distinct_text(fresh):
    start = time.perf_counter()
    fresh.encode(["one two three"] * 40 + [f"text {i}" for i in range(200)])
    wall = time.perf_counter() - start
    stats = fresh.stats
    assert stats.lengths.sum() == 201
    assert stats.busy_seconds > 0
    assert stats.tokenize_seconds > 0
    assert stats.wait_seconds > 0
    assert stats.busy_seconds + stats.wait_seconds <= wall


def test_texts_that_come_slowly_are_waited_for(fresh):
    def slowly():
        for i in range(4):
            time.sleep(0.05)
            yield f"text {i}"

    list(fresh.encode_stream(slowly()))
    assert fresh.stats.wait_seconds >= 0.2


def test_a_call_that_fails_or_is_given_up_leaves_the_device_idle(fresh):
    with pytest.raises(TextError):
        fresh.encode(["good", "bad \udfff"])
    stream = fresh.encode_stream(f"text {i}" for i in range(20_000))
    next(stream)
    stream.close()
    counter = fresh._runner._counter
    assert (counter._under_way, counter._waiting) == (0, 0)
