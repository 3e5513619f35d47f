"""LayerNorm with its rows in float8: what the plain op gives, quantised, and what is refused."""

import pytest
import torch
from interpreter import forms, poisoned_memory
from row_cases import DTYPES, random

from c2v_engine.errors import InputError
from c2v_engine.kernels.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_fp8,
    add_layer_norm_fp8_reference,
)
from c2v_engine.kernels.float8 import FLOAT8, FLOAT8_MAX

EPS = 1e-12
FORMS = forms(add_layer_norm_fp8, add_layer_norm_fp8_reference)


def make_case(rows, width, dtype, device="cpu"):
    x, residual = (random(rows, width, dtype=dtype, seed=seed, scale=3) for seed in (1, 2))
    weight = (random(width, seed=3) * 0.2 + 1).to(dtype)
    bias, x_bias = (random(width, dtype=dtype, seed=seed) for seed in (4, 5))
    case = {"x": x, "residual": residual, "weight": weight, "bias": bias, "x_bias": x_bias}
    return {name: tensor.to(device) for name, tensor in case.items()}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("with_biases", [True, False])
@pytest.mark.parametrize(
    ("rows", "width"), [(0, 24), (1, 2), (5, 123), (123, 24), (4097, 8), (5, 768), (3, 2048)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_scales_are_those_of_the_rounded_rows(dtype, rows, width, with_biases, op):
    case = make_case(rows, width, dtype, op.device)
    if not with_biases:
        case |= {"residual": None, "x_bias": None}
    normed = add_layer_norm(**case, eps=EPS).float()
    with poisoned_memory():
        values, scales = op(**case, eps=EPS)
    assert (values.shape, values.dtype) == ((rows, width), FLOAT8)
    assert (scales.shape, scales.dtype) == ((rows, 1), torch.float32)
    # The forms' float32 sums differ in their last bits: by one rounding of the dtype at most.
    ulp = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    largest = normed.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(scales, largest / FLOAT8_MAX, rtol=ulp, atol=0)
    assert bool((values.float().abs() <= FLOAT8_MAX).all())
    # Half a unit of three mantissa bits, or of the smallest subnormal 2^-9, and the row's own ulp.
    error = (values.float() * scales - normed).abs()
    assert bool((error <= normed.abs() * (2.0**-4 + ulp) + scales * 2.0**-10 + ulp * largest).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_not_finite_has_a_nan_and_no_other_has(dtype, op):
    case = make_case(5, 123, dtype, op.device)
    case["x"][2, 64] = torch.inf
    values, scales = op(**case, eps=EPS)
    assert values.float().isnan().any(dim=1).tolist() == [False, False, True, False, False]
    assert scales[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, op):
    case = make_case(123, 24, dtype, op.device)
    alone = {name: rows[77:78] if rows.ndim == 2 else rows for name, rows in case.items()}
    values, scales = op(**case, eps=EPS)
    alone_values, alone_scales = op(**alone, eps=EPS)
    assert torch.equal(values[77:78].float(), alone_values.float())
    assert torch.equal(scales[77:78], alone_scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    case = make_case(5, 24, dtype)
    args = (case["x"], case["residual"], case["weight"], case["bias"], EPS, case["x_bias"])
    for given in (args, (args[0], None, *args[2:5])):
        results = torch.library.opcheck(torch.ops.c2v.add_layer_norm_fp8.default, given)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 24).double()}, "x is .*float64"),
        ({"residual": torch.zeros(4, 24)}, r"residual is \[4, 24\].*expected \[5, 24\]"),
        ({"weight": torch.ones(23)}, r"weight is \[23\].*expected \[24\]"),
        ({"bias": torch.ones(24).half()}, "bias is .*float16.*expected .*float32"),
        ({"x_bias": torch.ones(24, device="meta")}, "x_bias is .*on meta; expected .*on cpu"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    with pytest.raises(InputError, match=message):
        op(**{**make_case(5, 24, torch.float32), **change}, eps=EPS)
