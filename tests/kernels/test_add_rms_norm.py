"""Residual addition and RMSNorm against float64, the reference and transformers."""

import pytest
import torch
from far_rows import far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import (
    DTYPES,
    FLOAT32_RTOL,
    ROWS,
    SIXTEEN_BIT,
    WIDTHS,
    assert_rounded_alike,
    random,
    with_row_stride,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from c2v_engine.errors import InputError
from c2v_engine.kernels.add_rms_norm import add_rms_norm, add_rms_norm_reference

EPS = 1e-6
FORMS = forms(add_rms_norm, add_rms_norm_reference)

pytestmark = pytest.mark.usefixtures("compiled")


def make_case(rows, width, dtype, device="cpu"):
    residual = random(rows, width, dtype=dtype, seed=1, scale=3)
    x = random(rows, width, dtype=dtype, seed=2)
    weight = (random(width, seed=3) * 0.2 + 1).to(dtype)
    return residual.to(device), x.to(device), weight.to(device)


def float64_norm(residual, weight):
    wide = residual.double()
    return weight.double() * wide / (wide.square().mean(dim=-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_float32_agrees_with_float64(width, rows, op):
    residual, x, weight = make_case(rows, width, torch.float32, op.device)
    total = residual + x
    normed = op(residual, x, weight, eps=EPS)
    assert torch.equal(residual, total)
    torch.testing.assert_close(
        normed.double(), float64_norm(total, weight), rtol=FLOAT32_RTOL, atol=0
    )


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(("tokens", "width"), [(1, 896), (4097, 8), (30_000, 4), (3, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_every_size_agree_with_float64(dtype, tokens, width, op):
    residual, x, weight = make_case(tokens, width, dtype, op.device)
    expected = float64_norm(residual + x, weight)
    with poisoned_memory():
        normed = op(residual, x, weight, eps=EPS)
    error = (normed.double() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bit_rows_are_rounded_as_by_the_reference(dtype, width, rows, op):
    residual, x, weight = make_case(rows, width, dtype, op.device)
    same = residual.clone()
    expected = add_rms_norm_reference(same, x, weight, eps=EPS)
    normed = op(residual, x, weight, eps=EPS)
    assert torch.equal(residual, same)
    assert_rounded_alike(normed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_norm_of_transformers(dtype):
    residual, x, weight = make_case(5, 123, dtype)
    stock = LlamaRMSNorm(123, EPS).to(dtype)
    stock.weight.data.copy_(weight)
    expected = stock(residual + x).detach()
    assert torch.equal(add_rms_norm_reference(residual, x, weight, eps=EPS), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_residual_is_changed_and_in_its_own_memory(dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    total, same_x, same_weight = residual + x, x.clone(), weight.clone()
    pointer = residual.data_ptr()
    normed = op(residual, x, weight, eps=EPS)
    assert residual.data_ptr() == pointer
    assert torch.equal(residual, total)
    assert torch.equal(x, same_x)
    assert torch.equal(weight, same_weight)
    assert normed.is_contiguous()
    assert normed.dtype == dtype


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_x_the_residual_is_normalised_and_kept(dtype, op):
    residual, _, weight = make_case(5, 123, dtype, op.device)
    same, zeros = residual.clone(), torch.zeros_like(residual)
    normed = op(residual, None, weight, eps=EPS)
    assert torch.equal(residual, same)
    assert torch.equal(normed, op(same, zeros, weight, eps=EPS))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    wide_residual, buffer = with_row_stride(residual)
    wide_x, _ = with_row_stride(x)
    normed = op(wide_residual, wide_x, torch.stack([weight, weight], dim=1)[:, 0], eps=EPS)
    assert torch.equal(normed, op(residual, x, weight, eps=EPS))
    assert torch.equal(wide_residual, residual)
    assert bool((buffer[:, 123:] == 7).all())


# PyTorch's sums follow the strides, so the reference is not among them.
@pytest.mark.parametrize("op", [form for form in FORMS if form.id != "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_x_may_have_any_strides_and_so_may_a_residual_that_is_only_read(dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    scattered = residual.t().contiguous().t()
    normed = op(scattered, None, weight, eps=EPS)
    assert torch.equal(normed, op(residual, None, weight, eps=EPS))
    same = residual.clone()
    expected = op(residual, x, weight, eps=EPS)
    assert torch.equal(op(same, x.t().contiguous().t(), weight, eps=EPS), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 2048])
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, width, op):
    residual, x, weight = make_case(123, width, dtype, op.device)
    alone = op(residual[77:78].clone(), x[77:78], weight, eps=EPS)
    assert torch.equal(op(residual, x, weight, eps=EPS)[77:78], alone)


def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(add_rms_norm)
    residual, x, weight = make_case(3, 24, torch.bfloat16, op.device)
    far = far_rows(residual)
    expected = op(residual, far_rows(x), weight, eps=EPS)
    assert torch.equal(op(far, x, weight, eps=EPS), expected)
    assert torch.equal(far, residual)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 64, 122])
def test_a_nan_makes_its_own_row_nan_and_no_other(column, dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    x[2, column] = torch.nan
    normed = op(residual, x, weight, eps=EPS)
    assert normed.isnan().all(dim=1).tolist() == [False, False, True, False, False]
    assert normed.isnan().any(dim=1).tolist() == [False, False, True, False, False]
    assert residual.isnan().sum() == 1


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinity_does_not_become_finite(dtype, op):
    residual, x, weight = make_case(5, 123, dtype, op.device)
    x[2, 7] = -torch.inf
    normed = op(residual, x, weight, eps=EPS)
    assert normed[2, 7].isnan()
    assert residual[2, 7] == -torch.inf


def test_every_nan_of_bfloat16_stays_nan():
    bits = torch.cat([torch.arange(0x7F81, 0x8000), torch.arange(0xFF81, 0x10000)])
    nans = (bits - 0x10000 * (bits >= 0x8000)).to(torch.int16).view(torch.bfloat16)[:, None]
    residual = nans.repeat(1, 40)
    normed = add_rms_norm(residual, torch.ones_like(residual), residual[0].clone(), eps=EPS)
    assert residual.isnan().all()
    assert normed.isnan().all()


@pytest.mark.parametrize("with_x", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, with_x):
    residual, x, weight = make_case(5, 24, dtype)
    args = (residual, x if with_x else None, weight, EPS)
    results = torch.library.opcheck(torch.ops.c2v.add_rms_norm.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": torch.zeros(24)}, r"residual is \[24\] float32"),
        ({"residual": torch.zeros(5, 0)}, r"residual is \[5, 0\]"),
        ({"residual": torch.zeros(5, 24).double()}, "residual is .*float64"),
        ({"residual": torch.zeros(24, 5).t()}, r"written in place but has strides \[1, 5\]"),
        ({"residual": torch.zeros(24).expand(5, 24)}, r"has strides \[0, 1\]"),
        ({"x": torch.zeros(4, 24)}, r"x is \[4, 24\].*expected \[5, 24\]"),
        ({"x": torch.zeros(5, 24).half()}, "x is .*float16.*expected .*float32"),
        ({"weight": torch.ones(23)}, r"weight is \[23\].*expected \[24\]"),
        ({"weight": torch.ones(24, device="meta")}, "weight is .*on meta; expected .*on cpu"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    case = {"residual": torch.zeros(5, 24), "x": torch.zeros(5, 24), "weight": torch.ones(24)}
    with pytest.raises(InputError, match=message):
        op(**{**case, **change}, eps=EPS)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(24), "residual must be"),
        (0, torch.zeros(24, 5).t(), "residual is written in place"),
        (1, torch.zeros(4, 24), r"x must be \[5, 24\]"),
        (2, torch.ones(23), r"weight must be \[24\]"),
        (2, torch.ones(24).half(), "weight must have the first argument's dtype"),
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(position, value, message):
    args = [torch.zeros(5, 24), torch.zeros(5, 24), torch.ones(24), EPS]
    args[position] = value
    with pytest.raises(RuntimeError, match=f"add_rms_norm: {message}"):
        torch.ops.c2v.add_rms_norm(*args)
