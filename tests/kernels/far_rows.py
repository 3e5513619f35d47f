"""Rows in the midst of other memory: far apart, or with finite values before and after them."""

import pytest
import torch

STRIDE = 2**30 + 8


def far_rows(rows):
    """The same three rows in a buffer of over 2^31 elements, which has no memory for what between
    them nobody touches; skips the test where not even the addresses can be had."""
    assert len(rows) == 3
    try:
        buffer = torch.empty(2 * STRIDE + rows.shape[1], dtype=rows.dtype, device=rows.device)
    except RuntimeError as error:
        pytest.skip(f"no buffer of over 2^31 elements: {error}")
    far = buffer.as_strided(rows.shape, (STRIDE, 1))
    return far.copy_(rows)


def amid_ones(rows):
    """The same rows between rows of ones, so that what is read beyond them is not NaN by chance."""
    buffer = rows.new_ones((len(rows) + 2, rows.shape[1]))
    amid = buffer[1:-1]
    return amid.copy_(rows)
