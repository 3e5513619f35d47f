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
from tokenizers import Tokenizer
from torch import Tensor

from c2v_engine.bench.models.synthetic import MOST_ROWS, TEMPLATE, SyntheticCheckpoint
from c2v_engine.bench.providers.base import Provider, UnusableError
from c2v_engine.bench.workloads import SINGLE_ROWS, Workload
from c2v_engine.runtime.tokenization import load_fast_tokenizer, plain_backend, special_id

__all__ = ["Attend", "Packed", "Padded", "StockModel", "packed_kernel"]

PADDED_BATCH = 64
PACKED_ATTENTION = "c2v_benchmark_packed"
Sequences = tuple[np.ndarray, np.ndarray]
"""Token ids of a text: the decoder's, EOS at the end, and the encoder's."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, bool], Tensor]
"""Attention ``[tokens, heads, head_dim]`` of queries, keys and values by cu_seqlens and the longest
sequence, with a scale, causal or not."""


@dataclass(frozen=True)
class StockModel:
    """The modules of transformers that a checkpoint is made of, for the default template.

    Attributes:
        decoder: without LM head.
        encoder: without pooler.
        projector: its two layers.
        decoder_tokenizer: its ids, without special ones.
        encoder_tokenizer: truncates.
        eos_id: ends the decoder's sequences.
        device: where they are.
    """

    decoder: Any
    encoder: Any
    projector: torch.nn.Module
    decoder_tokenizer: Tokenizer
    encoder_tokenizer: Tokenizer
    eos_id: int
    device: torch.device

    @classmethod
    def load(cls, checkpoint: SyntheticCheckpoint, dtype: torch.dtype) -> StockModel:
        """Make the modules of a synthetic checkpoint on its device.

        Raises:
            UnusableError: a template that has not been written for stock modules.
        """
        description = checkpoint.describe()
        if description.config.template != TEMPLATE:
            raise UnusableError(f"is written for the template {list(TEMPLATE)} alone")
        parts = {name: load_module(checkpoint, name, dtype) for name in ("decoder", "encoder")}
        folder = checkpoint.directory / "decoder"
        tokenizer = load_fast_tokenizer(folder)
        encoder_tokenizer = plain_backend(load_fast_tokenizer(checkpoint.directory / "encoder"))
        encoder_tokenizer.enable_truncation(checkpoint.shape.encoder.num_positions)
        return cls(
            parts["decoder"],
            parts["encoder"],
            load_projector(checkpoint, dtype),
            plain_backend(tokenizer),
            encoder_tokenizer,
            special_id("eos", tokenizer, description.decoder_config, folder),
            checkpoint.device,
        )

    def tokenize(self, texts: Sequence[str]) -> list[Sequences]:
        """Token ids of texts for both models."""
        decoded = self.decoder_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        encoded = self.encoder_tokenizer.encode_batch_fast(list(texts))
        return [
            (
                np.array([*ids.ids[: MOST_ROWS - SINGLE_ROWS], self.eos_id], dtype=np.int64),
                np.array(windows.ids, dtype=np.int64),
            )
            for ids, windows in zip(decoded, encoded, strict=True)
        ]

    def use_attention(self, name: str) -> None:
        """Choose the attention function of both models, by transformers' name for it."""
        for model in (self.decoder, self.encoder):
            model.set_attn_implementation(name)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings of the decoder."""
        embeddings: Tensor = self.decoder.get_input_embeddings()(ids)
        return embeddings


def load_module(checkpoint: SyntheticCheckpoint, part: str, dtype: torch.dtype) -> Any:
    """The stock module of ``decoder`` or ``encoder``, its weights those of the engine."""
    module, weights = checkpoint.on_meta(part), checkpoint.weights(part)
    shapes = checkpoint.shapes(part)
    state = {name: weights.take(name, shape).to(dtype) for name, shape in shapes.items()}
    module.load_state_dict(state, assign=True)
    # What is computed, not loaded, was computed on the meta device, that is not at all.
    if part == "decoder":
        module.rotary_emb = type(module.rotary_emb)(config=module.config).to(checkpoint.device)
    else:
        positions = torch.arange(module.config.max_position_embeddings, device=checkpoint.device)
        module.embeddings.position_ids = positions[None]
        module.embeddings.token_type_ids = torch.zeros_like(positions[None])
    left = [
        name
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_meta
    ]
    assert not left, left
    return module.eval()


def load_projector(checkpoint: SyntheticCheckpoint, dtype: torch.dtype) -> torch.nn.Module:
    """Two layers and a GELU between them."""
    weights, shapes = checkpoint.weights("projector"), checkpoint.shapes("projector")
    layers: dict[str, torch.nn.Module] = {}
    for name in ("linear_1", "linear_2"):
        width, size = shapes[f"{name}.weight"]
        layers[name] = torch.nn.Linear(size, width, device="meta")
        state = {
            key: weights.take(f"{name}.{key}", shapes[f"{name}.{key}"]).to(dtype)
            for key in ("weight", "bias")
        }
        layers[name].load_state_dict(state, assign=True)
    return torch.nn.Sequential(layers["linear_1"], torch.nn.GELU(), layers["linear_2"])


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
        if workload.prompt:
            raise UnusableError("is written for texts without a prompt")
        return torch.cat([self._encode(texts) for texts in workload.calls()])

    def _encode(self, texts: list[str]) -> Tensor:
        raise NotImplementedError

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._model.device, non_blocking=True)


class Padded(_Stock):
    """As sentence-transformers does it: longest first, batches of 64, SDPA, one batch at a time."""

    def _encode(self, texts: list[str]) -> Tensor:
        self._model.use_attention("sdpa")
        order = longest_first(texts)
        parts = []
        for begin in range(0, len(order), PADDED_BATCH):
            chosen = [texts[row] for row in order[begin : begin + PADDED_BATCH]]
            parts.append(self._forward(self._model.tokenize(chosen)).cpu())
        return in_order(torch.cat(parts), order)

    def _forward(self, batch: Sequence[Sequences]) -> Tensor:
        model = self._model
        ids, mask = (self._on_device(part) for part in pad([encoded for _, encoded in batch]))
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        sums = (states.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        context = model.projector(sums.to(states.dtype))
        ids, mask = (self._on_device(part) for part in pad([decoded for decoded, _ in batch]))
        states = model.decoder(
            inputs_embeds=torch.cat([context[:, None], model.embed_tokens(ids)], dim=1),
            attention_mask=F.pad(mask, (1, 0), value=1),
            use_cache=False,
        ).last_hidden_state
        last = states[torch.arange(len(states), device=states.device), mask.sum(dim=1)]
        return F.normalize(torch.cat([states[:, 0], last], dim=1).float(), dim=1)


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

    def _encode(self, texts: list[str]) -> Tensor:
        self._model.use_attention(PACKED_ATTENTION)
        sequences = self._model.tokenize(texts)
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
        encoded = [part for _, part in batch]
        ids, options, ends = self._packed(encoded)
        states = model.encoder(input_ids=ids, **options).last_hidden_state[0]
        lengths = np.array([len(part) for part in encoded])
        owner = self._on_device(np.repeat(np.arange(len(batch)), lengths))
        sums = states.new_zeros(len(batch), states.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, owner, states.float()) / self._on_device(lengths)[:, None]
        context = model.projector(sums.to(states.dtype))
        ids, options, ends = self._packed([np.append(0, part) for part, _ in batch])
        starts = F.pad(ends[:-1] + 1, (1, 0))
        rows = model.embed_tokens(ids)
        rows[0, starts] = context
        states = model.decoder(inputs_embeds=rows, use_cache=False, **options).last_hidden_state[0]
        return F.normalize(torch.cat([states[starts], states[ends]], dim=1).float(), dim=1)

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
