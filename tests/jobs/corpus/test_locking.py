"""The lock of a folder: one at a time, and gone with its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.locking import locked

HOLD = """
import sys
from pathlib import Path
from c2v_engine.jobs.corpus.folder.locking import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_two_processes_do_not_have_it_at_once(tmp_path, holder):
    with pytest.raises(OutputError) as caught, locked(tmp_path / "out"):
        pass
    who = f"(pid {holder.pid} on host {socket.gethostname()})"
    assert str(caught.value) == f"{tmp_path / 'out'}: another job is writing there {who}"


def test_a_killed_process_has_it_no_more(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "out"):
        text = (tmp_path / "out" / ".lock").read_text()
    assert text == f"pid {os.getpid()} on host {socket.gethostname()}\n"


def test_it_is_free_when_it_is_left_and_for_one_thread_at_a_time(tmp_path):
    for _ in range(2):
        with locked(tmp_path, "run"):
            again = locked(tmp_path, "run")
            with pytest.raises(OutputError, match="another run is writing there"):
                again.__enter__()


def test_a_place_that_can_not_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can not be written: "), locked(tmp_path / "file"):
        pass


def test_a_process_that_was_started_under_it_does_not_keep_it(tmp_path):
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with locked(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
