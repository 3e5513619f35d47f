"""A job's folder from start to start: what it goes on with, what it refuses, what it leaves."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from fake_engine import FakeEngine

from c2v_engine.errors import ConfigError, InputError, OutputError
from c2v_engine.jobs.corpus import job as job_module
from c2v_engine.jobs.corpus.folder.verify import verify_job
from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions
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


class TestChangedInput:
    """A file that was mended, or replaced, since the job began."""

    @pytest.fixture
    def begun(self, source, tmp_path):
        """A job over two files that is done but for the second one's last row."""
        other = tmp_path / "other.jsonl"
        lines = [json.dumps({"text": f"more {row}"}) for row in range(ROWS)]
        other.write_text("\n".join([*lines[:-1], "broken"]) + "\n")
        folder = tmp_path / "out"
        self.files = [str(source), str(other)]
        with pytest.raises(InputError, match="line 40: broken JSON"):
            self.run(folder)
        other.write_text("\n".join(lines) + "\n")
        return folder

    def run(self, folder, **options):
        options = CorpusOptions(shard_rows=12, **options)
        notes = []
        with CorpusJob(self.files, folder, options, note=notes.append) as job:
            job.run(Engine())
        return notes

    def test_is_refused_by_what_differs(self, begun):
        with pytest.raises(InputError, match=r"other.jsonl: has .* bytes, .*--redo-changed"):
            self.run(begun)

    def test_has_its_units_done_again_alone(self, begun, tmp_path):
        before = (begun / "part-000000.parquet").stat().st_mtime_ns
        notes = self.run(begun, redo_changed=True)
        # Units 3 to 5 hold rows 36 to 71: the second file begins at row 40.
        assert notes == [f"{self.files[1]}: changed, 3 units are done again"]
        assert (begun / "part-000000.parquet").stat().st_mtime_ns == before
        assert not verify_job(begun).problems
        whole = tmp_path / "whole"
        self.run(whole)
        assert shards(begun) == shards(whole)
        for name in shards(whole):
            assert (begun / name).read_bytes() == (whole / name).read_bytes()
        assert self.run(begun) == []

    def test_must_have_as_many_rows(self, begun):
        with open(self.files[1], "a") as file:
            file.write(json.dumps({"text": "one more"}) + "\n")
        with pytest.raises(InputError, match=r"other.jsonl: has other rows or columns"):
            self.run(begun, redo_changed=True)

    @pytest.mark.parametrize("name", ["save", "claim"])
    def test_may_be_taken_up_after_a_stop_at_any_step(self, begun, monkeypatch, name):
        with monkeypatch.context() as patched:
            if name == "save":
                patched.setattr(
                    job_module.Plan, "save", lambda *_: (_ for _ in ()).throw(KillError)
                )
            else:
                claims = iter([job_module.claim])
                patched.setattr(job_module, "claim", lambda *a: next(claims, _raise_kill)(*a))
            with pytest.raises(KillError):
                self.run(begun, redo_changed=True)
        self.run(begun, redo_changed=True)
        assert not verify_job(begun).problems


def _raise_kill(*arguments):
    raise KillError


def test_a_shard_that_is_removed_while_the_job_runs_is_said(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    commit = job_module.commit_shard

    def commit_and_remove(where, files):
        files = list(files)
        commit(where, files)
        if files[0][1].name == "part-000003.parquet":
            (folder / "part-000001.parquet").unlink()

    with monkeypatch.context() as patched:
        patched.setattr(job_module, "commit_shard", commit_and_remove)
        with pytest.raises(OutputError, match=r"part-000001.parquet: was removed or changed"):
            run(source, folder)
    run(source, folder)
    assert not verify_job(folder).problems


def test_bits_are_promised_on_one_kind_of_device(source, tmp_path):
    class Elsewhere(Engine):
        def info(self):
            return {**super().info(), "device": "cuda:1", "attention backend": "packed_triton"}

    folder = tmp_path / "out"
    run(source, folder, deterministic=True)
    with pytest.raises(ConfigError, match="device is 'cuda', the job there has ''"):
        run(source, folder, Elsewhere(), deterministic=True)
    other = tmp_path / "other"
    run(source, other)
    run(source, other, Elsewhere())


def test_a_kept_column_that_nothing_has_is_noted(source, tmp_path, capsys):
    run(source, tmp_path / "out", keep=("body", "bdoy"))
    assert capsys.readouterr().out == (
        f"{source}: its first rows have no 'bdoy': a null is kept for each\n"
    )
    run(source, tmp_path / "other", keep=("body",))
    assert capsys.readouterr().out == ""
