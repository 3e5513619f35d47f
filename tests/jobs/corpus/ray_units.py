"""What a Ray actor of a test opens."""

from __future__ import annotations

from dataclasses import dataclass

from process_units import FakeOpener


@dataclass(frozen=True)
class RayOpener(FakeOpener):
    """Opens the made-up engine on the one CPU of an actor."""

    device: str = "auto"

    def on(self, device, threads=None):
        assert (device, threads) == ("cpu", 1)
        return self
