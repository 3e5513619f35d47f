"""Whose a folder is: the same job goes on, any other is told what differs, nothing else is hurt."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from made_shards import write_job

from c2v_engine.errors import ConfigError, OutputError
from c2v_engine.jobs.corpus.folder.identity import begin_anew, claim, prepare_folder, read_job
from c2v_engine.jobs.corpus.folder.locking import locked

JOB = {"prompt_name": "query", "precision": "float32", "keep": ("a", "b"), "fingerprint": "f"}


def test_a_job_begins_once_and_goes_on(tmp_path):
    assert prepare_folder(tmp_path / "a" / "out") is False
    with locked(tmp_path / "a" / "out"):
        assert prepare_folder(tmp_path / "a" / "out") is False
        assert claim(tmp_path / "a" / "out", JOB, {"torch": "2"}) is False
    before = (tmp_path / "a" / "out" / "job.json").read_bytes()
    assert prepare_folder(tmp_path / "a" / "out") is True
    assert claim(tmp_path / "a" / "out", dict(reversed(JOB.items())), {"torch": "3"}) is True
    assert (tmp_path / "a" / "out" / "job.json").read_bytes() == before
    assert read_job(tmp_path / "a" / "out") == {**JOB, "keep": ["a", "b"]}
    assert json.loads(before)["versions"] == {"torch": "2"}


def test_every_difference_is_named(tmp_path):
    claim(tmp_path, JOB, {})
    other = {**JOB, "prompt_name": "document", "keep": ("a",), "new": 1}
    del other["fingerprint"]
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path, other, {})
    assert str(caught.value) == (
        f"{tmp_path}: prompt_name is 'document', the job there has 'query'; "
        "keep is ['a'], the job there has ['a', 'b']; new is 1, the job there has none; "
        "fingerprint is not given, the job there has 'f': "
        "choose another folder, or --overwrite to begin anew"
    )


def test_a_job_that_stopped_at_a_bad_row_goes_on_without_it_and_never_back(tmp_path):
    stops, skips = {**JOB, "on_error": "fail"}, {**JOB, "on_error": "skip"}
    claim(tmp_path, stops, {"torch": "2"})
    with pytest.raises(ConfigError, match="precision is 'int8'"):
        claim(tmp_path, {**skips, "precision": "int8"}, {})
    with pytest.raises(ConfigError, match="on_error is 'null', the job there has 'fail'"):
        claim(tmp_path, {**JOB, "on_error": "null"}, {})
    assert read_job(tmp_path)["on_error"] == "fail"
    assert claim(tmp_path, skips, {"torch": "3"}) is True
    assert read_job(tmp_path) == {**skips, "keep": ["a", "b"]}
    assert json.loads((tmp_path / "job.json").read_text())["versions"] == {"torch": "2"}
    with pytest.raises(ConfigError, match="on_error is 'fail', the job there has 'skip'"):
        claim(tmp_path, stops, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"job": {}, "format_version": 9}', "is of format version 9, this release reads 1"),
        (None, "was changed since the job wrote it"),
    ],
)
def test_a_damaged_job_is_refused(tmp_path, text, reason):
    claim(tmp_path, JOB, {})
    path = tmp_path / "job.json"
    path.write_text(path.read_text().replace("query", "document") if text is None else text)
    with pytest.raises(OutputError, match=f"job.json: .*{reason}"):
        claim(tmp_path, {**JOB, "prompt_name": "document"}, {})


def test_a_folder_without_a_job_is_named(tmp_path):
    with pytest.raises(OutputError, match="holds no job"):
        read_job(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "part-000000.parquet", "data"])
def test_a_folder_of_other_things_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=rf"is not empty and holds no job \({name}\)"):
        prepare_folder(tmp_path)


def test_what_a_job_leaves_that_never_began_is_in_nobodys_way(tmp_path):
    for name in (".lock", "plan.json.zst", ".job.json.123.0a1b2c3d.tmp"):
        (tmp_path / name).touch()
    assert prepare_folder(tmp_path) is False


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        prepare_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="can not be written: Not a directory"):
        prepare_folder(tmp_path / "out" / "in")


def test_a_read_only_folder_is_refused(tmp_path):
    """For root, too: by a file system that is mounted so."""
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        os.chmod(tmp_path, 0o555)
        if os.access(tmp_path, os.W_OK):
            pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OutputError, match=r"can not be written: (Read-only|Permission)"):
            prepare_folder(tmp_path)
        with pytest.raises(OutputError, match=r"can not be written: (Read-only|Permission)"):
            prepare_folder(tmp_path / "out")
    finally:
        subprocess.run(["umount", str(tmp_path)], capture_output=True)


def test_beginning_anew_removes_the_job_and_nothing_else(tmp_path):
    write_job(tmp_path, format="npy")
    theirs = ["notes.txt", "part-1.parquet", "models"]
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    (tmp_path / "rejected.jsonl").touch()
    with locked(tmp_path):
        begin_anew(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([*theirs, ".lock"])


def test_beginning_anew_that_is_stopped_leaves_a_job_that_has_done_nothing(tmp_path, monkeypatch):
    records = write_job(tmp_path)
    real, removed = os.unlink, []

    def unlink(path):
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(os.path.basename(path))
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        begin_anew(tmp_path)
    assert removed[0] == "manifest.jsonl"
    assert (tmp_path / "job.json").exists()
    assert len(os.listdir(tmp_path)) == len(records)
