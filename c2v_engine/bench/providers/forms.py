"""What of a checkpoint's config others can compute, and the token ids of its texts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from c2v_engine.bench.models.source import ModelSource
from c2v_engine.bench.providers.base import Spec, UnusableError
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.template import CONTEXT, EOS
from c2v_engine.runtime.tokenization import load_fast_tokenizer, plain_backend, special_id

__all__ = [
    "Sequences",
    "StockTokenizer",
    "no_last_token_form",
    "no_stock_form",
    "refuse_other_dtypes",
]

PLAIN_DTYPES = ("float32", "float16", "bfloat16")

CAUSAL2VEC = ((CONTEXT, "{prompt}{text}", EOS), (CONTEXT, EOS), "causal")
LAST_TOKEN = (("{prompt}{text}", EOS), (EOS,), "causal")
Sequences = tuple[np.ndarray, np.ndarray]
"""Token ids of a text: the decoder's, EOS at the end, and the encoder's, where there is one."""
NOTHING = np.empty(0, dtype=np.int64)


def refuse_other_dtypes(spec: Spec) -> None:
    """Refuse dtypes that are no dtype of torch's modules.

    Raises:
        UnusableError: of ``float8``, ``int8`` and the like.
    """
    if spec.dtype not in PLAIN_DTYPES:
        known = ", ".join(PLAIN_DTYPES)
        raise UnusableError(f"{spec.kind} computes in {known} here, not in {spec.dtype}")


def no_stock_form(config: Causal2VecConfig) -> str:
    """Why a config can not be computed by stock modules here; empty where it can."""
    form = (config.template, config.pooling, config.attention)
    if form not in (CAUSAL2VEC, LAST_TOKEN):
        return f"is not written for the template {list(config.template)}"
    if config.encoder is not None and (config.encoder.text, config.encoder.pooling) != (
        "{text}",
        "mean",
    ):
        return "is written for an encoder that reads the text alone and is averaged"
    if config.encoder is not None and config.encoder.overflow != "truncate":
        return "is written for an encoder that truncates"
    return "" if config.normalize else "is written for normalised embeddings"


def no_last_token_form(config: Causal2VecConfig) -> str:
    """Why a config is no plain last-token embedder; empty where it is one."""
    if config.encoder is not None:
        return "has no contextual token"
    why_not = no_stock_form(config)
    if why_not and (config.template, config.pooling, config.attention) != LAST_TOKEN:
        template, pooling = list(config.template), list(config.pooling)
        return (
            f"computes the last token of {list(LAST_TOKEN[0])}, not {pooling} of {template} "
            f"with {config.attention} attention"
        )
    return why_not


@dataclass(frozen=True)
class StockTokenizer:
    """The tokenizers of a checkpoint, for the two templates that have a stock form.

    Attributes:
        decoder: its ids, without special ones.
        encoder: truncates; or None.
        eos_id: ends the decoder's sequences.
        most_tokens: of a text in the decoder.
    """

    decoder: Tokenizer
    encoder: Tokenizer | None
    eos_id: int
    most_tokens: int

    @classmethod
    def load(cls, source: ModelSource) -> StockTokenizer:
        """Read the tokenizers of a checkpoint."""
        config = source.description.config
        folder = source.directory / config.decoder.path
        tokenizer = load_fast_tokenizer(folder)
        encoder = None
        if config.encoder is not None:
            encoder = plain_backend(load_fast_tokenizer(source.directory / config.encoder.path))
            encoder.enable_truncation(config.encoder.max_length)
        return cls(
            plain_backend(tokenizer),
            encoder,
            special_id("eos", tokenizer, source.description.decoder_config, folder),
            config.max_length - config.parsed_template.single_rows,
        )

    def __call__(self, texts: Sequence[str], prompt: str) -> list[Sequences]:
        """Token ids of texts for both models; the prompt is the decoder's."""
        prompted = [prompt + text for text in texts]
        decoded = self.decoder.encode_batch_fast(prompted, add_special_tokens=False)
        rows = [
            np.array([*encoding.ids[: self.most_tokens], self.eos_id], dtype=np.int64)
            for encoding in decoded
        ]
        if self.encoder is None:
            return [(row, NOTHING) for row in rows]
        encoded = self.encoder.encode_batch_fast(list(texts))
        return [
            (row, np.array(windows.ids, dtype=np.int64))
            for row, windows in zip(rows, encoded, strict=True)
        ]
