"""A job's folder from start to start: what it goes on with, what it refuses, what it leaves."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from fake_engine import FakeEngine

from c2v_engine.errors import ConfigError, InputError, OutputError
from c2v_engine.jobs.corpus import job as job_module
from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions
from c2v_engine.jobs.corpus.verify import verify_job
from c2v_engine.jobs.encode import EncodeOptions

ROWS = 40


class Engine(FakeEngine):
    """One row at a time."""

    window = 1


class KillError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = [{"text": f"row {row}", "body": f"other {row}"} for row in range(ROWS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(source, folder, engine=None, **options):
    options = CorpusOptions(**{"shard_rows": 8, **options})
    with CorpusJob([str(source)], folder, options, note=print) as job:
        return job.run(engine or Engine())


def shards(folder):
    return sorted(path.name for path in folder.glob("part-*"))


def temporaries(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def ends_at(monkeypatch, name):
    """Have the job end where it calls a function of its module."""

    def end(*arguments, **options):
        raise KillError

    monkeypatch.setattr(job_module, name, end)


def test_a_plan_that_no_job_claimed_is_made_anew_for_other_options(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        ends_at(patched, "claim")
        with pytest.raises(KillError):
            run(source, folder)
    assert (folder / "plan.json.zst").exists()
    summary = run(source, folder, shard_rows=20, column="body")
    assert summary.shards == 2
    assert not verify_job(folder).problems


def test_the_plan_of_another_job_is_not_replaced(source, tmp_path):
    folder = tmp_path / "out"
    run(source, folder)
    (folder / "plan.json.zst").unlink()
    with pytest.raises(ConfigError, match="shard_rows is 20, the job there has 8"):
        run(source, folder, shard_rows=20)
    assert not (folder / "plan.json.zst").exists()
    run(source, folder)
    assert not verify_job(folder).problems


@pytest.mark.parametrize("mistake", ["input", "engine", "column"])
def test_to_begin_anew_with_a_mistake_leaves_the_old_job(source, tmp_path, mistake):
    folder = tmp_path / "out"
    run(source, folder)
    engine, options = Engine(), {}
    if mistake == "input":
        source = tmp_path / "no-such.jsonl"
    elif mistake == "engine":
        engine.info = lambda: {}["there is no such model"]
    else:
        options["keep"] = ("embedding",)
    with pytest.raises((InputError, OutputError, KeyError)):
        run(source, folder, engine, overwrite=True, **options)
    assert len(shards(folder)) == 5
    assert not verify_job(folder).problems


def test_to_begin_anew_removes_the_old_job(source, tmp_path):
    folder = tmp_path / "out"
    run(source, folder)
    summary = run(source, folder, shard_rows=20, overwrite=True)
    assert (summary.shards, summary.done_before) == (2, 0)
    assert shards(folder) == ["part-000000.parquet", "part-000001.parquet"]


def test_a_job_that_fails_leaves_no_threads_and_no_temporary_files(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def full(*arguments):
        raise OutputError("the disk is full")

    monkeypatch.setattr(job_module, "commit_shard", full)
    with pytest.raises(OutputError, match="full") as caught:
        run(source, folder)
    assert caught.value.__traceback__ is not None  # which holds the frames of the job
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"c2v-read", "c2v-write"}
    assert temporaries(folder) == []


def test_an_interrupt_removes_what_is_not_whole(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    found = []

    def interrupted(*arguments):
        found.append(temporaries(folder))
        job.interrupt()
        found.append(temporaries(folder))
        raise KillError

    monkeypatch.setattr(job_module, "commit_shard", interrupted)
    job = CorpusJob([str(source)], folder, CorpusOptions(shard_rows=ROWS), note=print)
    with job, pytest.raises(KillError):
        job.run(Engine())
    assert len(found[0]) == 1
    assert found[1] == []


def test_an_interrupt_leaves_the_files_of_the_job_that_has_the_lock(source, tmp_path):
    folder = tmp_path / "out"
    options = CorpusOptions(shard_rows=8)
    with CorpusJob([str(source)], folder, options, note=print):
        whose = folder / ".part-000000.parquet.host.1.0123abcd.tmp"
        whose.touch()
        other = CorpusJob([str(source)], folder, options, note=print)
        with pytest.raises(OutputError, match="another job"):
            other.__enter__()
        other.interrupt()
        assert whose.exists()
    assert not whose.exists()


def test_rejects_that_can_not_be_written_do_not_hide_why_a_job_failed(
    source, tmp_path, monkeypatch
):
    def refused(*arguments, **options):
        raise OutputError("rejected.jsonl: can not be written")

    monkeypatch.setattr(CorpusJob, "_write_rejects", refused)
    monkeypatch.setattr(job_module, "commit_shard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(source, tmp_path / "out", on_error="skip")


def test_other_ranges_are_another_job(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    encode = EncodeOptions(precision="int8")
    engine = Engine()
    engine.ranges = np.stack([np.zeros(8, np.float32), np.ones(8, np.float32)])
    run(source, folder, engine, encode=encode)
    run(source, folder, engine, encode=encode)
    engine.ranges = engine.ranges * 2
    with pytest.raises(ConfigError, match="ranges is "):
        run(source, folder, engine, encode=encode)


def test_options_that_ended_a_job_before_its_first_row_can_be_corrected(source, tmp_path):
    folder = tmp_path / "out"
    engine = Engine()

    def no_such_prompt(*arguments, **options):
        raise ConfigError("there is no such prompt")

    engine.encode_stream = no_such_prompt
    with pytest.raises(ConfigError, match="no such prompt"):
        run(source, folder, engine, encode=EncodeOptions(prompt_name="qurey"))
    assert (folder / "job.json").exists()
    run(source, folder, encode=EncodeOptions(prompt_name="query"))
    assert not verify_job(folder).problems
    with pytest.raises(ConfigError, match="prompt_name is 'other', the job there has 'query'"):
        run(source, folder, encode=EncodeOptions(prompt_name="other"))


def test_a_job_whose_manifest_is_gone_still_refuses_other_options(source, tmp_path):
    folder = tmp_path / "out"
    run(source, folder)
    (folder / "manifest.jsonl").unlink()
    with pytest.raises(ConfigError, match="column is 'body'"):
        run(source, folder, column="body")
    assert len(shards(folder)) == 5
    assert run(source, folder).done_before == 0
    assert not verify_job(folder).problems


def test_an_interrupt_before_the_model_is_loaded_says_what_is_there(source, tmp_path):
    folder = tmp_path / "out"
    job = CorpusJob([str(source)], folder, CorpusOptions(shard_rows=8), note=print)
    with job:
        assert "no row was embedded" in job.interrupt()
        job.run(Engine())
    job = CorpusJob([str(source)], folder, CorpusOptions(shard_rows=8), note=print)
    with job:
        assert "no row was added to what is there" in job.interrupt()
