"""The Triton kernels of packed attention against float64, and what only they have to show.

On a GPU they are compiled and run there; elsewhere the interpreter runs them on the CPU, where a
program takes milliseconds, so batches are small.
"""

import math

import pytest
import torch
from attention_cases import NORM, Case, amid, assert_agrees, float64_attention, make_case
from far_rows import far_rows
from interpreter import poisoned_memory, triton_form

pytest.importorskip("triton")

from c2v_engine.kernels._attention_tiles import all_rows_tile, chosen_rows_tile
from c2v_engine.kernels.packed_attention import packed_attention, row_bounds

ATTENTION = triton_form(packed_attention)
DEVICE = ATTENTION.device
ON_GPU = DEVICE == "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HEAD_DIMS = [5, 16, 64, 80, 128, 256]
GROUPS = [1, 4, 7]
# Every two of a head size, a group and a dtype once: on a GPU each is a kernel to compile.
KINDS = [
    pytest.param(
        head_dim, GROUPS[(i + j) % 3], dtype, id=f"{head_dim}-{GROUPS[(i + j) % 3]}-{dtype}"
    )
    for i, head_dim in enumerate(HEAD_DIMS)
    for j, dtype in enumerate(DTYPES)
]
MASKS = [
    pytest.param(causal, window, id=f"{'causal' if causal else 'full'}-{window}")
    for causal, window in ((True, None), (False, None), (True, 7), (False, 5))
]
SHORT = [5, 1, 21, 2, 16]
GAPS = [0, 1, 3, 127, 0, 128, 129, 300, 0]
# The hardware's exponential errs by some units of 2^-22, and so do scores near 10.
TOLERANCE = {"float32": 1e-5}
BETWEEN_ORDERS = {torch.float32: 2e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


def case_of(lengths, heads=1, kv_heads=1, head_dim=16, dtype=torch.float32):
    return make_case(lengths, heads, kv_heads, head_dim, dtype, DEVICE)


def run(case, causal=True, window=None, rows=None, scale=None, **options):
    query = case.query if rows is None else case.query[rows.long()]
    with poisoned_memory():
        return ATTENTION(
            query,
            *case[1:],
            max_seqlen=max([0, *case.lengths()]),
            causal=causal,
            window=window,
            scale=case.query.shape[-1] ** -0.5 if scale is None else scale,
            query_rows=rows,
            **options,
        )


def last_first_middle(case):
    """Three rows of every sequence, in an order of their own."""
    lengths = case.cu_seqlens.diff()
    offsets = torch.stack([lengths - 1, lengths * 0, lengths // 2], dim=1)
    return (case.cu_seqlens[:-1, None] + offsets).flatten().int()


@pytest.mark.parametrize(("head_dim", "group", "dtype"), KINDS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_all_rows_agree_with_float64(causal, window, head_dim, group, dtype):
    case = case_of(SHORT, group, 1, head_dim, dtype)
    actual = run(case, causal, window)
    assert_agrees(actual, case, causal=causal, window=window, **TOLERANCE)


@pytest.mark.parametrize(("head_dim", "group", "dtype"), KINDS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_chosen_rows_agree_with_float64(causal, window, head_dim, group, dtype):
    case = case_of(SHORT[:3], group, 1, head_dim, dtype)
    rows = last_first_middle(case)
    actual = run(case, causal, window, rows)
    assert_agrees(actual, case, rows, causal=causal, window=window, **TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_lengths_around_the_size_of_a_tile_agree_with_float64(causal, window, group, dtype):
    case = case_of(GAPS, group, 1, dtype=dtype)
    actual = run(case, causal, window)
    assert_agrees(actual, case, causal=causal, window=window, **TOLERANCE)


@pytest.mark.parametrize("length", [1, 3, 127, 128, 129, 300])
@pytest.mark.parametrize("causal", [True, False])
def test_a_text_alone_agrees_with_float64(causal, length):
    case = case_of([length], 4, 2)
    assert_agrees(run(case, causal), case, causal=causal, **TOLERANCE)
    rows = last_first_middle(case)
    assert_agrees(run(case, causal, rows=rows), case, rows, causal=causal, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if ON_GPU else [torch.bfloat16])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, 100)])
def test_a_long_text_agrees_with_float64(causal, window, dtype):
    case = case_of([4097], dtype=dtype)
    assert_agrees(run(case, causal, window), case, causal=causal, window=window, **TOLERANCE)
    rows = torch.tensor([4096, 0, 2000], dtype=torch.int32, device=DEVICE)
    chosen = run(case, causal, window, rows)
    assert_agrees(chosen, case, rows, causal=causal, window=window, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [False, True])
def test_thousands_of_tiny_texts_agree_with_float64(chosen, dtype):
    # A program for every text: 10,000 would take the interpreter two minutes.
    few = 1000 if dtype == torch.float32 else 250
    texts = 10_000 if ON_GPU or not chosen else few
    case = case_of([3] * texts, dtype=dtype)
    rows = case.cu_seqlens[1:] - 1 if chosen else None
    q, k, v = (x.cpu().double().view(texts, 3, 16) for x in case[:3])
    scores = (q @ k.mT / 4).masked_fill(~torch.ones(3, 3).tril().bool(), -torch.inf)
    expected = (scores.softmax(dim=-1) @ v)[:, -1] if chosen else scores.softmax(dim=-1) @ v
    actual = run(case, rows=rows).cpu().double().view(expected.shape)
    assert (actual - expected).norm() < NORM[dtype] * expected.norm()
    by_text = (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert by_text.max() < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_key_heads_and_a_group_larger_than_a_tile(dtype, chosen):
    for heads, kv_heads in ((6, 3), (71, 1), (130, 2)):
        case = case_of([4, 9], heads, kv_heads, 8, dtype)
        rows = last_first_middle(case) if chosen else None
        assert_agrees(run(case, rows=rows), case, rows, **TOLERANCE)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(dtype, chosen):
    case = case_of([9, 40, 3], 6, 3, 24, dtype)
    rows = last_first_middle(case) if chosen else None
    expected = run(case, rows=rows)
    heads_first = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in case[:3])
    dimensions_first = (x.mT.contiguous().mT for x in case[:3])
    spread = torch.stack([case.cu_seqlens] * 2, dim=1)[:, 0]
    spread_rows = torch.stack([rows] * 2, dim=1)[:, 0] if chosen else None
    for tensors in ((x.contiguous() for x in case[:3]), heads_first, dimensions_first):
        other = Case(*tensors, spread)
        # On a GPU loads of another width may come with sums in another order.
        tolerance = BETWEEN_ORDERS[dtype]
        torch.testing.assert_close(
            run(other, rows=spread_rows), expected, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("head_dim", [5, 20, 80])
def test_what_stands_between_heads_is_not_read(head_dim, chosen):
    case = case_of([9, 30], 4, 2, head_dim)
    rows = last_first_middle(case) if chosen else None
    spread = (
        torch.nn.functional.pad(x, (0, 128 - head_dim), value=math.nan)[:, :, :head_dim]
        for x in case[:3]
    )
    actual = run(Case(*spread, case.cu_seqlens), rows=rows)
    tolerance = BETWEEN_ORDERS[torch.float32]
    torch.testing.assert_close(actual, run(case, rows=rows), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_bounds_of_rows_may_be_given(chosen):
    case = case_of([9, 40, 3] if chosen else [9, 0, 40, 3], 2)
    rows = last_first_middle(case) if chosen else None
    made = run(case, rows=rows)
    bounds = row_bounds(case.cu_seqlens, 52)
    assert torch.equal(run(case, rows=rows, row_bounds=bounds), made)
    spread = torch.stack([bounds] * 2, dim=2)[:, :, 0]
    assert torch.equal(run(case, rows=rows, row_bounds=spread), made)


def test_the_given_bounds_are_the_ones_that_serve():
    case = case_of([9, 40, 3], 2)
    other = row_bounds(case.cu_seqlens.new_tensor([0, 20, 52]), 52)
    expected = run(case._replace(cu_seqlens=case.cu_seqlens.new_tensor([0, 20, 52])))
    assert torch.equal(run(case, row_bounds=other, validate=False), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_a_text_among_others_is_what_it_is_alone(causal, window, dtype):
    case = case_of([10, 1, 33, 64, 17], 3, dtype=dtype)
    tolerance = BETWEEN_ORDERS[dtype]
    rows = last_first_middle(case)
    together = run(case, causal, window).split(case.lengths())
    chosen = run(case, causal, window, rows).split(3)
    for sequence in range(5):
        alone = case.of(sequence)
        # Blocks of keys begin elsewhere, so the sums have another order.
        torch.testing.assert_close(
            run(alone, causal, window), together[sequence], rtol=tolerance, atol=tolerance
        )
        # Here they begin with the sequence.
        local = rows[3 * sequence : 3 * sequence + 3] - case.cu_seqlens[sequence]
        assert torch.equal(run(alone, causal, window, local), chosen[sequence])
    assert torch.equal(run(case, causal, window), torch.cat(together))


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_not_finite_reaches_what_sees_it_and_no_other_text(causal, part, value, chosen):
    case = case_of([10, 30, 7, 40], 2, 2, 64, torch.bfloat16)
    rows = last_first_middle(case) if chosen else None
    clean = run(case, causal, rows=rows)
    getattr(case, part)[10 + 13, 1, 9] = value
    actual = run(case, causal, rows=rows)
    where = torch.arange(87, device=DEVICE) if rows is None else rows
    text = (where >= 10) & (where < 40)
    sees = text & (where >= 23) if causal else text
    if part == "query":
        sees = where == 23
    if value == math.inf and part == "key":
        # A score of minus infinity is a weight of zero.
        sees = sees & (case.query[where.long(), 1, 9] > 0)
    column = slice(9, 10) if part == "value" else slice(None)
    assert part == "query" or sees.any()
    assert not actual[sees, 1, column].isfinite().any()
    tolerance = BETWEEN_ORDERS[torch.bfloat16]
    for found, expected in (
        (actual[~text], clean[~text]),
        (actual[text, 0], clean[text, 0]),
    ):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(dtype, chosen):
    case = case_of([100], dtype=dtype)
    loud = case._replace(query=case.query * 64)
    rows = last_first_middle(case) if chosen else None
    actual = run(loud, rows=rows).cpu().double()
    expected, _ = float64_attention(loud)
    expected = expected if rows is None else expected[rows.cpu().long()]
    # Scores reach 300, whose float32 rounding alone moves a weight by 300 * 2^-23.
    tolerance = {torch.float32: 2e-4, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale_serves(scale):
    case = case_of([20, 30], 2)
    rows = last_first_middle(case)
    assert_agrees(run(case, scale=scale), case, scale=scale, **TOLERANCE)
    assert_agrees(run(case, rows=rows, scale=scale), case, rows, scale=scale, **TOLERANCE)


@pytest.mark.parametrize("window", [40, 2**30, 2**31 - 1])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_longer_than_any_text_is_no_window(causal, window):
    case = case_of([30, 40], 2)
    rows = last_first_middle(case)
    assert torch.equal(run(case, causal, window), run(case, causal))
    assert torch.equal(run(case, causal, window, rows), run(case, causal, rows=rows))


def test_batches_without_rows_and_texts_without_rows():
    no_rows = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    for lengths in ([], [0], [0, 0]):
        case = case_of(lengths, 2, 1)
        assert run(case).shape == (0, 2, 16)
        assert run(case, rows=no_rows).shape == (0, 2, 16)
    assert run(case_of([7, 0], 2, 1), rows=no_rows).shape == (0, 2, 16)


# --- values that are wrong, and nobody checked ----------------------------------------------------


@pytest.mark.parametrize("around", [1.0, math.nan])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("offsets", "outside"),
    [
        ([1, 4, 9], [0]),
        ([0, 4, 8], [8]),
        ([0, 4, 2**31 - 1], [4, 5, 6, 7, 8]),
        ([-5, 4, 9], [0, 1, 2, 3]),
        ([0, 0, 0], range(9)),
        ([0], range(9)),
        ([-(2**31), 2**31 - 1], range(9)),
    ],
)
def test_a_row_of_no_text_is_nan_whatever_stands_around(offsets, outside, causal, around):
    case = case_of([4, 5], 2, 1)
    case = case._replace(cu_seqlens=torch.tensor(offsets, dtype=torch.int32, device=DEVICE))
    actual = run(amid(case, around), causal, validate=False)
    expected = [row in outside for row in range(9)]
    assert actual.isnan().all(dim=2).all(dim=1).tolist() == expected
    assert actual.isnan().any(dim=2).any(dim=1).tolist() == expected
    # What would be read of the rows around would change what is finite too.
    other = run(amid(case, -3.0), causal, validate=False)
    torch.testing.assert_close(actual, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("around", [1.0, math.nan])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("offsets", "rows", "outside"),
    [
        ([0, 4, 9], [3, 9], [1]),
        ([0, 4, 9], [4, 8], [0]),
        ([0, 4, 9], [-1, 8], [0]),
        ([0, 4, 9], [-(2**31), 2**31 - 1], [0, 1]),
        ([0, 4, 10], [3, 8], [1]),
        ([-3, 4, 9], [-2, 8], [0]),
        ([0, 6, 4], [3, 5], [1]),
        ([-(2**31), 2**31 - 1, 9], [0, 8], [0, 1]),
    ],
)
def test_a_chosen_row_that_is_not_in_its_text_is_nan_whatever_stands_around(
    offsets, rows, outside, causal, around
):
    case = case_of([4, 5], 2, 1)
    case = case._replace(cu_seqlens=torch.tensor(offsets, dtype=torch.int32, device=DEVICE))
    query_rows = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    options = {"max_seqlen": 9, "causal": causal, "scale": 0.25, "validate": False}

    def attend(case):
        return ATTENTION(case.query[:2], *case[1:], query_rows=query_rows, **options)

    actual = attend(amid(case, around))
    expected = [row in outside for row in range(2)]
    assert actual.isnan().all(dim=2).all(dim=1).tolist() == expected
    assert actual.isnan().any(dim=2).any(dim=1).tolist() == expected
    other = attend(amid(case, -3.0))
    torch.testing.assert_close(actual, other, rtol=0, atol=0, equal_nan=True)


# --- offsets beyond 2^31 elements -----------------------------------------------------------------


@pytest.mark.parametrize("chosen", [False, True])
def test_rows_so_far_apart_that_a_block_passes_int32(chosen):
    case = case_of([3], 4, 2, dtype=torch.bfloat16)
    fused = torch.cat([x.flatten(1) for x in case[:3]], dim=1)
    parts = far_rows(fused).split([64, 32, 32], dim=1)
    far = Case(*(part.unflatten(1, (-1, 16)) for part in parts), case.cu_seqlens)
    rows = last_first_middle(case) if chosen else None
    query = far.query if rows is None else case.query[rows.long()]
    actual = ATTENTION(query, *far[1:], max_seqlen=3, causal=True, scale=0.25, query_rows=rows)
    assert_agrees(actual, case, rows, **TOLERANCE)


@pytest.mark.parametrize("chosen", [False, True])
def test_a_batch_of_over_2_31_elements(chosen):
    # A text's own keys are spread over more than 2^31 elements too.
    tokens, stride = 205, 2**24
    case = case_of([5, 200], 1, 1, dtype=torch.bfloat16)
    fused = torch.cat([x.flatten(1) for x in case[:3]], dim=1)
    try:
        buffer = torch.empty(tokens * stride, dtype=torch.bfloat16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no buffer of over 2^31 elements: {error}")
    wide = buffer.as_strided((tokens, 48), (stride, 1)).copy_(fused)
    parts = (part.unflatten(1, (1, 16)) for part in wide.split(16, dim=1))
    far = Case(*parts, case.cu_seqlens)
    rows = last_first_middle(case) if chosen else None
    query = far.query if rows is None else case.query[rows.long()]
    actual = ATTENTION(query, *far[1:], max_seqlen=200, causal=True, scale=0.25, query_rows=rows)
    assert_agrees(actual, case, rows, **TOLERANCE)


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile_of", [all_rows_tile, chosen_rows_tile])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_is_one_that_the_compiler_takes(dtype, tile_of):
    for head_dim in range(1, 257):
        tile = tile_of(head_dim, dtype)
        sides = (tile.rows, tile.keys, tile.columns)
        assert all(side >= 16 and side & (side - 1) == 0 for side in sides)
        assert head_dim <= tile.columns < 2 * max(head_dim, 16)
        assert tile.num_warps in (4, 8)
