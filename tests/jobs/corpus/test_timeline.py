"""The timeline: what it keeps over restarts, what it passes over, and that it stays small."""

from __future__ import annotations

import json
import os

import pytest

from c2v_engine.jobs.corpus import timeline
from c2v_engine.jobs.corpus.folder.layout import TIMELINE_NAME
from c2v_engine.jobs.corpus.timeline import (
    Sample,
    Session,
    Timeline,
    add_counters,
    read_timeline,
    thinned,
)
from c2v_engine.jobs.corpus.work.coordinator import Death
from c2v_engine.jobs.corpus.work.runner import Counters


def sample(seconds, rows=None):
    rows = int(100 * seconds) if rows is None else rows
    lengths = (0, 0, rows // 2, rows - rows // 2)
    return Sample(
        seconds, Counters(rows=rows, tokens=9 * rows, busy_seconds=seconds / 2, lengths=lengths)
    )


def session(seconds, every=1.0, **about):
    count = int(seconds / every)
    return Session(0.0, 1.0, samples=[sample(i * every) for i in range(1, count + 1)], **about)


def test_every_start_is_a_session_with_its_samples_deaths_and_end(tmp_path):
    first = Timeline(tmp_path, devices=2)
    for seconds in (1, 6, 7, 12):
        first.sample(sample(seconds))
    first.death(Death("worker 1", "was ended by signal 9", (3, 4)))
    second = Timeline(tmp_path)  # the first was killed
    second.close(sample(3), "finished")
    second.sample(sample(60))  # nothing comes after

    one, two = read_timeline(tmp_path)
    assert [found.seconds for found in one.samples] == [6, 12]  # five seconds apart
    assert (one.devices, one.ended, one.last) == (2, None, sample(12))
    ((worker, reason, units),) = [(d["worker"], d["reason"], d["units"]) for d in one.deaths]
    assert (worker, reason, units) == ("worker 1", "was ended by signal 9", [3, 4])
    assert (two.devices, two.ended, two.last) == (1, "finished", sample(3))


def test_a_folder_without_a_timeline_has_no_sessions(tmp_path):
    assert read_timeline(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\x00\xff\xfe",
        b"7",
        b"[]",
        b'{"seconds":null}',
        b'{"seconds":1e999,"rows":1}',
        b'{"seconds":NaN}',
        b'{"seconds":50,"rows":-1}',
        b'{"seconds":50,"what":1}',
        b'{"seconds":50,"lengths":3}',
        b'{"seconds":1}',  # before the last one
        b'{"session":{}}',
        b'{"session":3}',
        b'{"death":{"seconds":1}}',
    ],
)
def test_lines_that_are_no_timelines_are_passed_over(tmp_path, line):
    Timeline(tmp_path).close(sample(10), "failed")
    with (tmp_path / TIMELINE_NAME).open("ab") as file:
        file.write(line + b"\n")
    (found,) = read_timeline(tmp_path)
    assert [one.seconds for one in found.samples] == [10]
    assert not found.deaths


def test_a_torn_line_costs_nothing_but_itself(tmp_path):
    Timeline(tmp_path).close(sample(10), "failed")
    path = tmp_path / TIMELINE_NAME
    os.truncate(path, path.stat().st_size - 5)
    Timeline(tmp_path).close(sample(20), "finished")
    assert [(one.ended, one.last.seconds) for one in read_timeline(tmp_path)] == [
        (None, 10),
        ("finished", 20),
    ]


def test_a_week_of_samples_stays_small_and_loses_no_total(tmp_path):
    recorder = Timeline(tmp_path)
    week, rows = 7 * 86_400, 10**9
    for second in range(1, week, 5):
        lengths = tuple(rows for _ in range(14))
        recorder.sample(Sample(second, Counters(rows=rows + second, tokens=rows, lengths=lengths)))
    recorder.close(sample(week, rows), "finished")
    assert (tmp_path / TIMELINE_NAME).stat().st_size < 1_000_000
    assert not [name for name in os.listdir(tmp_path) if name != TIMELINE_NAME]
    (found,) = read_timeline(tmp_path)
    assert found.last == sample(week, rows)
    gaps = [b.seconds - a.seconds for a, b in zip(found.samples, found.samples[1:], strict=False)]
    assert 500 < len(found.samples) < 2400
    assert max(gaps) < week / 400


def test_very_many_starts_are_told_together_and_none_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "_MOST_SESSIONS", 20)
    for number in range(101):
        recorder = Timeline(tmp_path)
        recorder.death(Death("worker 0", f"death {number}", ()))
        recorder.close(sample(10), "failed")
    sessions = read_timeline(tmp_path)
    assert len(sessions) <= 21
    assert sum(one.starts for one in sessions) == 101
    assert sum(one.deaths_before + len(one.deaths) for one in sessions) == 101
    assert sum(one.last.seconds for one in sessions) == 1010
    assert sum(one.last.counters.rows for one in sessions) == 101 * 1000


def test_thinning_keeps_old_sessions_as_fine_as_new_ones():
    sessions, every = thinned([session(3000), session(3000)], 1.0)
    first, second = (len(one.samples) for one in sessions)
    assert first == second
    assert 600 <= first + second <= 1200
    assert every == 8.0
    assert [one.last for one in sessions] == [sample(3000), sample(3000)]


def test_a_disk_that_refuses_ends_the_timeline_and_not_the_job(tmp_path):
    (tmp_path / TIMELINE_NAME).mkdir()
    recorder = Timeline(tmp_path)
    recorder.sample(sample(10))
    recorder.close(sample(11), "finished")
    assert recorder.failure == "Is a directory"


def test_counters_of_workers_add_up_whatever_their_longest_text():
    total = add_counters([Counters(rows=1, lengths=(1, 2)), Counters(rows=2, lengths=(1, 0, 5, 0))])
    assert (total.rows, total.lengths) == (3, (2, 2, 5))
    assert add_counters([]) == Counters()
    assert Sample.from_json(json.loads(json.dumps(sample(4).to_json()))) == sample(4)
