"""The report: its figures, and a page that is whole, safe and says the same."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.records import Reject
from c2v_engine.jobs.corpus.report import (
    JobFacts,
    count_reasons,
    make_page,
    make_report,
    write_report,
)
from c2v_engine.jobs.corpus.report.charts import (
    Bar,
    Step,
    Title,
    bar_chart,
    column_chart,
    shortened,
    step_chart,
    time_scale,
    value_scale,
)
from c2v_engine.jobs.corpus.report.formats import duration_text, number_text, share_text, size_text
from c2v_engine.jobs.corpus.timeline import Sample, Session, Timeline
from c2v_engine.jobs.corpus.work.coordinator import Death
from c2v_engine.jobs.corpus.work.runner import Counters

VOID = {"meta", "br"}
HOSTILE = "</style><script src='http://x.example/a.js'>alert(\"1\")</script>\x00\x1b[31m\ud800&"


class Page(HTMLParser):
    """Takes a page apart, and fails where an element is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def facts(**changes):
    about = {
        "rows": 120_345,
        "written": 120_000,
        "rejects": 345,
        "tokens": 6_400_000,
        "shards": 4,
        "size": 123_456_789,
        "dimension": 512,
        "precision": "float16",
        "reasons": {"is null": 300, "is not JSON": 45},
        "model": {"model": "c2v-mini", "fingerprint": "abc", "device": "cpu"},
        "options": {"column": "text", "keep": ["url"], "prompt_name": None},
        "versions": {"c2v-engine": "0.1.0"},
    }
    return JobFacts(**{**about, **changes})


