"""``c2v search``, ``index`` and ``mine`` with the model that ships with the package."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from c2v_engine import Causal2Vec
from c2v_engine.cli import main
from c2v_engine.jobs.search import EmbeddingIndex

FAKE = str(Path(__file__).with_name("fake_c2v.py"))
TEXTS = [
    "sort a list of numbers in place\n\nand return None",
    "read a text file line by line",
    "send an electronic mail to several people",
    "compress bytes",
    "open a window on the screen",
]


def c2v(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return caught.value.code, done.out, done.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, embedded in float32, in packed bits and without ids."""
    folder = tmp_path_factory.mktemp("search")
    rows = [{"key": f"k{i}", "body": text} for i, text in enumerate(TEXTS)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for output, options in {
        "o.parquet": ["--id-column", "key"],
        "bits.parquet": ["--id-column", "key", "--precision", "ubinary"],
        "o.npy": ["--precision", "float16", "--truncate-dim", "32"],
    }.items():
        arguments = ["encode", folder / "in.jsonl", "-o", folder / output, "--column", "body"]
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), *options, "--quiet"])
        assert caught.value.code == 0
    return folder


@pytest.mark.parametrize("name", ["o.parquet", "bits.parquet", "o.npy"])
def test_a_text_finds_itself_with_id_and_text(capsys, monkeypatch, folder, name):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, err = c2v(
        capsys, "search", folder / name, TEXTS[0], "compress bytes", "--prompt-name", "document",
        "-k", 2, "--texts", folder / "in.jsonl", "--column", "body",
    )  # fmt: skip
    assert (code, err) == (0, "")
    first, second = out.removeprefix(TEXTS[0] + "\n").split("\n\ncompress bytes\n")
    ids = ["0", "3"] if name == "o.npy" else ["k0", "k3"]
    for block, key, text in zip((first, second), ids, (TEXTS[0], TEXTS[3]), strict=True):
        best, other = block.splitlines()
        rank, score, found, shown = best.split(maxsplit=3)
        assert (rank, found, shown) == ("1", key, text.splitlines()[0])
        assert float(score) > (0.6 if name == "bits.parquet" else 0.99)
        assert other.split()[0] == "2"
        assert max(map(len, block.splitlines())) <= 60


def test_json_holds_whole_texts_and_questions_come_from_stdin(capsys, monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one question\nanother\n"))
    options = ["--json", "--texts", folder / "in.jsonl", "--column", "body"]
    code, out, err = c2v(capsys, "search", folder / "o.parquet", "first", "-", *options)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["question"] for line in lines] == ["first", "one question", "another"]
    for line in lines:
        assert [hit["rank"] for hit in line["hits"]] == [1, 2, 3, 4, 5]
        assert {hit["text"] for hit in line["hits"]} == set(TEXTS)
        assert all(hit["id"] == f"k{hit['row']}" for hit in line["hits"])
        scores = [hit["score"] for hit in line["hits"]]
        assert scores == sorted(scores, reverse=True)


def test_scores_are_the_engine_s_similarities(capsys, folder):
    engine = Causal2Vec.from_pretrained(device="cpu")
    _, out, _ = c2v(capsys, "search", folder / "o.parquet", "order a list", "--json")
    hits = json.loads(out)["hits"]
    expected = engine.similarity(
        engine.encode_query(["order a list"]), engine.encode(TEXTS)
    ).numpy()[0]
    scores = np.array([hit["score"] for hit in sorted(hits, key=lambda hit: hit["row"])])
    # Batches differ between the two, and the model may run in bfloat16.
    np.testing.assert_allclose(scores, expected, atol=2e-2)


def test_an_approximate_index_answers_alike(capsys, folder):
    pytest.importorskip("usearch")
    output = folder / "o.usearch"
    code, out, err = c2v(capsys, "index", folder / "o.parquet", "-o", output)
    assert (code, err) == (0, "")
    assert out.split()[:2] == ["rows", "5"]
    exact = c2v(capsys, "search", folder / "o.parquet", "compress bytes", "-k", 3)[1]
    found = c2v(capsys, "search", output, "compress bytes", "-k", 3)[1]
    assert [line.split()[-1] for line in found.splitlines()] == [
        line.split()[-1] for line in exact.splitlines()
    ]
    code, _, err = c2v(capsys, "index", folder / "o.parquet", "-o", output)
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already; --overwrite replaces it" in err


