"""The gated activation against float64 and the reference, over all of its exponential's range."""

import pytest
import torch
from pooling_cases import DEVICES
from row_cases import (
    DTYPES,
    FLOAT32_RTOL,
    ROWS,
    SIXTEEN_BIT,
    WIDTHS,
    assert_rounded_alike,
    random,
    ulps_apart,
    with_row_stride,
)

from c2v_engine.errors import InputError
from c2v_engine.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

OPS = [silu_and_mul, silu_and_mul_reference]

pytestmark = pytest.mark.usefixtures("compiled")


def float64_product(gate_up):
    gate, up = gate_up.double().chunk(2, dim=1)
    return gate / (1 + (-gate).exp()) * up


def gates(values):
    """Every value as a gate, in one row, with 1 as its factor."""
    return torch.cat([values, torch.ones_like(values)])[None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_float32_agrees_with_float64(width, rows, op, device):
    gate_up = random(rows, 2 * width, scale=4).to(device)
    product = op(gate_up)
    assert product.shape == (rows, width)
    torch.testing.assert_close(
        product.double(), float64_product(gate_up), rtol=FLOAT32_RTOL, atol=1e-37
    )


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bit_rows_are_rounded_as_by_the_reference(dtype, width, rows):
    gate_up = random(rows, 2 * width, dtype=dtype, scale=4)
    assert_rounded_alike(silu_and_mul(gate_up), silu_and_mul_reference(gate_up))


def test_the_exponential_is_accurate_over_its_whole_range():
    # Between -88.7 and the end of the range e^-x is infinite in float32, and the result 0 for what
    # is less than 3e-37.
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F800000, (200_000,), generator=generator).int()
    magnitudes = torch.cat([torch.linspace(0, 120, 300_001), bits.view(torch.float32)])
    values = torch.cat([magnitudes, -magnitudes])
    product = silu_and_mul(gates(values))[0].double()
    expected = float64_product(gates(values.double()))[0]
    # A quotient and a sum on top of the exponential's 2e-7.
    torch.testing.assert_close(product, expected, rtol=4e-7, atol=3e-37)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_give_what_the_reference_gives(dtype):
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    specials = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, tiny, -tiny, huge, -huge, 1e4, -1e4]
    gate_up = gates(torch.tensor(specials * 7, dtype=dtype))
    expected = silu_and_mul_reference(gate_up)
    torch.testing.assert_close(silu_and_mul(gate_up), expected, rtol=0, atol=0, equal_nan=True)
    assert expected[0, 0] == torch.inf
    assert expected[0, 1:3].isnan().all()


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_the_activation_of_every_sixteen_bit_value_is_rounded_once(dtype):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    actual = silu_and_mul(gates(values))[0]
    expected = float64_product(gates(values.double()))[0].to(dtype)
    apart = ulps_apart(actual, expected)
    # One float32 result in some thousands lies on the other side of a rounding.
    apart[expected.double().abs() < 1e-36] = 0
    assert int(apart.max()) <= 1
    assert int(apart.sum()) <= len(values) // 1000


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_in_gate_or_up_shows_in_its_own_value_only(dtype, op, place):
    gate_up = random(5, 246, dtype=dtype)
    gate_up[2, 123 * place + 100] = torch.nan
    product = op(gate_up)
    assert product.isnan().nonzero().tolist() == [[2, 100]]


def test_every_nan_of_bfloat16_stays_nan():
    bits = torch.cat([torch.arange(0x7F81, 0x8000), torch.arange(0xFF81, 0x10000)])
    nans = (bits - 0x10000 * (bits >= 0x8000)).to(torch.int16).view(torch.bfloat16)
    assert silu_and_mul(gates(nans)).isnan().all()
    assert silu_and_mul(torch.cat([torch.ones_like(nans), nans])[None]).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_argument_may_have_any_strides_and_is_not_changed(dtype):
    gate_up = random(5, 246, dtype=dtype)
    expected = silu_and_mul(gate_up)
    strided, buffer = with_row_stride(gate_up)
    same = buffer.clone()
    assert torch.equal(silu_and_mul(strided), expected)
    assert torch.equal(buffer, same)
    assert torch.equal(silu_and_mul(gate_up.t().contiguous().t()), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype):
    gate_up = random(123, 2046, dtype=dtype)
    assert torch.equal(silu_and_mul(gate_up)[77:78], silu_and_mul(gate_up[77:78]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    args = (random(5, 24, dtype=dtype),)
    results = torch.library.opcheck(torch.ops.c2v.silu_and_mul.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(24), r"gate_up is \[24\] float32"),
        (torch.zeros(5, 24).double(), "gate_up is .*float64"),
        (torch.zeros(5, 0), r"gate_up is \[5, 0\]"),
        (torch.zeros(5, 23), "gate_up has 23 columns; expected .* an even number"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(gate_up, message, op):
    with pytest.raises(InputError, match=message):
        op(gate_up)


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(24), "gate_up must be"),
        (torch.zeros(5, 23), r"gate_up must be \[rows, 2 \* size\], got 23 columns"),
        (torch.zeros(5, 24).double(), "the dtype must be float32, float16 or bfloat16"),
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(gate_up, message):
    with pytest.raises(RuntimeError, match=f"silu_and_mul: {message}"):
        torch.ops.c2v.silu_and_mul(gate_up)
