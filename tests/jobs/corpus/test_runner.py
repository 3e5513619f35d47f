"""Units through the runner: every row once, in order, whatever is bad, known or refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fake_engine import DIMENSION, FakeEngine, vectors
from memory_units import MemoryShards, make_units, read_blocks

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.work import runner as runner_module
from c2v_engine.jobs.corpus.work.runner import RunnerOptions, UnitRunner

TEXTS = [f"text number {row}" for row in range(300)]


class DictCache:
    def __init__(self):
        self.kept = {}
        self.asked = 0

    def get_many(self, texts):
        self.asked += len(texts)
        return [self.kept.get(text) for text in texts]

    def put_many(self, texts, vectors):
        self.kept.update(zip(texts, vectors, strict=True))


def embed(texts, units, *, on_error="fail", bad=(), cache=None, window=40, shards=None):
    engine = FakeEngine()
    engine.window = window
    shards = shards or MemoryShards()
    runner = UnitRunner(
        engine,
        RunnerOptions(DIMENSION, "float32", on_error),
        read_blocks(texts, bad=bad),
        shards.open,
        cache,
    )
    finished = list(runner.run(units))
    return finished, shards, runner


@pytest.mark.parametrize("window", [1, 13, 40, 1000])
def test_every_row_is_in_its_units_shard_in_order(window):
    finished, shards, runner = embed(TEXTS, make_units(6, 50), window=window)
    assert [f.done.unit for f in finished] == list(range(6))
    for number in range(6):
        ids, found, valid = shards.written[number]
        rows = range(number * 50, number * 50 + 50)
        assert ids == [f"id{row}" for row in rows]
        np.testing.assert_array_equal(found, vectors([TEXTS[row] for row in rows]))
        assert valid.all()
    assert runner.counters().rows == 300
    assert sum(f.done.tokens for f in finished) == 300 * 5  # three words and two tokens each


def test_rows_that_are_skipped_leave_no_gap():
    finished, shards, _ = embed(TEXTS, make_units(2, 50), on_error="skip", bad={0, 49, 50, 51})
    assert [f.done.written for f in finished] == [48, 48]
    assert [r.row for f in finished for r in f.done.rejects] == [0, 49, 50, 51]
    ids, found, _ = shards.written[1]
    assert ids[0] == "id52"
    np.testing.assert_array_equal(found, vectors(TEXTS[52:100]))


def test_rows_that_are_null_stay():
    _, shards, _ = embed(TEXTS, make_units(1, 20), on_error="null", bad={0, 7, 19})
    ids, found, valid = shards.written[0]
    assert len(ids) == 20
    assert np.flatnonzero(~valid).tolist() == [0, 7, 19]
    np.testing.assert_array_equal(found, vectors([TEXTS[r] for r in np.flatnonzero(valid)]))


def test_a_unit_of_bad_rows_alone_is_an_empty_shard():
    finished, shards, _ = embed(TEXTS, make_units(3, 10), on_error="skip", bad=set(range(10, 20)))
    assert [f.done.written for f in finished] == [10, 0, 10]
    assert shards.written[1][0] == []


@pytest.mark.parametrize("refused", [{3}, {0, 1, 2}, {99}, {20, 21, 60}])
@pytest.mark.parametrize("on_error", ["skip", "null"])
def test_texts_that_the_engine_refuses_are_rejected_alone(refused, on_error):
    texts = ["refused" if row in refused else text for row, text in enumerate(TEXTS[:100])]
    finished, shards, _ = embed(texts, make_units(4, 25), on_error=on_error)
    rejects = [reject for f in finished for reject in f.done.rejects]
    assert {r.row for r in rejects} == refused
    assert all("not finite" in r.reason and r.id == f"id{r.row}" for r in rejects)
    found = np.concatenate([shards.written[n][1] for n in range(4)])
    np.testing.assert_array_equal(found, vectors([t for t in texts if t != "refused"]))


def test_a_refused_text_is_named_by_its_place():
    texts = [*TEXTS[:60], "refused", *TEXTS[61:]]
    with pytest.raises(InputError, match=r"made-up, row 61: its embedding is not finite"):
        embed(texts, make_units(3, 50))


def test_known_texts_are_not_computed_again():
    cache = DictCache()
    _, first, _ = embed(TEXTS, make_units(6, 50), cache=cache)
    assert set(cache.kept) == set(TEXTS)
    del cache.kept[TEXTS[77]]
    _, second, runner = embed(TEXTS, make_units(6, 50), cache=cache, bad={5}, on_error="skip")
    assert runner.counters().tokens == 5
    assert runner.counters().cached == 298
    for number in range(1, 6):
        np.testing.assert_array_equal(first.written[number][1], second.written[number][1])
    np.testing.assert_array_equal(second.written[0][1], vectors(TEXTS[:5] + TEXTS[6:50]))


@pytest.mark.parametrize(("limit", "value"), [("_MOST_WAITING", 30), ("_MOST_KNOWN_BYTES", 1500)])
def test_a_stream_of_known_texts_does_not_wait_for_ever(monkeypatch, limit, value):
    """Few unknown texts among many known ones: the rows that wait for them stay bounded."""
    monkeypatch.setattr(runner_module, limit, value)
    most = 0
    settle = UnitRunner._settle

    def settled(runner, writer):
        nonlocal most
        settle(runner, writer)
        most = max(most, runner._waiting)

    monkeypatch.setattr(UnitRunner, "_settle", settled)
    cache = DictCache()
    cache.put_many(TEXTS, vectors(TEXTS))
    for row in range(0, 300, 20):
        del cache.kept[TEXTS[row]]
    _, shards, runner = embed(TEXTS, make_units(6, 50), cache=cache, window=1000)
    found = np.concatenate([shards.written[n][1] for n in range(6)])
    np.testing.assert_array_equal(found, vectors(TEXTS))
    assert runner.counters().cached == 285
    assert 0 < most < 60  # a known row has about 47 bytes here


def test_units_before_an_error_of_the_input_are_finished():
    read = read_blocks(TEXTS)

    def breaks(unit):
        yield from read(unit)
        if unit.number == 2:
            raise InputError("made-up, from row 150 on: can not be decoded")

    shards = MemoryShards()
    engine = FakeEngine()
    engine.window = 25
    runner = UnitRunner(engine, RunnerOptions(DIMENSION, "float32"), breaks, shards.open)
    finished = []
    with pytest.raises(InputError, match="row 150"):
        finished.extend(runner.run(make_units(6, 50)))
    assert [one.done.unit for one in finished] == [0, 1]
    assert shards.abandoned in ([2], [])


def test_a_disk_that_is_full_stops_the_run_and_removes_what_is_not_whole():
    shards = MemoryShards(fails=2)
    finished = []
    with pytest.raises(OSError, match="No space"):
        finished += embed(TEXTS, make_units(6, 50), shards=shards, window=10)[0]
    assert shards.abandoned == [2]
    assert not any(
        t.name in ("c2v-read", "c2v-write") for t in threading.enumerate() if t.is_alive()
    )


def test_one_runner_runs_again():
    engine, shards = FakeEngine(), MemoryShards()
    runner = UnitRunner(
        engine, RunnerOptions(DIMENSION, "float32"), read_blocks(TEXTS), shards.open
    )
    units = make_units(6, 50)
    list(runner.run(units[:2]))
    list(runner.run(units[2:]))
    assert sorted(shards.written) == list(range(6))
    assert runner.counters().rows == 300
