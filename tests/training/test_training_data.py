"""Rows that can not be trained on are found before anything is trained, by file and row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_pairs import pairs, write_jsonl

from c2v_engine.errors import InputError
from c2v_engine.training.config import DataConfig
from c2v_engine.training.data import read_data_set


def read(path, folder, **options):
    return read_data_set(DataConfig(str(path), **options), folder)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("negatives", [False, True])
def test_both_formats_give_the_same_columns(tmp_path, kind, negatives):
    rows = [{**row, "other": 1} for row in pairs(9, negatives)]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    data = read(path, tmp_path / "mapped")
    expected = ["query", "positive", *(["negative"] if negatives else [])]
    assert data.table.column_names == expected
    assert data.table[3] == {name: rows[3][name] for name in expected}
    assert (data.name, data.rows) == ("data", 9)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"query": "q"}, "line 3: no column 'positive'"),
        ({"query": "", "positive": "p"}, "line 3: column 'query' is empty"),
        ({"query": "q", "positive": " \n"}, "line 3: column 'positive' is empty"),
        ({"query": "q", "positive": None}, "line 3: column 'positive' is null"),
        ({"query": ["q"], "positive": "p"}, "line 3: column 'query' is list"),
        ("[1]", "line 3: the line is an array, expected a JSON object"),
        ('{"query": ', "line 3: broken JSON"),
        ('{"query": "\\ud800", "positive": "p"}', "line 3: holds a lone surrogate"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    path = write_jsonl(tmp_path / "data.jsonl", [*pairs(2), row, *pairs(2)])
    with pytest.raises(InputError, match=words) as caught:
        read(path, tmp_path)
    assert str(path) in str(caught.value)


def test_a_negative_equal_to_the_positive_is_named(tmp_path):
    rows = pairs(4, negatives=True)
    rows[2]["negative"] = "  " + rows[2]["positive"].replace(" ", "  ")
    with pytest.raises(InputError, match="line 3: the negative equals the positive"):
        read(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path)


def test_a_negative_that_only_later_rows_have_is_not_dropped(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [*pairs(1), *pairs(2, negatives=True)])
    with pytest.raises(InputError, match="line 2: has a column 'negative', which the first row"):
        read(path, tmp_path)


def test_many_bad_rows_are_counted_and_the_first_shown(tmp_path):
    rows = [{"query": "", "positive": "p"}] * 5000
    with pytest.raises(InputError, match="line 5: column 'query' is empty; and 4,995 more rows"):
        read(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path)


@pytest.mark.parametrize(("count", "words"), [(0, "holds no row"), (1, "holds one row")])
def test_too_few_rows_are_refused(tmp_path, count, words):
    with pytest.raises(InputError, match=words):
        read(write_jsonl(tmp_path / "data.jsonl", pairs(count)), tmp_path)


@pytest.mark.parametrize("column", ["query", "positive"])
def test_rows_that_are_all_alike_are_refused(tmp_path, column):
    rows = [{**row, column: "the same"} for row in pairs(4)]
    with pytest.raises(InputError, match=f"every row has the same {column}"):
        read(write_jsonl(tmp_path / "data.jsonl", rows), tmp_path)


def test_a_missing_column_names_those_there_are(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"question": "q", "positive": "p"}] * 3)
    with pytest.raises(
        InputError, match="no column 'query'; the columns are 'question', 'positive'"
    ):
        read(path, tmp_path)


@pytest.mark.parametrize("name", ["data.csv", "data.txt.gz"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=r"expected a .jsonl or .parquet file"):
        read(tmp_path / name, tmp_path)


def test_the_digest_tells_rows_and_their_order_apart(tmp_path):
    rows = pairs(6)
    digests = [
        read(write_jsonl(tmp_path / "data.jsonl", these), tmp_path / str(number)).digest
        for number, these in enumerate((rows, rows, rows[::-1], rows[:5]))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_rows_can_be_limited(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", pairs(6))
    assert read(path, tmp_path / "some", max_rows=4).rows == 4


def test_a_damaged_parquet_file_says_so(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(path, tmp_path)
