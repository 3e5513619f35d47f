"""Whatever lines a file has, good or bad: units cut it as the reader of a single file reads it."""

from __future__ import annotations

import csv
import io
import json
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import compress, plan_of, read, rejects

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source import cursor, line_rows
from c2v_engine.jobs.readers import open_reader

PIECES = {"shard_rows": st.integers(1, 5), "chunk": st.integers(1, 40), "rows": st.integers(1, 4)}
EXAMPLES = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


def put(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def found_in(path, shard_rows, chunk, rows):
    """Texts of all rows and rejects by row, once it is seen that units alone give the same."""
    with (
        mock.patch.object(cursor, "_CHUNK_BYTES", chunk),
        mock.patch.object(line_rows, "BLOCK_ROWS", rows),
    ):
        plan = plan_of(path, shard_rows=shard_rows)
        whole = read(plan, on_error="null")
        for unit in plan.units:
            part = whole[unit.first_row : unit.first_row + unit.rows]
            assert read(plan, [unit], "null") == part
        assert sorted(read(plan, plan.units[::-1], "null")) == whole
        bad = {reject.row: reject for reject in rejects(plan)}
    assert all(whole[row][3] == reject.place for row, reject in bad.items())
    return [text for _, _, text, _ in whole], bad


def check_single(path, texts, bad):
    """The reader of a single file gives the same, or stops at the first bad row."""
    if not bad:
        with open_reader(path) as reader:
            assert [record.text for record in reader] == texts
        return
    with open_reader(path) as reader, pytest.raises(InputError) as caught:
        list(reader)
    first = bad[min(bad)]
    # Of CSV it may name the row after a blank line, where that is bad too.
    if path.suffix != ".csv":
        assert str(caught.value) == f"{first.place}: {first.reason}"


@EXAMPLES
@given(
    data=st.lists(
        st.sampled_from([b"a", b"\xc3\xa9", b"\xff", b"\r", b"\n", b"\r\n", b"\0", b" "])
    ),
    mark=st.booleans(),
    how=st.sampled_from([None, "gz"]),
    **PIECES,
)
def test_plain_text(folder, data, mark, how, **pieces):
    whole = b"".join(data)
    path = put(
        folder, "a.txt" + (f".{how}" if how else ""), compress(b"\xef\xbb\xbf" * mark + whole, how)
    )
    lines = whole.split(b"\n")
    ended = [line.removesuffix(b"\r") for line in lines[:-1]]
    expected = ended + [lines[-1]] * bool(lines[-1])
    if not expected:
        with pytest.raises(InputError, match="no rows"):
            plan_of(path)
        return
    texts, bad = found_in(path, **pieces)
    assert texts == [None if b"\xff" in line else line.decode() for line in expected]
    check_single(path, texts, bad)


GOOD = ['{"text": "a"}', '{"text": ""}', '{"text": "é\\n", "x": 1}', ' {"text": "b"} ']
BAD = ["", " ", "{", '{"text": 1}', "[]", '{"text": "\\ud800"}', "{} x", '{"text": "c"} x', "\xa0"]


@EXAMPLES
@given(
    lines=st.lists(st.sampled_from(GOOD * 3 + BAD), max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    tail=st.sampled_from(["", "\n", "\r\n\n \n"]),
    mark=st.booleans(),
    **PIECES,
)
def test_json_lines(folder, lines, end, tail, mark, **pieces):
    path = put(folder, "a.jsonl", b"\xef\xbb\xbf" * mark + (end.join(lines) + tail).encode())
    while lines and not lines[-1].encode().strip():
        lines.pop()
    if not lines:
        with pytest.raises(InputError, match="no rows"):
            plan_of(path)
        return
    texts, bad = found_in(path, **pieces)
    assert texts == [json.loads(line)["text"] if line in GOOD else None for line in lines]
    check_single(path, texts, bad)


def parse(data):
    """Rows as the csv module has them, None for a bad one; None where a quote is left open."""
    reader = csv.reader(io.StringIO(data, newline="\n"), strict=True)
    rows = []
    while True:
        try:
            rows.extend(reader)  # those before an error are kept
            break
        except csv.Error as error:
            if "unexpected end" in str(error):
                return None
            rows.append(None)
    while rows[-1] == []:
        rows.pop()
    return rows[1:]


@EXAMPLES
@given(
    data=st.lists(
        st.sampled_from(
            ["a", '"', '"', '""', ",", ",", "\n", "\n", "\r\n", "\r", "é", '"\n', ',"']
        ),
        max_size=40,
    ).map("".join),
    head=st.sampled_from(["text,n\n", '"text",n\r\n', '\ufeffn,"text"\n', 'n,text,"x\ny"\n']),
    **PIECES,
)
def test_csv(folder, data, head, **pieces):
    path = put(folder, "a.csv", (head + data).encode())
    head = head.removeprefix("\ufeff")
    rows = parse(head + data)
    if not rows:
        with pytest.raises(InputError, match="never closed" if rows is None else "no rows"):
            plan_of(path)
        return
    texts, bad = found_in(path, **pieces)
    header = next(csv.reader(io.StringIO(head, newline="\n")))
    good = [row is not None and len(row) == len(header) for row in rows]
    at = header.index("text")
    assert texts == [row[at] if fine else None for row, fine in zip(rows, good, strict=True)]
    check_single(path, texts, bad)
