"""The Python of docs/convert.md runs as it stands, and its commands take the options shown."""

import re
from pathlib import Path

from snippets import commands_in, read_blocks, run_python
from stock_models import QWEN3_EMBEDDING, build
from typer.main import get_command

from c2v_engine.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")


def test_the_python_runs_and_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "stock-model", QWEN3_EMBEDDING)
    (block,) = (block for block in read_blocks(PAGE) if block.language == "python")
    assert run_python(block.text, "convert.md") == block.shown


def test_commands_and_options_that_are_named_exist():
    command = get_command(app).commands["convert"]
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    (block,) = (block for block in read_blocks(PAGE) if block.language == "sh")
    commands = commands_in(block.text, "c2v")
    assert [line.split()[1] for line in commands] == ["convert", "convert"]
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(commands))) <= known
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
