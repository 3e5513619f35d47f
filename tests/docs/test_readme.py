"""What the README shows is what happens: its Python runs as it stands, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The fenced blocks of a language; "" gives those that name none."""
    found, inside = [], None
    for line in README.splitlines():
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, name = [], line.removeprefix("```")
        else:
            if name == language:
                found.append("\n".join(inside) + "\n")
            inside = None
    return found


def test_the_python_snippets_run_and_print_what_is_shown(capsys, monkeypatch):
    from c2v_engine import Causal2Vec

    created = {}
    monkeypatch.setattr(
        Causal2Vec, "create", staticmethod(lambda **options: created.update(options))
    )
    names = {"__name__": "__main__"}
    for source in blocks("python"):
        exec(compile(source, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert created["output"] == "my-model"
    shown = next(block for block in blocks("") if "float32" in block and "tensor(" in block)
    assert printed.splitlines()[0] == shown.splitlines()[0]
    numbers = [
        np.array([float(n) for n in re.findall(r"-?\d+\.\d+", text.split("tensor")[1])][:6])
        for text in (shown, printed)
    ]
    # The default model runs in bfloat16 or float32, as the CPU can.
    assert np.abs(numbers[0] - numbers[1]).max() < 0.02
    assert printed.splitlines()[-2:] == ["20000", "(2, 512)"]


def test_the_commands_shown_exist():
    commands = {
        line.split()[1]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("c2v ")
    }
    result = subprocess.run(
        [sys.executable, "-m", "c2v_engine", "--help"], capture_output=True, text=True, check=True
    )
    assert commands
    for command in commands:
        assert re.search(rf"^\s+{command}\b", result.stdout, flags=re.MULTILINE), command


def test_links_lead_to_files():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(
            r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")
        ):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
