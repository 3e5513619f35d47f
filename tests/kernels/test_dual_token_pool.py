"""The pooling op against float64 NumPy, its PyTorch reference and sentence-transformers."""

from typing import get_args

import numpy as np
import pytest
import torch
from pooling_cases import DEVICES, Case, make_case, one_row_case
from sentence_transformers.util import quantize_embeddings

from c2v_engine.kernels.dual_token_pool import (
    Precision,
    dual_token_pool,
    dual_token_pool_reference,
    output_dtype,
    output_width,
)

PRECISIONS = get_args(Precision)
FLOATS = ["float32", "float16", "bfloat16"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def float64_pooling(case, normalize=True):
    """The definition, row by row, in float64 NumPy."""
    x = case.hidden_states.double().cpu().numpy()
    weight = case.norm_weight.double().cpu().numpy()
    rows, offsets = case.rows.cpu().numpy(), case.offsets.cpu().numpy()
    vectors = []
    for first in range(0, len(offsets) - 1, case.segments):
        parts = []
        for segment in range(first, first + case.segments):
            taken = [x[row] for row in rows[offsets[segment] : offsets[segment + 1]]]
            normed = [row / np.sqrt(np.mean(row * row) + case.eps) * weight for row in taken]
            parts.append(np.mean(normed, axis=0)[: case.keep])
        vectors.append(np.concatenate(parts))
    vectors = np.stack(vectors)
    norms = np.linalg.norm(vectors, axis=1)
    return (vectors / norms[:, None] if normalize else vectors), norms


def assert_close(actual, expected, precision):
    """Within the output's rounding, on top of float32 sums in another order.

    A float32 sum of d squares in partial sums errs by a few units of 2^-24; 2^-19 leaves room for
    five roundings of up to 32 units together. A 16-bit output adds half a unit in its last place.
    The absolute term is for values next to zero in a mean of several rows.
    """
    rtol = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[precision] + 2.0**-19
    actual = actual.double().cpu().numpy()
    np.testing.assert_allclose(actual, np.asarray(expected, np.float64), rtol=rtol, atol=5e-7)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "hidden", "keep"), [(1, 123, 5), (3, 123, 123), (17, 64, 33), (3, 2048, 2048)]
)
def test_float_outputs_agree_with_float64(batch, hidden, keep, dtype, precision, normalize, device):
    case = make_case(batch, hidden, keep, dtype=dtype, device=device)
    embeddings, norms = case.run(normalize=normalize, precision=precision)
    expected, expected_norms = float64_pooling(case, normalize)
    assert embeddings.dtype == output_dtype(precision)
    assert embeddings.shape == (batch, 2 * keep)
    assert_close(embeddings, expected, precision)
    assert_close(norms, expected_norms, "float32")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_agrees_with_float64(dtype, device):
    case = make_case(17, 123, 50, dtype=dtype, device=device)
    embeddings, norms = case.run(dual_token_pool_reference)
    expected, expected_norms = float64_pooling(case)
    assert_close(embeddings, expected, "float32")
    assert_close(norms, expected_norms, "float32")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("most_rows", [1, 2, 40])
def test_any_number_of_segments_and_rows(segments, most_rows, device):
    case = make_case(5, 128, 20, segments, most_rows, device=device)
    embeddings, _ = case.run()
    assert_close(embeddings, float64_pooling(case)[0], "float32")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_the_norm_weight_may_have_another_dtype(weight_dtype, device):
    case = make_case(dtype=torch.bfloat16, weight_dtype=weight_dtype, device=device)
    embeddings, _ = case.run()
    assert_close(embeddings, float64_pooling(case)[0], "float32")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
@pytest.mark.parametrize(
    ("batch", "hidden", "keep"), [(1, 123, 5), (3, 64, 64), (17, 123, 123), (3, 256, 33)]
)
def test_quantized_output_is_that_of_sentence_transformers(
    batch, hidden, keep, op, precision, device
):
    case = make_case(batch, hidden, keep, device=device)
    floats, norms = case.run(op)
    embeddings, same_norms = case.run(op, precision=precision)
    expected = quantize_embeddings(
        floats.cpu().numpy(), precision, ranges=case.ranges.cpu().numpy()
    )
    assert embeddings.dtype == output_dtype(precision)
    assert embeddings.shape == (batch, output_width(2 * keep, precision))
    np.testing.assert_array_equal(embeddings.cpu().numpy(), expected)
    assert torch.equal(norms, same_norms)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_sixteen_bit_outputs_round_to_nearest_even(precision):
    every = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    halves = torch.cat([every, (every[1:] + every[:-1]) / 2])  # each value, and each tie
    wide = torch.randint(0, 0x7F800000, (20_000,), generator=torch.Generator().manual_seed(0))
    values = torch.cat([halves, -halves, halves * 3, wide.int().view(torch.float32)])
    embeddings, _ = one_row_case(values).run(normalize=False, precision=precision)
    assert torch.equal(embeddings[0], values.to(output_dtype(precision)))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_nan_of_any_payload_stays_one_in_sixteen_bits(precision):
    payloads = [0x7F800001, 0x7FC00000, 0x7FFF8000, 0x7FFFFFFF]
    quiet = torch.tensor(payloads, dtype=torch.int32)
    values = torch.cat([quiet, quiet | -(2**31)]).repeat(9).view(torch.float32)
    embeddings, norms = one_row_case(values).run(normalize=False, precision=precision)
    assert embeddings.isnan().all()
    assert norms.isnan().all()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_values_at_and_beyond_the_ranges_quantize_as_in_sentence_transformers(precision):
    steps = torch.arange(-300, 301).float() / 127.5
    values = torch.cat([steps, steps.nextafter(torch.tensor(9.0)), torch.tensor([0.0, -0.0, 1e9])])
    case = one_row_case(values)
    embeddings, _ = case.run(normalize=False, precision=precision)
    expected = quantize_embeddings(values[None].numpy(), precision, ranges=case.ranges.numpy())
    np.testing.assert_array_equal(embeddings.numpy(), expected)


