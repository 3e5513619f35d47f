"""Handing units of texts to worker processes: each has one to compute and one that waits.

All of it happens in one thread of its own, which therefore needs no locks for its state: workers
get their next unit although the caller reads its input, or does something else with what it got.
A unit is either unassigned, or held by one worker until that worker returns its result or gives it
back unstarted; so it is neither lost nor computed twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from queue import Empty, SimpleQueue

import torch

from c2v_engine.errors import BackendError
from c2v_engine.runtime.stats import EncodeStats
from c2v_engine.runtime.units import Call, Outcome, Unit
from c2v_engine.runtime.worker_handle import Worker, end_workers
from c2v_engine.runtime.worker_process import Done, Failed, Job, Recall, Recalled, bytes_of

# Units that a worker holds: one that it computes, one that waits so that it need not.
_HELD_UNITS = 2
_CLOSED = "this engine was closed, and its worker processes with it"


class Dispatcher:
    """Keeps workers busy with units, from a thread of its own; for any number of threads.

    Args:
        workers: that have loaded their models; they are ended with the dispatcher.
    """

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._process = os.getpid()
        self._pending: deque[Unit] = deque()
        self._numbers = 0
        # Why there are no workers any more.
        self._over: str | None = None
        self._closed = False
        self._woken = False
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._loop, name="c2v-dispatch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that units can be submitted.

        Raises:
            BackendError: the dispatcher was closed, or this is a forked copy of its process.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "the worker processes of this engine belong to another process: load it in each "
                "process, or start them with the spawn method"
            )
        if self._closed:
            raise BackendError(_CLOSED)

    def submit(self, units: Sequence[Unit]) -> None:
        """Have units embedded; each gives an outcome, or the whole call does.

        Raises:
            BackendError: as ``check``.
        """
        self.check()
        if not self._command(lambda: self._add(units)):
            raise BackendError(_CLOSED)

    def abandon(self, call: Call) -> None:
        """Nobody waits for what is left of a call; what was not started never will be."""
        if os.getpid() == self._process:
            self._command(lambda: self._drop(call))

    def close(self) -> None:
        """End the workers and the thread; calls that wait fail. In a forked copy, nothing."""
        if os.getpid() != self._process:
            return
        self._command(lambda: self._end(_CLOSED), last=True)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _command(self, command: Callable[[], None], last: bool = False) -> bool:
        """Have the thread do something; False where it was closed."""
        with self._lock:
            if self._closed:
                return False
            self._closed = last
            self._commands.put(command)
            if not self._woken:
                self._woken = True
                self._wake_writer.send_bytes(b"wake")
            return True

    # --- in the thread ----------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._closed or self._over is None:
                self._step()
        except BaseException as error:  # a mistake of ours: nobody may wait for ever
            self._end(f"the thread that feeds the workers failed: {error!r}")
            raise
        finally:
            with self._lock:
                self._closed = True
            self._run_commands()

    def _step(self) -> None:
        """Wait for something to happen, and act on it."""
        happened = wait([self._wake_reader, *(worker.connection for worker in self._workers)])
        if self._wake_reader in happened:
            self._wake_reader.recv_bytes()
            self._woken = False
            self._run_commands()
        for worker in [w for w in self._workers if w.connection in happened]:
            if self._over is None:
                with self._death_noticed(worker):
                    self._receive(worker)
        self._assign()

    def _run_commands(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._commands.get_nowait()()

    def _add(self, units: Sequence[Unit]) -> None:
        if self._over is None:
            self._pending.extend(units)
        else:
            self._fail({unit.call for unit in units})

    def _drop(self, call: Call) -> None:
        call.abandoned = True
        self._pending = deque(unit for unit in self._pending if unit.call is not call)
        for worker in list(self._workers):
            for number, unit in worker.held.items():
                if unit.call is call and number not in worker.recalled:
                    worker.recalled.add(number)
                    self._send(worker, Recall(number))

    def _end(self, reason: str) -> None:
        """End the workers, and fail every call that has units left."""
        if self._over is not None:
            return
        self._over = reason
        workers, self._workers = self._workers, []
        end_workers(workers)
        units = [*self._pending, *(unit for worker in workers for unit in worker.held.values())]
        self._pending.clear()
        self._fail({unit.call for unit in units})

    def _fail(self, calls: set[Call]) -> None:
        for call in calls:
            assert self._over is not None
            call.outcomes.put(Outcome(None, None, EncodeStats(), BackendError(self._over)))

    @contextlib.contextmanager
    def _death_noticed(self, worker: Worker) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            self._end(f"{worker.died()}: this engine is closed, open another")

    def _send(self, worker: Worker, message: Job | Recall) -> None:
        # A worker that is gone is noticed when its last words have been read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(message)

    def _receive(self, worker: Worker) -> None:
        message: Done | Failed | Recalled = worker.connection.recv()
        if isinstance(message, Recalled):
            worker.recalled.discard(message.number)
            if message.given:
                unit = worker.held.pop(message.number)
                if not unit.call.abandoned:
                    self._pending.appendleft(unit)
            return
        if isinstance(message, Done):
            embeddings = torch.empty(message.shape, dtype=message.dtype)
            worker.connection.recv_bytes_into(bytes_of(embeddings))
            unit = worker.held.pop(message.number)
            outcome = Outcome(unit, embeddings, message.stats, None)
        else:
            unit = worker.held.pop(message.number)
            outcome = Outcome(unit, None, EncodeStats(), message.error(worker.device))
        if not unit.call.abandoned:
            unit.call.outcomes.put(outcome)

    def _assign(self) -> None:
        """Give out units, to those first that have fewest; then take back for those without."""
        for held in range(_HELD_UNITS):
            for worker in self._workers:
                if len(worker.held) <= held and self._pending:
                    self._give(worker, self._pending.popleft())
        if not self._pending:
            self._steal()

    def _give(self, worker: Worker, unit: Unit) -> None:
        self._numbers += 1
        worker.held[self._numbers] = unit
        call, ranges = unit.call, unit.call.output.ranges
        self._send(
            worker,
            Job(
                self._numbers,
                unit.texts,
                call.prompt,
                call.batch_tokens,
                replace(call.output, ranges=None),
                None if ranges is None else ranges.cpu().numpy(),
            ),
        )

    def _steal(self) -> None:
        """Ask the most loaded workers for what they have not started, once for each idle one."""
        idle = sum(not worker.held for worker in self._workers)
        idle -= sum(len(worker.recalled) for worker in self._workers)
        for worker in sorted(self._workers, key=lambda worker: -worker.load):
            number = worker.waiting()
            if idle > 0 and number is not None:
                worker.recalled.add(number)
                self._send(worker, Recall(number))
                idle -= 1
