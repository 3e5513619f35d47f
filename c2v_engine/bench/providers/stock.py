"""Stock transformers with the same weights: padded batches, and packed ones without padding."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Tensor

from c2v_engine.bench.models.source import ModelSource
from c2v_engine.bench.providers.base import Provider, UnusableError
from c2v_engine.bench.providers.forms import Sequences, StockTokenizer, no_stock_form
from c2v_engine.bench.workloads import Workload
from c2v_engine.reference import Causal2VecReference

__all__ = ["Attend", "Packed", "Padded", "Reference", "StockModel", "packed_kernel"]

PADDED_BATCH = 64
PACKED_ATTENTION = "c2v_benchmark_packed"
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, bool], Tensor]
"""Attention ``[tokens, heads, head_dim]`` of queries, keys and values by cu_seqlens and the longest
sequence, with a scale, causal or not."""


@dataclass(frozen=True)
class StockModel:
    """The modules of transformers that a checkpoint is made of, for two templates.

    Attributes:
        decoder: without LM head.
        encoder: without pooler; None in last-token mode.
        projector: its two layers, or None.
        tokenize: gives the token ids of texts for both models.
        device: where they are.
    """

    decoder: Any
    encoder: Any
    projector: Any
    tokenize: StockTokenizer
    device: torch.device

    @classmethod
    def load(cls, source: ModelSource, dtype: torch.dtype) -> StockModel:
        """Make the modules of a checkpoint on its device.

        Raises:
            UnusableError: a config that has not been written for stock modules.
        """
        config = source.description.config
        why_not = no_stock_form(config)
        if why_not:
            raise UnusableError(why_not)
        with_encoder = config.encoder is not None
        return cls(
            source.module("decoder", dtype),
            source.module("encoder", dtype) if with_encoder else None,
            source.module("projector", dtype) if with_encoder else None,
            StockTokenizer.load(source),
            source.device,
        )

    def use_attention(self, name: str) -> None:
        """Choose the attention function of both models, by transformers' name for it."""
        for model in (self.decoder, self.encoder):
            if model is not None:
                model.set_attn_implementation(name)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings of the decoder."""
        embeddings: Tensor = self.decoder.get_input_embeddings()(ids)
        return embeddings


def longest_first(texts: Sequence[str]) -> list[int]:
    return sorted(range(len(texts)), key=lambda row: -len(texts[row]))


def pad(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows side by side, filled up with zeros, and which of them are real."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    filled = np.zeros(real.shape, dtype=np.int64)
    filled[real] = np.concatenate(rows)
    return filled, real.astype(np.int64)


class _Stock(Provider):
    """What both have in common."""

    def __init__(self, model: StockModel) -> None:
        self._model = model

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        return partial(self.embed, workload)

    @torch.inference_mode()
    def embed(self, workload: Workload) -> Tensor:
        """See the base class."""
        return torch.cat([self._encode(texts, workload.prompt) for texts in workload.calls()])

    def _encode(self, texts: list[str], prompt: str) -> Tensor:
        raise NotImplementedError

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._model.device, non_blocking=True)


class Padded(_Stock):
    """As sentence-transformers does it: longest first, batches of 64, SDPA, one batch at a time."""

    def _encode(self, texts: list[str], prompt: str) -> Tensor:
        self._model.use_attention("sdpa")
        order = longest_first(texts)
        parts = []
        for begin in range(0, len(order), PADDED_BATCH):
            chosen = [texts[row] for row in order[begin : begin + PADDED_BATCH]]
            parts.append(self._forward(self._model.tokenize(chosen, prompt)).cpu())
        return in_order(torch.cat(parts), order)

    def _forward(self, batch: Sequence[Sequences]) -> Tensor:
        model = self._model
        ids, mask = (self._on_device(part) for part in pad([decoded for decoded, _ in batch]))
        rows = model.embed_tokens(ids)
        if model.encoder is not None:
            rows = torch.cat([self._context(batch)[:, None], rows], dim=1)
            mask = F.pad(mask, (1, 0), value=1)
        states = model.decoder(
            inputs_embeds=rows, attention_mask=mask, use_cache=False
        ).last_hidden_state
        last = states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
        pooled = last if model.encoder is None else torch.cat([states[:, 0], last], dim=1)
        return F.normalize(pooled.float(), dim=1)

    def _context(self, batch: Sequence[Sequences]) -> Tensor:
        model = self._model
        ids, mask = (self._on_device(part) for part in pad([encoded for _, encoded in batch]))
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        sums = (states.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        context: Tensor = model.projector(sums.to(states.dtype))
        return context


class Reference(Provider):
    """The plain reference, for whatever the forms here do not know: padded, sorted, batches."""

    note = f"the plain reference, batches of {PADDED_BATCH}"

    def __init__(self, reference: Causal2VecReference) -> None:
        self._reference = reference

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        return partial(self.embed, workload)

    def embed(self, workload: Workload) -> Tensor:
        """See the base class."""
        options: dict[str, Any] = {"prompt": workload.prompt, "batch_size": PADDED_BATCH}
        return torch.cat(
            [
                self._reference.encode(texts, normalize_embeddings=True, **options)
                for texts in workload.calls()
            ]
        )


class Packed(_Stock):
    """Without padding: sequences end to end, restarting positions, an attention kernel for such.

    Texts are tokenised in one call, and no batch waits for the one before.

    Args:
        model: the modules.
        attend: the attention kernel.
        batch_tokens: most rows of a batch.
    """

    def __init__(self, model: StockModel, attend: Attend, batch_tokens: int) -> None:
        super().__init__(model)
        self._batch_tokens = batch_tokens
        register(attend)

    def _encode(self, texts: list[str], prompt: str) -> Tensor:
        self._model.use_attention(PACKED_ATTENTION)
        sequences = self._model.tokenize(texts, prompt)
        order = longest_first(texts)
        batches: list[list[Sequences]] = [[]]
        rows = 0
        for row in order:
            longest = max(len(sequences[row][0]) + 1, len(sequences[row][1]))
            if batches[-1] and rows + longest > self._batch_tokens:
                batches.append([])
                rows = 0
            batches[-1].append(sequences[row])
            rows += longest
        return in_order(torch.cat([self._forward(batch) for batch in batches]).cpu(), order)

    def _forward(self, batch: Sequence[Sequences]) -> Tensor:
        model = self._model
        context = None if model.encoder is None else self._context(batch)
        first = [] if context is None else [0]  # where the contextual token goes
        sequences = [np.concatenate((first, part)).astype(np.int64) for part, _ in batch]
        ids, options, ends = self._packed(sequences)
        starts = F.pad(ends[:-1] + 1, (1, 0))
        rows = model.embed_tokens(ids)
        if context is not None:
            rows[0, starts] = context
        states = model.decoder(inputs_embeds=rows, use_cache=False, **options).last_hidden_state[0]
        pooled = [states[ends]] if context is None else [states[starts], states[ends]]
        return F.normalize(torch.cat(pooled, dim=1).float(), dim=1)

    def _context(self, batch: Sequence[Sequences]) -> Tensor:
        model = self._model
        encoded = [part for _, part in batch]
        ids, options, _ = self._packed(encoded)
        states = model.encoder(input_ids=ids, **options).last_hidden_state[0]
        lengths = np.array([len(part) for part in encoded])
        owner = self._on_device(np.repeat(np.arange(len(batch)), lengths))
        sums = states.new_zeros(len(batch), states.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, owner, states.float()) / self._on_device(lengths)[:, None]
        context: Tensor = model.projector(sums.to(states.dtype))
        return context

    def _packed(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, dict[str, Any], Tensor]:
        """Ids ``[1, tokens]``, what the modules need with them, and every sequence's last row."""
        lengths = np.array([len(row) for row in rows])
        ends = np.cumsum(lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        cu_seqlens = self._on_device(np.concatenate(([0], ends)).astype(np.int32))
        options = {
            "position_ids": self._on_device(positions)[None],
            "cu_seq_lens_q": cu_seqlens,
            "max_length_q": int(lengths.max()),
        }
        return self._on_device(np.concatenate(rows))[None], options, self._on_device(ends - 1)


def in_order(vectors: Tensor, order: Sequence[int]) -> Tensor:
    """Vectors of texts that were computed in another order."""
    result = torch.empty_like(vectors)
    result[torch.tensor(order)] = vectors
    return result


def register(attend: Attend) -> None:
    """Makes an attention kernel the one that packed modules call."""
    from transformers import AttentionInterface

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        cu_seq_lens_q: Tensor,
        max_length_q: int,
        **others: Any,
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        causal = bool(module.is_causal)
        attended = attend(query, key, value, cu_seq_lens_q, max_length_q, scaling, causal)
        return attended[None], None

    AttentionInterface.register(PACKED_ATTENTION, attention)


def packed_kernel(device: torch.device) -> tuple[str, Attend]:
    """The best attention kernel for packed sequences that is installed, by its name.

    Raises:
        UnusableError: there is none for the device.
    """
    if device.type != "cuda":
        raise UnusableError(f"no attention kernel for packed sequences serves on {device.type}")
    for module in ("flash_attn_interface", "flash_attn"):
        try:
            return module, partial(flash_attention, importlib.import_module(module))
        except Exception:  # not there, or a binary that does not fit: of many kinds
            continue
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise UnusableError(f"torch has no varlen_attn: {error}") from None
    return "torch.nn.attention.varlen", partial(varlen_attention, varlen_attn)


def flash_attention(
    library: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """``flash_attn_varlen_func`` of FlashAttention 2 or 3."""
    output: Any = library.flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        softmax_scale=scale,
        causal=causal,
    )
    attended: Tensor = output[0] if isinstance(output, tuple) else output
    return attended


def varlen_attention(
    function: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """``torch.nn.attention.varlen.varlen_attn``; torch 2.11's takes as many key as query heads."""
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if causal else (-1, -1)}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in inspect.signature(function).parameters:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    attended: Tensor = function(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, **options
    )
    return attended
