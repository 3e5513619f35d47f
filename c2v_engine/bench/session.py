"""The providers of one model, opened as cases ask for them and let go when none will any more."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property

import torch

from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.models.source import ModelSource, StoredCheckpoint, quiet_transformers
from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.registry import OPENERS
from c2v_engine.bench.providers.stock import StockModel
from c2v_engine.errors import BackendError
from c2v_engine.model.checkpoint import Checkpoint, LoadOptions, load_described
from c2v_engine.reference import Causal2VecReference
from c2v_engine.runtime.tokenization import CheckpointTokenizer

__all__ = ["Session"]


class Session:
    """One model and whoever embeds texts with it.

    Engines of the same dtype share their weights, and so do the stock providers.

    Args:
        source: of the model.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.device = source.device
        self.description = source.description
        encoder = self.description.encoder_config
        self.tokenizer = CheckpointTokenizer(
            self.description.config,
            self.description.directory,
            self.description.decoder_config,
            None if encoder is None else encoder.vocab_size,
        )
        self._providers: dict[Spec, Provider] = {}
        self._checkpoints: dict[LoadOptions, Checkpoint] = {}
        self._stock: dict[str, StockModel] = {}

    @cached_property
    def corpus(self) -> Corpus:
        """Texts whose tokens the model's own tokenizer counts."""
        return Corpus(self.description.decoder_folder / "tokenizer.json")

    def provider(self, spec: Spec) -> Provider:
        """The provider that is asked for.

        Raises:
            UnusableError: it can not be had here.
        """
        if spec not in self._providers:
            try:
                with quiet_transformers():
                    self._providers[spec] = OPENERS[spec.kind](self, spec)
            except BackendError as error:
                raise UnusableError(str(error)) from None
        return self._providers[spec]

    def keep(self, specs: Iterable[Spec]) -> None:
        """Let go of everything but these providers and what they need.

        Raises:
            Exception: the last that a provider raised as it was closed; all were.
        """
        kept = set(specs)
        with ExitStack() as closing:
            for spec in [spec for spec in self._providers if spec not in kept]:
                closing.callback(self._providers.pop(spec).close)
        loads = {self.load_options(spec) for spec in kept if spec.kind in ("engine", "device")}
        self._checkpoints = {o: found for o, found in self._checkpoints.items() if o in loads}
        dtypes = {spec.dtype for spec in kept if spec.kind in ("padded", "packed", "compiled")}
        self._stock = {name: found for name, found in self._stock.items() if name in dtypes}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def load_options(self, spec: Spec) -> LoadOptions:
        """How the engine opens the model for a provider."""
        return LoadOptions(str(self.device), spec.dtype, deterministic=spec.deterministic)

    def checkpoint(self, spec: Spec) -> Checkpoint:
        """The model as the engine has it, opened once for each way to load it."""
        options = self.load_options(spec)
        if options not in self._checkpoints:
            opened = load_described(self.description, options, self.source.open_weights)
            self._checkpoints[options] = opened
        return self._checkpoints[options]

    def stock_model(self, dtype: str) -> StockModel:
        """The model as stock modules, loaded once for each dtype.

        Raises:
            UnusableError: it has no such form.
        """
        if dtype not in self._stock:
            self._stock[dtype] = StockModel.load(self.source, getattr(torch, dtype))
        return self._stock[dtype]

    def reference(self, dtype: torch.dtype) -> Causal2VecReference:
        """The plain reference.

        Raises:
            UnusableError: the weights are not stored.
        """
        directory = self.source.stored
        return StoredCheckpoint(directory, self.device).reference(dtype)