@pytest.mark.usefixtures("compiled")
def test_every_finite_float16_is_read_exactly():
    values = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)
    hidden_states = torch.cat([values, -values, values[:2]]).reshape(-1, 1024)
    texts = len(hidden_states)
    case = Case(
        hidden_states,
        torch.arange(texts, dtype=torch.int32),
        torch.arange(texts + 1, dtype=torch.int32),
        torch.ones(1024),
        0.0,
        1,
        1024,
        torch.zeros(2, 1024),
    )
    embeddings, _ = case.run(normalize=False)
    expected, _ = float64_pooling(case, normalize=False)
    # Relative alone: a subnormal read as zero must not pass.
    np.testing.assert_allclose(embeddings.numpy(), expected, rtol=2.0**-19, atol=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 4, 122])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
def test_a_value_that_is_not_finite_shows_in_its_own_norm_only(
    op, precision, column, value, device
):
    case = make_case(3, 123, 5, device=device)
    clean_embeddings, clean_norms = case.run(op, precision=precision)
    row = case.rows[case.offsets[2]]  # the first row of text 1
    case.hidden_states[row, column] = value
    embeddings, norms = case.run(op, precision=precision)
    assert norms.isfinite().tolist() == [True, False, True]
    assert torch.equal(embeddings[[0, 2]], clean_embeddings[[0, 2]])
    assert torch.equal(norms[[0, 2]], clean_norms[[0, 2]])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_text_alone_gives_the_same_bits_as_in_a_batch(dtype, device):
    case = make_case(70, 192, 100, dtype=dtype, device=device)
    embeddings, norms = case.run()
    for text in (0, 1, 35, 69):
        offsets = case.offsets[2 * text : 2 * text + 3]
        alone = case._replace(rows=case.rows[offsets[0] : offsets[2]], offsets=offsets - offsets[0])
        embedding, norm = alone.run()
        assert torch.equal(embedding[0], embeddings[text])
        assert torch.equal(norm[0], norms[text])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_empty_batch_gives_empty_outputs(precision, op, device):
    case = make_case(device=device)
    empty = case._replace(rows=case.rows[:0], offsets=case.offsets[:1])
    embeddings, norms = empty.run(op, precision=precision)
    assert embeddings.shape == (0, output_width(10, precision))
    assert embeddings.dtype == output_dtype(precision)
    assert norms.shape == (0,)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
def test_inputs_need_not_be_contiguous(device):
    case = make_case(3, 64, 64, device=device)
    strided = case._replace(
        hidden_states=case.hidden_states.t().contiguous().t(),
        rows=torch.stack([case.rows, case.rows], dim=1)[:, 0],
        offsets=torch.stack([case.offsets, case.offsets], dim=1)[:, 0],
        norm_weight=torch.stack([case.norm_weight] * 2, dim=1)[:, 0],
        ranges=case.ranges.t().contiguous().t(),
    )
    for precision in ("float32", "int8"):
        assert torch.equal(strided.run(precision=precision)[0], case.run(precision=precision)[0])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_states_need_not_be_aligned(dtype, device):
    case = make_case(3, 64, 64, dtype=dtype, device=device)
    shifted = torch.empty(case.hidden_states.numel() + 1, dtype=dtype, device=device)[1:]
    shifted = shifted.view_as(case.hidden_states).copy_(case.hidden_states)
    embeddings, _ = case._replace(hidden_states=shifted).run()
    assert_close(embeddings, case.run()[0].double().cpu().numpy(), "float32")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, precision, device):
    case = make_case(3, 24, 5, dtype=dtype, device=device)
    code = PRECISIONS.index(precision)
    ranges = case.ranges if precision in ("int8", "uint8") else None
    args = (*case[:5], case.segments, case.keep, True, code, ranges)
    results = torch.library.opcheck(torch.ops.c2v.dual_token_pool.default, args)
    assert set(results.values()) == {"SUCCESS"}


def test_the_compiled_op_traces_into_one_graph(compiled):
    case = make_case(3, 24, 5)
    traced = torch.compile(lambda: case.run()[0], backend="eager", fullgraph=True)
    assert torch.equal(traced(), case.run()[0])
