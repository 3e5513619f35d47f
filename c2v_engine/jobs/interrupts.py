"""Ctrl-C and kill: stop at once, even in the middle of a long computation."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SHOW_CURSOR = "\x1b[?25h"


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def stop_signals(on_stop: Callable[[], str]) -> Iterator[None]:
    """End the process at once when it is interrupted, terminated or hung up on.

    A Python signal handler would have to wait until the main thread comes back from a tensor
    operation, and an exception until worker threads have finished. Here the signal wakes a thread
    of its own, which cleans up and ends the process; the exit code is 128 plus its number.

    A signal that is ignored on entry (as ``nohup`` does) stays ignored. Outside the main thread,
    where Python lets no one handle signals, nothing is changed.

    Args:
        on_stop: called in the waiting thread; cleans up and returns the line to show.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    watched = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while number := os.read(reader, 1)[0]:
            if number in watched:  # any signal with a Python handler comes through the pipe
                _leave(number, on_stop)

    watcher = threading.Thread(target=wait, name="c2v-signals", daemon=True)
    watcher.start()
    before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in watched:
            # The handler itself has nothing to do: the number is in the pipe already.
            signal.signal(number, lambda number, frame: None)
        yield
    finally:
        for number in watched:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(before_fd)
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def unwind_when_terminated() -> Iterator[None]:
    """Have a kill raise ``SystemExit`` where the main thread is, as Ctrl-C raises its own.

    For work whose ``finally`` has more to do than a signal's thread can, such as to end servers and
    to remove models that were made. It waits for the tensor operation that runs.

    A signal that is ignored on entry stays ignored. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    watched = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in watched:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in watched:
            signal.signal(number, before[number])


def _leave(number: int, on_stop: Callable[[], str]) -> None:
    try:
        line = on_stop()
    except Exception as error:
        line = f"interrupted; cleaning up failed: {error}"
    # Straight to the descriptor: the main thread may hold the stream's lock.
    start = f"{SHOW_CURSOR}\r\x1b[K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode(errors="replace"))
    os._exit(128 + number)
