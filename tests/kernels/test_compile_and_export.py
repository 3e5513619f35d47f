"""A model made of the ops goes through torch.compile and torch.export in one graph."""

import pytest
import torch
from row_cases import random
from torch import nn
from torch.nn.functional import linear

from c2v_engine.kernels.add_layer_norm import add_layer_norm
from c2v_engine.kernels.add_rms_norm import add_rms_norm
from c2v_engine.kernels.bias_act import bias_act_
from c2v_engine.kernels.dual_token_pool import dual_token_pool
from c2v_engine.kernels.embed_layer_norm import embed_layer_norm
from c2v_engine.kernels.packed_attention import packed_attention
from c2v_engine.kernels.prefix_concat import prefix_concat
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_
from c2v_engine.kernels.segment_pool import segment_pool
from c2v_engine.kernels.silu_and_mul import silu_and_mul

HEADS, HEAD_DIM, VOCAB, POSITIONS = 2, 8, 30, 12
WIDTH = HEADS * HEAD_DIM


def parameter(*shape, seed):
    return nn.Parameter(random(*shape, seed=seed, scale=0.3), requires_grad=False)


class OneLayer(nn.Module):
    """An encoder layer, the contextual token, a decoder layer and the pooling, all by the ops."""

    def __init__(self):
        super().__init__()
        self.words = parameter(VOCAB, WIDTH, seed=1)
        self.positions = parameter(POSITIONS, WIDTH, seed=2)
        self.norm = parameter(WIDTH, seed=3)
        self.qkv = parameter(3 * WIDTH, WIDTH, seed=4)
        self.wide = parameter(4 * WIDTH, WIDTH, seed=5)
        self.narrow = parameter(WIDTH, 2 * WIDTH, seed=6)
        self.cos = parameter(POSITIONS, HEAD_DIM // 2, seed=7)

    def attend(self, x, cu_seqlens, positions, causal):
        qkv = linear(x, self.qkv)
        if positions is not None:
            heads = {"num_query_heads": HEADS, "num_key_heads": HEADS, "head_dim": HEAD_DIM}
            qk_norm_rope_(qkv, positions, self.cos, self.cos, **heads)
        parts = (part.unflatten(1, (HEADS, HEAD_DIM)) for part in qkv.chunk(3, dim=1))
        options = {"max_seqlen": POSITIONS, "causal": causal, "scale": HEAD_DIM**-0.5}
        return packed_attention(*parts, cu_seqlens, **options).flatten(1)

    def forward(self, token_ids, positions, cu_seqlens, rows, offsets):
        weights = (self.norm, self.norm)
        ids = token_ids.clamp(min=0)
        states = embed_layer_norm(
            ids, positions, self.words, self.positions, self.norm, *weights, eps=1e-6
        )
        attended = self.attend(states, cu_seqlens, None, causal=False)
        states = add_layer_norm(attended, states, *weights, eps=1e-6)
        contextual = segment_pool(states, cu_seqlens, counts=cu_seqlens.diff())
        bias_act_(contextual, None, activation="gelu")
        hidden_states = prefix_concat(token_ids, self.words, contextual)
        normed = add_rms_norm(hidden_states, None, self.norm, eps=1e-6)
        attended = self.attend(normed, cu_seqlens, positions, causal=True)
        normed = add_rms_norm(hidden_states, attended, self.norm, eps=1e-6)
        hidden_states = hidden_states + linear(silu_and_mul(linear(normed, self.wide)), self.narrow)
        options = {"eps": 1e-6, "segments": 2, "keep": WIDTH}
        return dual_token_pool(hidden_states, rows, offsets, self.norm, **options)


def make_batch(lengths):
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(length) for length in lengths])
    token_ids = torch.arange(int(bounds[-1])) % VOCAB
    token_ids[bounds[:-1]] = -1 - torch.arange(len(lengths))
    rows = torch.stack([bounds[:-1], bounds[1:] - 1], dim=1).flatten()
    offsets = torch.arange(2 * len(lengths) + 1)
    return tuple(tensor.int() for tensor in (token_ids, positions, bounds, rows, offsets))


@pytest.fixture(scope="module")
def model():
    return OneLayer().eval()


# aot_eager traces, functionalises and runs the graph; what it runs is not the point here.
def test_torch_compile_takes_the_model_in_one_graph(model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in ([3, 5], [1, 2, 7]):
        batch = make_batch(lengths)
        for actual, expected in zip(compiled(*batch), model(*batch), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_torch_export_serves_batches_of_another_size(model):
    tokens = torch.export.Dim("tokens", min=2, max=1000)
    texts = torch.export.Dim("texts", min=2, max=100)
    shapes = ({0: tokens}, {0: tokens}, {0: texts + 1}, {0: 2 * texts}, {0: 2 * texts + 1})
    exported = torch.export.export(model, make_batch([3, 5, 4]), dynamic_shapes=shapes)
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {name.split(".")[1] for name in names if name.startswith("c2v.")} == {
        "add_layer_norm",
        "add_rms_norm",
        "bias_act_",
        "dual_token_pool",
        "embed_layer_norm",
        "packed_attention",
        "prefix_concat",
        "qk_norm_rope_",
        "segment_pool",
        "silu_and_mul",
    }
    batch = make_batch([2, 6, 1, 1])
    for actual, expected in zip(exported.module()(*batch), model(*batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
