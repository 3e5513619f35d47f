"""Rows are counted and cut by position, before anything is parsed."""

from __future__ import annotations

import pyarrow as pa
import pytest
from input_files import COMPRESSIONS, FORMATS, plan_of, put, read

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.records import Segment, Unit
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.corpus.source.plan import Plan


def refusal(*paths, **options):
    with pytest.raises(InputError) as caught:
        plan_of(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_units_span_files_and_only_the_last_is_short(tmp_path, format):
    sizes = [3, 0, 8, 1, 5]
    paths = [
        put(tmp_path, format, [f"{number}.{row}" for row in range(rows)], name=f"f{number}")
        for number, rows in enumerate(sizes)
    ]
    plan = plan_of(*paths, shard_rows=4)
    assert plan.rows == sum(sizes)
    assert [unit.number for unit in plan.units] == list(range(5))
    assert [unit.first_row for unit in plan.units] == [0, 4, 8, 12, 16]
    assert [unit.rows for unit in plan.units] == [4, 4, 4, 4, 1]
    places = [[(s.file, s.first_row, s.rows) for s in unit.segments] for unit in plan.units]
    assert places == [
        [(0, 0, 3), (2, 0, 1)],
        [(2, 1, 4)],
        [(2, 5, 3), (3, 0, 1)],
        [(4, 0, 4)],
        [(4, 4, 1)],
    ]


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.txt", "", 0),
        ("a.txt", "\ufeff", 0),
        ("a.txt", "\n", 1),
        ("a.txt", "\ufeff\n\n", 2),
        ("a.txt", "a\n\nb", 3),
        ("a.txt", "a\r\n\r\n", 2),
        ("a.jsonl", "\ufeff \n\t\n", 0),
        ("a.jsonl", "{}\n\n{}\n\n \r\n", 3),
        ("a.jsonl", "broken\n{}", 2),
        ("a.csv", "text", 0),
        ("a.csv", "\ufefftext\n\n\n", 0),
        ("a.csv", "text\na\n\nb\n\n", 3),
        ("a.csv", 'text\r\n"a\r\n\r\nb"\r\n\r\n', 1),
        ("a.csv", 'text\n"a"x\n"b\n\n"\n""\n', 3),
        ("a.csv", '"te""xt","\n\ntext"\n1,2\n', 1),
    ],
)
def test_rows_are_counted_as_they_are_read(tmp_path, name, data, rows):
    path = write(tmp_path, name, data)
    column = "\n\ntext" if "te" in data and '""xt' in data else None
    if rows == 0:
        assert "no rows" in refusal(path, column=column)
    else:
        assert plan_of(path, column=column).rows == rows


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_offsets_and_lines_say_where_rows_begin(tmp_path, format, how):
    if format in ("parquet", "arrow", "stream"):
        segment = plan_of(put(tmp_path, format, ["a"] * 9, how), shard_rows=4).units[1].segments[0]
        assert (segment.offset, segment.line) == (None, None)
        return
    texts = ["a", "ü" * 70_000, "c,d", "", "f"] * 4
    plan = plan_of(put(tmp_path, format, texts, how), shard_rows=7)
    data = put(tmp_path, format, texts).read_bytes()
    first = 1 if format == "csv" else 0
    for unit in plan.units:
        (segment,) = unit.segments
        assert segment.line == segment.first_row + 1 + first
        assert data[: segment.offset].count(b"\n") == segment.first_row + first
        assert segment.offset == 0 or data[segment.offset - 1 : segment.offset] == b"\n"


def test_broken_rows_are_counted_and_not_looked_at(tmp_path):
    data = b'{"text": "a"}\n\xff\xfe not JSON\n\n[1, 2]\n{"text": "b"}\n'
    assert plan_of(write(tmp_path, "a.jsonl", data)).rows == 5


def test_the_schema_has_the_id_and_then_what_is_kept(tmp_path):
    path = put(tmp_path, "parquet", ["a"])
    schema = plan_of(path, id_column="id", keep=["more", "text"]).schema
    assert schema == pa.schema(
        [pa.field("id", "string", nullable=False), ("more", "int32"), ("text", "string")]
    )
    assert plan_of(path).schema == pa.schema([pa.field("id", "int64", nullable=False)])
    assert plan_of(path, id_column="more", nulls=True).schema == pa.schema([("id", "int32")])
    kept = plan_of(put(tmp_path, "jsonl", ["a"]), keep=["more"]).schema
    assert kept.field("more").type == pa.string()


