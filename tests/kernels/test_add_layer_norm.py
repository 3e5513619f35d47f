"""Residual addition and LayerNorm against float64, the reference, torch and transformers."""

from importlib.util import find_spec

import pytest
import torch
from far_rows import far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, ROWS, SIXTEEN_BIT, WIDTHS, random, with_row_stride
from transformers.models.bert.modeling_bert import BertConfig, BertSelfOutput

from c2v_engine.errors import InputError
from c2v_engine.kernels.add_layer_norm import add_layer_norm, add_layer_norm_reference

EPS = 1e-12  # BERT's
FORMS = forms(add_layer_norm, add_layer_norm_reference)
RELATIVE_NORM = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.usefixtures("compiled")


def make_case(rows, width, dtype, device="cpu"):
    x = random(rows, width, dtype=dtype, seed=1, scale=3)
    residual = random(rows, width, dtype=dtype, seed=2) + 2
    weight = (random(width, seed=3) * 0.2 + 1).to(dtype)
    bias = random(width, dtype=dtype, seed=4)
    return x.to(device), residual.to(device), weight.to(device), bias.to(device)


def make_x_bias(width, dtype, device="cpu"):
    return random(width, dtype=dtype, seed=5).to(device)


def float64_norm(total, weight, bias, eps=EPS):
    wide = total.double()
    centred = wide - wide.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * weight.double() + bias.double()


def assert_close(actual, expected):
    """Within one rounding of the dtype, and float32 arithmetic on values of up to 10 or so.

    The mean, the deviation from it and the sum with the bias each err by a few units of 2^-24 of
    their largest term, however small the result: 2^-18 leaves room for ten.
    """
    half_ulp = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
    torch.testing.assert_close(
        actual.double(), expected, rtol=half_ulp[actual.dtype] * 1.01, atol=2.0**-18
    )


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_the_rounded_sum_agrees_with_float64(dtype, width, rows, op):
    x, residual, weight, bias = make_case(rows, width, dtype, op.device)
    # A few values can lie so close together that their rounding is what is normalised.
    eps = 1e-2 if width <= 3 else EPS
    normed = op(x, residual, weight, bias, eps=eps)
    assert normed.dtype == dtype
    assert_close(normed, float64_norm(x + residual, weight, bias, eps))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 123])
