"""Exact search: every precision, any size, and one clear line for what can not be searched."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_files import PRECISIONS, gaussian, quantize, ranges_of, write_index

from c2v_engine.errors import InputError
from c2v_engine.jobs import search
from c2v_engine.jobs.search import EmbeddingIndex


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_full_sort(questions, rows, k):
    scores = unit(questions.astype(np.float64)) @ unit(rows.astype(np.float64)).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def decoded(stored, precision, dimension, ranges):
    """What the stored rows mean, by the table of docs/search.md."""
    if precision in ("int8", "uint8"):
        levels = stored.astype(np.float64) + (128 if precision == "int8" else 0)
        return ranges[0] + (levels + 0.5) * (ranges[1] - ranges[0]) / 255
    if precision in ("binary", "ubinary"):
        packed = (stored.astype(np.int16) + (128 if precision == "binary" else 0)).astype(np.uint8)
        return np.unpackbits(packed, axis=1)[:, :dimension] * 2.0 - 1.0
    return stored


@pytest.mark.parametrize("extension", [".parquet", ".npy"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_ranked_by_cosine(tmp_path, monkeypatch, precision, extension):
    monkeypatch.setattr(search, "_BLOCK_VALUES", 20 * 37)  # blocks of 37 rows
    vectors, questions = gaussian(500, 20), gaussian(7, 20, seed=1)
    ranges = ranges_of(vectors)
    stored = quantize(vectors, precision, ranges)
    path = write_index(tmp_path / f"i{extension}", stored, precision, ranges=ranges)
    known = extension == ".parquet" or precision.startswith("float")
    index = EmbeddingIndex.open(path, None if known else precision)
    if extension == ".npy":
        index.ranges = ranges
    found = index.search(questions, 11)
    scores, rows = by_full_sort(questions, decoded(stored, precision, 20, ranges), 11)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)  # float32 sums of 20
    if precision not in ("binary", "ubinary"):  # signs alone give equal scores
        np.testing.assert_array_equal(found.rows, rows)
    assert (found.scores.dtype, found.rows.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_levels_rank_nearly_as_the_floats_they_stand_for(tmp_path, precision):
    vectors = unit(gaussian(300, 64))
    vectors[:, 5] = 0.25  # a dimension that never varies has a step of its own
    stored = quantize(vectors, precision, ranges_of(vectors))
    path = write_index(tmp_path / "i.parquet", stored, precision, ranges=ranges_of(vectors))
    found = EmbeddingIndex.open(path).search(vectors, 1)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(300))
    assert found.scores.min() > 0.9999  # half a step of about 0.003 in each of 64 dimensions


@pytest.mark.parametrize("extension", [".parquet", ".npy"])
@pytest.mark.parametrize(("rows", "k"), [(0, 3), (1, 3), (5, 9), (5, 5), (5, 1)])
def test_few_rows_and_large_k(tmp_path, extension, rows, k):
    vectors = gaussian(rows, 6)
    index = EmbeddingIndex.open(write_index(tmp_path / f"i{extension}", vectors))
    found = index.search(gaussian(2, 6, seed=1), k)
    assert found.rows.shape == found.scores.shape == (2, min(rows, k))
    np.testing.assert_array_equal(found.rows, by_full_sort(gaussian(2, 6, seed=1), vectors, k)[1])
    assert index.search(np.empty((0, 6), np.float32), k).rows.shape == (0, min(rows, k))


def test_more_questions_than_share_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_QUESTIONS", 4)
    vectors, questions = gaussian(50, 6), gaussian(11, 6, seed=1)
    found = EmbeddingIndex.open(write_index(tmp_path / "i.npy", vectors)).search(questions, 3)
    np.testing.assert_array_equal(found.rows, by_full_sort(questions, vectors, 3)[1])


def test_rows_are_scaled_and_a_row_of_zeros_scores_zero(tmp_path):
    vectors = np.array([[100, 0], [0, 0], [0.5, 0.5]], dtype=np.float32)
    index = EmbeddingIndex.open(write_index(tmp_path / "i.npy", vectors))
    found = index.search(np.array([0.0, 9.0], dtype=np.float32), 3)
    assert found.rows.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(found.scores, [[2**-0.5, 0, 0]], atol=1e-7)


def test_rows_of_any_magnitude_have_their_cosines(tmp_path):
    directions = gaussian(4, 8)
    sizes = np.array([1e20, 1e-14, 1e-30, 3e37], dtype=np.float32)
    index = EmbeddingIndex.open(write_index(tmp_path / "i.npy", directions * sizes[:, None]))
    for size in (1.0, 1e20, 1e-20):
        found = index.search(directions * np.float32(size), 4)
        scores, rows = by_full_sort(directions, directions, 4)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)  # float32 sums of 8


def test_ids_come_from_the_row_groups_that_hold_them(tmp_path):
    vectors = gaussian(100, 4)
    path = tmp_path / "i.parquet"
    write_index(path, vectors, ids=[f"k{i}" for i in range(100)])
    pq.write_table(pq.read_table(path), tmp_path / "small.parquet", row_group_size=7)
    for name in ("i.parquet", "small.parquet"):
        index = EmbeddingIndex.open(tmp_path / name)
        assert index.ids([99, 0, 7, 7]) == ["k99", "k0", "k7", "k7"]
        found = index.search(vectors[42], 1)
        assert index.ids(found.rows[0]) == ["k42"]


@pytest.mark.parametrize("extension", [".parquet", ".npy"])
def test_rows_that_there_are_not_have_no_ids(tmp_path, extension):
    index = EmbeddingIndex.open(write_index(tmp_path / f"i{extension}", gaussian(5, 4)))
    for row in (-1, 5):
        with pytest.raises(InputError, match=f"has no row {row}, expected 0 to 4"):
            index.ids([0, row])


def test_the_index_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_BLOCK_VALUES", 64 * 256)
    path = write_index(tmp_path / "i.npy", gaussian(20_000, 64).astype(np.float16), "float16")
    index = EmbeddingIndex.open(path)
    tracemalloc.start()
    try:
        index.search(gaussian(2, 64, seed=1), 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # in float32 the index has 5 MB


@pytest.mark.parametrize(
    ("vectors", "k", "reason"),
    [
        (np.ones((2, 5), np.float32), 3, "holds embeddings of 4 dimensions, the question's"),
        (np.ones((2, 4), np.int8), 3, "vectors are int8 of shape [2, 4]"),
        (np.ones((1, 2, 4), np.float32), 3, "of shape [1, 2, 4]"),
        (np.ones(4, np.float32), 0, "k is 0"),
        (np.ones(4, np.float32), True, "k is True"),
        (np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]]), 1, "vector 1 holds values that are not"),
    ],
)
def test_what_can_not_be_asked_is_refused(tmp_path, vectors, k, reason):
    index = EmbeddingIndex.open(write_index(tmp_path / "i.npy", gaussian(3, 4)))
    with pytest.raises(InputError) as caught:
        index.search(vectors, k)
    assert reason in str(caught.value)


def test_packed_bits_take_dimensions_that_fill_their_bytes(tmp_path):
    path = write_index(tmp_path / "i.parquet", quantize(gaussian(9, 13), "ubinary"), "ubinary")
    index = EmbeddingIndex.open(path)
    assert index.search(gaussian(1, 13), 1).rows.tolist() == [[0]]
    with pytest.raises(InputError, match="2 bytes of packed bits, the question's vector has 17"):
        index.search(gaussian(1, 17), 1)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_truncated_bits_without_metadata_are_searched_only_where_their_dimension_is_said(
    tmp_path, precision
):
    vectors = gaussian(60, 12)
    path = write_index(tmp_path / "i.npy", quantize(vectors, precision), precision)
    assert EmbeddingIndex.open(path, precision).truncate_dim(12) is None
    with pytest.raises(InputError, match=r"2 bytes .* model has 32 .* --truncate-dim, of 9 to 16"):
        EmbeddingIndex.open(path, precision).truncate_dim(32)
    for wrong in (8, 17):
        with pytest.raises(InputError, match=f"truncate_dim {wrong} is asked for, .* it holds 2"):
            EmbeddingIndex.open(path, precision, wrong)
    index = EmbeddingIndex.open(path, precision, 12)
    assert index.truncate_dim(32) == 12
    scores, _ = by_full_sort(vectors[:5], np.where(vectors > 0, 1.0, -1.0), 3)
    np.testing.assert_allclose(index.search(vectors[:5], 3).scores, scores, rtol=0, atol=1e-6)
    with pytest.raises(
        InputError, match="embeddings of 12 dimensions, the question's vector has 16"
    ):
        index.search(gaussian(1, 16))


def test_a_truncate_dim_against_the_file_s_own_is_refused(tmp_path):
    path = write_index(tmp_path / "i.parquet", gaussian(9, 4), truncate_dim=4)
    assert EmbeddingIndex.open(path, truncate_dim=4).truncate_dim(8) == 4
    with pytest.raises(InputError, match="states truncate_dim 4, not 3: leave --truncate-dim out"):
        EmbeddingIndex.open(path, truncate_dim=3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path, monkeypatch, value):
    monkeypatch.setattr(search, "_BLOCK_VALUES", 4 * 10)
    vectors = gaussian(30, 4)
    vectors[17, 2] = value
    index = EmbeddingIndex.open(write_index(tmp_path / "i.parquet", vectors))
    with pytest.raises(InputError, match=r"i\.parquet, row 18: the embedding holds values"):
        index.search(gaussian(1, 4))


def test_levels_without_ranges_and_bytes_without_a_meaning_are_refused(tmp_path):
    stored = quantize(gaussian(9, 4), "int8", ranges_of(gaussian(9, 4)))
    npy, parquet = tmp_path / "i.npy", tmp_path / "i.parquet"
    write_index(npy, stored, "int8")
    write_index(parquet, stored, "int8")
    with pytest.raises(InputError, match="pass --precision int8 or --precision binary"):
        EmbeddingIndex.open(npy)
    with pytest.raises(InputError, match="precision uint8 is asked for, but its embeddings are"):
        EmbeddingIndex.open(npy, "uint8")
    with pytest.raises(InputError, match="precision binary is asked for, but the file states int8"):
        EmbeddingIndex.open(parquet, "binary")
    with pytest.raises(InputError, match="read by their ranges, and neither"):
        EmbeddingIndex.open(parquet).search(gaussian(1, 4))
    write_index(parquet, stored, "int8", ranges=ranges_of(gaussian(9, 5)))
    with pytest.raises(InputError, match=r"the ranges have shape \[2, 5\], expected \[2, 4\]"):
        EmbeddingIndex.open(parquet).search(gaussian(1, 4))


def damage(path, kind):
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no embeddings\n")
    else:  # a byte of the embeddings
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 255]) + data[5001:])


@pytest.mark.parametrize("kind", ["cut", "empty", "text"])
@pytest.mark.parametrize("extension", [".parquet", ".npy"])
def test_damaged_files_are_refused_by_name(tmp_path, extension, kind):
    path = write_index(tmp_path / f"i{extension}", gaussian(500, 8))
    damage(path, kind)
    with pytest.raises(InputError, match=rf"i\{extension}: not a readable"):
        EmbeddingIndex.open(path).search(gaussian(1, 8))


def test_a_flipped_byte_of_a_parquet_page_is_noticed(tmp_path):
    path = write_index(tmp_path / "i.parquet", gaussian(500, 8))
    damage(path, "flip")
    with pytest.raises(InputError, match="can not be decoded"):
        EmbeddingIndex.open(path).search(gaussian(1, 8))


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    np.save(tmp_path / "flat.npy", np.ones(4, np.float32))
    np.save(tmp_path / "double.npy", np.ones((2, 4)))
    np.savez(tmp_path / "several.npz", a=np.ones((2, 4), np.float32))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "texts.parquet")
    lists = pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [1, 2], "embedding": lists}), tmp_path / "ragged.parquet")
    fixed = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    table = pa.table({"id": [1, 2], "embedding": fixed})
    pq.write_table(table, tmp_path / "null.parquet")
    metadata = {"c2v": json.dumps(["no object"])}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "about.parquet")
    for name, reason in {
        "missing.npy": "no such file",
        "folder.npy": "holds no job",
        "a.faiss": "no such file",
        "flat.npy": r"an array of shape \[4\]",
        "double.npy": "embeddings of float64, expected one of float32",
        "objects.npy": "not a readable .npy file",
        "several.npy": r"not a readable \.npy file: it is a \.npz archive",
        "texts.parquet": "the columns are text, expected id and embedding",
        "ragged.parquet": "expected lists of one fixed size",
        "null.parquet": "an embedding is null",
        "about.parquet": "key c2v",
    }.items():
        with pytest.raises(InputError, match=reason):
            EmbeddingIndex.open(tmp_path / name).search(np.ones(2, np.float32))
    (tmp_path / "a.faiss").write_text("")
    with pytest.raises(InputError, match=r"unknown extension '\.faiss'"):
        EmbeddingIndex.open(tmp_path / "a.faiss")
