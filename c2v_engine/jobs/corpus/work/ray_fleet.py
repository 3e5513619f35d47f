"""Workers on a Ray cluster, as a job's coordinator sees them.

The actors share a filesystem with the coordinator: they read the input and write shards under
temporary names, and the coordinator alone, which holds the folder's lock, moves and records them.
Ray restarts nothing here; the coordinator knows what a dead worker had, and starts another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from c2v_engine._version import __version__
from c2v_engine.errors import BackendError, MissingPackageError
from c2v_engine.jobs.corpus.records import Unit
from c2v_engine.jobs.corpus.work.fleet import Fleet
from c2v_engine.jobs.corpus.work.ray_worker import Place, RayWorker
from c2v_engine.jobs.corpus.work.worker import (
    Ended,
    Failed,
    Message,
    NothingNow,
    Opener,
    Setup,
)
from c2v_engine.jobs.encode import EncodeOptions

# For all actors to get their processors, before a model is loaded.
_PLACE_SECONDS = 180.0
_CONNECT_SECONDS = 10.0
# More threads than these tokenise no faster than a GPU computes.
_CPUS_PER_GPU = 4


class Spec(Opener, Protocol):
    """An opener that knows its device; ``c2v_engine.opener.EngineSpec``."""

    @property
    def device(self) -> str:
        """As ``Causal2Vec.from_pretrained`` takes it."""

    def on(self, device: str, threads: int | None = None) -> Opener:
        """The same engine on another device."""


@dataclass(frozen=True)
class Share:
    """What each actor gets.

    Attributes:
        workers: how many actors.
        gpus: of each.
        cpus: of each.
    """

    workers: int
    gpus: int
    cpus: int


@dataclass(eq=False)
class _Actor:
    handle: Any
    reply: Any  # to the call that waits for its next messages
    since: float = field(default_factory=time.monotonic)


class RayFleet(Fleet):
    """Actors of a Ray cluster, one on each GPU, or on each machine where there are none.

    Args:
        spec: of the engine.
        options: how texts are embedded.
        address: of the cluster, as ``ray.init`` takes it: ``auto``, ``host:6379``, or ``local`` for
            one that is started here and ends with the job.
        workers: how many actors; None for the cluster's GPUs or machines.

    Raises:
        MissingPackageError: Ray is not installed.
    """

    def __init__(
        self, spec: Spec, options: EncodeOptions, address: str, workers: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError("ray", "ray") from error
        self._ray: Any = ray
        self._spec = spec
        self._options = options
        self._address = address
        self._asked = workers
        self._share = Share(0, 0, 0)
        self._running: dict[int, _Actor] = {}
        self._places: dict[int, Place] = {}
        self._connected_by: int | None = None
        self._closing = threading.Lock()

    def launch(self) -> list[tuple[int, Message]]:
        """See the base class; the actors have their processors then.

        Raises:
            BackendError: there is no such cluster, it has no room, or a machine can not be used.
        """
        self._connect()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        resources = [node["Resources"] for node in nodes]
        self._share = divide(resources, self._spec.device, self._asked)
        for worker in range(self._share.workers):
            self.replace(worker)
        return self._wait_for_places()

    @property
    def workers(self) -> list[int]:
        """See the base class."""
        return list(self._running)

    def events(self, seconds: float) -> list[tuple[int, Message]]:
        """See the base class."""
        by_reply = {actor.reply: number for number, actor in self._running.items()}
        if not by_reply:
            return []
        replies = list(by_reply)
        ready, _ = self._ray.wait(replies, num_returns=1, timeout=seconds)
        if ready:  # and whatever else is there
            ready, _ = self._ray.wait(replies, num_returns=len(replies), timeout=0)
        found: list[tuple[int, Message]] = []
        for reply in ready:
            number = by_reply[reply]
            actor = self._running[number]
            try:
                messages = self._without_places(number, self._ray.get(reply))
            except self._ray.exceptions.RayError as error:
                self._end(number)
                found.append((number, Ended(death_reason(error))))
                continue
            found += [(number, message) for message in messages]
            if messages and isinstance(messages[-1], Failed):
                self._end(number)
                found.append((number, Ended("ended by an error")))
                continue
            actor.reply = actor.handle.poll.remote()
        return found or self._without_room()

    def send(self, worker: int, message: Unit | NothingNow | Setup) -> None:
        """See the base class."""
        if worker in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._running[worker].handle.tell.remote(message)

    def name(self, worker: int) -> str:
        """See the base class."""
        place = self._places.get(worker)
        where = "" if place is None else f" ({place.host}, process {place.pid})"
        return f"Ray worker {worker}{where}"

    def close(self) -> None:
        """See the base class."""
        with self._closing:
            for number in list(self._running):
                self._end(number)
            # Another thread calls when the process is about to end, and its own cluster with it.
            if self._connected_by == threading.get_ident():
                self._connected_by = None
                self._ray.shutdown()

    def _connect(self) -> None:
        if self._ray.is_initialized():  # the caller's own cluster
            return
        _check_address(self._address)
        local = {"include_dashboard": False} if self._address == "local" else {}
        with _sigterm_kept():
            try:
                self._ray.init(address=self._address, logging_level=logging.WARNING, **local)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise BackendError(
                    f"--ray {self._address}: no cluster there can be used: {_one_line(error)}"
                ) from error
        self._connected_by = threading.get_ident()

    def replace(self, worker: int) -> None:
        """See the base class."""
        share = self._share
        device, threads = ("cuda", None) if share.gpus else ("cpu", share.cpus)
        actor = self._ray.remote(RayWorker).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_concurrency=2,  # a call that waits for messages, and one that brings some
        )
        handle = actor.remote(self._spec.on(device, threads), self._options, os.getcwd())
        self._places.pop(worker, None)
        self._running[worker] = _Actor(handle, handle.poll.remote())

    def _without_places(self, worker: int, said: list[Message | Place]) -> list[Message]:
        messages: list[Message] = []
        for message in said:
            if not isinstance(message, Place):
                messages.append(message)
                continue
            self._places[worker] = message
            if message.release != __version__:
                wrong = f"has c2v-engine {message.release}, this machine has {__version__}"
                return [Failed("BackendError", f"{self.name(worker)}: {wrong}", "")]
        return messages

    def _without_room(self) -> list[tuple[int, Message]]:
        """End those that get no processors, once the job began and where no other is at work."""
        if self.facts is None or self._places.keys() & self._running.keys():
            return []
        late = time.monotonic() - _PLACE_SECONDS
        numbers = [number for number, actor in self._running.items() if actor.since < late]
        for number in numbers:
            self._end(number)
        return [(n, Ended(f"got no processors in {_PLACE_SECONDS:.0f} s")) for n in numbers]

    def _wait_for_places(self) -> list[tuple[int, Message]]:
        """Wait until all actors have their processors; what they said meanwhile."""
        deadline = time.monotonic() + _PLACE_SECONDS
        said: list[tuple[int, Message]] = []
        while len(self._places) < self._share.workers:
            said += self.events(1.0)
            if any(isinstance(message, (Failed, Ended)) for _, message in said):
                break
            if time.monotonic() > deadline:
                share = self._share
                each = (
                    f"{share.gpus} GPUs and {share.cpus} CPUs"
                    if share.gpus
                    else f"{share.cpus} CPUs"
                )
                raise BackendError(
                    f"{len(self._places)} of {share.workers} Ray workers got their {each} within "
                    f"{_PLACE_SECONDS:.0f} s: others use the cluster; ask for fewer by --workers"
                )
        return said

    def _end(self, worker: int) -> None:
        actor = self._running.pop(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle, no_restart=True)


def divide(nodes: Sequence[Mapping[str, float]], device: str, asked: int | None) -> Share:
    """Share a cluster out: an actor for each GPU, else for each machine, or as many as asked for.

    Args:
        nodes: the resources of each machine, as Ray counts them.
        device: ``auto``, ``cpu`` or ``cuda``.
        asked: how many actors; None for as many as there are GPUs or machines.

    Raises:
        BackendError: the cluster has not that much.
    """
    with_gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU")]
    gpus = sum(count for count, _ in with_gpus)
    if gpus and device != "cpu":
        if asked is not None and asked > gpus:
            raise BackendError(f"--workers {asked}: the Ray cluster has {gpus} GPUs")
        share = min(cpus // count for count, cpus in with_gpus) // 2  # the rest reads and writes
        return Share(asked or gpus, 1, max(1, min(_CPUS_PER_GPU, share)))
    if device not in ("auto", "cpu"):
        raise BackendError(f"--device {device}: the Ray cluster has no GPU")
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not cpus:
        raise BackendError("the Ray cluster has no CPUs to work with")
    if asked is None:
        return Share(len(cpus), 0, min(cpus))
    for each in range(max(cpus), 0, -1):
        if sum(count // each for count in cpus) >= asked:
            return Share(asked, 0, each)
    raise BackendError(f"--workers {asked}: the Ray cluster has {sum(cpus)} CPUs")


def death_reason(error: Exception) -> str:
    """What Ray says of an actor's end, in a line for people."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    text = " ".join(lines[1:] or lines)
    text = text.partition("Worker exit detail: ")[2] or text
    return f"died ({text.partition(' Some common causes')[0].strip().rstrip('.')})"


def _check_address(address: str) -> None:
    """See that somebody listens there; Ray would try for many minutes."""
    if address in ("local", "auto"):
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "//" in address:
        raise BackendError(f"--ray {address}: expected auto, local, or the head's host:port")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        raise BackendError(f"--ray {address}: nothing answers there: {error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler that Ray would put its own in the place of."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
