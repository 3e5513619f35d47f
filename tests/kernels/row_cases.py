"""What the tests of the row-wise ops share: random rows, strided rows, and distance in ulps."""

import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIXTEEN_BIT = [torch.float16, torch.bfloat16]
ROWS = [0, 1, 5, 123]
WIDTHS = [1, 3, 123, 2048]
# Float32 sums of up to 2048 terms in partial sums err by a few units of 2^-24; 2^-19 leaves room
# for these and for half a dozen roundings besides.
FLOAT32_RTOL = 2.0**-19


def random(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def with_row_stride(tensor, fill=7.0):
    """The same rows, three columns apart from each other, and the whole buffer around them."""
    buffer = tensor.new_full((tensor.shape[0], tensor.shape[1] + 3), fill)
    buffer[:, : tensor.shape[1]] = tensor
    return buffer[:, : tensor.shape[1]], buffer


def ulps_apart(actual, expected):
    """Distance of each pair of 16-bit floats, counted in floats between them."""
    assert actual.dtype == expected.dtype
    assert actual.dtype in SIXTEEN_BIT
    ordered = []
    for tensor in (actual, expected):
        bits = tensor.contiguous().view(torch.int16).int()
        ordered.append(torch.where(bits < 0, -(bits & 0x7FFF), bits))
    return (ordered[0] - ordered[1]).abs()


def assert_rounded_alike(actual, expected):
    """Within what one early rounding to the other side makes of a product.

    Both round to 16 bits, multiply, and round again. Where float32 values that differ in their last
    bits straddle the first rounding, the factors are one ulp apart: 2^-7 or 2^-8 of a bfloat16, so
    two ulps of a product at most. That is one value in some thousands, never one in a hundred.
    """
    assert actual.shape == expected.shape
    apart = ulps_apart(actual, expected)
    assert bool((apart <= 2).all())
    assert int((apart > 0).sum()) <= max(2, 0.01 * apart.numel())