def counters(seconds, rate=1000, busy=0.5):
    rows = int(rate * seconds)
    return Counters(
        rows=rows,
        tokens=50 * rows,
        read_seconds=0.1 * seconds,
        write_seconds=0.2 * seconds,
        busy_seconds=busy * seconds,
        tokenize_seconds=1.5 * seconds,
        wait_seconds=0.05 * seconds,
        lengths=(0, 0, 0, rows // 4, rows - rows // 4),
    )


def session(seconds, every=5.0, devices=1, rate=1000, busy=0.5, **about):
    count = max(1, round(seconds / every))
    moments = [seconds * (i + 1) / count for i in range(count)]
    samples = [Sample(moment, counters(moment, rate, busy)) for moment in moments]
    return Session(1.7e9, devices, samples=samples, **about)


def test_figures_are_those_of_all_starts_together():
    report = make_report(facts(), [session(60), session(30, devices=2, rate=2000, busy=1.0)])
    assert (report["rows"], report["tokens"], report["bytes"]) == (120_345, 6_400_000, 123_456_789)
    assert report["wall_seconds"] == 90
    assert report["device_seconds"] == 60 + 2 * 30
    assert report["stage_seconds"] == {
        "read": 9.0,
        "tokenize": 135.0,
        "device": 60.0,
        "wait": 4.5,
        "write": 18.0,
    }
    assert report["device_idle_share"] == 0.5
    # 60,000 rows in each of the starts; two thirds of the time at 1,000 a second.
    assert report["rows_per_second"] == {"mean": 1333.33, "median": 1000.0}
    assert report["lengths"][3] == {"from": 8, "to": 15, "texts": 30_000}
    assert [one["seconds"] for one in report["sessions"]] == [60, 30]
    assert json.loads(json.dumps(report)) == report


def test_rows_that_come_in_blocks_are_told_as_if_they_came_evenly():
    samples = [
        Sample(second, Counters(rows=second // 60 * 60_000, tokens=second))
        for second in range(5, 601, 5)
    ]
    report = make_report(facts(), [Session(0.0, 1, samples=samples)])
    assert {part["rows_per_second"] for part in report["speed"]} == {1000.0}


@pytest.mark.parametrize(
    "sessions",
    [
        [],
        [Session(0.0, 1)],
        [session(0.01)],
        [session(1)],
        [session(604_800, every=300, devices=8)],
        [session(10, ended=None), Session(1e30, 1), session(10)],
        [session(3) for _ in range(200)],
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": 0, "written": 0, "rejects": 0, "tokens": 0, "shards": 0, "size": 0, "reasons": {}},
        {"rows": 10**12, "rejects": 10**6, "reasons": {f"reason {i}": 1000 for i in range(1000)}},
        {"model": {}, "options": {}, "versions": {}},
    ],
)
def test_any_job_has_a_page_that_is_whole_and_loads_nothing(sessions, changes):
    text = make_page(make_report(facts(**changes), sessions))
    page = Page(text)
    assert "://" not in text.replace("&quot;", "")
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"href", "src", "xlink:href", "style", "onload"} & names
    assert "url(" not in text
    assert "@import" not in text
    assert "nan" not in re.findall(r"[a-z]+", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for named in (value for name, value in page.attributes if name == "aria-labelledby"):
        assert set(named.split()) <= set(ids)
    assert page.tags.count("desc") == page.tags.count("svg")


def test_the_page_says_what_the_json_says(tmp_path):
    recorder = Timeline(tmp_path, devices=2)
    recorder.death(Death("worker 1 (cuda:1)", "was ended by signal 9 (SIGKILL)", (17,)))
    recorder.close(Sample(60, counters(60)), "InputError: a.jsonl, line 7: is not JSON")
    Timeline(tmp_path).close(Sample(30, counters(30)), "finished")
    report = write_report(tmp_path, facts())
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = Page((tmp_path / "report.html").read_text())
    for figure in (
        f"{report['rows']:,}",
        f"{report['rows_written']:,}",
        f"{report['rows_rejected']:,}",
        f"{report['tokens']:,}",
        f"{report['bytes']:,} bytes",
        duration_text(report["wall_seconds"]),
        number_text(report["rows_per_second"]["mean"]),
        number_text(report["tokens_per_second"]["median"]),
        share_text(report["device_idle_share"]),
        "300 (87.0%)",
        "45 (13.0%)",
        "InputError: a.jsonl, line 7: is not JSON",
        "was ended by signal 9 (SIGKILL)",
        "c2v-mini",
        *(duration_text(seconds) for seconds in report["stage_seconds"].values()),
    ):
        assert figure in page.text


def test_hostile_names_are_shown_and_do_nothing():
    dead = {"seconds": 1.0, "worker": HOSTILE, "reason": HOSTILE, "units": []}
    report = make_report(
        facts(
            reasons={HOSTILE: 345},
            model={"model": HOSTILE, HOSTILE: HOSTILE},
            options={HOSTILE: [HOSTILE]},
            versions={HOSTILE: HOSTILE},
            precision=HOSTILE,
            format=HOSTILE,
        ),
        [session(60, ended=HOSTILE, deaths=[dead]), session(60)],
    )
    text = make_page(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", text)
    text.encode()
    assert "</style><script src='http://x.example/a.js'>alert(\"1\")</script>" in page.text


def test_a_report_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_report(tmp_path, facts())
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_takes_the_place_of_the_last_one(tmp_path):
    write_report(tmp_path, facts())
    write_report(tmp_path, facts(rows=7))
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_reasons_are_counted_without_their_numbers():
    def reject(reason):
        return Reject(0, None, "a.jsonl, line 1", reason)

    found = count_reasons(map(reject, ["bad at 1", "is null", "bad at 22", "bad at 3"]))
    assert list(found.items()) == [("bad at N", 3), ("is null", 1)]
    letters = (chr(0x4E00 + i) for i in range(1500))
    many = count_reasons(map(reject, letters))
    assert len(many) == 1001
    assert many["other reasons"] == 500


def test_charts_draw_nothing_outside_of_themselves():
    title = Title("a", "a", "a")
    columns = [Bar(f"{2**i}–{2 ** (i + 1) - 1}", 10.0**i, f"{10**i:,}") for i in range(12)]
    runs = [[Step(0, 1, 5), Step(1, 3, 0)], [], [Step(3, 3.5, 9)]]
    for width in (340, 720):
        for chart in (
            bar_chart(title, columns, width),
            column_chart(title, columns, width),
            step_chart(title, runs, width, time_scale),
        ):
            for name in ("x", "x1", "x2"):
                places = [float(x) for x in re.findall(rf' {name}="([^"]*)"', chart)]
                assert all(0 <= place <= width for place in places)
            assert chart.count("<svg") == 1
    for empty in (bar_chart(title, [], 340), column_chart(title, [], 340)):
        Page(empty)
    Page(step_chart(title, [], 340, time_scale))


@pytest.mark.parametrize("most", [0.003, 0.7, 1, 4, 5.5, 37, 99.99, 1234, 5e11])
def test_axes_end_at_or_above_the_largest_value_with_few_marks(most):
    scale = value_scale(most)
    assert most <= scale.most * (1 + 1e-9) <= 2 * most * (1 + 1e-9)
    assert 3 <= len(scale.marks) <= 6


@pytest.mark.parametrize("most", [0.02, 1, 9, 61, 3_700, 90_000, 604_800, 4e7])
def test_time_axes_have_few_marks_at_round_durations(most):
    scale = time_scale(most)
    assert 2 <= len(scale.marks) <= 9
    assert len({text for _, text in scale.marks}) == len(scale.marks)


def test_figures_are_told_as_people_read_them():
    assert [duration_text(s) for s in (0, 0.0421, 12.34, 59.99, 75, 7199.6, 8e5)] == [
        "0 s",
        "0.0421 s",
        "12.3 s",
        "60 s",
        "1 min 15 s",
        "2 h",
        "9 d 6 h",
    ]
    assert [share_text(s) for s in (0, 0.0001, 0.123, 0.9999, 1)] == [
        "0%",
        "under 0.1%",
        "12.3%",
        "over 99.9%",
        "100%",
    ]
    assert [size_text(s) for s in (12, 1234, 5.6e9)] == ["12 bytes", "1.23 kB", "5.6 GB"]
    assert [number_text(n) for n in (1e6, 12.345, 0.0421)] == ["1,000,000", "12.3", "0.042"]
    assert shortened("a long\nreason that goes on", 80) == "a long re…"
