"""The providers of one model, opened as cases ask for them and let go when none will any more."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import torch

from c2v_engine.bench.models.shapes import ModelShape
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.engine import DeviceOnly, Engine, open_engine
from c2v_engine.bench.providers.stock import Packed, Padded, StockModel, packed_kernel
from c2v_engine.errors import BackendError
from c2v_engine.model.checkpoint import Checkpoint, LoadOptions, load_described
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.options import default_batch_tokens
from c2v_engine.runtime.tokenization import CheckpointTokenizer

__all__ = ["Session"]


class Session:
    """One synthetic checkpoint and whoever embeds texts with it.

    Engines of the same dtype share their weights, and so do the stock providers.

    Args:
        directory: where the checkpoint is written.
        shape: of the model.
        device: where it runs.
        template: of the decoder's sequence.
    """

    def __init__(
        self, directory: Path, shape: ModelShape, device: torch.device, template: tuple[str, ...]
    ) -> None:
        self.synthetic = SyntheticCheckpoint.write(directory, shape, device, template)
        self.device = device
        self.description = self.synthetic.describe()
        self.tokenizer = CheckpointTokenizer(
            self.description.config,
            self.description.directory,
            self.description.decoder_config,
            shape.encoder.vocab_size,
        )
        self._providers: dict[Spec, Provider] = {}
        self._checkpoints: dict[LoadOptions, Checkpoint] = {}
        self._stock: dict[str, StockModel] = {}

    def provider(self, spec: Spec) -> Provider:
        """The provider that is asked for.

        Raises:
            UnusableError: it can not be had here.
        """
        if spec not in self._providers:
            try:
                self._providers[spec] = self._open(spec)
            except BackendError as error:
                raise UnusableError(str(error)) from None
        return self._providers[spec]

    def keep(self, specs: Iterable[Spec]) -> None:
        """Let go of everything but these providers and what they need."""
        kept = set(specs)
        self._providers = {s: found for s, found in self._providers.items() if s in kept}
        loads = {self._load_options(spec) for spec in kept if spec.kind in ("engine", "device")}
        self._checkpoints = {o: found for o, found in self._checkpoints.items() if o in loads}
        dtypes = {spec.dtype for spec in kept if spec.kind in ("padded", "packed")}
        self._stock = {name: found for name, found in self._stock.items() if name in dtypes}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open(self, spec: Spec) -> Provider:
        if spec.kind == "engine":
            checkpoint, load = self._checkpoint(spec), self._load_options(spec)
            options = PipelineOptions(load, spec.share_prompts, spec.cuda_graphs)
            return Engine(open_engine(checkpoint, self.tokenizer, options))
        if spec.kind == "device":
            return DeviceOnly(self._checkpoint(spec))
        if spec.kind == "padded":
            return Padded(self._stock_model(spec))
        name, attend = packed_kernel(self.device)
        engine = Spec("engine", spec.dtype)
        tokens = default_batch_tokens(self._checkpoint(engine).model)
        packed = Packed(self._stock_model(spec), attend, tokens)
        packed.note = f"{name}, batches of {tokens} rows"
        return packed

    def _load_options(self, spec: Spec) -> LoadOptions:
        return LoadOptions(str(self.device), spec.dtype, deterministic=spec.deterministic)

    def _checkpoint(self, spec: Spec) -> Checkpoint:
        options = self._load_options(spec)
        if options not in self._checkpoints:
            opened = load_described(self.description, options, self.synthetic.open_weights)
            self._checkpoints[options] = opened
        return self._checkpoints[options]

    def _stock_model(self, spec: Spec) -> StockModel:
        if spec.dtype not in self._stock:
            self._stock[spec.dtype] = StockModel.load(self.synthetic, getattr(torch, spec.dtype))
        return self._stock[spec.dtype]
