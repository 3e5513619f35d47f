"""Models for worker processes that do what their texts say; loaded there by name.

A text's embedding is its length and the id of the process. ``gate PATH`` waits for a file.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from c2v_engine.errors import CheckpointError, TextError
from c2v_engine.model.loading import Placement
from c2v_engine.runtime import worker_process
from c2v_engine.runtime.runner import Runner
from c2v_engine.runtime.stats import EncodeStats
from c2v_engine.runtime.worker_process import Opened

# More than tests wait for anything: what ends by this has failed already.
FAILSAFE_SECONDS = 240


class Fake(Runner):
    def __init__(self):
        self.stats = EncodeStats()

    def run(self, texts, prompt, batch_tokens, output, report=None):
        for row, text in enumerate(texts):
            verb, _, argument = text.partition(" ")
            if verb == "gate":
                self._wait(Path(argument.strip()))
            elif verb == "bad":
                raise TextError(row, "is bad")
            elif verb == "boom":
                raise ZeroDivisionError("something else")
            elif verb == "exit":
                os._exit(int(argument))
            elif verb == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        self.stats.texts += len(texts)
        self.stats.tokens += sum(map(len, texts))
        self.stats.batches += 1
        yield torch.tensor([[len(text), os.getpid()] for text in texts], dtype=torch.float64)

    def _wait(self, path):
        deadline = time.monotonic() + FAILSAFE_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was never opened")
            time.sleep(0.005)

    def info(self):
        return {"device": "fake", "decoder": "fake"}

    def close(self):
        pass


def open_fake(directory, options):
    worker_process._PARENT_CHECK_SECONDS = 0.1
    return Opened(Fake(), Placement(torch.device("cpu"), torch.float32), 1)


def open_refusing(directory, options):
    if options.load.device == "cuda:1":
        raise CheckpointError("a weight is missing")
    return open_fake(directory, options)


def open_raising(directory, options):
    if options.load.device == "cuda:1":
        raise ZeroDivisionError("something else")
    return open_fake(directory, options)


def open_dying(directory, options):
    if options.load.device == "cuda:1":
        os._exit(7)
    return open_fake(directory, options)


def open_mixed(directory, options):
    dtype = torch.bfloat16 if options.load.device == "cuda:1" else torch.float32
    return Opened(Fake(), Placement(torch.device("cpu"), dtype), 1)
