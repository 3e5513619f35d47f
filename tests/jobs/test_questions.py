"""From questions to rows: the model must be the index's, and texts are found where they are."""

import json
import os

import numpy as np
import pytest
from fake_engine import DIMENSION, FakeEngine, vectors
from index_files import quantize, ranges_of, write_index

from c2v_engine.errors import InputError
from c2v_engine.jobs.encode import EncodeJob, EncodeOptions
from c2v_engine.jobs.questions import ask, check_model, check_texts, find_texts
from c2v_engine.jobs.search import EmbeddingIndex

TEXTS = [f"text {i}" for i in range(50)]


class Engine(FakeEngine):
    """With prompts, and a record of those it was asked with."""

    def __init__(self, fingerprint="f", prompts=("query",)):
        super().__init__()
        self.about = {**super().info(), "fingerprint": fingerprint}
        self.about["prompts"] = dict.fromkeys(prompts, "")
        self.asked = []

    def info(self):
        return self.about

    def encode_stream(self, texts, **options):
        self.asked.append(options)
        return super().encode_stream(texts, **options)


def encoded(tmp_path, output, **options):
    source = tmp_path / "in.jsonl"
    rows = [{"key": f"k{i}", "text": text} for i, text in enumerate(TEXTS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    id_column = "key" if output.endswith("parquet") else None
    chosen = EncodeOptions(**options)
    with EncodeJob(source, tmp_path / output, id_column=id_column, options=chosen) as job:
        job.run(Engine())
    return EmbeddingIndex.open(tmp_path / output)


@pytest.mark.parametrize("output", ["o.parquet", "o.npy"])
@pytest.mark.parametrize("truncate_dim", [None, 6])
def test_what_was_encoded_finds_itself(tmp_path, output, truncate_dim):
    index = encoded(tmp_path, output, truncate_dim=truncate_dim)
    engine = Engine()
    check_model(index, engine)
    hits = ask(index, engine, TEXTS[:9], 2)
    assert [found[0].row for found in hits] == list(range(9))
    expected = [f"k{i}" for i in range(9)] if output == "o.parquet" else list(range(9))
    assert [found[0].id for found in hits] == expected
    assert all(found[0].score == pytest.approx(1, abs=1e-6) for found in hits)
    assert [hit.rank for hit in hits[0]] == [1, 2]
    assert engine.asked == [{"prompt_name": "query", "prompt": None, "truncate_dim": truncate_dim}]


@pytest.mark.parametrize(
    ("prompts", "given", "used"),
    [
        ((), {}, (None, None)),
        (("query",), {"prompt_name": "other"}, ("other", None)),
        (("query",), {"prompt": "as it is"}, (None, "as it is")),
    ],
)
def test_the_query_prompt_is_used_where_there_is_one(tmp_path, prompts, given, used):
    engine = Engine(prompts=prompts)
    ask(encoded(tmp_path, "o.npy"), engine, ["x"], 1, **given)
    assert (engine.asked[0]["prompt_name"], engine.asked[0]["prompt"]) == used


def test_another_model_is_refused_and_both_are_named(tmp_path):
    index = encoded(tmp_path, "o.parquet")
    with pytest.raises(InputError, match=r"made by the model 'fake' \(fingerprint f\).*\(other\)"):
        check_model(index, Engine(fingerprint="other"))
    check_model(encoded(tmp_path, "o.npy"), Engine(fingerprint="other"))  # .npy does not say


def test_a_local_model_is_kept_by_its_whole_path_and_the_packaged_one_by_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("default", "mine", "package"):
        (tmp_path / name).mkdir()
    (tmp_path / "in.txt").write_text("one\n")
    output = tmp_path / "o.parquet"
    for name, directory, kept in [
        ("mine", "mine", str(tmp_path / "mine")),
        ("someone/model", "package", "someone/model"),
        ("default", "package", None),
        ("default", "default", str(tmp_path / "default")),  # a folder that happens to be named so
    ]:
        engine = Engine()
        engine.about |= {"model": name, "directory": directory}
        with EncodeJob(tmp_path / "in.txt", output, overwrite=True) as job:
            job.run(engine)
        assert EmbeddingIndex.open(output).about["model"] == kept


@pytest.mark.parametrize(
    ("made", "asked", "way"),
    [
        (None, "default", "the default model .* is another now .* embed again with this release"),
        (None, "a/b", "the questions would be embedded by the model 'a/b' .*: leave --model out"),
        ("a/b", "default", "embedded by the default model .*: give --model a/b"),
        ("a/b", "a/b", r"the model 'a/b' \(fingerprint f\), which is another now .* embed again,"),
    ],
)
def test_a_refusal_says_what_to_do(tmp_path, made, asked, way):
    path = write_index(tmp_path / "o.parquet", vectors(TEXTS), model=made)
    engine = Engine(fingerprint="other")
    engine.about["model"] = asked
    with pytest.raises(InputError, match=way):
        check_model(EmbeddingIndex.open(path), engine)


def test_a_model_of_another_dimension_is_refused_before_it_embeds(tmp_path):
    index = EmbeddingIndex.open(
        write_index(tmp_path / "o.parquet", np.ones((3, DIMENSION + 1), np.float32))
    )
    engine = Engine()
    with pytest.raises(
        InputError, match=f"{DIMENSION + 1} dimensions, the question's .* {DIMENSION} "
    ):
        ask(index, engine, ["x"], 1)
    assert engine.asked == []


def test_a_question_that_can_not_be_embedded_is_named(tmp_path):
    with pytest.raises(InputError, match="question 2: its embedding is not finite"):
        ask(encoded(tmp_path, "o.npy"), Engine(), ["x", "refused"], 1)
    with pytest.raises(InputError, match="question 12: its embedding is not finite"):
        ask(encoded(tmp_path, "p.npy"), Engine(), ["x", "refused"], 1, first=10)


def test_levels_of_an_npy_are_read_by_the_model_s_ranges(tmp_path):
    values = vectors(TEXTS)
    engine = Engine()
    engine.ranges = ranges_of(values)
    stored = quantize(values, "uint8", engine.ranges)
    index = EmbeddingIndex.open(write_index(tmp_path / "o.npy", stored, "uint8"), "uint8")
    assert [found[0].row for found in ask(index, engine, TEXTS, 1)] == list(range(50))


def test_encode_keeps_the_ranges_of_levels(tmp_path):
    engine = Engine()
    engine.ranges = ranges_of(vectors(TEXTS))
    (tmp_path / "in.txt").write_text("one\n")
    for precision, kept in (("uint8", True), ("float32", False)):
        output, options = tmp_path / f"{precision}.parquet", EncodeOptions(precision=precision)
        with EncodeJob(tmp_path / "in.txt", output, options=options) as job:
            job.run(engine)
        ranges = EmbeddingIndex.open(output).ranges
        assert (ranges is not None) == kept
        if kept:
            np.testing.assert_array_equal(ranges, engine.ranges)


def put(tmp_path, rows):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_are_found_by_row_or_by_id(tmp_path):
    rows = [{"id": f"k{i}", "text": f"t{i}"} for i in range(20)]
    path = put(tmp_path, rows)
    wanted = {3: "k3", 17: "k17"}
    assert find_texts(path, wanted) == {3: "t3", 17: "t17"}
    path = put(tmp_path, rows[::-1])
    assert find_texts(path, wanted, id_column="id") == {3: "t3", 17: "t17"}
    assert find_texts(path, {}, id_column="id") == {}


def test_repeated_ids_give_the_text_of_their_own_row(tmp_path):
    path = put(tmp_path, [{"id": "same", "text": f"t{i}"} for i in range(5)])
    assert find_texts(path, {3: "same", 1: "same"}, id_column="id") == {3: "t3", 1: "t1"}


def test_the_file_of_texts_is_read_no_further_than_needed(tmp_path):
    path = put(tmp_path, [{"text": "a"}, {"text": "b"}])
    with path.open("a") as file:
        file.write("broken\n" * 5)
    assert find_texts(path, {1: 1}) == {1: "b"}


@pytest.mark.parametrize(
    ("id_column", "reason"), [(None, "has no row 10"), ("id", "has no row with the id 'k9'")]
)
def test_a_text_that_is_not_there_is_an_error(tmp_path, id_column, reason):
    path = put(tmp_path, [{"id": "k0", "text": "t0"}])
    with pytest.raises(InputError, match=reason):
        find_texts(path, {9: "k9"}, id_column=id_column)


def test_texts_are_checked_by_their_first_row(tmp_path):
    path = put(tmp_path, [{"id": "k0", "text": "t0"}])
    check_texts(path, id_column="id")
    with pytest.raises(InputError, match="no column 'key'"):
        check_texts(path, id_column="key")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="not a regular file"):
        check_texts(tmp_path / "pipe.jsonl")
