"""Any unit gives its rows whatever was read before; bad rows are named, damage stops the job."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import (
    COMPRESSIONS,
    FORMATS,
    compress,
    content,
    plan_of,
    put,
    read,
    rejects,
    texts_of,
)

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source import csv_rows, cursor, line_rows, table_rows, tables
from c2v_engine.jobs.corpus.source.csv_rows import CsvRows
from c2v_engine.jobs.corpus.source.cursor import LineCursor
from c2v_engine.jobs.corpus.source.inputs import find_inputs
from c2v_engine.jobs.corpus.source.reading import UnitReader
from c2v_engine.jobs.readers import open_reader

TEXTS = [
    "plain",
    "",
    "ünï 三 🎉",
    'quoted "so", and so',
    "\t spaces  ",
    "\x00 \x0b \x1c \x85 \u2028 stay",
    "x" * 3000,
] * 6
NO_BREAK = st.characters(exclude_categories=["Cs"], exclude_characters="\n\r")


@pytest.fixture
def small_pieces(monkeypatch):
    """Reads, blocks and batches end in the middle of everything."""
    monkeypatch.setattr(cursor, "_CHUNK_BYTES", 5)
    monkeypatch.setattr(line_rows, "BLOCK_ROWS", 3)
    monkeypatch.setattr(tables, "_BATCH_ROWS", 3)
    monkeypatch.setattr(table_rows, "_BLOCK_BYTES", 50)


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def check_units(plan, rows):
    """All units in order, one by one, and in any order, by one reader."""
    found = read(plan)
    assert [(key, text) for _, key, text, _ in found] == rows
    by_row = {row[0]: row for row in found}
    for unit in plan.units:
        assert read(plan, [unit]) == [
            by_row[unit.first_row + number] for number in range(unit.rows)
        ]
    shuffled = random.Random(0).sample(plan.units, len(plan.units))
    assert sorted(read(plan, shuffled)) == found


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_units_are_read_alike_from_every_format(tmp_path, format, how):
    one = put(tmp_path, format, TEXTS, how, name="one")
    two = put(tmp_path, format, TEXTS[:5], how, name="two")
    expected = [*TEXTS, *TEXTS[:5]]
    plan = plan_of(one, two, shard_rows=8)
    check_units(plan, list(enumerate(expected)))
    if format != "txt":
        ids = [f"r{number}" for number in [*range(len(TEXTS)), *range(5)]]
        plan = plan_of(one, two, shard_rows=9, id_column="id")
        check_units(plan, list(zip(ids, expected, strict=True)))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("format", FORMATS)
def test_small_pieces_change_nothing(tmp_path, format):
    path = put(tmp_path, format, TEXTS)
    for shard_rows in (1, 4, 100):
        check_units(plan_of(path, shard_rows=shard_rows), list(enumerate(TEXTS)))


@pytest.mark.parametrize("format", ["txt", "jsonl", "csv", "parquet"])
def test_the_job_reads_what_a_single_file_gives(tmp_path, format):
    path = put(tmp_path, format, TEXTS)
    with open_reader(path) as reader:
        expected = [(record.id, record.text, record.line) for record in reader]
    plan = plan_of(path)
    found = [
        (key, text, None if block.lines is None else block.lines[position])
        for unit in plan.units
        for block in UnitReader(plan).read(unit)
        for position, (key, text) in enumerate(
            zip(block.columns.column("id").to_pylist(), block.texts, strict=True)
        )
    ]
    assert found == expected


@pytest.mark.parametrize("format", FORMATS)
def test_urls_are_read_like_files(format):
    system = fsspec.filesystem("memory")
    ending = {"stream": "ipc"}.get(format, format)
    system.pipe(f"/in/a.{ending}", content(format, TEXTS))
    system.pipe(f"/in/b.{ending}.zst", compress(content(format, TEXTS[:3]), "zst"))
    try:
        check_units(plan_of("memory://in"), list(enumerate([*TEXTS, *TEXTS[:3]])))
    finally:
        system.rm("/in", recursive=True)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.tuples(st.text(NO_BREAK, max_size=8), st.sampled_from(["\n", "\r\n"]))),
    last=st.text(NO_BREAK, max_size=4),
    mark=st.booleans(),
    shard_rows=st.integers(1, 6),
)
def test_lines_of_text_however_they_end(tmp_path_factory, lines, last, mark, shard_rows):
    data = "\ufeff" * mark + "".join(line + end for line, end in lines) + last
    path = write(tmp_path_factory.mktemp("txt"), "a.txt", data)
    expected = [line for line, _ in lines] + ([last] if last else [])
    if expected and not mark and expected[0].startswith("\ufeff"):
        expected[0] = expected[0][1:]  # it can not be told from a mark
        expected = [text for text in expected if text or len(data) > 1]
    if expected:
        check_units(plan_of(path, shard_rows=shard_rows), list(enumerate(expected)))


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), min_size=1),
    ends=st.sampled_from(["\n", "\r\n", " \t\n"]),
    blank=st.sampled_from(["", "\n", " \r\n\n"]),
    mark=st.booleans(),
    ascii=st.booleans(),
    shard_rows=st.integers(1, 6),
)
def test_json_lines_however_they_end(tmp_path_factory, texts, ends, blank, mark, ascii, shard_rows):
    rows = [json.dumps({"n": None, "text": text}, ensure_ascii=ascii) for text in texts]
    data = "\ufeff" * mark + ends.join(rows) + ends * bool(blank) + blank
    path = write(tmp_path_factory.mktemp("jsonl"), "a.jsonl", data)
    if any("\ud800" <= character <= "\udfff" for character in "".join(texts)):
        return  # lone surrogates have a test of their own
    check_units(plan_of(path, shard_rows=shard_rows), list(enumerate(texts)))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.text(st.sampled_from('a",\n\ré ☃'), max_size=5)] * 2), min_size=1),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    blank=st.sampled_from(["", "\n", "\r\n\n"]),
    mark=st.booleans(),
    shard_rows=st.integers(1, 6),
)
def test_csv_rows_however_they_are_quoted(
    tmp_path_factory, rows, quoting, end, blank, mark, shard_rows
):
    sink = io.StringIO(newline="")
    if quoting == csv.QUOTE_MINIMAL and end == "\n":  # the writer would leave it outside quotes
        rows = [(text.replace("\r", "x"), other.replace("\r", "x")) for text, other in rows]
    writer = csv.writer(sink, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "other"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", "\ufeff" * mark + sink.getvalue() + blank)
    plan = plan_of(path, shard_rows=shard_rows, keep=["other"])
    check_units(plan, list(enumerate(text for text, _ in rows)))
    reader = UnitReader(plan)
    others = [
        value
        for unit in plan.units
        for block in reader.read(unit)
        for value in block.columns.column("other").to_pylist()
    ]
    assert others == [other for _, other in rows]


def rows_by_module(data):
    """The rows of CSV as the csv module gives them line by line, and whether they have an end."""
    lines = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n")
    reader = csv.reader(lines, strict=True)
    rows = []
    while True:
        start = reader.line_num
        try:
            rows.append((start, next(reader)))
        except StopIteration:
            return rows, True
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return rows, False
            rows.append((start, None))


@settings(max_examples=500, deadline=None)
@given(data=st.text(st.sampled_from('"",,\n\n\ra\x00é'), max_size=40), size=st.integers(1, 9))
def test_rows_of_any_csv_begin_where_the_csv_module_says(tmp_path_factory, data, size):
    data = data.encode()
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", data)
    (file,) = find_inputs([str(path)])
    expected, whole = rows_by_module(data)
    for fields in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cursor, "_CHUNK_BYTES", size)
            lines = LineCursor(file)
            source = CsvRows(lines)
            found = []
            try:
                while (block := source.take(size, fields=fields)) is not None:
                    rows = block.rows or [None] * len(block)
                    starts = [block.lines.number + start for start in block.starts]
                    found += zip(starts, rows, strict=True)
                assert whole
            except InputError:
                assert not whole
            lines.close()
        assert [start for start, _ in found] == [start for start, _ in expected]
        if fields:
            assert [None if isinstance(row, str) else row for _, row in found] == [
                row for _, row in expected
            ]


def test_a_row_longer_than_a_chunk_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "_LONG", 1000)
    text = 'a"\n' * 700_000
    path = write(tmp_path, "a.csv", 'text\nb\n"' + text.replace('"', '""') + '"\nc\n')
    check_units(plan_of(path, shard_rows=2), [(0, "b"), (1, text), (2, "c")])
    path = write(tmp_path, "a.jsonl", json.dumps({"text": text}) + "\n" + '{"text": ""}')
    check_units(plan_of(path, shard_rows=1), [(0, text), (1, "")])


BAD_JSON = {
    b'{"text": "a"': "broken JSON: Expecting ',' delimiter at character 13",
    b'{"text": "a"} x': "broken JSON: Extra data at character 15",
    b'{"id": 1}': "no column 'text'; the columns are 'id'",
    b'{"text": null, "id": 7}': "column 'text' is null, expected a string",
    b'{"text": 3}': "column 'text' is a number, expected a string",
    b'{"text": "a"}': "no column 'id'; the columns are 'text'",
    b'{"text": "a", "id": null}': "id column 'id' is null, expected a string or integer",
    b'{"text": "a", "id": true}': "id column 'id' is a boolean, expected a string or integer",
    b'{"text": "a", "id": 1.0}': "id column 'id' is a number, expected a string or integer",
    b'["text", "a"]': "the line is an array, expected a JSON object",
    b'"text"': "the line is a string, expected a JSON object",
    b"": "a blank line, expected a JSON object",
    b" \t": "a blank line, expected a JSON object",
    b'{"text": "\xff", "id": 1}': "not valid UTF-8 (byte 42 of the file, 0xff)",
    b'{"text": "\\ud800", "id": "x"}': "column 'text' holds a lone surrogate (\\ud800), which is",
    b'{"text": "a", "id": "\\uDFFF"}': "column 'id' holds a lone surrogate (\\udfff), which is",
    b'{"text": "a", "id": 1, "k": ["\\ud800"]}': "column 'k' holds a lone surrogate (\\ud800)",
    b"[" * 100_000: "broken JSON: nested too deeply",
    b'{"text": "a", "id": ' + b"1" * 5000 + b"}": "broken JSON: a number has too many digits",
}


@pytest.mark.parametrize("row", BAD_JSON, ids=[reason[:40] for reason in BAD_JSON.values()])
def test_a_bad_json_line_is_set_aside_and_the_next_is_read(tmp_path, row):
    good = b'{"text": "one \\ud83c\\udf89", "id": 1}\n'
    path = write(tmp_path, "a.jsonl", good + row + b"\n" + good)
    start = len(good) + 10
    reason = BAD_JSON[row].replace("byte 42", f"byte {start}")
    plan = plan_of(path, id_column="id", keep=["k"])
    (reject,) = rejects(plan)
    assert (reject.row, reject.place) == (1, f"{path}, line 2")
    assert reject.reason.startswith(reason)
    found = read(plan, on_error="skip")
    assert [text for _, _, text, _ in found] == ["one 🎉", None, "one 🎉"]
    assert [key for _, key, _, _ in found][::2] == ["1", "1"]
    with pytest.raises(InputError) as caught:
        read(plan)
    assert str(caught.value).startswith(f"{path}, line 2: {reason}")


def test_ids_of_rejected_json_lines_are_kept_where_they_can_be_read(tmp_path):
    rows = ['{"text": 1, "id": 5}', '{"text": 1, "id": "five"}', '{"text": 1, "id": [5]}', "x"]
    path = write(tmp_path, "a.jsonl", "\n".join(rows))
    assert [one.id for one in rejects(plan_of(path, id_column="id"))] == ["5", "five", None, None]
    assert [one.id for one in rejects(plan_of(path))] == [0, 1, 2, 3]


BAD_CSV = {
    b"one,2": "2 fields, expected 3 as in the header",
    b"one,2,3,4": "4 fields, expected 3 as in the header",
    b"": 'a blank line, expected a row (an empty text is written "")',
    b"one,,3": "id column 'id' is empty",
    b'"one"x,2,3': "broken CSV: ',' expected after '\"'",
    b'"o\r\nne"x,2,3': "broken CSV: ',' expected after '\"'",
    b"one\rtwo,2,3": "a carriage return stands outside quotes",
    b"\xff,2,3": "not valid UTF-8",
}


@pytest.mark.parametrize("row", BAD_CSV, ids=list(BAD_CSV.values()))
def test_a_bad_csv_row_is_set_aside_and_the_next_is_read(tmp_path, row):
    path = write(tmp_path, "a.csv", b"text,id,k\r\ngood,1,2\r\n" + row + b"\r\nbetter,3,4\r\n")
    plan = plan_of(path, id_column="id", keep=["k"], shard_rows=2)
    (reject,) = rejects(plan)
    assert (reject.row, reject.place) == (1, f"{path}, row 2 (line 3)")
    assert reject.reason.startswith(BAD_CSV[row])
    found = read(plan, on_error="null")
    assert [text for _, _, text, _ in found] == ["good", None, "better"]
    assert [key for _, key, _, _ in found][::2] == ["1", "3"]
    with pytest.raises(InputError) as caught:
        read(plan)
    assert str(caught.value).startswith(f"{path}, row 2 (line 3): {BAD_CSV[row]}")


def test_text_that_is_not_utf8_is_set_aside(tmp_path):
    path = write(tmp_path, "a.txt", b"one\r\nt\xe9o\nthree\r\nlast\r")
    (reject,) = rejects(plan_of(path))
    assert (reject.row, reject.place) == (1, f"{path}, line 2")
    assert reject.reason == "not valid UTF-8 (byte 6 of the file, 0xe9)"
    found = read(plan_of(path), on_error="skip")
    assert [text for _, _, text, _ in found] == ["one", None, "three", "last\r"]


def broken_strings(values):
    """A string array of bytes that need not be UTF-8."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_bad_values_of_columns_are_set_aside(tmp_path, format):
    table = pa.table(
        {
            "text": broken_strings([b"a", None, b"c", b"\xff", b"e", b"f", b"g"]),
            "id": broken_strings([b"0", b"1", None, b"3", b"\xfe", b"5", b"6"]),
            "k": broken_strings([b"0", b"1", b"2", b"3", b"4", b"\xfd", None]),
        }
    )
    path = tmp_path / f"a.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    plan = plan_of(path, id_column="id", keep=["k"], shard_rows=100, nulls=True)
    found = [(one.row, one.id, one.place, one.reason) for one in rejects(plan)]
    assert found == [
        (1, "1", f"{path}, row 2", "column 'text' is null, expected a string"),
        (2, None, f"{path}, row 3", "column 'id' is null, expected a string or integer"),
        (3, "3", f"{path}, row 4", "column 'text' is not valid UTF-8 (byte 0 of the text)"),
        (4, None, f"{path}, row 5", "column 'id' is not valid UTF-8"),
        (5, "5", f"{path}, row 6", "column 'k' is not valid UTF-8"),
    ]
    (block,) = UnitReader(plan, "null").read(plan.units[0])
    assert block.texts == ["a", None, None, None, None, None, "g"]
    block.columns.validate(full=True)
    assert block.columns.to_pylist()[5:] == [{"id": "5", "k": None}, {"id": "6", "k": None}]
    with pytest.raises(InputError, match="row 2: column 'text' is null"):
        read(plan)


