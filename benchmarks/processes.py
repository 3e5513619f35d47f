"""Commands that a run starts, waits for within a time, and never leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ["Ended", "end_all", "end_on_signals", "run_command"]

ROOT = Path(__file__).resolve().parents[1]
_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_STOPPING = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status, negative for a signal; None where its time was up.
        seconds: it took.
        output: what it printed, both streams.
    """

    status: int | None
    seconds: float
    output: str

    @property
    def note(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return f"cut after {self.seconds:.0f} s"
        return "ok" if self.status == 0 else f"ended with status {self.status}"


def run_command(
    command: Sequence[str], seconds: float, log: Path, extra: Mapping[str, str] | None = None
) -> Ended:
    """Runs a command in the repository and ends it, with all it started, when its time is up.

    Args:
        command: program and arguments.
        seconds: it may take.
        log: what it prints is appended to this file as it comes.
        extra: environment variables beside this process's.
    """
    start = time.monotonic()
    environment = {**os.environ, **(extra or {})}
    # Under the lock, so that whoever ends all commands finds this one too.
    with log.open("ab") as output, _lock:
        begin = output.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(process)
    try:
        status: int | None = process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end_group(process)
        process.wait()
        with _lock:
            _running.discard(process)
    with log.open("rb") as output:
        output.seek(begin)
        printed = output.read().decode(errors="replace")
    return Ended(status, round(time.monotonic() - start, 1), printed)


def end_all() -> None:
    """Ends every command that still runs."""
    with _lock:
        for process in _running:
            end_group(process)


def end_on_signals() -> None:
    """Has a termination or a dropped connection end this process as ctrl-C does.

    What stands in ``finally`` is then done. A signal that is ignored, as under nohup, stays so.
    """
    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    for each in _STOPPING:  # a second one would cut the ending short
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
