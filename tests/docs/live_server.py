"""A ``c2v serve`` for the snippets of a page, which say that it is at the default port."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PORT = 8080  # that a page names


class LiveServer:
    """At most one ``c2v serve``, at a free port and started with a page's options.

    Args:
        folder: where it runs; what it logs stands in ``server.log`` there.
    """

    def __init__(self, folder):
        self._folder = folder
        self._process = None
        self.port = None

    def start(self, command):
        """Starts what a page shows, ``c2v serve ...``, and waits until it is ready."""
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = shlex.split(command)[1:]
        own = ["--port", str(self.port), "--log-format", "json"]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "c2v_engine", *words, *own],
                cwd=self._folder, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self):
        """Ends it as an operator does; it has to end well."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                assert self._process.wait(timeout=40) == 0, self.log()
            finally:
                self._process.kill()
                self._process = None

    def log(self):
        return (self._folder / "server.log").read_text()

    def here(self, text):
        """The text with the port that the server really has."""
        assert self.port is not None, "nothing was started"
        return re.sub(rf"(127\.0\.0\.1|localhost):{PORT}\b", rf"\1:{self.port}", text)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def _is_ready(self):
        try:
            return bool(self.get("/health/ready")) or True
        except (urllib.error.URLError, ConnectionError):
            return False
