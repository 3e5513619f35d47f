"""Rows in float8 and in eight bits around 128: values, scales, and what is not finite."""

from importlib.util import find_spec

import pytest
import torch
from far_rows import far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, random, with_row_stride

from c2v_engine.errors import InputError
from c2v_engine.kernels.float8 import FLOAT8, FLOAT8_MAX
from c2v_engine.kernels.int8 import ZERO_POINT
from c2v_engine.kernels.quantize_rows import (
    quantize_rows_fp8,
    quantize_rows_fp8_reference,
    quantize_rows_int8,
    quantize_rows_int8_reference,
)

FP8 = forms(quantize_rows_fp8, quantize_rows_fp8_reference)
# The op on a CPU and its reference: it has no Triton kernel.
INT8 = forms(quantize_rows_int8, quantize_rows_int8_reference)[:2]
SHAPES = [(0, 24), (1, 1), (5, 123), (123, 24), (4097, 8), (3, 4864), (2, 32_768), (2, 40_000)]

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
]


def assert_same_bits(actual, expected):
    for given, other in zip(actual, expected, strict=True):
        assert torch.equal(given.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("op", FP8)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_float8_rows_are_within_half_a_step_of_the_row(dtype, rows, width, op):
    x = random(rows, width, dtype=dtype, scale=2).to(op.device)
    with poisoned_memory():
        values, scales = op(x)
    assert (values.shape, values.dtype) == ((rows, width), FLOAT8)
    assert (scales.shape, scales.dtype) == ((rows, 1), torch.float32)
    exact = x.double()
    largest = exact.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales.double(), largest / FLOAT8_MAX, rtol=2.0**-23, atol=0)
    # Half a unit of three mantissa bits, or of the smallest subnormal 2^-9; float32 errs by less
    # than a hundredth of either.
    error = (values.double() * scales - exact).abs()
    assert bool((error <= 1.01 * (exact.abs() * 2.0**-4 + scales * 2.0**-10)).all())


@pytest.mark.parametrize("op", FP8)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form_gives_float8_of_the_same_bits(dtype, op):
    x = random(123, 896, dtype=dtype).to(op.device)
    assert_same_bits(op(x), quantize_rows_fp8_reference(x))


@pytest.mark.parametrize("op", FP8)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_float8_row_that_is_not_finite_has_a_nan_and_no_other_has(value, op):
    x = random(5, 246).to(op.device)
    x[2, 64] = value
    values, scales = op(x)
    assert values.float().isnan().any(dim=1).tolist() == [False, False, True, False, False]
    assert scales[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("op", INT8)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_rows_are_within_half_a_step_of_the_row(dtype, rows, width, op):
    x = random(rows, width, dtype=dtype, scale=2)
    with poisoned_memory():
        values, scales = op(x)
    assert (values.shape, values.dtype) == ((rows, width), torch.uint8)
    assert (scales.shape, scales.dtype) == ((rows, 1), torch.float32)
    exact = x.double()
    largest = exact.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales.double(), largest / 127, rtol=2.0**-23, atol=0)
    whole = values.double() - ZERO_POINT
    assert bool((whole.abs().amax(dim=1) == 127).all())  # the largest is at the end of the range
    # Half a step; the factor's two roundings of float32 move 127 steps by 2^-16 of one.
    assert bool(((whole * scales - exact).abs() <= scales * (0.5 + 2.0**-14)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 123, 896, 4864])
def test_both_forms_give_int8_rows_of_the_same_bits(width, dtype):
    x = random(123, width, dtype=dtype)
    x[7] *= 1e-3
    assert_same_bits(quantize_rows_int8(x), quantize_rows_int8_reference(x))


@pytest.mark.parametrize("op", INT8)
def test_int8_ties_are_rounded_to_even(op):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    values, scales = op(x)
    assert (values.int() - ZERO_POINT).tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]
    assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize("op", INT8)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 64, 245])
def test_an_int8_row_that_is_not_finite_has_no_finite_scale(column, value, dtype, op):
    x = random(5, 246, dtype=dtype)
    x[2, column] = value
    values, scales = op(x)
    assert scales.isfinite().flatten().tolist() == [True, True, False, True, True]
    assert bool((values[2] == ZERO_POINT).all())
    assert_same_bits((values[3:], scales[3:]), op(x[3:]))


@pytest.mark.parametrize("op", [*FP8, *INT8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_or_of_nearly_nothing_stays_finite(dtype, op):
    x = torch.zeros(3, 48, dtype=dtype, device=op.device)
    x[1] = torch.finfo(dtype).smallest_normal if dtype != torch.float16 else 0
    values, scales = op(x)
    zero = ZERO_POINT if values.dtype == torch.uint8 else 0
    assert bool((values.float()[[0, 2]] == zero).all())
    assert bool((scales > 0).all())
    assert bool(scales.isfinite().all())
    assert bool(values.float()[1].isfinite().all())


@pytest.mark.parametrize("op", [*FP8, *INT8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(dtype, op):
    x = random(5, 246, dtype=dtype).to(op.device)
    assert_same_bits(op(with_row_stride(x, torch.nan)[0]), op(x))
    assert_same_bits(op(x.t().contiguous().t()), op(x))


@pytest.mark.parametrize("op", [*FP8, *INT8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, op):
    x = random(123, 4864, dtype=dtype).to(op.device)
    values, scales = op(x)
    assert_same_bits((values[77:78], scales[77:78]), op(x[77:78]))


@pytest.mark.parametrize(
    "op",
    [
        INT8[0],
        pytest.param(
            None,
            id="triton",
            marks=pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
        ),
    ],
)
def test_offsets_beyond_two_to_the_31_are_right(op):
    op = op or triton_form(quantize_rows_fp8)
    x = random(3, 48, dtype=torch.bfloat16).to(op.device)
    assert_same_bits(op(far_rows(x)), op(x))


@pytest.mark.parametrize("op", ["quantize_rows_fp8", "quantize_rows_int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, op):
    args = (random(5, 24, dtype=dtype),)
    results = torch.library.opcheck(getattr(torch.ops.c2v, op).default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", [*FP8, *INT8])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(24), r"x is \[24\] float32"),
        (torch.zeros(5, 24).double(), "x is .*float64"),
        (torch.zeros(5, 0), r"x is \[5, 0\]"),
        ([1.0], "x is list; expected a dense"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(x, message, op):
    with pytest.raises(InputError, match=message):
        op(x)
