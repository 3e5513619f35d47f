"""Text, JSON lines and CSV: every row comes out, every bad row is named."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pytest

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers import open_reader, source


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(path, **columns):
    with open_reader(path, **columns) as reader:
        return [(record.id, record.text) for record in reader]


def put(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refusal(path, **columns):
    with pytest.raises(InputError) as caught:
        read(path, **columns)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo", ["one", "two"]),
        (b"\n\none\n\n", ["", "", "one", ""]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        (b"\xef\xbb\xbf\n", [""]),
        (b"\xef\xbb\xbf", []),
        (b"", []),
        ("a\u2028b\x0bc\x85d\x1ee\rf\n".encode(), ["a\u2028b\x0bc\x85d\x1ee\rf"]),
        (b"nul \x00 inside\n", ["nul \x00 inside"]),
        (b" spaces \t\r\r\n", [" spaces \t\r"]),
        (b"last ends in cr\r", ["last ends in cr\r"]),
    ],
)
def test_only_newline_and_crlf_end_a_line_of_text(tmp_path, data, texts):
    assert read(put(tmp_path, "a.txt", data)) == list(enumerate(texts))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_lines_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, size):
    data = "\ufeffönë\r\n\r\ntwo\n三三\nfour".encode()
    monkeypatch.setattr(source, "CHUNK_BYTES", size)
    texts = [text for _, text in read(put(tmp_path, "a.txt", data))]
    assert texts == ["önë", "", "two", "三三", "four"]


@pytest.mark.parametrize("compress", [gzip.compress, zst], ids=["gz", "zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_compressed_files_read_like_plain_ones(tmp_path, compress, name):
    texts = [f"text {i} ü" for i in range(20_000)]
    if name == "a.txt":
        data = "\n".join(texts)
    elif name == "a.jsonl":
        data = "\n".join(json.dumps({"text": text}) for text in texts)
    else:
        data = "text\n" + "\n".join(texts)
    extension = ".gz" if compress is gzip.compress else ".zst"
    path = put(tmp_path, name + extension, compress(data.encode()))
    assert read(path) == list(enumerate(texts))


def test_several_gzip_members_are_one_file(tmp_path):
    path = put(tmp_path, "a.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert read(path) == [(0, "one"), (1, "two")]


# A flipped byte is left out for zst: pyarrow writes its frames without a checksum.
@pytest.mark.parametrize(
    ("compress", "damage"),
    [
        (gzip.compress, "truncated"),
        (gzip.compress, "flipped"),
        (gzip.compress, "not compressed"),
        (zst, "truncated"),
        (zst, "not compressed"),
    ],
)
def test_damaged_compressed_file_is_refused(tmp_path, compress, damage):
    data = bytearray(compress(bytes(str(list(range(50_000))), "ascii") + b"\n"))
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x55
    else:
        data = bytearray(b"plain text, wrongly named\n")
    extension = ".gz" if compress is gzip.compress else ".zst"
    path = put(tmp_path, "a.txt" + extension, bytes(data))
    assert "broken or truncated" in refusal(path)


def test_invalid_utf8_names_line_and_byte(tmp_path):
    message = refusal(put(tmp_path, "a.txt", b"one\ntwo\nx\xff\n"))
    assert "line 3: not valid UTF-8 (byte 9 of the file, 0xff)" in message


def test_invalid_utf8_after_a_byte_order_mark_names_the_byte_of_the_file(tmp_path):
    message = refusal(put(tmp_path, "a.txt", b"\xef\xbb\xbfx\xff\n"))
    assert "line 1: not valid UTF-8 (byte 4 of the file, 0xff)" in message


def test_utf16_file_is_recognised(tmp_path):
    assert "looks like UTF-16" in refusal(put(tmp_path, "a.txt", "text".encode("utf-16")))


@pytest.mark.parametrize("option", ["column", "id_column"])
def test_text_files_have_no_columns(tmp_path, option):
    assert "has no columns" in refusal(put(tmp_path, "a.txt", "x\n"), **{option: "body"})


@pytest.mark.parametrize("name", ["a.json", "a", "a.gz", "a.tar.gz", "a.txt.bz2", ".txt.zip"])
def test_unknown_extension_says_which_are_known(tmp_path, name):
    message = refusal(put(tmp_path, name, "x"))
    assert ".txt, .jsonl, .csv, .parquet" in message
    assert ".zst" in message


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    assert "is a directory" in refusal(tmp_path / "folder.txt")


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_LINE_BYTES", 100_000)
    path = put(tmp_path, "a.txt", b"short\n" + b"x" * 300_000)
    assert "line 2: longer than 100000 bytes" in refusal(path)


def test_json_rows_keep_text_and_ids(tmp_path):
    rows = [
        {"text": "a\nb", "key": "x", "other": None},
        {"key": 12345678901234567890, "text": ""},
        {"text": "\ud83d\ude00 escaped", "key": -1},
        {"text": "last", "key": ""},
    ]
    path = put(tmp_path, "a.jsonl", "\r\n".join(map(json.dumps, rows)) + "\n\n  \n")
    ids = ["x", "12345678901234567890", "-1", ""]
    texts = ["a\nb", "", "😀 escaped", "last"]
    assert read(path, id_column="key") == list(zip(ids, texts, strict=True))
    assert read(path) == list(enumerate(texts))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x"', "broken JSON"),
        ("not json", "broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "x", "n": ' + "1" * 5000 + "}", "too many digits"),
        ("", "a blank line"),
        ('["text"]', "the line is an array, expected a JSON object"),
        ('"text"', "the line is a string"),
        ("null", "the line is null"),
        ('{"body": "x", "title": "y"}', "no column 'text'; the columns are 'body', 'title'"),
        ("{}", "no column 'text'; the columns are none"),
        ('{"text": null}', "column 'text' is null, expected a string"),
        ('{"text": 3.5}', "column 'text' is a number, expected a string"),
        ('{"text": true}', "column 'text' is a boolean, expected a string"),
        ('{"text": ["x"]}', "column 'text' is an array, expected a string"),
        ('{"text": {"x": 1}}', "column 'text' is an object, expected a string"),
        ('{"text": "x \\ud800 y"}', "lone surrogate (\\ud800)"),
        ('{"text": "x"}', "no column 'id'; the columns are 'text'"),
        ('{"text": "x", "id": null}', "id column 'id' is null"),
        ('{"text": "x", "id": 1.0}', "id column 'id' is a number"),
        ('{"text": "x", "id": false}', "id column 'id' is a boolean"),
        ('{"text": "x", "id": "\\udfff"}', "lone surrogate (\\udfff)"),
    ],
)
def test_bad_json_row_names_line_and_reason(tmp_path, line, reason):
    good = '{"text": "fine", "id": "1"}\n'
    message = refusal(put(tmp_path, "a.jsonl", good + line + "\n" + good), id_column="id")
    assert ", line 2: " in message
    assert reason in message


def test_csv_rows_keep_quotes_commas_and_line_ends(tmp_path):
    texts = ["plain", "", 'a "quoted" word', "with, comma", "two\nlines", "crlf\r\ninside", "ü"]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["key", "text"])
    writer.writerows((f"k{i}", text) for i, text in enumerate(texts))
    path = put(tmp_path, "a.csv", "\ufeff" + out.getvalue() + "\r\n\r\n")
    ids = [f"k{i}" for i in range(len(texts))]
    assert read(path, id_column="key") == list(zip(ids, texts, strict=True))
    assert read(path) == list(enumerate(texts))


def test_huge_csv_field_is_read(tmp_path):
    text = "word " * 2_000_000
    assert read(put(tmp_path, "a.csv", f'text\n"{text}"\n')) == [(0, text)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x\n", "row 2 (line 4): 1 fields, expected 2"),
        ("x,1,2\n", "row 2 (line 4): 3 fields, expected 2"),
        ("\nx,1\n", "row 2 (line 4): a blank line"),
        ("x,\n", "row 2 (line 4): id column 'id' is empty"),
        ('"never closed,1\nmore\n', "row 2 (line 4): a quoted field"),
        ('"x"y,1\n', "row 2 (line 4): broken CSV"),
        ("x\ry,1\n", "a carriage return stands outside quotes"),
    ],
)
def test_bad_csv_row_names_row_line_and_reason(tmp_path, body, reason):
    path = put(tmp_path, "a.csv", 'text,id\n"two\nlines",0\n' + body)
    assert reason in refusal(path, id_column="id")


def test_csv_field_over_the_limit_is_refused(tmp_path):
    path = put(tmp_path, "a.csv", 'text\n"' + "x" * (64 * 1024 * 1024 + 10))
    assert "is a quote left open here?" in refusal(path)


@pytest.mark.parametrize(
    ("header", "columns", "reason"),
    [
        ("body,key", {}, "no column 'text'; the columns are 'body', 'key'"),
        ("text,key", {"id_column": "id"}, "no column 'id'; the columns are 'text', 'key'"),
        ("text,text", {}, "2 columns are named 'text'"),
        ('"text', {}, "never closed"),
    ],
)
def test_bad_csv_header_is_refused(tmp_path, header, columns, reason):
    assert reason in refusal(put(tmp_path, "a.csv", header + "\n"), **columns)


def test_fraction_grows_to_one(tmp_path):
    path = put(tmp_path, "a.txt.gz", gzip.compress(b"some words\n" * 200_000))
    with open_reader(path) as reader:
        seen = [reader.fraction() for _ in reader]
    assert seen == sorted(seen)
    assert 0 < seen[0] <= 1
    assert seen[-1] == 1.0
