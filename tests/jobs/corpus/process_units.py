"""What a worker process of a test opens and runs: a made-up engine, and shards of JSON lines."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fake_engine import DIMENSION, FakeEngine
from memory_units import read_blocks

from c2v_engine.errors import BackendError
from c2v_engine.jobs.corpus.records import ShardFile
from c2v_engine.jobs.corpus.work.runner import RunnerOptions, UnitRunner

TEXTS = [f"text number {row}" for row in range(400)]


@dataclass(frozen=True)
class FakeOpener:
    """Opens an engine that takes its time.

    Attributes:
        delay: seconds for ten texts.
        fails: the error when it is opened.
        dtype: that the engine says it has.
    """

    delay: float = 0.0
    fails: str | None = None
    dtype: str = "float32"

    def open(self):
        if self.fails == "mistake":
            raise BackendError("there is no such device")
        if self.fails == "exit":
            os._exit(7)
        engine = FakeEngine()
        engine.window = 10
        engine.delay = self.delay
        about = {**engine.info(), "dtype": self.dtype}
        engine.info = lambda: about
        return engine


@dataclass(frozen=True)
class FakeSetup:
    """Writes shards of a line for each row.

    Attributes:
        folder: for the shards.
        deadly: the unit at which a worker kills itself, as long as ``folder/deadly`` is not there,
            or always.
        broken: the unit whose reading fails by an error that is no user's mistake.
    """

    folder: Path
    deadly: int | None = None
    always: bool = False
    broken: int | None = None

    def make_runner(self, engine):
        read = read_blocks(TEXTS)

        def reads(unit):
            if unit.number == self.broken:
                raise RuntimeError("the device is lost")
            yield from read(unit)

        return UnitRunner(engine, RunnerOptions(DIMENSION, "float32"), reads, self.open_shard)

    def open_shard(self, unit):
        if unit.number == self.deadly:
            mark = self.folder / "deadly"
            if self.always or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return _JsonShard(self.folder, unit.number)


class _JsonShard:
    def __init__(self, folder, number):
        self._folder, self._number, self._rows = folder, number, []

    def write(self, columns, embeddings, valid):
        self._rows += zip(columns.column("id").to_pylist(), embeddings.tolist(), strict=True)

    def finish(self):
        name = f".part{self._number}.{os.getpid()}.{time.monotonic_ns()}.tmp"
        (self._folder / name).write_text(json.dumps(self._rows))
        return [(name, ShardFile(f"part{self._number}.json", 1, "0"))]

    def abandon(self):
        pass
