"""The engine as a provider, and its model alone over batches that lie on the device already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from c2v_engine import Causal2Vec
from c2v_engine.bench.providers.base import Provider
from c2v_engine.bench.workloads import Workload
from c2v_engine.model.checkpoint import Checkpoint
from c2v_engine.model.packed_batch import PackedBatch
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.opening import PipelineOptions, pipeline_of
from c2v_engine.runtime.options import default_batch_tokens
from c2v_engine.runtime.packing import PackingRules, lay_out, split_by_tokens
from c2v_engine.runtime.tokenization import CheckpointTokenizer

__all__ = ["DeviceOnly", "Engine", "open_engine"]


def open_engine(
    checkpoint: Checkpoint, tokenizer: CheckpointTokenizer, options: PipelineOptions
) -> Causal2Vec:
    """An engine of a model that is loaded, so that several share its weights.

    Args:
        checkpoint: the opened one.
        tokenizer: likewise.
        options: of the pipeline; how it was loaded is settled.
    """
    pipeline = pipeline_of(checkpoint, tokenizer, options)
    return Causal2Vec(checkpoint.description, "synthetic", pipeline, checkpoint.placement)


class Engine(Provider):
    """From texts to vectors on the host, as a user calls it."""

    def __init__(self, engine: Causal2Vec) -> None:
        self.engine = engine

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        calls = list(workload.calls())

        def run() -> None:
            for texts in calls:
                self._encode(texts, workload.prompt)

        return run

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        return torch.cat([self._encode(texts, workload.prompt) for texts in workload.calls()])

    def _encode(self, texts: list[str], prompt: str) -> torch.Tensor:
        return self.engine.encode(
            texts, prompt=prompt or None, convert_to="tensor", show_progress_bar=False
        )


class DeviceOnly(Provider):
    """The packed model over batches that were made before the clock: what the host can not beat.

    Args:
        checkpoint: the opened one.
    """

    note = "tokenised, packed and copied before the clock; vectors stay on the device"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        self._device = checkpoint.placement.device
        config = checkpoint.description.config
        pooling = "mean" if config.encoder is None else config.encoder.pooling
        self._rules = PackingRules.from_template(config.parsed_template, pooling)
        self._output = OutputFormat(checkpoint.description.decoder_shape.hidden_size)

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        batches = [batch for _, batch in self._batches(workload)]

        def run() -> None:
            for batch in batches:
                self._model.forward(batch, self._output)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        result = torch.empty(len(workload.texts), self._model.dimension)
        for rows, batch in self._batches(workload):
            embeddings, _ = self._model.forward(batch, self._output)
            result[rows] = embeddings[: len(rows)].float().cpu()
        return result

    def _batches(self, workload: Workload) -> list[tuple[list[int], PackedBatch]]:
        tokens = default_batch_tokens(self._model)
        found = []
        for rows in split_by_tokens(workload.tokenized, tokens):
            texts = [workload.tokenized[row] for row in rows]
            batch = lay_out(texts, self._rules, tokens, self._model.rounding)
            found.append((rows, batch.on(torch.from_numpy(batch.buffer).to(self._device))))
        return found
