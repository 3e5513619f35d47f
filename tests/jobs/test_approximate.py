"""The graph finds what exact search finds, says whose it is, and goes with its file of ids."""

import json
import sys

import numpy as np
import pytest
from index_files import gaussian, quantize, ranges_of, write_index

from c2v_engine.errors import BackendError, InputError, OutputError
from c2v_engine.jobs.approximate import IndexJob
from c2v_engine.jobs.search import EmbeddingIndex

pytest.importorskip("usearch")


def build(source, output, **options):
    with IndexJob(source, output, **options) as job:
        return job.run()


def recall(found, exact):
    pairs = zip(found.rows, exact.rows, strict=True)
    return np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in pairs])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_nearly_all_of_the_nearest_are_found_in_2000_rows(tmp_path, precision):
    vectors, questions = gaussian(2000, 32), gaussian(100, 32, seed=1)
    stored = quantize(vectors, precision, ranges_of(vectors))
    ranges = ranges_of(vectors) if precision == "int8" else None
    ids = [f"k{i}" for i in range(2000)]
    source = write_index(tmp_path / "i.parquet", stored, precision, ids, ranges)
    rows, size = build(source, tmp_path / "i.usearch")
    assert (rows, size) == (2000, (tmp_path / "i.usearch").stat().st_size)
    index = EmbeddingIndex.open(tmp_path / "i.usearch")
    found = index.search(questions, 10)
    exact = EmbeddingIndex.open(source).search(questions, 10)
    # Building in threads varies a little: nine runs gave 0.990 to 1.
    assert recall(found, exact) > 0.96
    same = found.rows == exact.rows
    # float16 keeps 11 bits of each value.
    np.testing.assert_allclose(found.scores[same], exact.scores[same], atol=1e-3)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert index.ids(found.rows[0]) == [f"k{row}" for row in found.rows[0]]
    assert index.about["fingerprint"] == "f"
    assert index.rows == 2000


def test_k_beyond_the_rows_and_a_wrong_dimension(tmp_path):
    source = write_index(tmp_path / "i.npy", gaussian(5, 8))
    build(source, tmp_path / "i.usearch")
    index = EmbeddingIndex.open(tmp_path / "i.usearch")
    assert sorted(index.search(gaussian(1, 8), 50).rows[0]) == [0, 1, 2, 3, 4]
    assert index.ids([4]) == [4]
    assert index.truncate_dim(16) == 8
    with pytest.raises(InputError, match="embeddings of 8 dimensions, the question's vector has 9"):
        index.search(gaussian(1, 9))


def test_the_files_may_move_together_but_not_change(tmp_path):
    (tmp_path / "a").mkdir()
    source = write_index(tmp_path / "a" / "i.parquet", gaussian(50, 8))
    build(source, tmp_path / "a" / "i.usearch")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = tmp_path / "b" / "i.usearch"
    assert EmbeddingIndex.open(moved).ids([3]) == [3]
    write_index(tmp_path / "b" / "i.parquet", gaussian(50, 8, seed=1))
    with pytest.raises(InputError, match=r"i\.parquet, has changed: .* run c2v index again"):
        EmbeddingIndex.open(moved).ids([3])
    (tmp_path / "b" / "i.parquet").unlink()
    with pytest.raises(InputError, match=r"i\.parquet, is gone"):
        EmbeddingIndex.open(moved).ids([3])


def test_ids_are_found_where_the_index_is_reached_by_a_link(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    source = write_index(tmp_path / "a" / "i.parquet", gaussian(50, 8))
    build(source, tmp_path / "a" / "b" / "i.usearch")
    (tmp_path / "i.usearch").symlink_to(tmp_path / "a" / "b" / "i.usearch")
    (tmp_path / "i.usearch.json").symlink_to(tmp_path / "a" / "b" / "i.usearch.json")
    (tmp_path / "linked").symlink_to(tmp_path / "a" / "b")
    for name in ("i.usearch", "linked/i.usearch"):
        assert EmbeddingIndex.open(tmp_path / name).ids([3]) == [3]


def test_a_graph_that_has_changed_is_not_even_mapped(tmp_path, monkeypatch):
    path = tmp_path / "i.usearch"
    build(write_index(tmp_path / "i.npy", gaussian(200, 8)), path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    def mapped(*arguments, **options):
        raise AssertionError("mapped")

    monkeypatch.setattr("usearch.index.Index.restore", mapped)
    with pytest.raises(InputError, match=r"does not fit i\.usearch\.json: run c2v index again"):
        EmbeddingIndex.open(path)


def test_an_index_that_exists_is_kept_unless_replaced(tmp_path):
    source = write_index(tmp_path / "i.npy", gaussian(50, 8))
    build(source, tmp_path / "i.usearch")
    with pytest.raises(OutputError, match="exists already"):
        IndexJob(source, tmp_path / "i.usearch")
    write_index(source, gaussian(60, 8))
    assert build(source, tmp_path / "i.usearch", overwrite=True)[0] == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "i.npy",
        "i.usearch",
        "i.usearch.json",
    ]


def test_a_damaged_source_leaves_nothing(tmp_path):
    vectors = gaussian(50, 8)
    vectors[30] = np.nan
    source = write_index(tmp_path / "i.npy", vectors)
    with pytest.raises(InputError, match="row 31"):
        build(source, tmp_path / "i.usearch")
    assert [path.name for path in tmp_path.iterdir()] == ["i.npy"]


def test_what_can_not_be_indexed_is_refused(tmp_path):
    bits = write_index(tmp_path / "b.parquet", quantize(gaussian(9, 8), "ubinary"), "ubinary")
    with pytest.raises(InputError, match="ubinary embeddings are not indexed"):
        IndexJob(bits, tmp_path / "i.usearch")
    levels = quantize(gaussian(9, 8), "int8", ranges_of(gaussian(9, 8)))
    with pytest.raises(InputError, match=r"holds no ranges.*embed to \.parquet"):
        IndexJob(
            write_index(tmp_path / "l.npy", levels, "int8"),
            tmp_path / "i.usearch",
            precision="int8",
        )
    with pytest.raises(InputError, match="no rows"):
        IndexJob(write_index(tmp_path / "e.npy", gaussian(0, 8)), tmp_path / "i.usearch")
    with pytest.raises(OutputError, match=r"ends in \.usearch"):
        IndexJob(bits, tmp_path / "i.faiss")
    assert not list(tmp_path.glob("*i.usearch*"))


@pytest.mark.parametrize("kind", ["cut", "empty", "no json", "broken json", "json of another"])
def test_damaged_indexes_are_refused(tmp_path, kind):
    path = tmp_path / "i.usearch"
    build(write_index(tmp_path / "i.npy", gaussian(200, 8)), path)
    beside = tmp_path / "i.usearch.json"
    if kind in ("cut", "empty"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind == "cut" else b"")
    elif kind == "no json":
        beside.unlink()
    elif kind == "broken json":
        beside.write_text(json.dumps({"format_version": 1}))
    else:
        build(write_index(tmp_path / "j.npy", gaussian(200, 8, seed=1)), tmp_path / "j.usearch")
        beside.write_bytes((tmp_path / "j.usearch.json").read_bytes())
    with pytest.raises(InputError, match=r"i\.usearch"):
        EmbeddingIndex.open(path)


def test_without_usearch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    source = write_index(tmp_path / "i.npy", gaussian(5, 8))
    with pytest.raises(BackendError, match=r"pip install 'c2v-engine\[ann\]'"):
        IndexJob(source, tmp_path / "i.usearch")
