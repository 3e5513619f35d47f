"""The reference as a sentence-transformers module: what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import InputModule
from torch import Tensor

from c2v_engine.errors import ConfigError
from c2v_engine.reference import PADDING, Causal2VecReference

Features = dict[str, Any]

assert PADDING == -1  # entries are shifted by one, so that padding is 0

# The trainer takes whatever ends with ``_input_ids`` for a column of its own.
ENCODER_INPUTS = {
    "encoder_input_ids": "encoder_ids",
    "encoder_attention_mask": "encoder_mask",
    "encoder_token_type_ids": "encoder_types",
}


class Causal2VecModule(InputModule):  # type: ignore[misc]
    """A Causal2Vec checkpoint as the one module of a ``SentenceTransformer``.

    Rows of a batch are computed in groups of similar length, each padded to its own longest row:
    with documents of mixed lengths most of the padding is never computed.

    Attributes:
        reference: the stock modules, differentiable.
        group_rows: rows computed together; None computes a batch in one piece.
    """

    def __init__(
        self,
        reference: Causal2VecReference,
        source: Path,
        save_dtype: str = "bfloat16",
        max_length: int | None = None,
        group_rows: int | None = 64,
    ) -> None:
        """Wrap a reference.

        Args:
            reference: the model.
            source: the checkpoint directory that it comes from.
            save_dtype: of the trained weights in the checkpoint that ``save`` writes.
            max_length: shorten texts to so many tokens while training, in encoder and decoder
                alike; None keeps the checkpoint's own limits. What ``save`` writes keeps them.
            group_rows: rows computed together.

        Raises:
            ConfigError: ``max_length`` is more than the checkpoint reads, or the encoder reads long
                texts in windows, whose rows are not a batch's rows.
        """
        super().__init__()
        encoder = reference.config.encoder
        if encoder is not None and encoder.overflow == "windows":
            raise ConfigError(
                'encoder.overflow is "windows", which can not be trained: train with "truncate" '
                "and set windows in the trained checkpoint's config.json"
            )
        self.reference = reference
        self.source, self.save_dtype = source, save_dtype
        self.group_rows = group_rows
        self.max_seq_length = reference.config.max_length
        if max_length is not None:
            if max_length > self.max_seq_length:
                raise ConfigError(
                    f"max_length is {max_length}, but the model reads {self.max_seq_length} tokens"
                )
            self.max_seq_length = max_length
            reference.config = replace(
                reference.config,
                max_length=self.max_seq_length,
                encoder=encoder
                and replace(encoder, max_length=min(max_length, encoder.max_length)),
            )

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> Features:
        """Tokenise a column of texts.

        Args:
            inputs: the texts.
            prompt: the prompt of all of them.
            kwargs: what other modules take (``task``); not used.

        Returns:
            ``input_ids``, ``attention_mask`` and ``entries`` (template entry + 1) ``[batch,
            length]``; with an encoder ``encoder_ids``, ``encoder_mask`` and, where it has them,
            ``encoder_types`` ``[batch, encoder length]``. Every padding is 0 but that of
            ``encoder_ids``, which is masked.
        """
        tokens = self.reference.tokenize(list(inputs), prompt or "")
        entries = tokens["entries"] + 1
        features: Features = {
            "input_ids": tokens["input_ids"],
            "attention_mask": (entries != 0).long(),
            "entries": entries,
        }
        for name in ENCODER_INPUTS:
            if name in tokens:
                # Gradient caching trims every tensor of the decoder's width to the decoder's
                # lengths, so the encoder's tensors never have that width.
                same = tokens[name].shape[1] == entries.shape[1]
                value = torch.nn.functional.pad(tokens[name], (0, 1)) if same else tokens[name]
                features[ENCODER_INPUTS[name]] = value
        return features

    def forward(self, features: Features, **_: Any) -> Features:
        """Embed a batch: adds ``sentence_embedding`` ``[batch, dimension]`` float32."""
        lengths = features["attention_mask"].sum(dim=1)
        group = self.group_rows or len(lengths)
        order = lengths.argsort(stable=True)
        parts = [self._embed(features, rows) for rows in order.split(group)]
        embeddings = torch.cat(parts)
        features["sentence_embedding"] = torch.empty_like(embeddings).index_copy(
            0, order, embeddings
        )
        return features

    def _embed(self, features: Features, rows: Tensor) -> Tensor:
        def columns(name: str, mask: str) -> Tensor:
            width = int(features[mask][rows].sum(dim=1).max())
            taken: Tensor = features[name][rows, :width]
            return taken

        batch = {
            "input_ids": columns("input_ids", "attention_mask"),
            "entries": columns("entries", "attention_mask") - 1,
        }
        for name, feature in ENCODER_INPUTS.items():
            if feature in features:
                batch[name] = columns(feature, "encoder_mask")
        batch["window_texts"] = torch.arange(len(rows), device=rows.device)
        embedded: Tensor = self.reference(batch)
        return embedded

    def get_embedding_dimension(self) -> int:
        """Width of one embedding."""
        return self.reference.dimension

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the checkpoint that the engine loads; see ``saving.save_checkpoint``."""
        from c2v_engine.training.saving import save_checkpoint

        dtype = getattr(torch, self.save_dtype)
        save_checkpoint(self.reference, self.source, Path(output_path), dtype)
