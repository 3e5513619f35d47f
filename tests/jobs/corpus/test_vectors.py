"""A folder of shards, and what was merged from it, are searched as a single file is."""

from __future__ import annotations

import numpy as np
import pytest
from made_shards import DIMENSION, vectors, write_job

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.folder.merge import merge_job
from c2v_engine.jobs.search import EmbeddingIndex
from c2v_engine.jobs.vectors import open_vectors


def check_rows(found, rows):
    assert (found.rows, found.columns, found.dtype) == (len(rows), DIMENSION, np.float32)
    assert found.about == {"model": "m"}
    blocks = list(found.blocks(7))
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(b) for _, b in blocks)]))[:-1]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), vectors(rows))
    wanted = [len(rows) - 1, 0, 17, 0, 21]
    assert found.ids(wanted) == [f"id{rows[row]}" for row in wanted]


@pytest.mark.parametrize("format", ["parquet", "arrow", "safetensors", "npy"])
def test_a_folder_is_read_shard_after_shard(tmp_path, format):
    bad = (0, 19, *range(20, 40), 49)
    write_job(tmp_path, rows=90, format=format, bad=bad, on_error="skip")
    check_rows(open_vectors(tmp_path), [row for row in range(90) if row not in bad])


@pytest.mark.parametrize("format", ["parquet", "arrow", "safetensors", "npy"])
def test_a_merged_file_is_read_with_its_ids(tmp_path, format):
    write_job(tmp_path / "out")
    merge_job(tmp_path / "out", tmp_path / f"all.{format}")
    check_rows(open_vectors(tmp_path / f"all.{format}"), range(50))


def test_a_row_finds_itself_in_a_folder(tmp_path):
    write_job(tmp_path, rows=300, size=32)
    index = EmbeddingIndex.open(tmp_path)
    found = index.search(vectors([3, 70, 299]), k=2)
    assert found.rows[:, 0].tolist() == [3, 70, 299]
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-6)  # float32, unit length
    assert index.ids(found.rows[:, 0]) == ["id3", "id70", "id299"]


def test_an_index_of_a_folder_knows_its_ids_until_the_job_is_another(tmp_path):
    pytest.importorskip("usearch")
    from c2v_engine.jobs.approximate import IndexJob

    write_job(tmp_path / "out", rows=300, size=32)
    with IndexJob(tmp_path / "out", tmp_path / "o.usearch") as job:
        job.run()
    index = EmbeddingIndex.open(tmp_path / "o.usearch")
    assert index.ids(index.search(vectors([70]), k=1).rows[0]) == ["id70"]
    with (tmp_path / "out" / "manifest.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"the file with its ids, .*out, has changed"):
        EmbeddingIndex.open(tmp_path / "o.usearch").ids([0])


def test_folders_that_can_not_be_searched_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no job"):
        open_vectors(tmp_path)
    write_job(tmp_path / "half", rows=90, units=2)
    with pytest.raises(InputError, match="is not finished"):
        open_vectors(tmp_path / "half")
    write_job(tmp_path / "null", bad=(23,), on_error="null")
    with pytest.raises(InputError, match=r"part-000001.parquet: row 24 has no embedding"):
        list(open_vectors(tmp_path / "null").blocks(10))


def test_a_shard_of_another_size_is_named(tmp_path):
    write_job(tmp_path / "a", rows=30, size=10)
    write_job(tmp_path / "b", rows=30, size=15)
    (tmp_path / "a" / "part-000001.parquet").write_bytes(
        (tmp_path / "b" / "part-000001.parquet").read_bytes()
    )
    found = open_vectors(tmp_path / "a")
    with pytest.raises(InputError, match="holds 15 rows of 6 float32, expected 10 of 6 float32"):
        list(found.blocks(10))
