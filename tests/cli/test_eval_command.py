"""``c2v eval`` with the model that ships with the package."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from c2v_engine import Causal2Vec
from c2v_engine.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

from retrieval_data import CORPUS, QRELS, write_beir


def c2v(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return caught.value.code, done.out, done.err


@pytest.fixture
def data(tmp_path):
    return write_beir(tmp_path / "technical")


def test_a_table_has_model_and_bm25_and_every_kind(capsys, data):
    code, out, err = c2v(capsys, "eval", data, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "data      technical, split test" in out
    assert "queries   2 (1 more have no relevant passage)" in out
    figures = re.findall(r"^(default|BM25) +((?: *[01]\.\d{4}){4})$", out, flags=re.MULTILINE)
    assert [name for name, _ in figures] == ["default", "BM25"]
    assert re.search(r"^question  default +1( +[01]\.\d{4}){2}$", out, flags=re.MULTILINE)
    assert re.search(r"^symbol    default +1( +[01]\.\d{4}){2}$", out, flags=re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_figures_and_run_are_written(capsys, data, tmp_path):
    files = ["--json", tmp_path / "out.json", "--run", tmp_path / "out.run"]
    code, out, err = c2v(capsys, "eval", data, "--device", "cpu", "--quiet", *files)
    assert (code, out, err) == (0, "", "")
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["queries"], report["passages"], report["relevant"]) == (2, 4, 3)
    assert [system["name"] for system in report["systems"]] == ["default", "BM25"]
    assert 0 < report["systems"][0]["ndcg@10"] <= 1
    assert report["systems"][0]["setting"]["model"]["dimension"] > 0
    lines = (tmp_path / "out.run").read_text().splitlines()
    assert len(lines) == 2 * len(CORPUS)
    assert all(line.split()[1] == "Q0" and line.split()[5] == "default" for line in lines)


def test_files_that_exist_are_kept_unless_replaced(capsys, data, tmp_path):
    for option in ("--json", "--run"):
        output = tmp_path / "out"
        output.write_text("old")
        arguments = ["eval", data, "--no-bm25", "--device", "cpu", option, output]
        code, out, err = c2v(capsys, *arguments, "--model", "no-such-model")
        assert (code, out) == (2, "")
        assert "out: exists already; --overwrite replaces it" in err
        assert output.read_text() == "old"
        code, out, _ = c2v(capsys, *arguments, "--overwrite")
        assert (code, "nDCG@10" in out, output.read_text() == "old") == (0, True, False)
    code, _, err = c2v(capsys, "eval", data, "--json", tmp_path / "new", "--run", tmp_path / "new")
    assert code == 2
    assert "new: is named for two outputs" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "technical"]


def test_an_id_that_a_run_can_not_hold_is_refused_before_a_model_is_loaded(capsys, tmp_path):
    corpus = [*CORPUS, {"_id": "d 5", "text": "more"}]
    data = write_beir(tmp_path / "data", corpus=corpus)
    code, _, err = c2v(capsys, "eval", data, "--model", "none", "--run", tmp_path / "x.run")
    assert code == 2
    assert "can not hold the id 'd 5': it has spaces" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_json_records_the_prompts_that_were_used(capsys, data, tmp_path):
    engine = Causal2Vec.from_pretrained(device="cpu")
    options = ["--json", tmp_path / "o.json", "--device", "cpu", "--no-bm25", "--overwrite"]
    c2v(capsys, "eval", data, *options)
    setting = json.loads((tmp_path / "o.json").read_text())["systems"][0]["setting"]
    assert setting["query_prompt"] == {"name": "query", "text": engine.prompts["query"]}
    c2v(capsys, "eval", data, *options, "--query-prompt-name", "document")
    setting = json.loads((tmp_path / "o.json").read_text())["systems"][0]["setting"]
    assert setting["query_prompt"] == {"name": "document", "text": engine.prompts["document"]}


def test_bm25_can_be_left_out(capsys, data):
    _, out, _ = c2v(capsys, "eval", data, "--device", "cpu", "--no-bm25")
    assert "default" in out
    assert "BM25" not in out


def test_queries_with_ids_of_passages_are_noted(capsys, tmp_path):
    queries = [{"_id": "d1", "text": "sorts the list in place "}, {"_id": "d2", "text": "sort"}]
    data = write_beir(tmp_path, queries=queries, qrels=[("d1", "d4", 1), ("d2", "d1", 1)])
    options = ["eval", data, "--device", "cpu", "--no-bm25"]
    _, _, err = c2v(capsys, *options)
    assert "1 query has the id and the text of a passage" in err  # d2 shares its id alone
    assert "--ignore-identical-ids" in err
    code, _, err = c2v(capsys, *options, "--ignore-identical-ids")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "has no split 'dev', expected one of: test"),
        (["--query-prompt-name", "none"], "prompt_name is 'none', expected one of"),
        (["--truncate-dim", "999999"], "truncate_dim is 999999"),
        (["--top-k", "10"], "--top-k"),
        (["--json", "no/such/folder.json"], "no/such does not exist"),
        (["--run", "."], ".: is a folder, expected a file name"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_a_mistake_is_one_line(capsys, data, options, message):
    code, out, err = c2v(capsys, "eval", data, "--device", "cpu", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_wrong_data_are_named_before_a_model_is_loaded(capsys, tmp_path):
    data = write_beir(tmp_path, qrels=[*QRELS, ("q1", "d99", 1)])
    code, _, err = c2v(capsys, "eval", data, "--model", "no-such-model")
    assert code == 2
    assert "test.tsv, line 7: corpus-id 'd99' is not in corpus.jsonl" in err
