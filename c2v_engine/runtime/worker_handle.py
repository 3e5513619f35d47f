"""Worker processes as their parent sees them: started, told apart from dead ones, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from c2v_engine.errors import BackendError
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.units import Unit
from c2v_engine.runtime.worker_process import Failed, Opener, Ready, serve

# A worker that does not end when it is told to is killed.
_END_SECONDS = 5.0
_started: weakref.WeakSet[SpawnProcess] = weakref.WeakSet()


@dataclass(eq=False)
class Worker:
    """A worker process as its parent sees it.

    Attributes:
        device: that it computes on.
        process: itself.
        connection: to it.
        ready: what it said when its model was loaded.
        held: the units that it has, by number.
        recalled: numbers of those that were asked back and not answered yet.
    """

    device: str
    process: SpawnProcess
    connection: Connection[Any, Any]
    ready: Ready | None = None
    held: dict[int, Unit] = field(default_factory=dict)
    recalled: set[int] = field(default_factory=set)

    @property
    def load(self) -> int:
        """The cost of the units that it has."""
        return sum(unit.cost for unit in self.held.values())

    def waiting(self) -> int | None:
        """The number of the unit that it will start last, if it has one that may be asked back."""
        numbers = list(self.held)[1:]
        return numbers[-1] if numbers and not self.recalled else None

    def died(self) -> BackendError:
        """How its process ended, for people."""
        self.process.join(_END_SECONDS)
        code = self.process.exitcode
        if code is None:
            ended = "closed its pipe"
        elif code < 0:
            ended = f"was ended by signal {-code} ({_signal_name(-code)})"
        else:
            ended = f"ended with exit code {code}"
        hint = ""
        if self.ready is None and code is not None and code > 0:
            hint = (
                " before its model was loaded (each worker imports the script that is run, which "
                "therefore guards its start with if __name__ == '__main__')"
            )
        return BackendError(f"the worker process on {self.device} {ended}{hint}")


def start_workers(
    directory: Path,
    options: PipelineOptions,
    devices: Sequence[str],
    opener: Opener,
) -> list[Worker]:
    """Start a process for each device, and wait until all have loaded the model.

    The processes on the CPU share the number of threads that torch uses here.

    Raises:
        C2VError: a model could not be loaded; the same kind of error, with the device named.
        BackendError: a process ended, or none can be started here.
    """
    if multiprocessing.current_process().daemon:
        raise BackendError(
            "devices starts processes, which a daemonic process may not: open the engine in "
            "another one, or with device="
        )
    on_cpu = sum(device == "cpu" for device in devices)
    threads = max(1, torch.get_num_threads() // max(1, on_cpu))
    workers: list[Worker] = []
    try:
        with _interrupts_blocked():
            for device in devices:
                there = replace(options, load=replace(options.load, device=device))
                own = threads if device == "cpu" else None
                workers.append(_start(device, (directory, there, opener, own)))
        while loading := [worker for worker in workers if worker.ready is None]:
            wait([worker.connection for worker in loading])
            for worker in loading:
                if worker.connection.poll():
                    worker.ready = _loaded(worker)
    except BaseException:
        end_workers(workers)
        raise
    return workers


def _start(device: str, arguments: tuple[Any, ...]) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve,
        args=(theirs, os.getpid(), *arguments),
        name=f"c2v-{device}",
        daemon=True,  # ended with the interpreter, even where it leaves nobody time to do it
    )
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()  # so that the pipe ends when the worker does
    _started.add(process)
    return Worker(device, process, ours)


def _loaded(worker: Worker) -> Ready:
    try:
        message: Ready | Failed = worker.connection.recv()
    except (EOFError, OSError):
        raise worker.died() from None
    if isinstance(message, Failed):
        raise message.error(worker.device)
    return message


def end_workers(workers: Sequence[Worker]) -> None:
    """End processes, whatever they are doing, and wait for that."""
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()  # the pipe may be held open by a forked copy of this process
    for worker in workers:
        worker.process.join(_END_SECONDS)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.process.close()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside do not take Ctrl-C, from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _disown() -> None:
    """In a forked copy: multiprocessing would end the workers of the original as the copy exits."""
    getattr(multiprocessing.process, "_children", set()).difference_update(_started)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
