"""Ctrl-C, kill and hang-up: at once, one line, no file left, the old file kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("fake_c2v.py"))
ROWS = 1000


def unignore():
    # A test runner started in the background may hand down ignored signals.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(tmp_path, *options, window=10, delay=0.05, prepare=unignore):
    (tmp_path / "in.txt").write_text("some text\n" * ROWS)
    command = [sys.executable, SCRIPT, str(window), str(delay)]
    command += ["encode", str(tmp_path / "in.txt"), "-o", str(tmp_path / "o.parquet"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, preexec_fn=prepare, **pipes)
    deadline = time.monotonic() + 30
    while not any(name.endswith(".tmp") for name in os.listdir(tmp_path)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_while_encoding_leaves_one_line_and_no_file(tmp_path, number, code):
    process = start(tmp_path)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"interrupted: nothing was written to {tmp_path}/o.parquet (")
    assert lines[0].endswith(" texts done)")
    assert os.listdir(tmp_path) == ["in.txt"]


def test_interrupt_does_not_wait_for_the_block_being_computed(tmp_path):
    process = start(tmp_path, delay=60.0)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    assert "(0 texts done)" in err


def test_interrupt_keeps_the_file_that_was_there(tmp_path):
    (tmp_path / "o.parquet").write_text("old")
    process = start(tmp_path, "--overwrite")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert (tmp_path / "o.parquet").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "o.parquet"]


def test_killed_run_never_leaves_a_half_output(tmp_path):
    process = start(tmp_path)
    time.sleep(0.2)
    process.kill()
    process.communicate(timeout=10)
    names = sorted(os.listdir(tmp_path))
    assert "o.parquet" not in names
    assert len(names) == 2
    assert names[0].startswith(".o.parquet.")


def test_ignored_hang_up_stays_ignored(tmp_path):
    def nohup():
        unignore()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(tmp_path, window=100, delay=0.1, prepare=nohup)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "1,000" in out
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "o.parquet"]
