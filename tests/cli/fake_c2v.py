"""``c2v`` with the fake engine: ``python fake_c2v.py WINDOW DELAY ARGUMENTS...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))

from fake_engine import FakeEngine

import c2v_engine
from c2v_engine.cli import main
from c2v_engine.jobs import progress

progress.LINE_SECONDS = 1.0
FakeEngine.window = int(sys.argv[1])
FakeEngine.delay = float(sys.argv[2])
c2v_engine.Causal2Vec = FakeEngine
main(sys.argv[3:])
