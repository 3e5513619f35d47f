"""RMSNorm with its rows in float8: what the plain op gives, quantised, and what is refused."""

import pytest
import torch
from interpreter import forms, poisoned_memory
from row_cases import DTYPES, random

from c2v_engine.errors import InputError
from c2v_engine.kernels.add_rms_norm import (
    add_rms_norm,
    add_rms_norm_fp8,
    add_rms_norm_fp8_reference,
)
from c2v_engine.kernels.float8 import FLOAT8, FLOAT8_MAX

EPS = 1e-6
FORMS = forms(add_rms_norm_fp8, add_rms_norm_fp8_reference)


def make_case(rows, width, dtype, device="cpu"):
    residual, x = (random(rows, width, dtype=dtype, seed=seed, scale=3) for seed in (1, 2))
    weight = (random(width, seed=3) * 0.2 + 1).to(dtype)
    return residual.to(device), x.to(device), weight.to(device)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("with_x", [True, False])
@pytest.mark.parametrize(
    ("rows", "width"), [(0, 24), (1, 2), (5, 123), (123, 24), (4097, 8), (5, 896), (3, 2048)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_scales_are_those_of_the_rounded_rows(dtype, rows, width, with_x, op):
    residual, x, weight = make_case(rows, width, dtype, op.device)
    same = residual.clone()
    x = x if with_x else None
    normed = add_rms_norm(same, x, weight, eps=EPS).float()
    with poisoned_memory():
        values, scales = op(residual, x, weight, eps=EPS)
    assert torch.equal(residual, same)
    assert (values.shape, values.dtype) == ((rows, width), FLOAT8)
    assert (scales.shape, scales.dtype) == ((rows, 1), torch.float32)
    # The forms' float32 sums differ in their last bits: by one rounding of the dtype at most.
    ulp = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    largest = normed.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales, largest / FLOAT8_MAX, rtol=ulp, atol=0)
    # Half a unit of three mantissa bits, or of the smallest subnormal 2^-9, and the row's own ulp.
    error = (values.float() * scales - normed).abs()
    assert bool((error <= normed.abs() * (2.0**-4 + ulp) + scales * 2.0**-10 + ulp * largest).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_value_of_a_row_is_the_largest_of_the_format(dtype, op):
    residual, x, weight = make_case(123, 24, dtype, op.device)
    values, _ = op(residual, x, weight, eps=EPS)
    assert values.float().abs().amax(dim=1).tolist() == [FLOAT8_MAX] * 123


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_is_zeros_with_a_scale_that_is_finite(dtype, op):
    zeros = torch.zeros(3, 24, dtype=dtype, device=op.device)
    values, scales = op(zeros, None, torch.ones_like(zeros[0]), eps=EPS)
    assert bool((values.float() == 0).all())
    assert bool(((scales > 0) & scales.isfinite()).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_a_nan_and_no_other_has(value, dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    x[2, 64] = value
    values, scales = op(residual, x, weight, eps=EPS)
    assert values.float().isnan().any(dim=1).tolist() == [False, False, True, False, False]
    assert scales[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("with_x", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, with_x):
    residual, x, weight = make_case(5, 24, dtype)
    args = (residual, x if with_x else None, weight, EPS)
    results = torch.library.opcheck(torch.ops.c2v.add_rms_norm_fp8.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
def test_wrong_arguments_are_refused(op):
    residual, x, weight = make_case(5, 24, torch.float32)
    with pytest.raises(InputError, match=r"x is \[4, 24\].*expected \[5, 24\]"):
        op(residual, x[:4], weight, eps=EPS)
    with pytest.raises(InputError, match=r"weight is .*float16.*expected .*float32"):
        op(residual, x, weight.half(), eps=EPS)
