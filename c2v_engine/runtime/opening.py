"""From a checkpoint directory and options to what embeds texts with it, in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from c2v_engine.model.checkpoint import (
    Checkpoint,
    CheckpointDescription,
    LoadOptions,
    load_described,
)
from c2v_engine.runtime.cuda_execution import CudaExecution
from c2v_engine.runtime.execution import Execution, HostExecution
from c2v_engine.runtime.options import default_batch_tokens
from c2v_engine.runtime.packing import PackingRules
from c2v_engine.runtime.pipeline import EmbeddingPipeline
from c2v_engine.runtime.tokenization import CheckpointTokenizer


@dataclass(frozen=True)
class PipelineOptions:
    """How texts are embedded; plain values, so that they can be sent to another process.

    Attributes:
        load: how the checkpoint is opened.
        share_prompts: whether rows of a prompt that stands first are computed once.
        cuda_graphs: whether small batches are captured and replayed on CUDA.
    """

    load: LoadOptions = field(default_factory=LoadOptions)
    share_prompts: bool = True
    cuda_graphs: bool = True


def open_pipeline(directory: str | Path, options: PipelineOptions) -> EmbeddingPipeline:
    """Load a checkpoint and make its pipeline.

    Raises:
        ConfigError: its ``config.json`` is missing or wrong.
        CheckpointError: its files do not fit together.
        BackendError: a device, dtype or backend that can not be used here.
    """
    return open_described(CheckpointDescription.read(directory), options)


def open_described(
    description: CheckpointDescription, options: PipelineOptions
) -> EmbeddingPipeline:
    """Load a checkpoint whose configs were read, and perhaps changed, and make its pipeline.

    Raises:
        CheckpointError: its files do not fit together, or the configs.
        BackendError: a device, dtype or backend that can not be used here.
    """
    checkpoint = load_described(description, options.load)
    context = checkpoint.model.context
    tokenizer = CheckpointTokenizer(
        description.config,
        description.directory,
        description.decoder_config,
        context.encoder.shape.vocab_size if context is not None else None,
    )
    return pipeline_of(checkpoint, tokenizer, options)


def pipeline_of(
    checkpoint: Checkpoint, tokenizer: CheckpointTokenizer, options: PipelineOptions
) -> EmbeddingPipeline:
    """The pipeline of a model that is loaded, so that several may share its weights.

    Args:
        checkpoint: the opened one.
        tokenizer: likewise.
        options: of the pipeline; how the checkpoint was loaded is settled.
    """
    execution = _execution(checkpoint, options)
    return EmbeddingPipeline(checkpoint, execution, tokenizer, options.share_prompts)


def _execution(checkpoint: Checkpoint, options: PipelineOptions) -> Execution:
    config, model = checkpoint.description.config, checkpoint.model
    pooling = config.encoder.pooling if config.encoder is not None else "mean"
    rules = PackingRules.from_template(config.parsed_template, pooling)
    batch_tokens = default_batch_tokens(model)
    if checkpoint.placement.device.type == "cpu":
        return HostExecution(model, rules, batch_tokens)
    return CudaExecution(model, rules, batch_tokens, options.cuda_graphs)
