"""The decoder: Llama, Mistral, Qwen2 and Qwen3 as one packed forward, fused weights, no padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)

from c2v_engine.kernels.bias_act import bias_act_
from c2v_engine.kernels.prefix_concat import prefix_concat
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_
from c2v_engine.model.arithmetic import Arithmetic
from c2v_engine.model.attention.base import AttentionBackend, AttentionMask
from c2v_engine.model.decoder_shape import DecoderShape
from c2v_engine.model.linear import Linear, Operand, by_blocks, take_rows
from c2v_engine.model.packed_batch import PackedSequences
from c2v_engine.model.rounding import Rounding
from c2v_engine.model.stages import stage


class _Heads(NamedTuple):
    """How many heads of each kind the rows of a tensor begin with."""

    query: int
    key: int


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer, as the forward reads them.

    Attributes:
        input_norm: ``[d]``.
        qkv: Q, K and V joined, ``d`` to ``query_size + 2 key_size``; in the last layer two, Q and
            the other two joined, for there they read different rows.
        query_norm: ``[D]`` or None.
        key_norm: likewise.
        output: ``query_size`` to ``d``.
        post_norm: ``[d]``.
        gate_up: gate and up joined, ``d`` to ``2 intermediate``.
        down: ``intermediate`` to ``d``.
    """

    input_norm: torch.Tensor
    qkv: tuple[Linear, ...]
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear

    @property
    def num_parameters(self) -> int:
        """Of all its parts."""
        norms = (self.input_norm, self.query_norm, self.key_norm, self.post_norm)
        linears = (*self.qkv, self.output, self.gate_up, self.down)
        return sum(part.num_parameters for part in linears) + sum(
            norm.numel() for norm in norms if norm is not None
        )


@dataclass(frozen=True)
class PromptStates:
    """What texts need of a prompt that they all begin with, computed once.

    Attributes:
        token_ids: of the prompt's rows.
        key_values: of each layer, ``[rows, 2 key_size]``: keys, rotated, beside values.
    """

    token_ids: tuple[int, ...]
    key_values: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Pass:
    """What the layers of one forward share."""

    sequences: PackedSequences
    attention: AttentionBackend
    masks: list[AttentionMask]
    plans: dict[AttentionMask, Any]
    prompt: PromptStates | None


