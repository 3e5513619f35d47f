"""``c2v verify`` and ``c2v merge``: what they print, and how they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from c2v_engine.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs" / "corpus"))

from made_shards import vectors, write_job


def c2v(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return caught.value.code, done.out, done.err


def test_verify_passes_a_good_folder(capsys, tmp_path):
    write_job(tmp_path, bad=(3, 4), on_error="skip")
    code, out, err = c2v(capsys, "verify", tmp_path)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["rows"] == "50 of 50"
    assert lines["written"] == "48"
    assert lines["rejected"] == "2"
    assert lines["shards"].startswith("3 of 3 (")
    assert lines["problems"] == "none"
    assert c2v(capsys, "verify", tmp_path, "--quiet") == (0, "", "")


def test_verify_names_each_problem_in_a_line(capsys, tmp_path):
    records = write_job(tmp_path, rows=90, units=4)
    (tmp_path / records[0].files[0].name).unlink()
    (tmp_path / "notes.txt").touch()
    code, out, err = c2v(capsys, "verify", tmp_path)
    assert code == 2
    note, missing, gone = err.splitlines()
    assert note == "note: 1 other files: notes.txt"
    assert missing.startswith(f"error: {tmp_path}: is not finished: 1 of 5 units are missing (4)")
    assert gone == f"error: unit 0: {tmp_path / records[0].files[0].name}: is gone"
    assert "problems  2" in out


def test_verify_names_a_folder_without_a_job(capsys, tmp_path):
    code, out, err = c2v(capsys, "verify", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}: holds no job (job.json is missing)\n"


def test_merge_joins_the_shards(capsys, tmp_path):
    write_job(tmp_path / "out")
    output = tmp_path / "all.npy"
    code, out, err = c2v(capsys, "merge", tmp_path / "out", "-o", output)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["rows    50", "shards  3"]
    assert f"{output} and {tmp_path / 'all.ids.parquet'} (" in out
    np.testing.assert_array_equal(np.load(output), vectors(range(50)))
    code, _, err = c2v(capsys, "merge", tmp_path / "out", "-o", output)
    assert code == 2
    assert "all.npy: exists already; --overwrite replaces it" in err
    assert c2v(capsys, "merge", tmp_path / "out", "-o", output, "--overwrite", "--quiet")[0] == 0


def test_merge_takes_an_unfinished_job_only_on_demand(capsys, tmp_path):
    write_job(tmp_path / "out", rows=90, units=2)
    arguments = ["merge", tmp_path / "out", "-o", tmp_path / "all.parquet"]
    code, _, err = c2v(capsys, *arguments)
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'out'}: is not finished: 3 of 5 units")
    assert os.listdir(tmp_path) == ["out"]
    code, out, _ = c2v(capsys, *arguments, "--unfinished")
    assert code == 0
    assert "shards  2 of 5: the job is not finished" in out


@pytest.mark.parametrize("source", [".", "*.jsonl", "s3://bucket/corpus.jsonl"])
def test_an_input_of_several_files_needs_a_folder(capsys, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    code, out, err = c2v(capsys, "encode", source, "-o", "out.parquet")
    assert (code, out) == (2, "")
    assert err == (
        f"error: {source}: goes with a folder as output, and out.parquet is a file's name\n"
    )


def test_a_precision_that_no_file_holds_is_refused_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    command = ("encode", tmp_path / "a.txt", "-o", tmp_path / "out", "--precision", "bfloat16")
    code, _, err = c2v(capsys, *command)
    assert code == 2
    assert err == (
        f"error: {tmp_path / 'out'}: files hold no bfloat16: write float16 or float32 instead\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_url_is_no_output(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\n")
    code, _, err = c2v(capsys, "encode", "a.txt", "-o", "s3://bucket/out")
    assert code == 2
    assert err.startswith("error: s3://bucket/out: the output is a folder of this machine's")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("arguments", [("gone.txt",), ("a.txt", "--id-column", "id")])
def test_a_job_is_not_removed_for_one_that_can_not_begin(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\n")
    write_job(tmp_path / "out")
    assert c2v(capsys, "encode", *arguments, "-o", "out", "--overwrite")[0] == 2
    assert c2v(capsys, "verify", "out")[0] == 0


def test_a_job_is_replaced_on_demand(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\nb\n")
    write_job(tmp_path / "out")
    command = ("encode", "a.txt", "-o", "out", "--precision", "float16")
    assert c2v(capsys, *command)[0] == 2
    assert c2v(capsys, *command, "--overwrite")[0] == 0
    code, out, _ = c2v(capsys, "verify", "out")
    assert (code, out.splitlines()[0].split()) == (0, ["rows", "2", "of", "2"])
