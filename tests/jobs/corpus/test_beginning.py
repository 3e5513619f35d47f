"""A job that can not begin changes nothing; one that goes on is told what is not as it was."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from c2v_engine.errors import ConfigError, InputError, OutputError
from c2v_engine.jobs.corpus.folder.layout import JOB_NAME, LOCK_NAME, MANIFEST_NAME, PLAN_NAME
from c2v_engine.jobs.corpus.folder.verify import verify_job
from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions
from c2v_engine.jobs.encode import EncodeOptions

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_engine import FakeEngine

OPTIONS = CorpusOptions(shard_rows=10)


class PickyEngine(FakeEngine):
    """Refuses with its first text, as ``Causal2Vec.encode_stream`` does."""

    def encode_stream(self, texts, **options):
        raise InputError("precision int8 needs fixed ranges")
        yield


def run(source, folder, options=OPTIONS, engine=FakeEngine):
    notes = []
    with CorpusJob([str(source)], folder, options, note=notes.append) as job:
        job.run(engine())
    return notes


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != LOCK_NAME}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"name": f"r{number}", "text": f"text {number}"} for number in range(35)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(source, tmp_path):
    run(source, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "options", "engine"),
    [
        ("typo.jsonl", OPTIONS, FakeEngine),
        ("in.jsonl", replace(OPTIONS, keep=("id",)), FakeEngine),
        ("in.jsonl", replace(OPTIONS, encode=EncodeOptions(precision="int8")), PickyEngine),
        ("in.jsonl", replace(OPTIONS, encode=EncodeOptions(precision="bfloat16")), FakeEngine),
    ],
)
def test_overwrite_removes_nothing_for_a_job_that_can_not_begin(folder, name, options, engine):
    before = contents(folder)
    with pytest.raises((InputError, OutputError)):
        run(folder.parent / name, folder, replace(options, overwrite=True), engine)
    assert contents(folder) == before


def test_overwrite_begins_anew(source, folder):
    run(source, folder, replace(OPTIONS, shard_rows=20, overwrite=True))
    assert verify_job(folder).problems == []
    assert len(list(folder.glob("part-*"))) == 2


def test_overwrite_does_not_remove_its_input(folder):
    before = contents(folder)
    with pytest.raises(InputError, match=r"is a file of the job in .*, which --overwrite removes"):
        run(folder / "part-000000.parquet", folder, replace(OPTIONS, overwrite=True))
    assert contents(folder) == before


def test_an_engine_that_refuses_leaves_no_job_behind(source, tmp_path):
    options = replace(OPTIONS, encode=EncodeOptions(precision="int8"))
    with pytest.raises(InputError, match="fixed ranges"):
        run(source, tmp_path / "out", options, PickyEngine)
    assert contents(tmp_path / "out") == {}
    run(source, tmp_path / "out")  # with other options


def test_a_plan_that_no_job_came_after_is_not_taken(source, folder):
    for path in folder.iterdir():
        if path.name != PLAN_NAME:
            path.unlink()
    run(source, folder, replace(OPTIONS, shard_rows=7, id_column="name"))
    assert verify_job(folder).problems == []
    assert pq.read_table(folder / "part-000001.parquet")["id"][0].as_py() == "r7"


def test_input_that_changed_is_called_that_without_a_plan_too(source, folder):
    (folder / PLAN_NAME).unlink()
    source.write_text(source.read_text().replace("text 4", "text X"))
    with pytest.raises(ConfigError, match="out: the input is not the one that the job began with"):
        run(source, folder)


def test_input_under_another_name_is_told_its_name(source, folder, monkeypatch):
    monkeypatch.chdir(source.parent)
    with pytest.raises(InputError, match=r"^in\.jsonl: the job in .* with this file as /.*jsonl"):
        run("in.jsonl", folder)
    os.link(source, "copy.jsonl")
    with pytest.raises(InputError, match=r"in\.jsonl: the job in .* and it was not given"):
        run("copy.jsonl", folder)


def test_a_lost_manifest_is_noted(source, folder):
    (folder / MANIFEST_NAME).unlink()
    (note,) = run(source, folder)
    assert note == f"{folder}: 4 shards that the manifest does not record: done again"
    assert verify_job(folder).problems == []


def test_a_lock_that_can_not_be_opened_is_named(source, folder):
    (folder / LOCK_NAME).unlink()
    (folder / LOCK_NAME).mkdir()
    with pytest.raises(OutputError, match=r"\.lock: can not be written"):
        run(source, folder)
    assert (folder / JOB_NAME).exists()


def test_a_report_that_was_half_written_is_written(source, folder):
    (folder / "report.html").unlink()
    run(source, folder)
    assert (folder / "report.html").exists()
