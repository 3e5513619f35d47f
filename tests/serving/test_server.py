"""The process: how it starts, what it refuses to start with, and that its end loses nothing."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from recipes import Recipe
from safetensors.torch import load_file, save_file

from c2v_engine.cli import main
from c2v_engine.errors import InputError
from c2v_engine.serving.server import KEYS_VARIABLE, read_keys

TEXT = "the cat sat on the mat and looked at the dog " * 4


class Process:
    """``c2v serve`` on a free port; its standard error goes to a file."""

    def __init__(self, folder, *options, model=None):
        self.log = folder / "stderr"
        command = [sys.executable, "-m", "c2v_engine", "serve", "--port", "0", *options]
        with self.log.open("wb") as stream:
            self.popen = subprocess.Popen(command + ([str(model)] if model else []), stderr=stream)
        self.port = int(self.wait_for(r"http://127\.0\.0\.1:(\d+)"))

    def wait_for(self, pattern, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found[found.re.groups]
            assert self.popen.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in:\n{self.log.read_text()}")

    def end(self):
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*options, **more):
        started.append(Process(tmp_path, *options, **more))
        return started[-1]

    yield start
    for process in started:
        process.end()


class Client(threading.Thread):
    """Asks over one connection after the other, until nobody listens any more."""

    def __init__(self, port, number):
        super().__init__()
        self.port, self.number = port, number
        self.answered, self.cut, self.statuses = set(), set(), set()

    def run(self):
        body = json.dumps({"model": "default", "input": [TEXT] * 4, "encoding_format": "base64"})
        connection, asked = None, 0
        while True:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    return  # it does not listen: nothing was accepted
            name = f"{self.number}-{asked}"
            asked += 1
            headers = {"X-Request-Id": name, "Content-Type": "application/json"}
            try:
                connection.request("POST", "/v1/embeddings", body, headers)
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                self.cut.add(name)
                connection = None
                continue
            self.statuses.add(response.status)
            if response.status == 200:
                assert len(answer["data"]) == 4
                self.answered.add(name)
            if response.getheader("Connection") == "close":
                connection.close()
                connection = None


def test_kill_under_load_loses_nothing_that_was_accepted(start):
    process = start("--log-format", "json", "--batch-tokens", "512", "--grace", "60")
    clients = [Client(process.port, number) for number in range(8)]
    wait_until_ready(process.port)
    for client in clients:
        client.start()
    end = time.monotonic() + 60
    while sum(len(client.answered) for client in clients) < 40:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0
    for client in clients:
        client.join(60)
        assert not client.is_alive()
    logged = [json.loads(line) for line in process.log.read_text().splitlines()]
    by_id = {line["request_id"]: line["status"] for line in logged if "request_id" in line}
    answered = set().union(*(client.answered for client in clients))
    cut = set().union(*(client.cut for client in clients))
    assert set().union(*(client.statuses for client in clients)) == {200}
    # All that the server took is answered, and what was cut it had never taken.
    assert {name for name in by_id if "-" in name and len(name) < 12} == answered
    assert not cut & set(by_id)


def wait_until_ready(port, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise AssertionError("not ready")


def test_a_process_says_what_it_does_and_asks_for_keys(start, monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "first, second")
    process = start("--name", "mine", "--name", "other")
    process.wait_for("c2v serve: (ready)")
    for key, status in ((None, 401), ("third", 401), ("first", 200), ("second", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        connection.request("GET", "/v1/models", headers=headers)
        response = connection.getresponse()
        assert response.status == status
        text = response.read().decode()
    names = [model["id"] for model in json.loads(text)["data"]]
    assert [name for name in names if ":" not in name] == ["mine", "other"]
    process.popen.send_signal(signal.SIGHUP)
    assert process.popen.wait(60) == 0
    assert "first" not in process.log.read_text()
    assert process.log.read_text().endswith("ended: all that was accepted is answered\n")


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = error_of(capsys, str(tmp_path / "no-model"), "--port", str(port))
    assert line == f"error: 127.0.0.1:{port}: Address already in use"


def test_an_address_that_there_is_not_is_a_mistake_in_one_line(capsys):
    assert error_of(capsys, "--host", "no.such.host.invalid", "--port", "0").startswith(
        "error: no.such.host.invalid:0: "
    )


def test_a_model_that_there_is_not_is_a_mistake_in_one_line(capsys, tmp_path):
    assert "no-model" in error_of(capsys, str(tmp_path / "no-model"), "--port", "0")


def test_weights_that_give_nan_are_found_at_the_start(capsys, checkpoint, tmp_path):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(checkpoint(Recipe()), folder)
    weights = load_file(folder / "projector.safetensors")
    save_file(
        {name: torch.full_like(weight, float("nan")) for name, weight in weights.items()},
        folder / "projector.safetensors",
    )
    assert "not finite" in error_of(capsys, str(folder), "--port", "0", "--quiet")


def test_no_address_at_all_does_not_mean_every_one(capsys):
    assert error_of(capsys, "--host", "", "--port", "0").startswith("error: host is ''")


@pytest.mark.parametrize("option", ["--max-body-mb", "--grace"])
def test_a_number_without_end_is_a_mistake_in_one_line(capsys, option):
    assert option in error_of(capsys, option, "inf")


SLOW = """
import time
from c2v_engine.cli import main
{patch}
main(["serve", "--port", "0", "--grace", "600"])
"""
SLOW_LOADING = """
from c2v_engine.opener import EngineSpec
EngineSpec.open = lambda self: (print("loading", flush=True), time.sleep(600))
"""
SLOW_WARM_UP = """
from c2v_engine.serving.service import EmbeddingService
EmbeddingService.warm_up = lambda self: (print("warming", flush=True), time.sleep(600))
"""


@pytest.mark.parametrize(
    ("patch", "signals", "code"), [(SLOW_LOADING, 1, 143), (SLOW_WARM_UP, 2, 0)]
)
def test_a_signal_ends_what_is_not_ready_yet(patch, signals, code):
    """Not by the system's own handler, which the first process of a container has none of."""
    command = [sys.executable, "-c", SLOW.format(patch=patch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout.readline()
        for _ in range(signals):
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            time.sleep(1.5)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.communicate()


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    assert read_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text("# of the search team\n  one \n\ntwo\n")
    monkeypatch.setenv(KEYS_VARIABLE, "three,one, ")
    assert read_keys(file) == ("three", "one", "two")


@pytest.mark.parametrize("given", [" ", ",", " , ,"])
def test_a_variable_without_keys_does_not_open_the_server_to_all(monkeypatch, given):
    monkeypatch.setenv(KEYS_VARIABLE, given)
    with pytest.raises(InputError, match="no API key"):
        read_keys(None)
    monkeypatch.setenv(KEYS_VARIABLE, "")  # as good as unset
    assert read_keys(None) == ()


def test_a_file_of_windows_has_the_same_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes("one\r\ntwo\r\n".encode("utf-8-sig"))
    assert read_keys(file) == ("one", "two")


def test_a_file_without_keys_does_not_open_the_server_to_all(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n\n")
    with pytest.raises(InputError, match="no API key"):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_keys(file)
    with pytest.raises(OSError, match="No such file"):
        read_keys(tmp_path / "nowhere")


def test_a_second_signal_ends_at_once_and_says_so_by_its_code(start):
    # One text a batch, and far more of them than can be done in the time of the test.
    process = start("--batch-tokens", "1", "--queue-tokens", "10000000", "--grace", "600")
    process.wait_for("c2v serve: (ready)")
    body = json.dumps({"model": "default", "input": [TEXT * 8] * 2000})
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    time.sleep(0.5)
    process.popen.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.popen.poll() is None
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(30) == 1
    assert "some of what was accepted is not answered" in process.log.read_text()


def test_what_is_not_done_within_the_grace_is_refused_and_the_code_says_so(start):
    process = start("--batch-tokens", "1", "--queue-tokens", "10000000", "--grace", "1")
    process.wait_for("c2v serve: (ready)")
    body = json.dumps({"inputs": [TEXT * 8] * 2000})
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
    connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
    time.sleep(0.5)
    process.popen.send_signal(signal.SIGTERM)
    response = connection.getresponse()
    assert response.status == 503
    assert "shutting down" in json.loads(response.read())["error"]
    assert process.popen.wait(30) == 1
    log = process.log.read_text()
    assert "some of what was accepted is not answered" in log
    assert "Traceback" not in log
    assert "leaked" not in log  # as extensions say whose objects are still there


def test_an_answer_that_is_not_taken_in_time_is_not_given_as_answered(start):
    process = start("--grace", "1", "--log-format", "json")
    process.wait_for("c2v serve: (ready)")
    body = json.dumps({"inputs": ["a"] * 1000}).encode()  # answered by 6 MB
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", process.port))
        head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        process.wait_for('"route":"(/embed)"')
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(30) == 1


def test_a_key_is_no_option(capsys):
    """A command line is seen by all users of a machine."""
    assert "--api-key" in error_of(capsys, "--api-key", "secret")
