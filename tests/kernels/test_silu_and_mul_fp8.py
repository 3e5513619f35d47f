"""The gated activation with its rows in float8: what the plain op gives, quantised."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from far_rows import far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, random, with_row_stride

from c2v_engine.errors import InputError
from c2v_engine.kernels.float8 import FLOAT8, FLOAT8_MAX, quantize_rows
from c2v_engine.kernels.silu_and_mul import (
    silu_and_mul,
    silu_and_mul_fp8,
    silu_and_mul_fp8_reference,
    silu_and_mul_reference,
)

FORMS = forms(silu_and_mul_fp8, silu_and_mul_fp8_reference)

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def assert_same_bits(actual, expected):
    for given, other in zip(actual, expected, strict=True):
        assert torch.equal(given.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("rows", "width"),
    [(0, 24), (1, 1), (5, 123), (123, 24), (4097, 8), (3, 4864), (2, 32_768), (2, 40_000)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_scales_are_those_of_the_rounded_rows(dtype, rows, width, op):
    gate_up = random(rows, 2 * width, dtype=dtype, scale=2).to(op.device)
    product = silu_and_mul(gate_up).float()
    with poisoned_memory():
        values, scales = op(gate_up)
    assert (values.shape, values.dtype) == ((rows, width), FLOAT8)
    assert (scales.shape, scales.dtype) == ((rows, 1), torch.float32)
    # The forms' exponentials differ in their last bits: by one rounding of the dtype at most.
    ulp = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    largest = product.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales, largest / FLOAT8_MAX, rtol=ulp, atol=0)
    assert bool((values.float().abs() <= FLOAT8_MAX).all())
    # Half a unit of three mantissa bits, or of the smallest subnormal 2^-9, and the row's own ulp.
    error = (values.float() * scales - product).abs()
    assert bool((error <= product.abs() * (2.0**-4 + ulp) + scales * 2.0**-10).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_products_are_rounded_before_they_are_quantised(dtype, op):
    gate_up = random(123, 246, dtype=dtype, scale=2).to(op.device)
    # On the CPU the op is its PyTorch form, and so must the product be.
    in_pytorch = op.name in ("cpu", "reference")
    plain = replace(op, op=silu_and_mul_reference if in_pytorch else silu_and_mul)
    assert_same_bits(op(gate_up), quantize_rows(plain(gate_up)))


@pytest.mark.parametrize("op", FORMS)
def test_a_row_of_zeros_stays_zeros(op):
    values, scales = op(torch.zeros(3, 48, device=op.device))
    assert bool((values.float() == 0).all())
    assert bool((scales > 0).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_a_nan_and_no_other_has(value, dtype, op):
    gate_up = random(5, 246, dtype=dtype).to(op.device)
    gate_up[2, 64] = value
    values, scales = op(gate_up)
    assert values.float().isnan().any(dim=1).tolist() == [False, False, True, False, False]
    assert scales[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(dtype, op):
    gate_up = random(5, 246, dtype=dtype).to(op.device)
    assert_same_bits(op(with_row_stride(gate_up, torch.nan)[0]), op(gate_up))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, op):
    gate_up = random(123, 48, dtype=dtype).to(op.device)
    values, scales = op(gate_up)
    assert_same_bits((values[77:78], scales[77:78]), op(gate_up[77:78]))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(silu_and_mul_fp8)
    gate_up = random(3, 48, dtype=torch.bfloat16).to(op.device)
    assert_same_bits(op(far_rows(gate_up)), op(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    args = (random(5, 24, dtype=dtype),)
    results = torch.library.opcheck(torch.ops.c2v.silu_and_mul_fp8.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(24), r"gate_up is \[24\] float32"),
        (torch.zeros(5, 24).double(), "gate_up is .*float64"),
        (torch.zeros(5, 23), "gate_up has 23 columns; expected .* an even number"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(gate_up, message, op):
    with pytest.raises(InputError, match=message):
        op(gate_up)
