"""Bias and activation against float64, the reference and torch's own activations."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from far_rows import far_rows
from interpreter import forms, triton_form
from row_cases import (
    DTYPES,
    SIXTEEN_BIT,
    assert_rounded_alike,
    random,
    with_row_stride,
)

from c2v_engine.errors import InputError
from c2v_engine.kernels.bias_act import ACTIVATIONS, bias_act_, bias_act_reference_

FORMS = forms(bias_act_, bias_act_reference_)
TORCH = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
RELATIVE_NORM = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")


def applied(op, x, bias, activation):
    """What the op makes of a copy."""
    x = x.clone()
    assert op(x, bias, activation=activation) is None
    return x


def make_case(rows, width, dtype, device="cpu", scale=3):
    x = random(rows, width, dtype=dtype, seed=1, scale=scale)
    return x.to(device), random(width, dtype=dtype, seed=2).to(device)


def test_every_activation_is_one_of_torch():
    assert set(ACTIVATIONS) == set(TORCH)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rows", "width"),
    [(0, 24), (1, 1), (5, 3), (123, 123), (5, 2048), (4097, 24), (30_000, 8), (3, 3072), (3, 768)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_agrees_with_float64(dtype, rows, width, activation, op):
    x, bias = make_case(rows, width, dtype, op.device)
    expected = TORCH[activation]((x + bias).double())
    error = applied(op, x, bias, activation).double() - expected
    assert error.norm() <= RELATIVE_NORM[dtype] * expected.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_activation_of_torch(dtype, activation):
    x, bias = make_case(5, 123, dtype)
    same = applied(bias_act_reference_, x, bias, activation)
    assert torch.equal(same, TORCH[activation](x + bias))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bit_rows_are_rounded_as_by_the_reference(dtype, activation, op):
    x, bias = make_case(123, 123, dtype, op.device, scale=1)
    # Below -2, 1 + erf cancels, and what is left depends on the last bits of erf.
    x = (x + bias).clamp(min=-2) - bias
    expected = applied(bias_act_reference_, x, bias, activation)
    assert_rounded_alike(applied(op, x, bias, activation), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_every_sixteen_bit_value_gives_its_rounded_activation(dtype, activation, op):
    limits = torch.finfo(dtype)
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # On a CPU torch's gelu passes through 2x, and has no subnormal results.
    usual = (x.abs() <= limits.max / 2) & (x.abs() >= 2 * limits.smallest_normal)
    x = x[usual][None].to(op.device)
    wide = x.double()
    expected = TORCH[activation](wide)
    error = (applied(op, x, None, activation).double() - expected).abs()
    # Half an ulp of the result, or of the smallest normal; where the activation is a difference
    # from x, some float32 ulps of x.
    rounding = limits.eps * expected.abs().clamp(min=limits.smallest_normal) * 0.51
    assert bool((error <= rounding + 2.0**-21 * wide.abs()).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ["tanh", "gelu_tanh", "silu"])
def test_small_values_keep_their_relative_accuracy(activation, op):
    magnitudes = torch.cat([torch.logspace(-30, 0, 3001), torch.linspace(0.5, 0.75, 3001)])
    x = torch.cat([magnitudes, -magnitudes])[None].to(op.device)
    expected = TORCH[activation](x.double())
    result = applied(op, x, None, activation).double()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_give_what_the_reference_gives(dtype, activation, op):
    specials = [torch.nan, 0.0, -0.0, 1e4, -1e4, 300.0, -300.0]
    if activation != "gelu":  # for which torch's forms differ among themselves
        limits = torch.finfo(dtype)
        tiny, huge = limits.smallest_normal, limits.max
        specials += [torch.inf, -torch.inf, tiny, -tiny, huge, -huge]
    x = torch.tensor([specials * 3], dtype=dtype, device=op.device)
    expected = applied(bias_act_reference_, x, None, activation)
    result = applied(op, x, None, activation)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert result[0, 0].isnan()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bias_is_added_first_and_rounded(dtype, activation, op):
    x, bias = make_case(5, 123, dtype, op.device)
    total = applied(op, x + bias, None, activation)
    assert torch.equal(applied(op, x, bias, activation), total)
    scattered = torch.stack([bias, bias], dim=1)[:, 0]
    assert torch.equal(applied(op, x, scattered, activation), total)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_x_is_changed_and_in_its_own_memory(dtype, op):
    x, bias = make_case(5, 123, dtype, op.device)
    expected, same = applied(op, x, bias, "gelu"), bias.clone()
    pointer = x.data_ptr()
    op(x, bias, activation="gelu")
    assert x.data_ptr() == pointer
    assert torch.equal(x, expected)
    assert torch.equal(bias, same)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(dtype, op):
    x, bias = make_case(5, 123, dtype, op.device)
    strided, buffer = with_row_stride(x)
    op(strided, bias, activation="tanh")
    assert torch.equal(strided, applied(op, x, bias, "tanh"))
    assert bool((buffer[:, 123:] == 7).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, activation, op):
    x, bias = make_case(123, 768, dtype, op.device)
    alone = applied(op, x[77:78], bias, activation)
    assert torch.equal(applied(op, x, bias, activation)[77:78], alone)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_shows_in_its_own_value_only(dtype, activation, op):
    x, bias = make_case(5, 123, dtype, op.device)
    x[2, 100] = torch.nan
    assert applied(op, x, bias, activation).isnan().nonzero().tolist() == [[2, 100]]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(bias_act_)
    x, bias = make_case(3, 24, torch.bfloat16, op.device)
    expected = applied(op, x, bias, "gelu")
    far = far_rows(x)
    op(far, bias, activation="gelu")
    assert torch.equal(far, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, with_bias, activation):
    x, bias = make_case(5, 24, dtype)
    args = (x, bias if with_bias else None, activation)
    results = torch.library.opcheck(torch.ops.c2v.bias_act_.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(24)}, r"x is \[24\] float32"),
        ({"x": torch.zeros(5, 24).double()}, "x is .*float64"),
        ({"x": torch.zeros(24, 5).t()}, r"x is written in place but has strides \[1, 5\]"),
        ({"x": torch.zeros(24).expand(5, 24)}, r"x is .*has strides \[0, 1\]"),
        ({"bias": torch.zeros(23)}, r"bias is \[23\].*expected \[24\]"),
        ({"bias": torch.zeros(24).half()}, "bias is .*float16.*expected .*float32"),
        ({"bias": torch.zeros(24, device="meta")}, "bias is .*on meta; expected .*on cpu"),
        ({"activation": "swish"}, "activation is 'swish'; choose one of gelu, gelu_tanh, relu"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    case = {"x": torch.zeros(5, 24), "bias": torch.zeros(24), "activation": "gelu"}
    with pytest.raises(InputError, match=message):
        op(**{**case, **change})
