"""What every op refuses alike: shared memory, what is no dense tensor, an epsilon that is none."""

import pytest
import torch
from interpreter import forms
from row_cases import random

from c2v_engine.errors import InputError
from c2v_engine.kernels.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_fp8,
    add_layer_norm_fp8_reference,
    add_layer_norm_reference,
)
from c2v_engine.kernels.add_rms_norm import add_rms_norm, add_rms_norm_reference
from c2v_engine.kernels.bias_act import bias_act_, bias_act_reference_
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_, qk_norm_rope_reference_

RMS = forms(add_rms_norm, add_rms_norm_reference)
LAYER_NORM = [
    *forms(add_layer_norm, add_layer_norm_reference),
    *forms(add_layer_norm_fp8, add_layer_norm_fp8_reference),
]
BIAS_ACT = forms(bias_act_, bias_act_reference_)
ROPE = forms(qk_norm_rope_, qk_norm_rope_reference_)


def rotate(op, qkv, **change):
    positions = torch.zeros(len(qkv), dtype=torch.int32, device=qkv.device)
    tables = {"cos": torch.ones(3, 4), "sin": torch.ones(3, 4)}
    case = {"positions": positions, **{k: v.to(qkv.device) for k, v in tables.items()}}
    op(qkv, **{**case, **change}, num_query_heads=1, num_key_heads=1, head_dim=8)


@pytest.mark.parametrize("op", RMS)
def test_rows_that_overlap_the_residual_are_refused(op):
    buffer = random(41, 8).to(op.device)
    before = buffer.clone()
    with pytest.raises(InputError, match="x shares memory with residual"):
        op(buffer[1:], buffer[:-1], torch.ones(8, device=op.device), eps=1e-6)
    with pytest.raises(InputError, match="weight shares memory with residual"):
        op(buffer[1:], before[1:], buffer[2], eps=1e-6)
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("op", RMS)
def test_neighbours_in_one_buffer_and_the_very_same_rows_are_served(op):
    buffer, weight = random(5, 24).to(op.device), torch.ones(8, device=op.device)
    for residual, x in (
        (buffer[:, :8], buffer[:, 8:16]),
        (buffer[:, 16:], buffer[:, 4:12]),
        (buffer[:2, :8], buffer[2:4, 4:12]),
        (buffer[:, :8], buffer[:, :8]),
    ):
        expected = residual + x
        op(residual, x, weight, eps=1e-6)
        assert torch.equal(residual, expected)


@pytest.mark.parametrize("op", RMS)
def test_a_residual_that_is_only_read_may_be_the_weight_too(op):
    rows = random(5, 8).to(op.device)
    assert op(rows, None, rows[0], eps=1e-6).isfinite().all()


@pytest.mark.parametrize("op", BIAS_ACT)
def test_a_bias_among_the_rows_is_refused(op):
    x = random(5, 8).to(op.device)
    with pytest.raises(InputError, match="bias shares memory with x"):
        op(x, x[0], activation="relu")


@pytest.mark.parametrize("op", ROPE)
@pytest.mark.parametrize("name", ["bias", "query_norm", "cos"])
def test_what_lies_among_the_heads_is_refused(op, name):
    qkv = random(5, 24).to(op.device)
    given = {"bias": qkv[0], "query_norm": qkv[0, :8], "cos": qkv[:3, :4]}[name]
    with pytest.raises(InputError, match=f"{name} shares memory with qkv"):
        rotate(op, qkv, **{name: given})


@pytest.mark.parametrize("op", LAYER_NORM)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_vector_that_is_missing_is_refused(op, name):
    case = {"weight": torch.ones(8), "bias": torch.ones(8)}
    with pytest.raises(InputError, match=f"{name} is NoneType; expected a dense"):
        op(torch.ones(4, 8), None, **{**case, name: None}, eps=1e-6)


@pytest.mark.parametrize("op", RMS)
@pytest.mark.parametrize("given", [[1.0], "x", torch.eye(8).to_sparse()])
def test_what_is_no_dense_tensor_is_refused(op, given):
    with pytest.raises(InputError, match=r"residual is .*; expected a dense"):
        op(given, None, torch.ones(8), eps=1e-6)
    with pytest.raises(InputError, match=r"weight is .*; expected a dense"):
        op(torch.ones(8, 8), None, given, eps=1e-6)


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_none_is_refused(eps):
    vectors = {"weight": torch.ones(8), "bias": torch.ones(8)}
    for op in RMS:
        with pytest.raises(InputError, match="eps is"):
            op.values[0](torch.ones(4, 8), None, torch.ones(8), eps=eps)
    for op in LAYER_NORM:
        with pytest.raises(InputError, match="eps is"):
            op.values[0](torch.ones(4, 8), None, **vectors, eps=eps)
    for op in ROPE:
        with pytest.raises(InputError, match="eps is"):
            rotate(op.values[0], torch.ones(4, 24), eps=eps)
