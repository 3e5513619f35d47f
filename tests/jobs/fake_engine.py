"""An engine that is not one: the job's view of ``Causal2Vec``, with vectors from a hash."""

from __future__ import annotations

import time
from hashlib import blake2b
from itertools import islice
from types import SimpleNamespace

import numpy as np

from c2v_engine.errors import TextError

DIMENSION = 8
DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8}


def vector(text):
    """[DIMENSION] values in [0, 255], a function of the text alone."""
    return np.frombuffer(blake2b(text.encode(), digest_size=DIMENSION).digest(), np.uint8)


def vectors(texts, dtype=np.float32):
    return np.stack([vector(text) for text in texts]).astype(dtype)


class FakeEngine:
    """Embeds ``window`` texts at a time in ``delay`` seconds; refuses "refused"."""

    window = 1000
    delay = 0.0
    ranges = None

    def __init__(self):
        self.stats = SimpleNamespace(texts=0, tokens=0, encoder_tokens=0)

    @classmethod
    def from_pretrained(cls, path=None, device="auto", dtype="auto", attention="auto"):
        return cls()

    def output_dimension(self, truncate_dim, precision):
        return truncate_dim or DIMENSION

    def info(self):
        return {"model": "fake", "fingerprint": "f", "normalize": True, "default prompt": None}

    def encode_stream(
        self,
        texts,
        *,
        prompt_name=None,
        prompt=None,
        batch_tokens=None,
        truncate_dim=None,
        precision="float32",
    ):
        texts = iter(texts)
        done = 0
        while window := list(islice(texts, self.window)):
            if "refused" in window:
                raise TextError(done + window.index("refused"), "its embedding is not finite")
            time.sleep(self.delay)
            self.stats.texts += len(window)
            self.stats.tokens += sum(len(text.split()) + 2 for text in window)
            done += len(window)
            yield vectors(window, DTYPES[precision])[:, :truncate_dim]

    def calibrate(self, texts, *, truncate_dim=None, prompt_name=None):
        blocks = list(self.encode_stream(texts, truncate_dim=truncate_dim))
        values = np.concatenate(blocks)
        return np.stack([values.min(axis=0), values.max(axis=0)])
