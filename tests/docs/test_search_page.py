"""The Python of docs/search.md runs as it stands, and its commands take the options shown."""

import re
from pathlib import Path

from typer.main import get_command

from c2v_engine.cli import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(source, "search.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(1, 2) [")


def test_options_that_are_named_exist():
    commands = get_command(app).commands
    known = {
        name
        for command in ("encode", "search", "index", "mine")
        for parameter in commands[command].params
        for name in parameter.opts
    }
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
