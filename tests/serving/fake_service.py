"""A service without a model: vectors that depend on the text alone, and every way to fail."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import numpy as np

from c2v_engine.errors import InputError
from c2v_engine.serving.contract import EmbedOptions, EmbedResult, Snapshot, State, Timings, Token

DIMENSION = 32
SEGMENTS = 2
QUANTISED = {"int8": np.int8, "uint8": np.uint8, "float16": np.float16, "float32": np.float32}


class FakeService:
    """Set ``error`` to have every request refused by it, ``hang`` to have none answered."""

    name = "fake"
    dimension = DIMENSION
    segments = SEGMENTS
    max_length = 64
    fingerprint = "0123"
    normalizes = True
    truncates = True

    def __init__(self) -> None:
        self.prompts = {"query": "Find: ", "document": ""}
        self.info = {"dtype": "float32"}
        self.state = State.READY
        self.reason: str | None = None
        self.error: Exception | None = None
        self.hang = False
        self.asked: list[tuple[list[str], EmbedOptions]] = []
        self.cancelled = 0
        self.probes = 0

    def vectors(self, texts, prompt_name=None, precision="float32") -> np.ndarray:
        prompt = self.prompts.get(prompt_name, "")
        seeds = [
            int.from_bytes(sha256((prompt + text).encode()).digest()[:8], "big") for text in texts
        ]
        rows = [np.random.default_rng(seed).normal(size=DIMENSION) for seed in seeds]
        array = np.array(rows, dtype=np.float32).reshape(-1, DIMENSION)
        if precision in ("binary", "ubinary"):
            bits = np.packbits(array > 0, axis=1)
            return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
        if precision in ("int8", "uint8"):
            return (array * 8 + (0 if precision == "int8" else 100)).astype(QUANTISED[precision])
        return array.astype(QUANTISED[precision])

    def _check(self, options: EmbedOptions) -> None:
        if options.prompt_name is not None and options.prompt_name not in self.prompts:
            raise InputError(f"prompt_name is {options.prompt_name!r}, expected one of: ...")
        dim = options.truncate_dim
        if dim is not None and (not 1 <= dim <= DIMENSION or dim % SEGMENTS):
            raise InputError(f"truncate_dim is {dim}, expected a multiple of {SEGMENTS}")

    async def embed(self, texts, options: EmbedOptions = EmbedOptions()) -> EmbedResult:  # noqa: B008
        self.asked.append((list(texts), options))
        self._check(options)
        await self._work()
        vectors = self.vectors(texts, options.prompt_name, options.precision)
        tokens = np.array([len(text) + 2 for text in texts], dtype=np.int64)
        keep = options.truncate_dim or vectors.shape[1]
        return EmbedResult(vectors[:, :keep], tokens, Timings(0.001, 0.002, 0.003))

    async def tokenize(self, texts, prompt_name=None, add_special_tokens=True):
        self._check(EmbedOptions(prompt_name=prompt_name))
        await self._work()
        special = [Token(1, "<s>", True, None, None)] if add_special_tokens else []
        return [
            [
                *special,
                *(Token(ord(letter), letter, False, i, i + 1) for i, letter in enumerate(text)),
            ]
            for text in texts
        ]

    async def probe(self) -> None:
        self.probes += 1
        if self.error is not None:
            raise self.error

    def snapshot(self) -> Snapshot:
        return Snapshot(self.state, self.reason, 0, 100, 0, 0, None, 8192, 0, 0, 0)

    async def _work(self) -> None:
        if self.error is not None:
            raise self.error
        if self.hang:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