def test_another_model_is_refused_unless_forced(capsys, tmp_path, folder):
    other = tmp_path / "other"
    Causal2Vec.from_pretrained(device="cpu").save_pretrained(other)
    ask = ["search", folder / "o.parquet", "x", "-k", 1, "--model", other]
    assert c2v(capsys, *ask)[0] == 0  # a copy is the same model
    config = json.loads((other / "config.json").read_text())
    config["max_length"] -= 1
    (other / "config.json").write_text(json.dumps(config))
    code, out, err = c2v(capsys, *ask)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was made by the default model" in err
    assert "leave --model out, or pass --force" in err
    assert c2v(capsys, *ask, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.parquet", "x"], "none.parquet: no such file"),
        (["o.parquet", " "], "question 1 is empty"),
        (["o.parquet", "x", "--prompt-name", "none"], "prompt_name is 'none'"),
        (["o.parquet", "x", "--texts", "o.npy"], "unknown extension '.npy'"),
        (["o.parquet", "x", "--texts", "in.jsonl"], "no column 'text'"),
        (["o.parquet", "x", "--column", "body"], "--column is of the file that --texts names"),
        (["o.parquet", "x", "--id-column", "key"], "--id-column is of the file that --texts"),
        (["o.parquet", "x", "--prompt", "a", "--prompt-name", "query"], "expected one of them"),
        (["o.parquet", "x", "--truncate-dim", "32"], "states all dimensions, not 32"),
        (["o.npy", "x", "--precision", "int8"], "precision int8 is asked for"),
        (["o.parquet"], "Missing argument 'QUESTION...'"),
        (["o.parquet", "x", "-k", "0"], "Invalid value for '--top-k'"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, folder, arguments, reason):
    monkeypatch.chdir(folder)
    code, out, err = c2v(capsys, "search", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert reason in err


def test_what_can_be_checked_without_a_model_is(capsys, monkeypatch, tmp_path, folder):
    other = tmp_path / "other"
    Causal2Vec.from_pretrained(device="cpu").save_pretrained(other)
    with (other / "decoder" / "tokenizer.json").open("a") as file:
        file.write(" ")

    def loaded(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(Causal2Vec, "from_pretrained", loaded)
    for options, reason in [
        (["--texts", folder / "none.jsonl"], "none.jsonl: no such file"),
        (["--texts", folder / "in.jsonl"], "no column 'text'"),
        (["--model", other], "was made by the default model"),
    ]:
        code, _, err = c2v(capsys, "search", folder / "o.parquet", "x", *options)
        assert code == 2
        assert reason in err


def test_questions_are_answered_in_blocks_as_they_come(capsys, monkeypatch, folder):
    whole = c2v(capsys, "search", folder / "o.parquet", *"abcde", "-k", 1)[1]
    monkeypatch.setattr("c2v_engine.cli.search.BLOCK_QUESTIONS", 2)
    arguments = ["search", folder / "o.parquet", "a", "-", "-k", 1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("b\nc\nd\ne\n"))
    code, out, err = c2v(capsys, *arguments)
    assert (code, out, err) == (0, whole, "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("b\nc\n\ne\n"))
    code, out, err = c2v(capsys, *arguments)
    assert (code, err) == (2, "error: question 4 is empty, expected a text\n")
    assert out.count("\n\n") == 1  # the first block is out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = c2v(capsys, "search", folder / "o.parquet", "-")
    assert (code, err) == (2, "error: no questions: standard input is empty\n")


def test_what_is_printed_can_not_move_the_cursor(capsys, tmp_path):
    row = {"key": "k\x1b[2J\x9b", "text": "a\x1b[31m text\x07\nb"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    output = tmp_path / "o.parquet"
    c2v(capsys, "encode", tmp_path / "in.jsonl", "-o", output, "--id-column", "key", "-q")
    arguments = ["search", output, "q\x1b[1m", "--texts", tmp_path / "in.jsonl"]
    code, out, _ = c2v(capsys, *arguments)
    assert code == 0
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert "k\N{REPLACEMENT CHARACTER}[2J" in out
    (hit,) = json.loads(c2v(capsys, *arguments, "--json")[1])["hits"]
    assert (hit["id"], hit["text"]) == (row["key"], row["text"])


def test_a_model_that_is_gone_is_said_with_the_index(capsys, tmp_path, folder):
    model = tmp_path / "model"
    Causal2Vec.from_pretrained(device="cpu").save_pretrained(model)
    output = tmp_path / "o.parquet"
    options = ["--column", "body", "--model", model, "--quiet"]
    assert c2v(capsys, "encode", folder / "in.jsonl", "-o", output, *options)[0] == 0
    assert c2v(capsys, "search", output, "x")[0] == 0  # the index names its model
    model.rename(tmp_path / "moved")
    code, _, err = c2v(capsys, "search", output, "x")
    assert code == 2
    assert "the model that made it can not be opened" in err
    assert c2v(capsys, "search", output, "x", "--model", tmp_path / "moved")[0] == 0


def test_truncated_npy_takes_the_model_s_leading_dimensions(folder):
    index = EmbeddingIndex.open(folder / "o.npy")
    engine = Causal2Vec.from_pretrained(device="cpu")
    assert index.truncate_dim(engine.dimension) == 32
    found = index.search(engine.encode(TEXTS, truncate_dim=32), 1)
    assert found.rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_mined_pairs_can_be_mined_from(capsys, tmp_path):
    rows = [{"query": f"what is {i}?", "positive": text} for i, text in enumerate(TEXTS)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--range-min", 0, "--relative-margin", 0, "--num-negatives", 4]
    code, out, err = c2v(capsys, "mine", source, "-o", tmp_path / "o.jsonl", *options)
    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["pairs"] == "5 of 5 queries"
    mined = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert facts["negatives"].startswith(f"{len(mined)} rows (")
    engine = Causal2Vec.from_pretrained(device="cpu")
    for row in mined:
        query = engine.encode_query(row["query"])
        positive, negative = engine.encode_document([row["positive"], row["negative"]])
        # The store keeps float16, and the model may run in bfloat16.
        assert negative @ query <= positive @ query + 2e-2


def test_mining_with_the_fake_engine_prints_why_none_was_found(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "a", "positive": "b"}\n{"query": "c", "positive": "d"}\n')
    command = [
        sys.executable,
        FAKE,
        "10",
        "0",
        "mine",
        str(source),
        "-o",
        str(tmp_path / "o.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "of 2 pairs with 2 candidates, 2 have none from rank 10 on (--range-min)" in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


def test_interrupted_mining_leaves_nothing(tmp_path):
    source = tmp_path / "in.jsonl"
    rows = ({"query": f"q{i}", "positive": f"p{i}"} for i in range(500))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, FAKE, "10", "0.5", "mine", str(source), "-o"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "o.jsonl")],
        stderr=subprocess.PIPE,
        text=True,
        # A test runner started in the background may hand down an ignored signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not any(path.suffix == ".tmp" for path in tmp_path.iterdir()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (
        130,
        f"interrupted: {tmp_path}/o.jsonl was not written\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
