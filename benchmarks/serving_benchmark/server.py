"""``c2v serve`` as a process: started, watched, and ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import end_group

__all__ = ["ServerError", "ServerProcess"]

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
_START_SECONDS = 300.0
_STOP_SECONDS = 60.0
_SAMPLE_SECONDS = 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """The server did not start, or went."""


class ServerProcess:
    """A server on a free port of this machine.

    Args:
        arguments: of ``c2v serve``, without its address.
        log: file for what it prints.

    Attributes:
        port: that it listens on.
        memory: seconds since its start and resident MiB, sampled twice a second.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]
        self.memory: list[tuple[float, float]] = []
        self._log = log
        command = [sys.executable, "-m", "c2v_engine", "serve", *arguments]
        command += ["--host", HOST, "--port", str(self.port)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._began = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def wait_until_ready(self) -> None:
        """Wait until it takes requests.

        Raises:
            ServerError: it ended, or takes too long.
        """
        while time.monotonic() < self._began + _START_SECONDS:
            if self._process.poll() is not None:
                break
            try:
                if self.get("/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        printed = self._log.read_text(encoding="utf-8", errors="replace").strip()
        raise ServerError(f"c2v serve did not start: {printed[-500:]}")

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a route, None where it is not JSON."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(body)
        except ValueError:
            return response.status, None

    def processor_seconds(self) -> float:
        """Of all its threads since its start."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def stop(self) -> int | None:
        """End it as an operator does.

        Returns:
            Its exit status; None where it had to be killed.
        """
        self._ended.set()
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(self._process)
            self._process.wait()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            try:
                pages = int(self._proc("statm").split()[1])
            except (OSError, IndexError):  # it has ended
                return
            now = round(time.monotonic() - self._began, 1)
            self.memory.append((now, round(pages * _PAGE / 2**20, 1)))

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text(encoding="ascii")
