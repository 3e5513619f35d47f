"""``c2v create --method``."""

from __future__ import annotations

import json

import pytest
from checkpoints import Recipe

from c2v_engine.cli import main
from c2v_engine.model.config import Causal2VecConfig


@pytest.fixture
def create(capsys, checkpoint, tmp_path):
    """Runs ``c2v create`` with a tiny decoder; exit code, what it printed, and the folder."""

    def run(*arguments):
        output = tmp_path / "new"
        decoder = checkpoint(Recipe(decoder="llama")) / "decoder"
        with pytest.raises(SystemExit) as caught:
            main(["create", "-o", str(output), "--decoder", str(decoder), *map(str, arguments)])
        done = capsys.readouterr()
        return caught.value.code, done.out + done.err, output

    return run


def test_a_method_is_enough(create):
    code, printed, output = create("--method", "summary-tokens", "--summary-tokens", 3)
    assert code == 0, printed
    assert "only its summary tokens are new" in printed
    config = Causal2VecConfig.load(output)
    assert (config.template, config.summary_tokens) == (("{prompt}{text}", "<summary>"), 3)


def test_a_method_without_new_parts_says_so(create):
    code, printed, _ = create("--method", "last-token")
    assert code == 0, printed
    assert "none of its weights are new" in printed


def test_examples_come_from_a_file(create, tmp_path):
    rows = [{"instruction": "Find.", "query": f"q{i}\u2028", "response": f"r{i}"} for i in (1, 2)]
    path = tmp_path / "examples.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    code, printed, output = create("--method", "in-context", "--examples", path)
    assert code == 0, printed
    prompt = Causal2VecConfig.load(output).prompts["query"]
    assert prompt.startswith("<instruct>Find.\n<query>q1\u2028\n<response>r1\n\n<instruct>")
    assert prompt.endswith("\n\n<instruct>Find.\n<query>")


@pytest.mark.parametrize("line", ['{"instruction": "a", "query": "b"}', "[1]", "no", '"text"'])
def test_a_bad_line_of_examples_is_named(create, tmp_path, line):
    path = tmp_path / "examples.jsonl"
    path.write_text(f"\n{line}\n")
    code, printed, output = create("--method", "in-context", "--examples", path)
    assert code != 0
    assert "examples.jsonl, line 2: expected a JSON object" in printed
    assert not output.exists()


def test_mistakes_end_with_one_line(create, tmp_path):
    for arguments, reason in (
        (["--method", "nope"], "method is 'nope'"),
        (["--method", "echo", "--template", "{text}"], "both method and template are given"),
        (["--method", "in-context", "--examples", tmp_path / "no.jsonl"], "no.jsonl"),
    ):
        code, printed, _ = create(*arguments)
        assert code != 0
        assert reason in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_examples_is_refused(create, tmp_path, text):
    (tmp_path / "none.jsonl").write_text(text)
    words = ("--method", "in-context", "--examples", tmp_path / "none.jsonl", "--instruction", "x")
    code, printed, output = create(*words)
    assert (code, printed.count("\n"), output.exists()) == (2, 1, False)
    assert "none.jsonl: holds no example" in printed


def test_examples_that_nest_without_end_are_a_bad_line(create, tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    code, printed, _ = create("--method", "in-context", "--examples", tmp_path / "deep.jsonl")
    assert code == 2
    assert "deep.jsonl, line 1: expected a JSON object" in printed


def test_a_width_of_a_projector_that_there_is_not_is_refused(create):
    code, printed, output = create("--method", "echo", "--projector-hidden-size", 3)
    assert (code, output.exists()) == (2, False)
    assert "projector_hidden_size is 3, but template has no <context>" in printed
