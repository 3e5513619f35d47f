"""Parquet in: column types, nulls, damage, compression."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers import open_reader

TEXTS = ["one", "", "drei\nlines", "ü"]


def put(tmp_path, columns, name="a.parquet", **options):
    path = tmp_path / name
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(path, **columns):
    with open_reader(path, **columns) as reader:
        return [(record.id, record.text) for record in reader]


def refusal(path, **columns):
    with pytest.raises(InputError) as caught:
        read(path, **columns)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_string_type_is_text(tmp_path, kind):
    array = pa.array(TEXTS)
    array = (
        array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array.cast(kind)
    )
    assert read(put(tmp_path, {"text": array})) == list(enumerate(TEXTS))


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.int8(), pa.uint64(), pa.string(), pa.large_string()], ids=str
)
def test_ids_keep_their_column_s_type(tmp_path, kind):
    ids = pa.array([3, 1, 2, 1]).cast(kind)
    path = put(tmp_path, {"key": ids, "text": TEXTS})
    with open_reader(path, id_column="key") as reader:
        assert reader.id_type == kind
        assert [record.id for record in reader] == ids.to_pylist()


def test_one_column_can_be_text_and_id(tmp_path):
    path = put(tmp_path, {"text": TEXTS})
    assert read(path, id_column="text") == list(zip(TEXTS, TEXTS, strict=True))


def test_column_names_with_dots_are_names(tmp_path):
    path = put(tmp_path, {"a": [1], "a.b": ["text"]})
    assert read(path, column="a.b", id_column="a") == [(1, "text")]


def test_many_row_groups_keep_order(tmp_path):
    texts = [f"text {i}" for i in range(5000)]
    path = put(tmp_path, {"text": texts}, row_group_size=333)
    with open_reader(path) as reader:
        assert reader.rows == 5000
        assert [(record.id, record.text) for record in reader] == list(enumerate(texts))
        assert reader.fraction() == 1.0


def test_gzipped_parquet_is_read(tmp_path):
    path = put(tmp_path, {"text": TEXTS})
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == list(enumerate(TEXTS))
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    assert "broken or truncated" in refusal(packed)


def test_null_names_its_row(tmp_path):
    texts = ["x"] * 700 + [None] + ["x"]
    path = put(tmp_path, {"text": texts, "key": ["k", None] * 351})
    assert "row 701: column 'text' is null, expected a string" in refusal(path)
    assert "row 2: column 'key' is null" in refusal(path, id_column="key")


def test_null_inside_a_dictionary_names_its_row(tmp_path):
    path = put(tmp_path, {"text": pa.array(["x", None, "x"]).dictionary_encode()})
    assert "row 2: column 'text' is null" in refusal(path)


def test_invalid_utf8_names_its_row(tmp_path):
    array = pa.array([b"fine", b"x\xff"]).view(pa.string())
    assert "row 2: column 'text' is not valid UTF-8 (byte 1" in refusal(
        put(tmp_path, {"text": array})
    )


@pytest.mark.parametrize("values", [[1, 2], [b"x", b"y"], [["x"], ["y"]], [None, None]], ids=str)
def test_text_column_of_another_type_is_refused(tmp_path, values):
    path = put(tmp_path, {"text": values})
    assert "column 'text' has the type" in refusal(path)


@pytest.mark.parametrize("values", [[1.0, 2.0], [True, False], [["x"], ["y"]]], ids=str)
def test_id_column_of_another_type_is_refused(tmp_path, values):
    path = put(tmp_path, {"text": ["x", "y"], "key": values})
    assert "expected a string or integer column" in refusal(path, id_column="key")


def test_missing_column_names_those_there_are(tmp_path):
    path = put(tmp_path, {"body": ["x"], "title": ["y"]})
    assert "no column 'text'; the columns are 'body', 'title'" in refusal(path)
    assert "no column 'id'" in refusal(path, column="body", id_column="id")


def test_damaged_parquet_is_refused(tmp_path):
    texts = [f"text {i} " * 20 for i in range(3000)]
    path = put(tmp_path, {"text": texts}, write_page_checksum=True, compression="none")
    whole = path.read_bytes()
    for data in (b"", b"PAR1", b"not parquet at all", whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert "not a readable Parquet file" in refusal(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    assert "can not be decoded" in refusal(path)