class Decoder:
    """A stock decoder-only model without LM head, over packed sequences.

    Args:
        shape: what its config says.
        embed_tokens: ``[vocab, d]``.
        layers: its layers.
        norm: weight of the final RMSNorm, ``[d]``; the pooling applies it.
        rope: cosines and sines of every position.
        arithmetic: of its linear layers.
        rounding: of row counts.
    """

    def __init__(
        self,
        shape: DecoderShape,
        embed_tokens: torch.Tensor,
        layers: list[DecoderLayer],
        norm: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        arithmetic: Arithmetic,
        rounding: Rounding,
    ) -> None:
        self.shape = shape
        self.embed_tokens = embed_tokens
        self.layers = layers
        self.norm = norm
        self.arithmetic = arithmetic
        self._rounding = rounding
        self._block_rows = rounding.block_rows
        # Rounded to the computation's dtype, as the stock module rounds them.
        self._cos, self._sin = (table.to(norm.device, norm.dtype) for table in rope)

    def num_parameters(self) -> int:
        """Parameters without the embedding table: what each token is multiplied with."""
        return sum(layer.num_parameters for layer in self.layers) + self.norm.numel()

    def embed(self, token_ids: torch.Tensor, contextual: torch.Tensor | None) -> torch.Tensor:
        """The input rows: token embeddings, and contextual or summary tokens in their places.

        Args:
            token_ids: int32 ``[tokens]``; ``-1 - i`` stands for row i of what is given.
            contextual: ``[given, d]``, or None where no id is negative.

        Returns:
            ``[tokens, d]``.
        """
        return prefix_concat(token_ids, self.embed_tokens, contextual)

    def forward(
        self,
        hidden_states: torch.Tensor,
        sequences: PackedSequences,
        causal: bool,
        attention: AttentionBackend,
        rows: torch.Tensor | None,
        prompt: PromptStates | None = None,
    ) -> torch.Tensor:
        """Run all layers; the final norm is left to the pooling.

        Args:
            hidden_states: input rows ``[tokens, d]``; overwritten.
            sequences: what they belong to.
            causal: the causal mask, or none.
            attention: the backend.
            rows: int32 ``[rows]``, as many of every sequence: the only ones wanted, so that the
                last layer computes queries, output projection and MLP for these alone. None: all.
            prompt: the states of the prompt that ``sequences.keys`` reads, where it reads one.

        Returns:
            ``[rows, d]`` or ``[tokens, d]``, before the final norm.
        """
        run = self._pass(sequences, causal, attention, prompt)
        pending: torch.Tensor | None = None  # what the next norm adds to the residual stream first
        for index, layer in enumerate(self.layers[:-1]):
            normed = self._add_norm(hidden_states, pending, layer.input_norm)
            query, key_value = self._project(layer, normed, sequences.position_ids)
            key_value = self._with_prompt(key_value, run, index)
            attended = self._attend(query, key_value, run, index)
            pending = self._mix(layer, attended, hidden_states)
        layer = self.layers[-1]
        normed = self._add_norm(hidden_states, pending, layer.input_norm)
        if rows is None:
            attended = self._attend_last(layer, normed, run)
            pending = self._mix(layer, attended, hidden_states)
            return hidden_states.add_(pending)
        computed = F.pad(rows, (0, self._rounding.pooled(len(rows)) - len(rows)))
        attended = self._attend_rows(layer, normed, computed, rows, run)
        hidden_states = hidden_states.index_select(0, computed)
        pending = self._mix(layer, attended, hidden_states)
        return hidden_states.add_(pending)[: len(rows)]

    def prompt_states(
        self, token_ids: tuple[int, ...], sequences: PackedSequences, attention: AttentionBackend
    ) -> PromptStates:
        """Compute what texts need of a prompt, under the causal mask.

        Args:
            token_ids: of the prompt's rows.
            sequences: these, as one sequence, and fillers.
            attention: the backend.
        """
        run = self._pass(sequences, True, attention, None)
        hidden_states = self.embed(sequences.token_ids, None)
        pending: torch.Tensor | None = None
        key_values: list[torch.Tensor] = []
        for index, layer in enumerate(self.layers[:-1]):
            normed = self._add_norm(hidden_states, pending, layer.input_norm)
            query, key_value = self._project(layer, normed, sequences.position_ids)
            key_values.append(key_value[: len(token_ids)].clone())
            attended = self._attend(query, key_value, run, index)
            pending = self._mix(layer, attended, hidden_states)
        layer = self.layers[-1]
        normed = self._add_norm(hidden_states, pending, layer.input_norm)
        key_value = self._last_key_value(layer, normed, sequences.position_ids)
        key_values.append(key_value[: len(token_ids)].clone())
        return PromptStates(token_ids, tuple(key_values))

    def _pass(
        self,
        sequences: PackedSequences,
        causal: bool,
        attention: AttentionBackend,
        prompt: PromptStates | None,
    ) -> _Pass:
        # Deterministic, a text's kernel may not depend on how long its neighbours are.
        deterministic = self._block_rows is not None
        longest = len(self._cos) if deterministic else sequences.attended.max_seqlen
        masks = [AttentionMask(causal, w).for_length(longest) for w in self.shape.windows]
        plans = {mask: attention.plan(sequences, mask) for mask in set(masks)}
        return _Pass(sequences, attention, masks, plans, prompt)

    def _add_norm(
        self, hidden_states: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor
    ) -> Operand:
        """Add x to the residual stream, in place, and normalise it."""
        with stage("decoder.norm"):
            return self.arithmetic.add_rms_norm(hidden_states, x, weight, self.shape.rms_norm_eps)

    def _rotate(
        self, states: torch.Tensor, positions: torch.Tensor, layer: DecoderLayer, heads: _Heads
    ) -> None:
        """Normalise and rotate the query and key heads that rows begin with, in place."""
        with stage("decoder.rope"):
            qk_norm_rope_(
                states,
                positions,
                self._cos,
                self._sin,
                num_query_heads=heads.query,
                num_key_heads=heads.key,
                head_dim=self.shape.head_dim,
                query_norm=layer.query_norm,
                key_norm=layer.key_norm,
                eps=self.shape.rms_norm_eps,
            )

    def _project(
        self, layer: DecoderLayer, normed: Operand, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and keys beside values, rotated: views of one buffer."""
        shape = self.shape
        (joined,) = layer.qkv
        with stage("decoder.qkv"):
            qkv = by_blocks(joined, normed, self._block_rows)
        heads = _Heads(shape.num_attention_heads, shape.num_key_value_heads)
        self._rotate(qkv, positions, layer, heads)
        query, key_value = qkv.split((shape.query_size, 2 * shape.key_size), dim=1)
        return query, key_value

    def _last_key_value(
        self, layer: DecoderLayer, normed: Operand, positions: torch.Tensor
    ) -> torch.Tensor:
        """Keys, rotated, beside values, of the last layer."""
        _, joined = layer.qkv
        with stage("decoder.qkv"):
            key_value = by_blocks(joined, normed, self._block_rows)
        self._rotate(key_value, positions, layer, _Heads(0, self.shape.num_key_value_heads))
        return key_value

    def _last_query(
        self, layer: DecoderLayer, normed: Operand, positions: torch.Tensor
    ) -> torch.Tensor:
        """Queries of the last layer, rotated."""
        projection, _ = layer.qkv
        with stage("decoder.qkv"):
            query = by_blocks(projection, normed, self._block_rows)
        self._rotate(query, positions, layer, _Heads(self.shape.num_attention_heads, 0))
        return query

    def _with_prompt(self, key_value: torch.Tensor, run: _Pass, index: int) -> torch.Tensor:
        """Before every sequence's keys and values those that it sees besides its own."""
        keys = run.sequences.keys
        if keys is None:
            return key_value
        assert run.prompt is not None or not keys.prompt_rows
        prompt = None if run.prompt is None else run.prompt.key_values[index]
        with stage("decoder.prompt"):
            return prefix_concat(keys.rows, key_value, prompt)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = states.unflatten(1, (-1, self.shape.head_dim))
        return heads

    def _attend(
        self, query: torch.Tensor, key_value: torch.Tensor, run: _Pass, index: int
    ) -> torch.Tensor:
        key, value = (self._heads(part) for part in key_value.chunk(2, dim=1))
        plan = run.plans[run.masks[index]]
        with stage("decoder.attention"):
            scale = self.shape.head_dim**-0.5
            attended = run.attention.attend(self._heads(query), key, value, plan, scale)
        return attended.flatten(1)

    def _attend_last(self, layer: DecoderLayer, normed: Operand, run: _Pass) -> torch.Tensor:
        """Attend from all rows in the last layer."""
        positions = run.sequences.position_ids
        query = self._last_query(layer, normed, positions)
        key_value = self._last_key_value(layer, normed, positions)
        index = len(self.layers) - 1
        return self._attend(query, self._with_prompt(key_value, run, index), run, index)

    def _attend_rows(
        self,
        layer: DecoderLayer,
        normed: Operand,
        computed: torch.Tensor,
        rows: torch.Tensor,
        run: _Pass,
    ) -> torch.Tensor:
        """Attend from the rows; what else is computed is there for their number."""
        sequences, wanted = run.sequences, len(rows)
        positions = sequences.position_ids.index_select(0, computed)
        query = self._last_query(layer, take_rows(normed, computed), positions)
        key_value = self._last_key_value(layer, normed, sequences.position_ids)
        key_value = self._with_prompt(key_value, run, len(self.layers) - 1)
        keys = sequences.attended
        places = rows if sequences.keys is None else sequences.keys.places(rows)
        key, value = (self._heads(part) for part in key_value.chunk(2, dim=1))
        with stage("decoder.attention"):
            # The rows are those of texts, as many of each.
            plan = run.attention.plan_rows(keys.without_fillers(), places, run.masks[-1])
            attended = run.attention.attend_rows(
                self._heads(query[:wanted]), key, value, plan, self.shape.head_dim**-0.5
            ).flatten(1)
        if len(computed) == wanted:
            return attended
        return F.pad(attended, (0, 0, 0, len(computed) - wanted))

    def _mix(
        self, layer: DecoderLayer, attended: torch.Tensor, hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """From attention to the MLP's output; the residual stream gets what lies between."""
        with stage("decoder.output"):
            operand = self.arithmetic.operand(attended)
            projected = by_blocks(layer.output, operand, self._block_rows)
        normed = self._add_norm(hidden_states, projected, layer.post_norm)
        return by_blocks(lambda rows: self._mlp(layer, rows), normed, self._block_rows)

    def _mlp(self, layer: DecoderLayer, normed: Operand) -> torch.Tensor:
        with stage("decoder.gate_up"):
            gate_up = layer.gate_up(normed)
        with stage("decoder.activation"):
            product = self._activate(gate_up)
        del gate_up  # the widest there is: not beside what comes next
        with stage("decoder.down"):
            return layer.down(product)

    def _activate(self, gate_up: torch.Tensor) -> Operand:
        if self.shape.activation == "silu":
            return self.arithmetic.silu_and_mul(gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        bias_act_(gate, None, activation=self.shape.activation)
        return self.arithmetic.operand(gate.mul_(up))
