"""What the tests of peers share: tiny checkpoints on disk, and a case's entries by provider."""

import json

import torch

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.case import Case
from c2v_engine.bench.measure import measure_case
from c2v_engine.bench.models.shapes import DecoderSizes, EncoderSizes, ModelShape
from c2v_engine.bench.models.source import StoredCheckpoint
from c2v_engine.bench.models.written import write_checkpoint
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import Lengths

# Shorter than the longest of the texts, so that shortening is compared too.
MAX_LENGTH = 96
ENCODER = EncoderSizes(8192, 32, 64, 2, 2)
# Widths are multiples of 32, by which llama.cpp quantises.
SHAPES = {
    "llama": ModelShape("tiny-llama", DecoderSizes("llama", 8448, 64, 160, 3, 2, 1), ENCODER, 32),
    "mistral": ModelShape(
        "tiny-mistral", DecoderSizes("mistral", 8448, 64, 96, 2, 2, 2), ENCODER, 32
    ),
    "qwen2": ModelShape(
        "tiny-qwen2", DecoderSizes("qwen2", 8448, 96, 128, 2, 3, 1, 1e6, 1e-6), ENCODER, 32
    ),
}


def open_written(directory, architecture="llama", method="last-token", **changed):
    """A session of a tiny checkpoint that lies on disk, something of its config changed."""
    write_checkpoint(directory, SHAPES[architecture], method, max_length=MAX_LENGTH)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return Session(StoredCheckpoint(directory, torch.device("cpu")))


def entries_of(session, *specs, tokens=600, repetitions=1, **options):
    """Entries of a case by the provider's name; the float32 engine comes first."""
    case = Case("tiny", Lengths(), tokens, (Spec("engine", "float32"), *specs), **options)
    entries = measure_case(case, session, session.corpus, Budget(None), repetitions)
    return {entry["provider"]: entry for entry in entries}


def assert_measured(entry):
    """A provider's vectors were the engine's, and it was timed."""
    assert entry["status"] == "ok", entry.get("reason")
    assert entry["seconds"]
    assert entry["texts_per_s"] > 0
