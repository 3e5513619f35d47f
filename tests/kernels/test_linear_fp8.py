"""The linear layer in float8: the exact product of what was quantised, rounded once."""

import pytest
import torch
from row_cases import DTYPES, random

from c2v_engine.errors import InputError
from c2v_engine.kernels.float8 import FLOAT8, quantize_rows
from c2v_engine.kernels.linear_fp8 import linear_fp8, linear_fp8_reference, quantize_weight_fp8

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def case(rows, columns, out, device="cpu", *, bias=True):
    """Arguments of a call."""
    x, x_scales = quantize_rows(random(rows, columns, scale=2).to(device))
    weight, weight_scales = quantize_weight_fp8(random(out, columns, seed=1).to(device))
    shift = random(out, seed=2).bfloat16().to(device) if bias else None
    return x, x_scales, weight, weight_scales, shift


# Float8 values that one instruction of Hopper's tensor cores multiplies and adds up.
FLOAT8_PRODUCTS = 32


def exact(x, x_scales, weight, weight_scales, bias):
    """The result in float64, and two bounds of how a sum of it errs.

    The first is the sum of magnitudes; the second adds the sizes of what stands in the accumulator
    as each instruction adds its products to it.
    """
    x, weight = x.double() * x_scales, weight.double() * weight_scales
    shift = 0 if bias is None else bias.double()
    magnitude = x.abs() @ weight.abs().t()
    accumulator, sizes = torch.zeros_like(magnitude), magnitude.clone()
    for some, others in zip(
        x.split(FLOAT8_PRODUCTS, 1), weight.split(FLOAT8_PRODUCTS, 1), strict=True
    ):
        accumulator += some @ others.t()
        sizes += accumulator.abs()
    return x @ weight.t() + shift, magnitude, sizes


@pytest.mark.parametrize("op", [linear_fp8, linear_fp8_reference])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "out"), [(1, 16, 16), (5, 48, 112), (123, 896, 1152), (17, 4864, 896)]
)
def test_the_product_is_that_of_the_float8_values(rows, columns, out, bias, device, op):
    arguments = case(rows, columns, out, device, bias=bias)
    y = op(*arguments)
    assert (y.shape, y.dtype) == ((rows, out), torch.bfloat16)
    expected, magnitude, sizes = exact(*arguments)
    # Half a bfloat16 ulp, and float32 sums of `columns` terms. Hopper's tensor cores, adding fast,
    # keep 13 bits of each sum behind the point of its largest term and cut the rest off every time.
    fast = device == "cuda" and op is linear_fp8
    error = sizes * 2.0**-13 if fast else magnitude * 2.0**-22
    assert bool(((y.double() - expected).abs() <= expected.abs() * 2.0**-8 + error).all())


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_near_the_layer_that_was_quantised(device):
    x, weight = random(64, 896).to(device), random(1152, 896, seed=1).to(device)
    y = linear_fp8(*quantize_rows(x), *quantize_weight_fp8(weight))
    expected = x.double() @ weight.double().t()
    error = (y.double() - expected).norm() / expected.norm()
    # Three mantissa bits round a value by 2^-4 at most, uniformly between two powers of two: about
    # 0.026 of it in the root of the mean square, and of two independent factors 0.037.
    assert 0.02 < float(error) < 0.042


@pytest.mark.parametrize("device", DEVICES)
def test_no_row_gives_no_row(device):
    y = linear_fp8(*case(0, 48, 112, device))
    assert (y.shape, y.dtype, y.device.type) == ((0, 112), torch.bfloat16, device)


@pytest.mark.parametrize("device", DEVICES)
def test_arguments_may_be_strided(device):
    x, x_scales, weight, weight_scales, bias = case(5, 48, 112, device)
    y = linear_fp8(
        x.t().contiguous().t(),
        x_scales.repeat(1, 2)[:, :1],
        weight.t().contiguous().t(),
        weight_scales.repeat(1, 2)[:, :1],
        bias.repeat_interleave(2)[::2],
    )
    assert torch.equal(y, linear_fp8(x, x_scales, weight, weight_scales, bias))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_gives_nothing_finite_and_leaves_the_others(value):
    x, weight = random(5, 48), random(112, 48, seed=1)
    x[2, 7] = value
    y = linear_fp8(*quantize_rows(x), *quantize_weight_fp8(weight))
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 16), (0, 16), (160, 16_384), (16, 2**21)])
def test_a_weight_is_quantised_channel_by_channel(shape, dtype):
    weight = random(*shape, dtype=dtype)
    values, scales = quantize_weight_fp8(weight)
    assert (values.shape, values.dtype) == (shape, FLOAT8)
    same_values, same_scales = quantize_rows(weight)
    assert torch.equal(values.view(torch.uint8), same_values.view(torch.uint8))
    assert torch.equal(scales, same_scales)


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_passes(bias):
    # Its check that no argument is written compares tensors, which torch can not do in float8.
    chosen = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.c2v.linear_fp8.default
    results = torch.library.opcheck(op, case(5, 48, 112, bias=bias), test_utils=chosen)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", [linear_fp8, linear_fp8_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 48)}, r"x is \[5, 48\] float32.*expected .* float8_e4m3fn"),
        ({"x": torch.zeros(48).to(FLOAT8)}, r"x is \[48\]"),
        ({"x": torch.zeros(5, 64).to(FLOAT8)}, r"weight is .*expected \[out, 64\] float8"),
        ({"x_scales": torch.zeros(5)}, r"x_scales is \[5\].*expected \[5, 1\] float32"),
        ({"x_scales": torch.zeros(5, 1).double()}, "x_scales is .*float64"),
        ({"weight": torch.zeros(112, 48)}, "weight is .*expected .* float8_e4m3fn"),
        ({"weight": torch.zeros(120, 48).to(FLOAT8)}, r"weight is \[120, 48\]; .*multiples of 16"),
        ({"weight_scales": torch.zeros(1, 112)}, r"weight_scales is .*expected \[112, 1\]"),
        ({"bias": torch.zeros(112)}, r"bias is \[112\] float32.*expected \[112\] bfloat16"),
        ({"bias": torch.zeros(48).bfloat16()}, r"bias is \[48\]"),
        ({"weight": None}, "weight is NoneType"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    names = ("x", "x_scales", "weight", "weight_scales", "bias")
    arguments = dict(zip(names, case(5, 48, 112), strict=True))
    with pytest.raises(InputError, match=message):
        op(**{**arguments, **change})


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_a_weight_that_no_product_takes_is_refused(shape):
    with pytest.raises(InputError, match="multiples of 16"):
        quantize_weight_fp8(torch.zeros(shape))
