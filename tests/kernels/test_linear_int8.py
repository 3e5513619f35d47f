"""The linear layer in eight bits: exact sums, few roundings, and rows that stand alone."""

import os
import subprocess
import sys

import pytest
import torch
from row_cases import DTYPES, random, with_row_stride

from c2v_engine.errors import BackendError, InputError
from c2v_engine.kernels import linear_int8 as module
from c2v_engine.kernels.int8 import ZERO_POINT
from c2v_engine.kernels.linear_int8 import linear_int8, pack_weight_int8, why_not_int8
from c2v_engine.kernels.quantize_rows import quantize_rows_int8

EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
needs_int8 = pytest.mark.skipif(why_not_int8() is not None, reason=str(why_not_int8()))

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def exact_product(values, scales, weight):
    """The product of the bytes: sums of integers, which float64 holds, and then their scales."""
    channels, channel_scales = quantize_rows_int8(weight)
    sums = (values.double() - ZERO_POINT) @ (channels.double() - ZERO_POINT).t()
    return sums * scales.double() * channel_scales.double().t()


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "out"),
    [(0, 48, 112), (1, 1, 1), (5, 123, 77), (64, 896, 1152), (257, 96, 9728), (17, 4864, 896)],
)
def test_the_product_is_that_of_the_bytes(rows, columns, out, biased, dtype):
    x, weight = random(rows, columns, dtype=dtype, scale=2), random(out, columns, seed=1)
    bias = random(out, dtype=dtype, seed=2) if biased else None
    values, scales = quantize_rows_int8(x)
    y = linear_int8(values, scales, pack_weight_int8(weight), bias, dtype)
    assert (y.shape, y.dtype) == ((rows, out), dtype)
    product = exact_product(values, scales, weight)
    expected = product + (0 if bias is None else bias.double())
    # Beside the rounding to the dtype, float32 rounds the integer and the product with each scale,
    # and bfloat16 what has only the channel's.
    twice = EPSILON[dtype] if dtype == torch.bfloat16 else 0
    allowed = expected.abs() * EPSILON[dtype] + product.abs() * (3 * 2.0**-24 + twice)
    # Where a float16 is subnormal.
    allowed += 2.0**-25 if dtype == torch.float16 else 0
    assert bool(((y.double() - expected).abs() <= allowed * 1.001).all())


@needs_int8
@pytest.mark.parametrize(("columns", "out"), [(896, 1152), (4864, 896)])
def test_it_is_near_the_layer_that_was_quantised(columns, out):
    x, weight = random(128, columns), random(out, columns, seed=1)
    y = linear_int8(*quantize_rows_int8(x), pack_weight_int8(weight), None, torch.float32)
    expected = x.double() @ weight.double().t()
    error = float((y.double() - expected).norm() / expected.norm())
    # A step is largest / 127, and the largest of some thousand gaussian values is 3.2 to 3.7
    # deviations out: rounding errs by step / sqrt(12), 0.0073 to 0.0084 of a deviation, and two
    # independent factors by sqrt(2) times as much.
    assert 0.0095 < error < 0.0125


@needs_int8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("columns", "out"), [(896, 9728), (4864, 896)])
def test_a_row_has_the_same_bits_among_any_rows_and_with_any_threads(threads, columns, out, dtype):
    x, weight = random(1000, columns, dtype=torch.bfloat16), random(out, columns, seed=1)
    packed, bias = pack_weight_int8(weight), random(out, dtype=dtype, seed=2)

    def layer(rows):
        return linear_int8(*quantize_rows_int8(rows), packed, bias, dtype)

    threads(2)
    expected = layer(x)
    for count in (1, 2):
        threads(count)
        for rows in (1, 2, 16, 63, 64, 256, 1000):
            for start in {0, 1000 - rows}:
                assert torch.equal(layer(x[start : start + rows]), expected[start : start + rows])


@needs_int8
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_makes_its_row_or_its_channel_nan_and_no_other(value):
    x, weight = random(5, 96), random(77, 96, seed=1)
    bias = random(77, seed=2)
    x[2, 7] = value
    y = linear_int8(*quantize_rows_int8(x), pack_weight_int8(weight), bias, torch.float32)
    assert bool(y[2].isnan().all())
    assert bool(y[[0, 1, 3, 4]].isfinite().all())
    x[2, 7], weight[11, 0] = 0, value
    y = linear_int8(*quantize_rows_int8(x), pack_weight_int8(weight), bias, torch.float32)
    assert y.isnan().any(dim=0).nonzero().tolist() == [[11]]
    assert bool(y[:, 11].isnan().all())


@needs_int8
def test_a_row_of_zeros_gives_the_bias():
    bias = random(77)
    weight = pack_weight_int8(random(77, 96))
    y = linear_int8(*quantize_rows_int8(torch.zeros(3, 96)), weight, bias, torch.float32)
    assert torch.equal(y, bias.expand(3, -1))


@needs_int8
def test_the_largest_sums_fit():
    width = 2**16
    values = torch.full((2, width), 255, dtype=torch.uint8)
    weight = pack_weight_int8(torch.ones(16, width))
    y = linear_int8(values, torch.ones(2, 1), weight, None, torch.float32)
    torch.testing.assert_close(y, torch.full((2, 16), 127.0 * width), rtol=2.0**-22, atol=0)
    with pytest.raises(InputError, match="in <= 65536"):
        pack_weight_int8(torch.ones(16, width + 1))