def test_kept_columns_have_their_own_type_or_are_text(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "at": pa.array([1, None], pa.timestamp("us")),
            "tags": pa.array([["x"], []], pa.list_(pa.string())),
            "kind": pa.array(["k", None]).dictionary_encode(),
            "about": pa.array([{"n": 1}, None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    names = ["at", "tags", "kind", "about", "text"]
    plan = plan_of(tmp_path / "a.parquet", keep=names)
    (block,) = UnitReader(plan).read(plan.units[0])
    assert block.texts == ["a", "b"]
    kept = block.columns.select(names).to_pylist()
    assert kept == table.select(names).to_pylist()
    assert plan.schema.field("kind").type == pa.string()

    rows = [
        '{"text": "a", "k": "x\\u00e9"}',
        '{"text": "b", "k": {"n": [1, null, "é"]}}',
        '{"text": "c", "k": null}',
        '{"text": "d"}',
    ]
    plan = plan_of(write(tmp_path, "a.jsonl", "\n".join(rows)), keep=["k"])
    blocks = UnitReader(plan).read(plan.units[0])
    found = [value for block in blocks for value in block.columns.column("k").to_pylist()]
    assert found == ["xé", '{"n": [1, null, "é"]}', None, None]


@pytest.mark.usefixtures("small_pieces")
def test_blocks_of_large_texts_are_small(tmp_path):
    path = put(tmp_path, "parquet", ["x" * 20] * 9, group=9)
    plan = plan_of(path, shard_rows=9)
    assert max(len(block) for block in UnitReader(plan).read(plan.units[0])) <= 2


def test_a_compressed_file_is_not_begun_again_for_the_next_unit(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        LineCursor, "_begin", lambda self, begin=LineCursor._begin: opened.append(1) or begin(self)
    )
    for format in ("jsonl", "csv"):
        plan = plan_of(put(tmp_path, format, TEXTS, "gz"), shard_rows=4)
        opened.clear()
        assert len(read(plan)) == len(TEXTS)
        headers = 1 if format == "csv" else 0
        assert len(opened) == 1 + headers
        opened.clear()
        read(plan, plan.units[::3])  # forward, over the units of others
        assert len(opened) == 1 + headers


def test_row_groups_are_decoded_once_for_units_in_order(tmp_path, monkeypatch):
    groups = []

    class Spy(pq.ParquetFile):
        def iter_batches(self, *args, row_groups, **kwargs):
            groups.extend(row_groups)
            return super().iter_batches(*args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(tables.pq, "ParquetFile", Spy)
    plan = plan_of(put(tmp_path, "parquet", TEXTS, group=20), shard_rows=6)
    read(plan)
    assert groups == [0, 1, 2]
    groups.clear()
    read(plan, [plan.units[-1]])
    assert groups == [1, 2]  # rows 36 to 41, of groups of 20


def test_a_corrupt_row_group_stops_the_job_with_its_row(tmp_path):
    path = put(tmp_path, "parquet", [f"text {number}" for number in range(30)], group=10)
    plan = plan_of(path, shard_rows=5)
    about = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = about.dictionary_page_offset or about.data_page_offset
    for place in range(start + 20, start + about.total_compressed_size - 5):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert len(read(plan, plan.units[:2])) == 10
    for on_error in ("fail", "skip"):
        with pytest.raises(InputError, match=r"from row 11 on: can not be decoded"):
            read(plan, on_error=on_error)


@pytest.mark.parametrize("how", COMPRESSIONS[1:])
def test_damage_after_planning_stops_the_job_with_its_line(tmp_path, how):
    texts = [f"{number} {number**9}" for number in range(30_000)]
    path = put(tmp_path, "txt", texts, how)
    plan = plan_of(path, shard_rows=10_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.txt\.\w+, from line \d+ on: broken or truncated"):
        read(plan, on_error="skip")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_became_shorter_or_went_away_stops_the_job(tmp_path, format):
    path = put(tmp_path, format, ["a"] * 20)
    plan = plan_of(path)
    put(tmp_path, format, ["a"] * 12)
    with pytest.raises(InputError, match=r"has 12 rows, expected 15 or more: it has changed"):
        read(plan, on_error="skip")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read(plan)


def test_a_line_that_is_too_long_stops_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MAX_LINE_BYTES", 3_000_000)
    path = write(tmp_path, "a.txt", "a\n" + "b" * 3_000_000 + "\nc\n")
    assert len(texts_of(plan_of(path))) == 3
    path = write(tmp_path, "b.txt", "a\n" + "b" * 5_000_000 + "\nc\n")
    with pytest.raises(InputError, match="line 2: longer than 3000000 bytes"):
        plan_of(path)


def test_concatenated_compressed_files_are_read_to_the_end(tmp_path):
    for how in COMPRESSIONS[1:]:
        path = Path(tmp_path / f"a.txt.{how}")
        path.write_bytes(compress(b"one\nt", how) + compress(b"wo\n", how))
        assert texts_of(plan_of(path)) == ["one", "two"]
