"""The gated activation against float64 and the reference, over all of its exponential's range."""

from importlib.util import find_spec

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
    ulps_apart,
    with_row_stride,
)
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from c2v_engine.errors import InputError
from c2v_engine.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

FORMS = forms(silu_and_mul, silu_and_mul_reference)
RELATIVE_NORM = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore:.* encountered in (exp|divide):RuntimeWarning"),
]


def float64_product(gate_up):
    gate, up = gate_up.double().chunk(2, dim=1)
    return gate / (1 + (-gate).exp()) * up


def gates(values):
    """Every value as a gate, in one row, with 1 as its factor."""
    return torch.cat([values, torch.ones_like(values)])[None]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_float32_agrees_with_float64(width, rows, op):
    gate_up = random(rows, 2 * width, scale=4).to(op.device)
    product = op(gate_up)
    assert product.shape == (rows, width)
    torch.testing.assert_close(
        product.double(), float64_product(gate_up), rtol=FLOAT32_RTOL, atol=1e-37
    )


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("tokens", "width"),
    [(1, 1), (1, 896), (4097, 24), (4097, 1), (30_000, 8), (0, 768), (3, 4864), (2, 40_000)],
)
@pytest.mark.parametrize("dtype", RELATIVE_NORM)
def test_batches_of_every_size_agree_with_float64(dtype, tokens, width, op):
    gate_up = random(tokens, 2 * width, dtype=dtype, scale=4).to(op.device)
    expected = float64_product(gate_up)
    with poisoned_memory():
        product = op(gate_up).double()
    assert product.shape == (tokens, width)
    assert (product - expected).norm() <= RELATIVE_NORM[dtype] * expected.norm()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_sixteen_bit_rows_are_rounded_as_by_the_reference(dtype, width, rows, op):
    gate_up = random(rows, 2 * width, dtype=dtype, scale=4).to(op.device)
    assert_rounded_alike(op(gate_up), silu_and_mul_reference(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_activation_of_transformers(dtype):
    x = random(5, 124, dtype=dtype, scale=4)
    config = LlamaConfig(hidden_size=124, intermediate_size=124, num_attention_heads=1)
    stock = LlamaMLP(config).to(dtype)
    # Identities for its matrices: gate, up and what comes out are the activation's own.
    stock.load_state_dict({name: torch.eye(124, dtype=dtype) for name in stock.state_dict()})
    product = silu_and_mul_reference(torch.cat([x, x], dim=1))
    # torch has another loop for the last elements of a row, and of all rows where they adjoin.
    rtol = FLOAT32_RTOL if dtype == torch.float32 else 0
    torch.testing.assert_close(product, stock(x).detach(), rtol=rtol, atol=0)


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


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_give_what_the_reference_gives(dtype, op):
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    specials = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, tiny, -tiny, huge, -huge, 1e4, -1e4]
    gate_up = gates(torch.tensor(specials * 7, dtype=dtype)).to(op.device)
    expected = silu_and_mul_reference(gate_up)
    torch.testing.assert_close(op(gate_up), expected, rtol=0, atol=0, equal_nan=True)
    assert expected[0, 0] == torch.inf
    assert expected[0, 1:3].isnan().all()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_the_activation_of_every_sixteen_bit_value_is_rounded_once(dtype, op):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    actual = op(gates(values).to(op.device))[0].cpu()
    expected = float64_product(gates(values.double()))[0].to(dtype)
    apart = ulps_apart(actual, expected)
    # One float32 result in some thousands lies on the other side of a rounding; with a GPU's
    # approximate exponential, one in some hundreds.
    apart[expected.double().abs() < 1e-36] = 0
    assert int(apart.max()) <= 1
    assert int(apart.sum()) <= len(values) // (100 if op.name == "cuda" else 1000)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_in_gate_or_up_shows_in_its_own_value_only(dtype, op, place):
    gate_up = random(5, 246, dtype=dtype).to(op.device)
    gate_up[2, 123 * place + 100] = torch.nan
    product = op(gate_up)
    assert product.isnan().nonzero().tolist() == [[2, 100]]


def test_every_nan_of_bfloat16_stays_nan():
    bits = torch.cat([torch.arange(0x7F81, 0x8000), torch.arange(0xFF81, 0x10000)])
    nans = (bits - 0x10000 * (bits >= 0x8000)).to(torch.int16).view(torch.bfloat16)
    assert silu_and_mul(gates(nans)).isnan().all()
    assert silu_and_mul(torch.cat([torch.ones_like(nans), nans])[None]).isnan().all()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_argument_may_have_any_strides_and_is_not_changed(dtype, op):
    gate_up = random(5, 246, dtype=dtype).to(op.device)
    expected = op(gate_up)
    strided, buffer = with_row_stride(gate_up)
    same = buffer.clone()
    assert torch.equal(op(strided), expected)
    assert torch.equal(buffer, same)
    # torch has another loop for scattered elements, whose last bits differ.
    rtol = FLOAT32_RTOL if dtype == torch.float32 and op.name == "reference" else 0
    scattered = gate_up.t().contiguous().t()
    torch.testing.assert_close(op(scattered), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, op):
    gate_up = random(123, 2046, dtype=dtype).to(op.device)
    assert torch.equal(op(gate_up)[77:78], op(gate_up[77:78]))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(silu_and_mul)
    gate_up = random(3, 48, dtype=torch.bfloat16).to(op.device)
    assert torch.equal(op(far_rows(gate_up)), op(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    args = (random(5, 24, dtype=dtype),)
    results = torch.library.opcheck(torch.ops.c2v.silu_and_mul.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
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