@needs_int8
def test_arguments_may_be_strided():
    values, scales = quantize_rows_int8(random(5, 96))
    weight, bias = random(77, 96), random(77).bfloat16()
    y = linear_int8(values, scales, pack_weight_int8(weight), bias)
    strided = with_row_stride(values)[0], scales.repeat(1, 2)[:, :1]
    spread = bias.repeat_interleave(2)[::2]
    assert torch.equal(
        linear_int8(*strided, pack_weight_int8(weight.t().contiguous().t()), spread), y
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (5, 123), (300, 896)])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_are_scaled_in_place(rows, columns, biased, dtype):
    x, scales = random(rows, columns, dtype=dtype), random(rows, 1, seed=1)
    bias = random(columns, dtype=dtype, seed=2) if biased else None
    scaled, buffer = with_row_stride(x)
    torch.ops.c2v.scale_rows_(scaled, scales, bias)
    product = x.double() * scales
    exact = product + (0 if bias is None else bias.double())
    # One rounding to the dtype, and one of the product.
    allowed = exact.abs() * EPSILON[dtype] + product.abs() * 2.0**-23
    allowed += 2.0**-25 if dtype == torch.float16 else 0
    assert bool(((scaled.double() - exact).abs() <= allowed).all())
    assert bool((buffer[:, columns:] == 7).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_that_is_any_nan_makes_its_row_nan(dtype):
    x = torch.ones(3, 123, dtype=dtype)
    scales = torch.ones(3, 1)
    scales.view(torch.int32)[1] = 0x7FFFFFFF  # whose rounding to bfloat16 would carry into the sign
    torch.ops.c2v.scale_rows_(x, scales, None)
    assert x.isnan().all(dim=1).tolist() == [False, True, False]
    assert x.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    for bias in (None, random(24, dtype=dtype)):
        args = (random(5, 24, dtype=dtype), random(5, 1), bias)
        results = torch.library.opcheck(torch.ops.c2v.scale_rows_.default, args)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(24)}, "x must be"),
        ({"x": torch.zeros(24, 5).t()}, "written in place"),
        ({"x": torch.zeros(5, 24, dtype=torch.int32), "bias": None}, "dtype must be"),
        ({"scales": torch.zeros(5)}, "scales must be"),
        ({"scales": torch.zeros(5, 1).double()}, "scales must be"),
        ({"bias": torch.zeros(24).bfloat16()}, "bias must have"),
        ({"bias": torch.zeros(23)}, "bias must be"),
    ],
)
def test_the_compiled_scaling_refuses_what_it_can_not_read(change, message):
    case = {"x": torch.zeros(5, 24), "scales": torch.zeros(5, 1), "bias": torch.zeros(24)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2v.scale_rows_(**{**case, **change})


@needs_int8
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_values": torch.zeros(5, 96)}, r"x_values is \[5, 96\] float32.*expected .* uint8"),
        ({"x_values": torch.zeros(5, 95).byte()}, r"x_values is .*expected \[rows, 96\] uint8"),
        ({"x_values": torch.zeros(5, 96, device="meta").byte()}, "x_values is .* on meta"),
        ({"x_scales": torch.zeros(5)}, r"x_scales is \[5\].*expected \[5, 1\] float32"),
        ({"x_scales": torch.zeros(5, 1).double()}, "x_scales is .*float64"),
        ({"bias": torch.zeros(77)}, r"bias is \[77\] float32.*expected \[77\] bfloat16"),
        ({"bias": torch.zeros(76).bfloat16()}, r"bias is \[76\]"),
        ({"out_dtype": torch.float64}, "out_dtype is torch.float64"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message):
    values, scales = quantize_rows_int8(random(5, 96))
    weight = pack_weight_int8(random(77, 96))
    case = {"x_values": values, "x_scales": scales, "weight": weight}
    with pytest.raises(InputError, match=message):
        linear_int8(**{**case, **change})


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(96),
        torch.zeros(0, 96),
        torch.zeros(3, 4).int(),
        torch.zeros(3, 4, device="meta"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError, match="weight is"):
        pack_weight_int8(weight)


@pytest.fixture
def asked_anew():
    """What is changed in one test is seen by it, and forgotten after it."""
    why_not_int8.cache_clear()
    yield
    why_not_int8.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("target", "replacement", "reason"),
    [
        ("torch.backends.mkldnn.is_available", lambda: False, "no oneDNN"),
        ("_has_op", lambda name: False, "has no onednn::qlinear_prepack"),
        ("_has_instructions", lambda: False, "neither AVX-512 VNNI nor AMX"),
        ("_large_products_are_right", lambda: False, "wrong products"),
    ],
)
def test_a_machine_without_the_product_says_why_and_packs_nothing(
    monkeypatch, target, replacement, reason
):
    for name in ("_has_op", "_has_instructions", "_large_products_are_right"):
        monkeypatch.setattr(module, name, lambda *_: True)
    owner, name = (torch.backends.mkldnn, "is_available") if "." in target else (module, target)
    monkeypatch.setattr(owner, name, replacement)
    assert reason in why_not_int8()
    with pytest.raises(BackendError, match=f"int8 can not be used: .*{reason}"):
        pack_weight_int8(torch.zeros(16, 16))


@needs_int8
def test_a_product_that_saturates_is_found_out():
    code = "from c2v_engine.kernels.linear_int8 import why_not_int8; print(why_not_int8())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "wrong products of bytes" in result.stdout
