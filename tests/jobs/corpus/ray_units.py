"""What a Ray actor of a test opens."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from process_units import FakeOpener

from c2v_engine.opener import EngineSpec


@dataclass(frozen=True)
class RayOpener(FakeOpener):
    """Opens the made-up engine on the one CPU of an actor, or on more than there are."""

    device: str = "auto"

    def on(self, device, threads=None):
        assert (device, threads) in (("cpu", 1), ("cpu", 64))
        return self


@dataclass(frozen=True)
class MortalSpec(EngineSpec):
    """Opens an engine that kills its process at the hundredth text, if no other did before."""

    mark: Path = Path("mark")

    def open(self):
        engine = super().open()
        stream = engine.encode_stream
        engine.encode_stream = lambda texts, **options: stream(self.deadly(texts), **options)
        return engine

    def deadly(self, texts):
        for number, text in enumerate(texts):
            if number == 100:
                with contextlib.suppress(FileExistsError):
                    self.mark.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            yield text
