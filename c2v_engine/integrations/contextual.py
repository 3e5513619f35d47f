"""What a checkpoint's decoder reads, for engines that run the decoder themselves.

Token embeddings with the contextual token in its place are all that sets Causal2Vec apart from a
stock causal decoder. An engine that takes such rows as input and gives back hidden states computes
its embeddings: the pooled rows, joined and normalised. The decoder's layers are not loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from c2v_engine.engine import checkpoint_directory
from c2v_engine.errors import InputError, TextError, UnsupportedError
from c2v_engine.model.checkpoint import CheckpointDescription, LoadOptions
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.device import made_current
from c2v_engine.model.input_rows import InputRowsModel, load_input_rows
from c2v_engine.runtime.options import resolve_batch_tokens, resolve_prompt
from c2v_engine.runtime.packing import PackingRules, lay_out, split_by_tokens
from c2v_engine.runtime.tokenization import CheckpointTokenizer, TokenizedText

_BATCH_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class DecoderInput:
    """What a decoder reads of one text, and where its embedding is read off.

    Attributes:
        rows: ``[rows, d]`` in the computation's dtype, on the CPU: the decoder's ``inputs_embeds``.
        token_ids: int32 ``[rows]``; contextual rows hold 0.
        contextual: which rows are contextual tokens.
        pooled: ``(start, end)`` of the rows of each part of the embedding: the mean of their last
            hidden states, after the final norm. The parts are joined, and normalised as one.
    """

    rows: torch.Tensor
    token_ids: np.ndarray
    contextual: tuple[int, ...]
    pooled: tuple[tuple[int, int], ...]


class ContextualInputs:
    """Makes the decoder's input rows of texts.

    Use ``ContextualInputs.from_pretrained``.

    Args:
        description: what the checkpoint says of itself.
        model: encoder, projector and the decoder's embedding table.
        tokenizer: both of the checkpoint's.

    Attributes:
        description: as given.
    """

    def __init__(
        self,
        description: CheckpointDescription,
        model: InputRowsModel,
        tokenizer: CheckpointTokenizer,
    ) -> None:
        self.description = description
        self._model = model
        self._tokenizer = tokenizer
        config = description.config
        pooling = config.encoder.pooling if config.encoder is not None else "mean"
        self._rules = PackingRules.from_template(config.parsed_template, pooling)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
    ) -> ContextualInputs:
        """Open a checkpoint, without the layers of its decoder.

        Args:
            model: a checkpoint's folder or Hub name; None for the default model.
            device: as in ``Causal2Vec.from_pretrained``, and so are the rest.
            dtype: as there; choose the other engine's.
            attention: of the encoder.

        Raises:
            ConfigError: the checkpoint's ``config.json`` is missing or wrong.
            CheckpointError: its files do not fit together, or there is no such model.
            UnsupportedError: its attention is bidirectional, or it has summary tokens.
            BackendError: a device, dtype or backend that can not be used here.
        """
        description = describe_causal(model)
        rows = load_input_rows(description, LoadOptions(device, dtype, attention))
        encoder = rows.context.encoder if rows.context is not None else None
        tokenizer = CheckpointTokenizer(
            description.config,
            description.directory,
            description.decoder_config,
            encoder.shape.vocab_size if encoder is not None else None,
        )
        return cls(description, rows, tokenizer)

    @property
    def config(self) -> Causal2VecConfig:
        """The checkpoint's."""
        return self.description.config

    def __call__(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: int | None = None,
    ) -> list[DecoderInput]:
        """Make the input rows of every text.

        Args:
            texts: any number.
            prompt_name: one of the checkpoint's prompts.
            prompt: a prompt given as it is; wins over ``prompt_name``.
            batch_tokens: most rows made together; None for 8,192.

        Raises:
            TextError: a text that can not be embedded, named by its row.
            InputError: options that can not be.
        """
        if isinstance(texts, str):
            raise InputError("texts is one string, expected a sequence of strings")
        budget = resolve_batch_tokens(batch_tokens) or _BATCH_TOKENS
        tokenized = self._tokenizer(texts, resolve_prompt(self.config, prompt_name, prompt))
        inputs: dict[int, DecoderInput] = {}
        for numbers in split_by_tokens(tokenized, budget):
            batch = [tokenized[number] for number in numbers]
            for number, text, rows in zip(numbers, batch, self._rows(batch, budget), strict=True):
                if not torch.isfinite(rows).all():
                    reason = "its input rows are not finite: weights hold NaN, or dtype overflows"
                    raise TextError(number, reason)
                inputs[number] = self._input(text, rows)
        return [inputs[number] for number in range(len(tokenized))]

    def _rows(self, batch: list[TokenizedText], budget: int) -> list[torch.Tensor]:
        placement = self._model.placement
        laid_out = lay_out(batch, self._rules, budget, placement.rounding)
        lengths = [len(text.token_ids) for text in batch]
        with made_current(placement.device):
            on_device = laid_out.on(torch.from_numpy(laid_out.buffer).to(placement.device))
            rows = self._model.forward(on_device)[: sum(lengths)].cpu()
        return [part.clone() for part in rows.split(lengths)]

    def _input(self, text: TokenizedText, rows: torch.Tensor) -> DecoderInput:
        rules = self._rules
        return DecoderInput(
            rows,
            text.token_ids,
            tuple(text.bounds[entry] for entry in rules.context_entries),
            tuple(rules.pooled_range(text, entry) for entry in rules.pooled),
        )


def describe_causal(model: str | Path | None) -> CheckpointDescription:
    """Read what a checkpoint says of itself, where its decoder is a causal one.

    Args:
        model: a checkpoint's folder or Hub name; None for the default model.

    Raises:
        ConfigError: the checkpoint's ``config.json`` is missing or wrong.
        CheckpointError: there is no such model.
        UnsupportedError: its attention is bidirectional, or it has summary tokens.
    """
    description = CheckpointDescription.read(checkpoint_directory(model))
    if description.config.attention != "causal":
        raise UnsupportedError(
            f"{description.directory}: attention is {description.config.attention!r}, other "
            "engines run decoders with the causal mask only"
        )
    if description.config.summary_tokens:
        raise UnsupportedError(
            f"{description.directory}: template has <summary>, whose tokens do not see each other, "
            "which other engines can not be told"
        )
    return description


def describe_plain(model: str | Path | None) -> CheckpointDescription:
    """Read what a checkpoint says of itself, where other engines can load its decoder's folder.

    Args:
        model: a checkpoint's folder or Hub name; None for the default model.

    Raises:
        ConfigError: the checkpoint's ``config.json`` is missing or wrong.
        CheckpointError: there is no such model.
        UnsupportedError: its decoder's attention is bidirectional, or it has an adapter.
    """
    description = describe_causal(model)
    adapter = description.config.decoder.adapter
    if adapter is not None:
        raise UnsupportedError(
            f"{description.directory}: the decoder has the adapter {adapter!r}, which the other "
            "engine would leave out: merge it into the decoder's weights first (merge_and_unload)"
        )
    return description
