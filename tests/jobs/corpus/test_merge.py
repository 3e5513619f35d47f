"""``merge_job``: the shards' rows in one file of any format, or nothing."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest
from made_shards import DIMENSION, columns, vectors, write_job

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.folder.merge import MergeJob, merge_job
from c2v_engine.jobs.corpus.folder.shard_files import open_files
from c2v_engine.jobs.corpus.folder.shards import FORMATS


def read(output):
    """The columns and embeddings of a merged file; NaN for null."""
    paths = [output]
    if output.suffix in (".npy", ".safetensors"):
        paths.append(output.with_suffix(".ids.parquet"))
    shard = open_files(paths)
    tables, found = [], []
    for block in shard.blocks(7):
        tables.append(block.columns)
        rows = np.full((len(block.columns), DIMENSION), np.nan, np.float32)
        rows[slice(None) if block.valid is None else block.valid] = block.embeddings
        found.append(rows)
    assert shard.rows == sum(map(len, tables))
    table = pa.Table.from_batches(tables)
    assert shard.ids().to_pylist() == table["id"].to_pylist()
    about = shard.about
    shard.close()
    return table, np.concatenate(found), about


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_any_format_becomes_any_other(tmp_path, given, wanted):
    write_job(tmp_path / "out", format=given, bad=(0, 19, 21, 49), on_error="null")
    output = tmp_path / f"all.{wanted}"
    report = merge_job(tmp_path / "out", output)
    assert (report.rows, report.shards, report.units) == (50, 3, 3)
    assert sorted(path.name for path in report.files) == sorted(
        name for name in os.listdir(tmp_path) if name != "out"
    )
    assert report.size == sum(path.stat().st_size for path in report.files)
    table, found, about = read(output)
    expected = vectors(range(50))
    expected[[0, 19, 21, 49]] = np.nan
    np.testing.assert_array_equal(found, expected)
    assert table.equals(pa.Table.from_batches([columns(range(50))]))
    assert about == {"model": "m"}


def test_skipped_rows_and_empty_shards_are_no_hindrance(tmp_path):
    bad = tuple(range(20, 40))
    write_job(tmp_path / "out", format="safetensors", bad=bad, on_error="skip")
    assert merge_job(tmp_path / "out", tmp_path / "all.npy").rows == 30
    rows = [row for row in range(50) if row not in bad]
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), vectors(rows))


def test_an_unfinished_job_is_refused_unless_it_is_wanted(tmp_path):
    write_job(tmp_path / "out", rows=100, units=2)
    with pytest.raises(InputError, match=r"is not finished: 3 of 5 units are missing \(2-4\)"):
        merge_job(tmp_path / "out", tmp_path / "all.npy")
    report = merge_job(tmp_path / "out", tmp_path / "all.npy", unfinished=True)
    assert (report.rows, report.shards, report.units) == (40, 2, 5)


def test_a_job_without_a_row_is_refused(tmp_path):
    write_job(tmp_path / "out", units=0)
    with pytest.raises(InputError, match="there is nothing to merge"):
        merge_job(tmp_path / "out", tmp_path / "all.npy", unfinished=True)
    assert os.listdir(tmp_path) == ["out"]


def test_a_damaged_shard_leaves_no_output(tmp_path):
    records = write_job(tmp_path / "out")
    path = tmp_path / "out" / records[1].files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "all.parquet").write_text("old")
    with pytest.raises(InputError, match=r"part-000001.parquet: is .* bytes, .* were written"):
        merge_job(tmp_path / "out", tmp_path / "all.parquet", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["all.parquet", "out"]
    assert (tmp_path / "all.parquet").read_text() == "old"


def test_outputs_that_can_not_be_are_refused(tmp_path):
    out = tmp_path / "out"
    write_job(out)
    (tmp_path / "all.ids.parquet").touch()
    for name, reason in {
        "all.csv": "unknown extension '.csv'; known are .parquet, .arrow, .safetensors, .npy",
        "all.npy": "all.ids.parquet: exists already",
        "none/all.npy": "does not exist",
        "out/part-000001.parquet": "is the name of a file of the job",
    }.items():
        with pytest.raises(OutputError, match=reason):
            merge_job(out, tmp_path / name, overwrite=name.startswith("out"))
    with pytest.raises(OutputError, match="holds no job"):
        merge_job(tmp_path, tmp_path / "all.npy")


def test_packed_bits_have_no_null_in_an_array(tmp_path):
    write_job(tmp_path / "out", on_error="null", bad=(3,))
    job = MergeJob(tmp_path / "out", tmp_path / "all.npy")
    job._job.job["precision"] = "ubinary"
    with pytest.raises(OutputError, match="npy files hold no null"), job:
        job.run()
    assert os.listdir(tmp_path) == ["out"]
