"""The commands and the Python of docs/corpora.md run in order, as they stand; its table is made."""

from __future__ import annotations

import functools
import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from c2v_engine.cli import app, main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)?\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
ELSEWHERE = ("s3://", "--devices")  # a bucket, and GPUs


def commands(block):
    return [shlex.split(line, comments=True) for line in block.splitlines() if "c2v " in line]


def shown():
    """The lines of output that the page shows."""
    return [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def write_inputs(folder):
    row = {"text": "Return the absolute path.", "module": "os"}
    rows = [json.dumps({"id": f"r{n}", **row, "n": n}) + "\n" for n in range(30)]
    (folder / "corpus").mkdir()
    for name, part in (("docstrings", rows), ("part-1", rows[:10]), ("corpus/part-00", rows[:20])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    (folder / "corpus" / "part-01.jsonl").write_text("".join(rows[20:]))
    (folder / "part-2.jsonl.gz").write_bytes(gzip.compress("".join(rows[10:]).encode()))
    rejected = json.loads(next(line for line in shown() if line.startswith("{")))
    bad = [*rows[:3], json.dumps({"id": rejected["id"], "text": None}) + "\n", *rows[4:]]
    (folder / "bad.jsonl").write_text("".join(bad))


def c2v(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code, arguments


def test_the_commands_and_the_python_run_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    from c2v_engine import Causal2Vec

    monkeypatch.chdir(tmp_path)
    open_model = functools.cache(Causal2Vec.from_pretrained)
    monkeypatch.setattr(Causal2Vec, "from_pretrained", open_model)
    write_inputs(tmp_path)
    printed = []
    for kind, block in BLOCKS:
        if kind == "python":
            capsys.readouterr()
            exec(compile(block, "corpora.md", "exec"), {})
            printed += capsys.readouterr().out.splitlines()
        elif kind == "sh":
            for command in commands(block):
                if not any(word.startswith(ELSEWHERE) for word in command):
                    c2v(command[1:])
    assert printed == [
        "r0 (30, 512) float32",
        "(30, 512)",
        "float32",
        "(30, 512) 30 (30, 512)",
    ]
    assert (tmp_path / "tolerant" / "rejected.jsonl").read_text().splitlines() == [
        line for line in shown() if line.startswith("{")
    ]
    named = set(re.findall(r"`([a-z-]+\.(?:json|jsonl|html|json\.zst)|\.lock)`", PAGE))
    known = {path.name for path in (tmp_path / "tolerant").iterdir()}
    assert {name for name in named if not name.startswith("docstrings")} <= known


def test_commands_for_elsewhere_take_their_options():
    for kind, block in BLOCKS:
        for command in commands(block) if kind == "sh" else ():
            get_command(app).commands[command[1]].make_context(command[1], command[2:])


def test_options_that_are_named_exist():
    options = {
        name for one in get_command(app).commands.values() for p in one.params for name in p.opts
    }
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= options | {"--write"}


def test_messages_are_those_that_the_package_gives():
    """Each shown line stands in the sources, but for what it names."""
    words = (
        "is done again",
        "another job is writing there",
        "the job there has",
        "choose another folder, or --overwrite to begin anew",
        "the job in",
        "has this file, and it was not given",
        "rows are there",
        "the same command goes on",
        "done again",
    )
    folder = ROOT / "c2v_engine" / "jobs" / "corpus"
    sources = "".join(path.read_text() for path in folder.rglob("*.py"))
    messages = [line for line in shown() if line.startswith(("error", "note", "interrupted"))]
    assert len(messages) == 6
    for line in messages:
        assert any(word in line for word in words), line
    assert [word for word in words if word not in " ".join(messages)] == []
    joined = re.sub(r'"\s+f?"', "", sources)
    assert [word for word in words if word not in joined] == []
