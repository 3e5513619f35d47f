"""The Triton kernel of packed attention from the last rows of longer key sequences.

On a GPU it is compiled and run there; elsewhere the interpreter runs it on the CPU.
"""

import math

import pytest
import torch
from attention_cases import (
    EVERY_TEXT,
    Case,
    amid,
    assert_agrees,
    make_case,
    make_last_rows,
)
from far_rows import far_rows
from interpreter import poisoned_memory, triton_form

pytest.importorskip("triton")

from c2v_engine.kernels.packed_attention import MAX_TOKENS, packed_attention, row_bounds

ATTENTION = triton_form(packed_attention)
DEVICE = ATTENTION.device
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = [
    pytest.param(group, dtype, id=f"{group}-{dtype}")
    for group, dtype in (
        (1, torch.float32),
        (7, torch.float32),
        (3, torch.bfloat16),
        (7, torch.bfloat16),
        (3, torch.float16),
    )
]
MASKS = [
    pytest.param(causal, window, id=f"{'causal' if causal else 'full'}-{window}")
    for causal, window in ((True, None), (False, None), (True, 20), (False, 150), (True, 1))
]
# The hardware's exponential errs by some units of 2^-22, and so do scores near 10.
TOLERANCE = {"float32": 1e-5}
BETWEEN_ORDERS = {torch.float32: 2e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


def last_rows(texts, heads=1, kv_heads=1, head_dim=16, dtype=torch.float32):
    return make_last_rows(texts, heads, kv_heads, head_dim, dtype, DEVICE)


def attend(case, cu_seqlens_q, causal=True, window=None, **options):
    with poisoned_memory():
        return ATTENTION(
            *case,
            max_seqlen=max([0, *case.lengths()]),
            causal=causal,
            window=window,
            scale=case.query.shape[-1] ** -0.5,
            cu_seqlens_q=cu_seqlens_q,
            **options,
        )


def run(last, *args, **kwargs):
    return attend(last.arguments(), last.cu_seqlens_q, *args, **kwargs)


@pytest.mark.parametrize(("group", "dtype"), KINDS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_last_rows_agree_with_float64(causal, window, group, dtype):
    last = last_rows(EVERY_TEXT, group, dtype=dtype)
    actual = run(last, causal, window)
    assert_agrees(actual, last.case, last.rows, causal=causal, window=window, **TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [5, 64, 80, 256])
def test_any_head_dim_agrees_with_float64(head_dim, dtype):
    last = last_rows([(5, 33), (40, 1), (1, 70)], 4, 2, head_dim, dtype)
    assert_agrees(run(last), last.case, last.rows, **TOLERANCE)


@pytest.mark.parametrize("heads", [71, 130])
def test_a_group_larger_than_a_tile_agrees_with_float64(heads):
    last = last_rows([(4, 9), (7, 20)], heads, heads // 65, 8, torch.bfloat16)
    assert_agrees(run(last), last.case, last.rows, **TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_last_rows_are_what_they_are_among_all_rows_and_alone(causal, window, dtype):
    texts = [(10, 33), (1, 0), (33, 200), (17, 5)]
    last = last_rows(texts, 3, dtype=dtype)
    tolerance = {"rtol": BETWEEN_ORDERS[dtype], "atol": BETWEEN_ORDERS[dtype]}
    together = run(last, causal, window)
    assert torch.equal(run(last, causal, window), together)
    whole = attend(last.case, None, causal, window)
    torch.testing.assert_close(together, whole[last.rows.long()], **tolerance)
    for sequence, expected in enumerate(together.split([queries for queries, _ in texts])):
        torch.testing.assert_close(run(last.of(sequence), causal, window), expected, **tolerance)


def test_when_every_row_is_a_query_the_bits_are_those_of_all_rows():
    case = make_case([5, 0, 100, 1], 3, 1, 16, device=DEVICE)
    assert torch.equal(attend(case, case.cu_seqlens), attend(case, None))


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_chosen_rows_serve_on_longer_key_sequences_as_they_are(causal, window):
    last = last_rows([(5, 0), (1, 33), (123, 200), (2, 1)], 3)
    places = torch.stack([last.cu_seqlens_q[1:] - 1, last.cu_seqlens_q[:-1]], dim=1).flatten()
    rows, case = last.rows[places.long()], last.arguments()
    chosen = case._replace(query=case.query[places.long()])
    actual = attend(chosen, None, causal, window, query_rows=rows)
    assert_agrees(actual, last.case, rows, causal=causal, window=window, **TOLERANCE)


def test_the_bounds_of_rows_may_be_given():
    last = last_rows([(9, 3), (0, 5), (40, 70), (3, 0)], 2)
    bounds = row_bounds(last.case.cu_seqlens, 52, last.cu_seqlens_q)
    made = run(last)
    assert torch.equal(run(last, row_bounds=bounds), made)
    spread = torch.stack([bounds] * 2, dim=2)[:, :, 0]
    assert torch.equal(run(last, row_bounds=spread), made)
    other = last.case.cu_seqlens.new_tensor([0, 9, 9, 20, 52])
    assert torch.equal(attend(last.arguments(), other, validate=False, row_bounds=bounds), made)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_not_finite_reaches_what_sees_it_and_no_other_text(causal, part, value):
    last = last_rows([(10, 30), (30, 20), (7, 3)], 2, 2, 64, torch.bfloat16)
    case = last.arguments()
    clean = attend(case, last.cu_seqlens_q, causal)
    row = 10 + 9 if part == "query" else 40 + 19  # a key that stands before every query
    getattr(case, part)[row, 1, 9] = value
    actual = attend(case, last.cu_seqlens_q, causal)
    text = torch.zeros(47, dtype=torch.bool, device=DEVICE)
    text[10:40] = True
    sees = torch.arange(47, device=DEVICE) == row if part == "query" else text
    if value == math.inf and part == "key":
        # A score of minus infinity is a weight of zero.
        sees = sees & (case.query[:, 1, 9] > 0)
    column = slice(9, 10) if part == "value" else slice(None)
    assert sees.any()
    assert not actual[sees, 1, column].isfinite().any()
    tolerance = {"rtol": BETWEEN_ORDERS[torch.bfloat16], "atol": BETWEEN_ORDERS[torch.bfloat16]}
    torch.testing.assert_close(actual[~text], clean[~text], **tolerance)
    torch.testing.assert_close(actual[text, 0], clean[text, 0], **tolerance)


def test_batches_sequences_and_keys_without_queries():
    for texts in ([], [(0, 0)], [(0, 7), (0, 0), (0, 70)]):
        assert run(last_rows(texts, 2)).shape == (0, 2, 16)
    last = last_rows([(0, 7), (3, 0), (0, 0), (4, 9), (0, 60)], 2)
    assert_agrees(run(last), last.case, last.rows, **TOLERANCE)


@pytest.mark.parametrize("around", [1.0, math.nan])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("keys", "queries", "outside"),
    [
        ([0, 4, 9], [0, 2, 5], []),
        ([0, 4, 9], [1, 2, 5], [0]),
        ([0, 4, 9], [0, 2, 4], [4]),
        ([0, 4, 9], [0, 5, 5], [0]),
        ([0, 4, 9], [0, 0, 0], range(5)),
        ([0, 4, 9], [2**31 - 1, 2**31 - 1, -(2**31)], range(5)),
        ([0, 4, 9], [-(2**31), 2**31 - 1, 5], range(5)),
        ([1, 4, 9], [0, 2, 5], []),
        ([-1, 4, 9], [0, 2, 5], [0, 1]),
        ([0, 4, 10], [0, 2, 5], [2, 3, 4]),
        ([0, 6, 4], [0, 2, 5], [2, 3, 4]),
        ([-(2**31), 2**31 - 1, 9], [0, 2, 5], range(5)),
        ([0, 2**31 - 1, -(2**31)], [0, 2, 5], range(5)),
        ([0], [0], range(5)),
    ],
)
def test_a_query_of_no_text_is_nan_whatever_stands_around(keys, queries, outside, causal, around):
    case = make_case([4, 5], 2, 1, 16, device=DEVICE)
    keys, queries = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in (keys, queries))

    def attended(value):
        surrounded = amid(case._replace(query=case.query[:5], cu_seqlens=keys), value)
        return attend(surrounded, queries, causal, validate=False)

    actual = attended(around)
    expected = [row in outside for row in range(5)]
    assert actual.isnan().all(dim=2).all(dim=1).tolist() == expected
    assert actual.isnan().any(dim=2).any(dim=1).tolist() == expected
    # What would be read of the rows around would change what is finite too.
    torch.testing.assert_close(actual, attended(-3.0), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0, 1, 2])
@pytest.mark.parametrize("wrong", [-(2**31), -1, 9, 10, 2**31 - 1])
@pytest.mark.parametrize("causal", [True, False])
def test_bounds_that_are_wrong_read_nothing_out_of_range(causal, wrong, value):
    last = last_rows([(2, 2), (3, 2)], 2)
    bounds = row_bounds(last.case.cu_seqlens, 5, last.cu_seqlens_q)
    bounds[value, 2] = wrong

    def attended(around):
        surrounded = amid(last.arguments(), around)
        options = {"validate": False, "row_bounds": bounds, "window": 3}
        return attend(surrounded, last.cu_seqlens_q, causal, **options)

    actual = attended(math.nan)
    right = wrong == 9 and value == 1
    assert actual.isnan().any(dim=2).any(dim=1).tolist() == [False, False, not right, False, False]
    torch.testing.assert_close(actual, attended(-3.0), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("causal", [True, False])
def test_the_last_rows_of_a_sequence_of_2_31_keys(causal):
    rows = torch.arange(16.0, device=DEVICE).view(1, 1, 16).expand(5, 1, 16)
    key = rows[:1].expand(MAX_TOKENS, 1, 16)  # one key in memory
    cu_seqlens, cu_seqlens_q = (
        torch.tensor([0, end], dtype=torch.int32, device=DEVICE) for end in (MAX_TOKENS, 5)
    )
    options = {"max_seqlen": MAX_TOKENS, "causal": causal, "window": 2000, "scale": 0.01}
    actual = ATTENTION(rows, key, key, cu_seqlens, cu_seqlens_q=cu_seqlens_q, **options)
    torch.testing.assert_close(actual, rows, rtol=1e-6, atol=0)


def test_rows_so_far_apart_that_a_block_passes_int32():
    last = last_rows([(2, 1)], 4, 2, dtype=torch.bfloat16)
    joined = torch.cat([x.flatten(1) for x in last.case[1:3]], dim=1)
    key, value = far_rows(joined).unflatten(1, (2, 2, 16)).unbind(dim=1)
    query = last.arguments().query
    actual = attend(Case(query, key, value, last.case.cu_seqlens), last.cu_seqlens_q)
    assert_agrees(actual, last.case, last.rows, **TOLERANCE)


def test_hundreds_of_short_texts_after_a_prompt_agree_with_float64():
    last = last_rows([(3, 5)] * 300, 2, dtype=torch.bfloat16)
    actual = run(last)
    assert_agrees(actual, last.case, last.rows, **TOLERANCE)
