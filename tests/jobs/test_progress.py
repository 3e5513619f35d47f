"""Progress: plain lines now and then, a bar on a terminal, nothing when asked for nothing."""

from __future__ import annotations

import io
import sys

from c2v_engine.jobs.progress import LineProgress, Snapshot, TerminalProgress, choose_progress


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


def test_a_bar_that_was_closed_can_show_the_next_stretch():
    bar = TerminalProgress()
    for unit in ("texts", "queries"):
        bar.update(Snapshot(1, 0, 1.0, 0.5, unit))
        (task,) = bar._bar.tasks
        assert unit in task.fields["figures"]
        bar.close()
        assert not bar._bar.tasks
