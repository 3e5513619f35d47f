"""Reading the BEIR layout: what is taken, and every mistake with its file and line."""

from __future__ import annotations

import re

import pytest
from retrieval_data import CORPUS, QRELS, QUERIES, json_lines, tab_rows, write_beir

from c2v_engine.errors import InputError
from c2v_engine.evaluation.beir import read_beir


def test_texts_relevance_and_kinds_are_read(tmp_path):
    data = read_beir(write_beir(tmp_path / "mine"))
    assert (data.name, data.split) == ("mine", "test")
    assert data.corpus["d1"] == "sort sorts the list in place"
    assert data.corpus["d2"] == "iterate over an open file line by line"
    assert data.corpus["d3"] == "the zen of python"
    assert list(data.queries) == ["q1", "q2"]
    assert data.relevant == {"q1": {"d1", "d4"}, "q2": {"d2"}}
    assert data.kinds == {"q1": "symbol", "q2": "question"}
    assert data.left_out == 1  # q3 was judged and has nothing relevant; q4 is of another split


def test_compressed_files_are_the_same_data(tmp_path):
    plain = read_beir(write_beir(tmp_path / "a" / "set"))
    assert read_beir(write_beir(tmp_path / "b" / "set", suffix=".gz")) == plain


def test_numbers_are_ids_by_their_digits_and_windows_line_ends_end_lines(tmp_path):
    corpus = json_lines([{"_id": 7, "text": "a"}, {"_id": "8", "text": "b"}])
    queries = json_lines([{"_id": 1, "text": "a"}]).replace("\n", "\r\n")
    qrels = "\ufeff" + tab_rows([("1", "7", 1)]).replace("\n", "\r\n") + "\r\n"
    data = read_beir(write_beir(tmp_path, corpus, queries, qrels))
    assert data.relevant == {"1": {"7"}}
    assert data.kind_names() == []


def test_a_query_without_kind_among_others_is_a_kind_of_its_own(tmp_path):
    queries = [QUERIES[0], {"_id": "q2", "text": "x"}, QUERIES[2]]
    data = read_beir(write_beir(tmp_path, queries=queries))
    assert data.kind_names() == ["(none)", "symbol"]
    assert list(data.of_kind("(none)").queries) == ["q2"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "broken JSON: Expecting property name"),
        ("[1]", "the line is an array, expected an object"),
        ('"d9"', "the line is a string, expected an object"),
        ('{"text": "a"}', "field '_id' is missing, there are: text"),
        ("{}", "field '_id' is missing, there are: none"),
        ('{"_id": null, "text": "a"}', "field '_id' is null, expected a string"),
        ('{"_id": true, "text": "a"}', "field '_id' is a boolean, expected a string"),
        ('{"_id": "", "text": "a"}', "field '_id' is empty"),
        ('{"_id": "d1", "text": "a"}', "_id 'd1' is there twice"),
        ('{"_id": "x"}', "field 'text' is missing, there are: _id"),
        ('{"_id": "x", "text": 3}', "field 'text' is a number, expected a string"),
        ('{"_id": "x", "text": "\\ud800"}', "field 'text' holds a lone surrogate"),
        ('{"_id": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit"),
        ("", "a blank line"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, row, reason):
    text = json_lines(CORPUS[:2]) + row + "\n" + json_lines(CORPUS[2:])
    with pytest.raises(InputError) as caught:
        read_beir(write_beir(tmp_path, corpus=text))
    assert str(caught.value).startswith(f"{tmp_path / 'corpus.jsonl'}, line 3: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"_id": "x", "text": " \t"}, "query 'x' is empty"),
        ({"_id": "q1", "text": "a"}, "_id 'q1' is there twice"),
        ({"_id": "x", "text": "a", "metadata": 1}, "field 'metadata' is a number, expected an obj"),
        ({"_id": "x", "text": "a", "metadata": {"kind": None}}, "field 'kind' is null, expected a"),
    ],
)
def test_a_wrong_query_is_named_by_file_and_line(tmp_path, row, reason):
    with pytest.raises(InputError, match=re.escape(f"queries.jsonl, line 5: {reason}")):
        read_beir(write_beir(tmp_path, queries=[*QUERIES, row]))


@pytest.mark.parametrize("title", [None, 1])
def test_a_title_is_a_string_or_not_there(tmp_path, title):
    corpus = [{"_id": "d1", "title": title, "text": "a"}]
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 1: field 'title' is"):
        read_beir(write_beir(tmp_path, corpus=corpus))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q9\td1\t1", "query-id 'q9' is not in queries.jsonl"),
        ("q1\td9\t1", "corpus-id 'd9' is not in corpus.jsonl"),
        ("q1\td1\t1", "query-id 'q1' with corpus-id 'd1' is there twice"),
        ("q1\td3\tyes", "score is 'yes', expected an integer"),
        ("q1\td3\t1.0", "score is '1.0', expected an integer"),
        ("q1 0 d3 1", "there are 1 fields, expected a header and rows"),
        ("q1\t0\td3\t1", "there are 4 fields, expected a header and rows"),
    ],
)
def test_a_wrong_judgement_is_named_by_file_and_line(tmp_path, row, reason):
    qrels = tab_rows(QRELS) + row + "\n"
    with pytest.raises(InputError, match=re.escape(f"test.tsv, line 7: {reason}")):
        read_beir(write_beir(tmp_path, qrels=qrels))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"qrels": tab_rows([("q1", "d1", 0)])}, "no row has a score above 0"),
        ({"qrels": tab_rows([])}, "no row has a score above 0"),
        ({"qrels": "q1\td1\t1\n"}, "line 1: the header is 'q1\\td1\\t1', expected a header"),
        ({"qrels": ""}, "test.tsv: is empty, expected a header"),
        ({"corpus": ""}, "corpus.jsonl: there are no passages"),
        ({"queries": ""}, "queries.jsonl: there are no queries"),
    ],
)
def test_data_without_anything_to_evaluate_are_refused(tmp_path, files, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        read_beir(write_beir(tmp_path, **files))


def test_a_missing_split_names_those_there_are(tmp_path):
    write_beir(tmp_path)
    (tmp_path / "qrels" / "dev.tsv.gz").touch()
    with pytest.raises(InputError, match="has no split 'train', expected one of: dev, test"):
        read_beir(tmp_path, "train")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_beir(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=re.escape(f"{name}: no such file, nor")):
        read_beir(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such directory"):
        read_beir(tmp_path / "nowhere")


def test_a_file_that_is_there_twice_is_refused(tmp_path):
    write_beir(write_beir(tmp_path), suffix=".gz")
    with pytest.raises(InputError, match=r"there is corpus\.jsonl\.gz too, expected one of them"):
        read_beir(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_broken_compressed_data_are_refused(tmp_path, damage):
    path = write_beir(tmp_path, suffix=".gz") / "corpus.jsonl.gz"
    path.write_bytes(path.read_bytes()[:60] if damage == "cut" else b"not gzip at all")
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz: can not be read after line \d+: "):
        read_beir(tmp_path)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = write_beir(tmp_path) / "queries.jsonl"
    path.write_bytes(path.read_bytes() + b'{"_id": "x", "text": "\xff"}\n')
    with pytest.raises(InputError, match=r"queries\.jsonl, line 5: not valid UTF-8 \(byte 22"):
        read_beir(tmp_path)