def test_types_must_agree_among_files(tmp_path):
    one, two = put(tmp_path, "parquet", ["a"]), put(tmp_path, "csv", ["a"])
    assert refusal(one, two, keep=["more"]) == (
        f"{two}: column 'more' has the type string, in {one} it has int32"
    )
    assert plan_of(one, two, id_column="id").rows == 2


def test_missing_columns_are_named(tmp_path):
    text, lines = put(tmp_path, "txt", ["a"]), put(tmp_path, "csv", ["a"])
    assert "--id-column id can not be found in it" in refusal(text, id_column="id")
    assert "--keep x can not be found in it" in refusal(text, keep=["x"])
    assert "no column 'x'; the columns are 'more', 'text', 'id'" in refusal(lines, keep=["x"])
    for format in ("parquet", "arrow"):
        path = put(tmp_path, format, ["a"])
        assert "no column 'x'" in refusal(path, keep=["x"])
        assert "no column 'y'" in refusal(path, column="y")
        assert "column 'more' has the type int32, expected a string" in refusal(path, column="more")
    twice = write(tmp_path, "b.csv", "text,text\n1,2\n")
    assert "2 columns are named 'text'" in refusal(twice)
    assert "no column 'text'; the columns are none" in refusal(write(tmp_path, "c.csv", "\ntext\n"))


@pytest.mark.parametrize("how", COMPRESSIONS[1:])
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_compressed_file_is_refused(tmp_path, format, how):
    path = put(tmp_path, format, [f"{number} {number**7}" for number in range(20_000)], how)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}" in refusal(path)


@pytest.mark.parametrize("format", ["parquet", "arrow", "stream"])
def test_what_is_not_of_its_format_is_refused(tmp_path, format):
    path = put(tmp_path, format, ["a"])
    for data in (b"", b"text\n", path.read_bytes()[:50]):
        path.write_bytes(data)
        assert f"{path}: not a readable " in refusal(path)


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "a.csv", 'text\na\n"b\nc\n')
    assert f"{path}, from line 3 on: a quoted field" in refusal(path)


def test_a_saved_plan_comes_back(tmp_path):
    paths = [put(tmp_path, format, ["a"] * 12) for format in ("jsonl", "csv", "parquet")]
    plan = plan_of(*paths, id_column="id")
    plan.save(tmp_path / "plan")
    again = Plan.load(tmp_path / "plan")
    assert again == plan
    assert again.digest == plan.digest
    assert read(again) == read(plan)
    assert plan_of(*paths, id_column="id", shard_rows=6).digest != plan.digest


def test_a_damaged_plan_is_refused(tmp_path):
    path = tmp_path / "plan"
    plan_of(put(tmp_path, "txt", ["a"] * 50)).save(path)
    whole = path.read_bytes()
    damaged = [b"", b"x", whole[:-1], whole[:-9], whole[: len(whole) // 2], whole + b"\0"]
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 4
        damaged.append(bytes(changed))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(OutputError, match="is damaged"):
            Plan.load(path)
    path.unlink()
    with pytest.raises(OutputError, match="is damaged"):
        Plan.load(path)


def test_a_hundred_thousand_units_of_ten_thousand_files_are_saved_and_loaded(tmp_path):
    files = tuple(
        InputFile(f"corpus/{number:05}.jsonl.zst", "jsonl", "zstd", 10**9, number, "0" * 32)
        for number in range(10_000)
    )
    units = tuple(
        Unit(n, n * 10_000, (Segment(n // 10, n % 10 * 10_000, 10_000, n * 977, n),))
        for n in range(100_000)
    )
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False)])
    plan = Plan(files, units, "text", None, (), schema)
    plan.save(tmp_path / "plan")
    assert (tmp_path / "plan").stat().st_size < 4_000_000  # some tens of bytes a unit
    assert Plan.load(tmp_path / "plan") == plan
    assert plan.rows == 10**9