@pytest.mark.parametrize("width", [3, 123, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_of_x_is_added_first_and_rounded(dtype, width, rows, with_residual, op):
    x, residual, weight, bias = make_case(rows, width, dtype, op.device)
    x_bias = make_x_bias(width, dtype, op.device)
    eps = 1e-2 if width <= 3 else EPS
    total = x + x_bias
    total = total + residual if with_residual else total
    same = x.clone(), x_bias.clone()
    normed = op(x, residual if with_residual else None, weight, bias, eps=eps, x_bias=x_bias)
    assert_close(normed, float64_norm(total, weight, bias, eps))
    assert torch.equal(x, same[0])
    assert torch.equal(x_bias, same[1])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("tokens", "width"),
    [(1, 1), (1, 768), (4097, 24), (4097, 1), (30_000, 8), (0, 768), (2, 32_768), (2, 40_000)],
)
@pytest.mark.parametrize("dtype", RELATIVE_NORM)
def test_batches_of_every_size_agree_with_float64(dtype, tokens, width, op):
    x, residual, weight, bias = make_case(tokens, width, dtype, op.device)
    expected = float64_norm(x + residual, weight, bias, 1e-2)
    with poisoned_memory():
        normed = op(x, residual, weight, bias, eps=1e-2).double()
    assert normed.shape == (tokens, width)
    assert (normed - expected).norm() <= RELATIVE_NORM[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_norm_of_torch(dtype):
    x, residual, weight, bias = make_case(5, 123, dtype)
    stock = torch.nn.LayerNorm(123, EPS, dtype=dtype)
    stock.load_state_dict({"weight": weight, "bias": bias})
    expected = stock(x + residual).detach()
    assert torch.equal(add_layer_norm_reference(x, residual, weight, bias, eps=EPS), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_with_a_bias_is_the_output_of_transformers(dtype):
    x, residual, weight, bias = make_case(5, 24, dtype)
    x_bias = make_x_bias(24, dtype)
    config = BertConfig(hidden_size=24, num_attention_heads=1, layer_norm_eps=EPS)
    stock = BertSelfOutput(config).to(dtype).eval()
    # With the identity as its matrix the linear layer adds its bias and does nothing else.
    linear = {"dense.weight": torch.eye(24, dtype=dtype), "dense.bias": x_bias}
    stock.load_state_dict({**linear, "LayerNorm.weight": weight, "LayerNorm.bias": bias})
    expected = stock(x, residual).detach()
    normed = add_layer_norm_reference(x, residual, weight, bias, eps=EPS, x_bias=x_bias)
    assert torch.equal(normed, expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_the_sum_is_rounded_before_the_statistics(dtype, op):
    x, residual, weight, bias = make_case(5, 123, dtype, op.device)
    exact = float64_norm(x.double() + residual.double(), weight, bias)
    rounded = float64_norm(x + residual, weight, bias)
    normed = op(x, residual, weight, bias, eps=EPS).double()
    assert (normed - rounded).norm() < 0.9 * (normed - exact).norm()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_argument_is_changed(dtype, op):
    case = make_case(5, 123, dtype, op.device)
    same = [tensor.clone() for tensor in case]
    normed = op(*case, eps=EPS)
    assert all(torch.equal(a, b) for a, b in zip(case, same, strict=True))
    assert normed.data_ptr() not in [tensor.data_ptr() for tensor in case]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_residual_x_is_normalised(dtype, op):
    x, _, weight, bias = make_case(5, 123, dtype, op.device)
    normed = op(x, None, weight, bias, eps=EPS)
    assert torch.equal(normed, op(x, torch.zeros_like(x), weight, bias, eps=EPS))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(dtype, op):
    x, residual, weight, bias = make_case(5, 123, dtype, op.device)
    expected = op(x, residual, weight, bias, eps=EPS)
    wide_x, wide_residual = (with_row_stride(rows, torch.nan)[0] for rows in (x, residual))
    assert torch.equal(op(wide_x, wide_residual, weight, bias, eps=EPS), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_may_have_any_strides(dtype, op):
    x, residual, weight, bias = make_case(5, 123, dtype, op.device)
    x_bias = make_x_bias(123, dtype, op.device)
    once = residual[:1].expand(5, 123)
    expected = op(x, once, weight, bias, eps=EPS, x_bias=x_bias)
    scattered = [torch.stack([vector] * 2, dim=1)[:, 0] for vector in (weight, bias, x_bias)]
    x = x.t().contiguous().t()
    normed = op(x, once.clone(), *scattered[:2], eps=EPS, x_bias=scattered[2])
    if op.name == "cuda":  # compiled for other strides, a row's sum may be formed in another order
        assert_close(normed, expected.double())
    else:
        assert torch.equal(normed, expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("width", [24, 2048])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, width, op):
    x, residual, weight, bias = make_case(123, width, dtype, op.device)
    x_bias = make_x_bias(width, dtype, op.device)
    alone = op(x[77:78], residual[77:78], weight, bias, eps=EPS, x_bias=x_bias)
    together = op(x, residual, weight, bias, eps=EPS, x_bias=x_bias)
    assert torch.equal(together[77:78], alone)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(add_layer_norm)
    x, residual, weight, bias = make_case(3, 24, torch.bfloat16, op.device)
    expected = op(x, residual, weight, bias, eps=EPS)
    assert torch.equal(op(far_rows(x), residual, weight, bias, eps=EPS), expected)
    assert torch.equal(op(x, far_rows(residual), weight, bias, eps=EPS), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 64, 122])
def test_a_value_that_is_not_finite_makes_its_own_row_nan_and_no_other(column, value, dtype, op):
    x, residual, weight, bias = make_case(5, 123, dtype, op.device)
    residual[2, column] = value
    normed = op(x, residual, weight, bias, eps=EPS)
    assert normed.isnan().all(dim=1).tolist() == [False, False, True, False, False]
    assert normed.isnan().any(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, with_residual):
    x, residual, weight, bias = make_case(5, 24, dtype)
    for x_bias in ((), (bias,)):
        args = (x, residual if with_residual else None, weight, bias, EPS, *x_bias)
        results = torch.library.opcheck(torch.ops.c2v.add_layer_norm.default, args)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(24)}, r"x is \[24\] float32"),
        ({"x": torch.zeros(5, 24).double()}, "x is .*float64"),
        ({"residual": torch.zeros(5, 23)}, r"residual is \[5, 23\].*expected \[5, 24\]"),
        ({"weight": torch.ones(23)}, r"weight is \[23\].*expected \[24\]"),
        ({"bias": torch.ones(24).half()}, "bias is .*float16.*expected .*float32"),
        ({"bias": torch.ones(24, device="meta")}, "bias is .*on meta; expected .*on cpu"),
        ({"x_bias": torch.ones(23)}, r"x_bias is \[23\].*expected \[24\]"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    case = {"x": torch.zeros(5, 24), "residual": torch.zeros(5, 24)}
    case |= {"weight": torch.ones(24), "bias": torch.zeros(24)}
    with pytest.raises(InputError, match=message):
        op(**{**case, **change}, eps=EPS)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(24), "x must be"),
        (1, torch.zeros(4, 24), r"residual must be \[5, 24\]"),
        (2, torch.ones(23), r"weight must be \[24\]"),
        (3, torch.ones(24).half(), "bias must have the first argument's dtype"),
        (5, torch.ones(23), r"x_bias must be \[24\]"),
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(position, value, message):
    args = [torch.zeros(5, 24), torch.zeros(5, 24), torch.ones(24), torch.zeros(24), EPS, None]
    args[position] = value
    with pytest.raises(RuntimeError, match=f"add_layer_norm: {message}"):
        torch.ops.c2v.add_layer_norm(*args)
