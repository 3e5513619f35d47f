"""The commands: light to start, one clear line for a mistake, figures at the end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2v_engine import __version__
from c2v_engine.cli import main

FAKE = str(Path(__file__).with_name("fake_c2v.py"))
HEAVY = ("torch", "transformers", "pyarrow", "numpy", "tokenizers", "rich.progress")


def c2v(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return caught.value.code, done.out, done.err


def fake_c2v(*arguments, window=1000, delay=0.0):
    command = [sys.executable, FAKE, str(window), str(delay), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def put(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_help_loads_nothing_heavy():
    script = (
        "import sys, c2v_engine.cli\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "try: c2v_engine.cli.main(['encode', '--help'])\n"
        "except SystemExit as done: assert not done.code\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_help_takes_less_than_half_a_second():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "c2v_engine", "--help"], check=True, stdout=-3)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # the quickest of five: other processes may share the machine


def test_version_is_printed(capsys):
    assert c2v(capsys, "--version") == (0, f"c2v {__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("a.json", "", [], "unknown extension '.json'"),
        ("a.txt", "", [], "no rows"),
        ("a.txt", "x\n", ["--id-column", "id"], "holds no ids"),
        ("a.jsonl", '{"body": "x"}\n', [], "line 1: no column 'text'; the columns are 'body'"),
        ("a.jsonl", '{"text": "x"\n', [], "line 1: broken JSON"),
        ("a.csv", "body\nx\n", ["--column", "title"], "no column 'title'; the columns are 'body'"),
        ("a.txt", "x\n", ["--precision", "bfloat16"], "write float16 or float32"),
        ("a.txt", "x\n", ["-o", "none/o.npy"], "does not exist"),
        ("a.txt", "x\n", ["-o", "a.pickle"], "unknown extension '.pickle'"),
        ("a.txt", "x\n", ["-o", "a.txt"], "unknown extension '.txt'"),
        (
            "a.txt",
            "x\n",
            ["-o", "corpus-2.0"],
            "known are .npy, .parquet (a folder's name ends in /)",
        ),
        ("a.txt", "x\n", ["-o", "old.npy"], "exists already; --overwrite replaces it"),
    ],
)
def test_mistake_gives_one_line_and_code_2(
    capsys, monkeypatch, tmp_path, name, content, options, reason
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "old.npy", "old")
    put(tmp_path, name, content)
    code, out, err = c2v(capsys, "encode", name, "-o", "o.npy", *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert (tmp_path / "old.npy").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "old.npy"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["encode", "a.txt"],
        ["encode", "a.txt", "-o", "o.npy", "--precision", "float64"],
        ["encode", "a.txt", "-o", "o.npy", "--batch-tokens", "0"],
        ["calibrate", "a.txt"],
        ["create", "--output", "m"],
        ["create", "--output", "m", "--decoder", "d", "--prompt", "no equals sign"],
        ["unknown"],
    ],
    ids=" ".join,
)
def test_usage_mistake_ends_with_code_2(capsys, arguments):
    code, out, err = c2v(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err


def test_figures_of_the_run_are_printed(tmp_path):
    source = put(tmp_path, "a.txt", "one two\n" * 2500)
    done = fake_c2v("encode", source, "-o", tmp_path / "o.npy", "--precision", "float16")
    assert done.returncode == 0, done.stderr
    # Nothing but progress, of which there is a line where the machine was busy for a second.
    assert all(" texts/s, " in line for line in done.stderr.splitlines())
    words = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert words["rows"] == "2,500"
    assert words["dimension"] == "8 (float16)"
    assert words["model"] == "fake"
    assert "texts/s" in words["speed"]
    assert "tokens/s" in words["speed"]
    assert words["output"] == f"{tmp_path / 'o.npy'} (40 kB)"
    assert np.load(tmp_path / "o.npy").shape == (2500, 8)


def test_quiet_prints_nothing(tmp_path):
    source = put(tmp_path, "a.txt", "one\n")
    done = fake_c2v("encode", source, "-o", tmp_path / "o.npy", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_repeated_ids_are_said_once(tmp_path):
    source = put(tmp_path, "a.csv", "text,id\nx,1\ny,2\nz,1\nz,1\n")
    done = fake_c2v("encode", source, "-o", tmp_path / "o.parquet", "--id-column", "id")
    assert done.returncode == 0
    assert done.stderr == (
        f"note: {source}: 2 rows repeat an id that an earlier row has (column 'id')\n"
    )
    assert pq.read_table(tmp_path / "o.parquet")["id"].to_pylist() == ["1", "2", "1", "1"]


def test_long_run_without_a_terminal_prints_plain_lines(tmp_path):
    source = put(tmp_path, "a.txt", "one\n" * 700)
    done = fake_c2v("encode", source, "-o", tmp_path / "o.npy", window=100, delay=0.25)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 4  # one a second, and the run takes two where nothing else does
    assert all("texts/s" in line for line in lines)
    assert lines[0].endswith(" left")
    assert "\x1b" not in done.stderr


def test_terminal_gets_a_bar(tmp_path):
    source = put(tmp_path, "a.txt", "one\n" * 500)
    command = [sys.executable, FAKE, "100", "0.1", "encode", str(source), "-o"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*command, str(tmp_path / "o.npy")], stderr=theirs, stdout=-3, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # the other side has been closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=30) == 0
    assert b"texts/s" in shown
    assert b"tokens/s" in shown
    assert b"left" in shown
    assert shown.rstrip().endswith((b"\x1b[?25h", b"\x1b[2K", b"\x1b[1A\x1b[2K"))
