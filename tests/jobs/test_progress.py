"""Progress: plain lines now and then, a bar on a terminal, nothing when asked for nothing."""

from __future__ import annotations

import io
import sys

import pytest

from c2v_engine.jobs.progress import (
    LineProgress,
    Pace,
    Snapshot,
    TerminalProgress,
    choose_progress,
)


def test_lines_come_every_few_seconds_with_speed_and_time_left():
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(stream, every=5.0, clock=lambda: now[0])
    for second in range(1, 13):
        now[0] = float(second)
        progress.update(Snapshot(1000 * second, 50_000 * second, second, second / 120))
    assert stream.getvalue().splitlines() == [
        "4%, 5,000 texts, 1,000 texts/s, 50,000 tokens/s, 0:01:55 left",
        "8%, 10,000 texts, 1,000 texts/s, 50,000 tokens/s, 0:01:50 left",
    ]


def test_lines_without_a_known_size_say_no_time_left():
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(stream, every=5.0, clock=lambda: now[0])
    now[0] = 6.0
    progress.update(Snapshot(10, 20, 2.0, None))
    assert stream.getvalue() == "10 texts, 5 texts/s, 10 tokens/s\n"


def test_rows_of_a_job_are_told_with_their_total_and_with_rejects():
    log = io.StringIO()
    progress = LineProgress(log, every=0.0)
    progress.update(Snapshot(500, 9000, 10.0, 0.75, "rows", before=1000, total=2000, rejects=1234))
    # 500 rows in 10 s, and 500 are left: those of the earlier start took none of this one's time.
    assert log.getvalue() == (
        "75%, 1,500 of 2,000 rows, 50 rows/s, 900 tokens/s, 1,234 rejected, 0:00:10 left\n"
    )


def test_speed_is_that_of_the_recent_past():
    pace = Pace()
    for second in range(1, 1001):
        rows = 100 * min(second, 900) + 10 * max(0, second - 900)
        speed = pace.update(Snapshot(rows, 0, second, rows / 200_000))
    assert speed.rows == pytest.approx(10)
    assert speed.left == pytest.approx((200_000 - 91_000) / 10)


def test_speed_holds_while_the_next_rows_are_under_way_and_falls_when_they_do_not_come():
    pace = Pace()
    for second in range(0, 601):  # 1,000 rows every 100 seconds
        speed = pace.update(Snapshot(second // 100 * 1000, 0, second, None))
        if second >= 100:
            assert 9 < speed.rows < 11
    assert pace.update(Snapshot(6000, 0, 3600, None)).rows < 2


def test_a_time_left_runs_down_between_rows():
    pace = Pace()
    pace.update(Snapshot(1000, 0, 100, 0.5))
    assert pace.update(Snapshot(1000, 0, 130, 0.5)).left == pytest.approx(70)
    assert pace.update(Snapshot(1000, 0, 150, 0.5)).left == pytest.approx(50)


def test_a_job_that_has_just_begun_has_no_speed():
    for seconds in (0.0, 5.0):
        speed = Pace().update(Snapshot(0, 0, seconds, 0.0))
        assert (speed.rows, speed.left) == (0.0, None)


def test_choice_follows_standard_error(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert type(choose_progress(quiet=False)) is LineProgress
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(choose_progress(quiet=False)) is TerminalProgress
    assert type(choose_progress(quiet=True)) not in (LineProgress, TerminalProgress)


def test_other_rows_than_texts_are_named_and_have_no_tokens():
    log = io.StringIO()
    progress = LineProgress(log, every=0.0)
    progress.update(Snapshot(1500, 0, 10.0, 0.5, "queries"))
    assert log.getvalue() == "50%, 1,500 queries, 150 queries/s, 0:00:10 left\n"


def test_lines_of_the_next_stretch_know_nothing_of_the_last():
    log = io.StringIO()
    progress = LineProgress(log, every=0.0)
    progress.update(Snapshot(1000, 0, 10.0, 0.9))
    progress.close()
    progress.update(Snapshot(10, 0, 1.0, 0.5, "queries"))
    assert log.getvalue().splitlines()[1] == "50%, 10 queries, 10 queries/s, 0:00:01 left"


def test_a_bar_that_was_closed_can_show_the_next_stretch():
    bar = TerminalProgress()
    for unit in ("texts", "queries"):
        bar.update(Snapshot(1, 0, 1.0, 0.5, unit))
        (task,) = bar._bar.tasks
        assert unit in task.fields["figures"]
        bar.close()
        assert not bar._bar.tasks
