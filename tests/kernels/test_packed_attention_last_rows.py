"""Packed attention from the last rows of longer key sequences, as texts after a shared prompt."""

import pytest
import torch
from attention_cases import EVERY_TEXT, Case, amid, assert_agrees, make_last_rows
from torch.nn.attention.bias import causal_lower_right

from c2v_engine.kernels.packed_attention import (
    CpuVariant,
    cpu_variants,
    packed_attention,
    packed_attention_reference,
    row_bounds,
)

FLOATS = [torch.float32, torch.bfloat16]
DTYPES = [*FLOATS, torch.float16]
# Around the vectors and the chunks of 512 keys of the compiled kernels.
LONG = [(1, 700), (300, 513), (64, 1100), (2, 510), (513, 0)]
KERNELS = [
    pytest.param(dtype, variant, id=f"{str(dtype)[6:]}-{variant.name}")
    for dtype in FLOATS
    for variant in cpu_variants()
    if dtype == torch.bfloat16 or variant is not CpuVariant.avx512_bf16
] or [pytest.param(dtype, None, id=str(dtype)[6:]) for dtype in FLOATS]
MASKS = [
    pytest.param(causal, window, id=f"{'causal' if causal else 'full'}-{window}")
    for causal in (True, False)
    for window in (None, 1, 20, 150)  # those of 20 and 150 end within a prompt of 200
]
pytestmark = pytest.mark.usefixtures("compiled")


def attend(case, cu_seqlens_q, variant=None, causal=True, window=None, op=packed_attention):
    """The op as users call it, or one variant of it; the queries are those of ``case``."""
    max_seqlen, scale = max(case.lengths(), default=0), case.query.shape[-1] ** -0.5
    if variant is not None:
        code = -1 if window is None else window
        one = torch.ops.c2v._packed_attention_variant
        return one(*case, max_seqlen, causal, code, scale, None, int(variant), cu_seqlens_q)
    mask = {"causal": causal, "window": window}
    options = {"max_seqlen": max_seqlen, "scale": scale, "cu_seqlens_q": cu_seqlens_q}
    return op(*case, **mask, **options)


def run(last, *args, **kwargs):
    return attend(last.arguments(), last.cu_seqlens_q, *args, **kwargs)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("group", [1, 3, 7])
def test_last_rows_agree_with_float64_and_have_the_bits_of_all_rows(
    group, causal, window, dtype, variant
):
    last = make_last_rows(EVERY_TEXT, group, 1, 32, dtype)
    actual = run(last, variant, causal, window)
    assert_agrees(actual, last.case, last.rows, causal=causal, window=window)
    whole = attend(last.case, None, variant, causal, window)
    assert torch.equal(actual, whole[last.rows.long()])


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_last_rows_of_long_sequences_have_the_bits_of_all_rows(causal, window, dtype, variant):
    last = make_last_rows(LONG, 4, 2, 20, dtype)
    actual = run(last, variant, causal, window)
    assert_agrees(actual, last.case, last.rows, causal=causal, window=window)
    whole = attend(last.case, None, variant, causal, window)
    assert torch.equal(actual, whole[last.rows.long()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_the_pytorch_form_agrees_with_float64(causal, window, dtype):
    last = make_last_rows(EVERY_TEXT, 3, 1, dtype=dtype)
    actual = run(last, None, causal, window, packed_attention_reference)
    assert_agrees(actual, last.case, last.rows, causal=causal, window=window)


def test_float16_is_computed_in_float32_and_rounded_once():
    last = make_last_rows(EVERY_TEXT, 3, 1, dtype=torch.float16)
    case = last.arguments()
    wide = Case(*(x.float() for x in case[:3]), case.cu_seqlens)
    assert torch.equal(run(last), attend(wide, last.cu_seqlens_q).half())


@pytest.mark.parametrize("before", [0, 1, 33, 200])
def test_the_mask_is_torch_s_causal_mask_aligned_at_the_bottom_right(before):
    last = make_last_rows([(20, before)], 2, 2, 16)
    q, k, v = (x.transpose(0, 1)[None] for x in last.arguments()[:3])
    mask = causal_lower_right(20, 20 + before)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(run(last), expected[0].transpose(0, 1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 20)])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(causal, window, dtype, variant):
    texts = [(5, 33), (123, 200), (0, 7), (64, 513), (9, 0)]
    last = make_last_rows(texts, 3, 1, dtype=dtype)
    together = run(last, variant, causal, window).split([queries for queries, _ in texts])
    for sequence, expected in enumerate(together):
        assert torch.equal(run(last.of(sequence), variant, causal, window), expected)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype, variant):
    last = make_last_rows([(600, 900), (40, 200), (300, 0), (1, 1000)], 3, 1, 72, dtype)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(run(last, variant))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_nan_reaches_what_sees_it_and_no_other_sequence(causal, part, dtype, variant):
    last = make_last_rows([(10, 30), (40, 30), (13, 10)], dtype=dtype)
    case = last.arguments()
    clean = attend(case, last.cu_seqlens_q, variant, causal)
    # A key before the first query's own is seen by every query of its sequence.
    row = 10 + 9 if part == "query" else 40 + 29
    getattr(case, part)[row, 1, 9] = torch.nan
    actual = attend(case, last.cu_seqlens_q, variant, causal)
    seen_by = slice(row, row + 1) if part == "query" else slice(10, 50)
    column = slice(9, 10) if part == "value" else slice(None)
    assert not actual[seen_by, 1, column].isfinite().any()
    assert torch.equal(actual[:10], clean[:10])
    assert torch.equal(actual[50:], clean[50:])
    assert torch.equal(actual[10:50, 0], clean[10:50, 0])


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_nothing_around_the_tensors_is_read(causal, window, dtype, variant):
    last = make_last_rows(EVERY_TEXT[::-1], dtype=dtype)
    surrounded = amid(last.arguments(), torch.nan)
    actual = attend(surrounded, last.cu_seqlens_q, variant, causal, window)
    assert torch.equal(actual, run(last, variant, causal, window))


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_chosen_rows_serve_on_longer_key_sequences_as_they_are(causal, window, dtype, variant):
    texts = [(5, 0), (1, 33), (123, 200), (64, 700), (2, 1)]
    last = make_last_rows(texts, 3, 1, dtype=dtype)
    ends, counts = last.cu_seqlens_q[1:], last.cu_seqlens_q.diff()
    # The last, the first and the middle query of every text, named by their keys' rows.
    places = torch.stack([ends - 1, ends - counts, ends - 1 - counts // 2], dim=1).flatten().long()
    query_rows = last.rows[places]
    case = last.arguments()
    expected = attend(case, last.cu_seqlens_q, variant, causal, window)[places]
    mask, scale = (causal, -1 if window is None else window), 0.125
    tensors = (case.query[places], *case[1:], max(case.lengths()), *mask, scale, query_rows)
    if variant is None:
        actual = torch.ops.c2v.packed_attention(*tensors)
        torch.testing.assert_close(actual, expected)
    else:
        actual = torch.ops.c2v._packed_attention_variant(*tensors, int(variant))
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_strides_do_not_change_the_bits(dtype, variant):
    last = make_last_rows([(5, 33), (30, 20)], 6, 3, 24, dtype)
    expected = run(last, variant)
    case = last.arguments()
    assert not case.query.is_contiguous()
    spread = torch.stack([last.cu_seqlens_q] * 2, dim=1)[:, 0]
    for change in (
        lambda x: x.contiguous(),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.mT.contiguous().mT,
    ):
        other = Case(*(change(x) for x in case[:3]), case.cu_seqlens)
        assert torch.equal(attend(other, spread, variant), expected)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_batches_sequences_and_keys_without_queries(dtype, variant):
    for texts in ([], [(0, 0)], [(0, 7), (0, 0), (0, 300)]):
        last = make_last_rows(texts, dtype=dtype)
        assert run(last, variant).shape == (0, 2, 64)
        assert run(last, op=packed_attention_reference).shape == (0, 2, 64)
    last = make_last_rows([(0, 7), (3, 0), (0, 0), (4, 9), (0, 600)], dtype=dtype)
    assert_agrees(run(last, variant), last.case, last.rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [-1, 5])
def test_opcheck_passes(window, dtype):
    last = make_last_rows([(2, 7), (20, 0), (0, 3)], 4, 2, 24, dtype)
    case, rows = last.arguments(), len(last.rows)
    for bounds in (None, row_bounds(case.cu_seqlens, rows, last.cu_seqlens_q)):
        args = (*case, 20, True, window, 0.2, None, bounds, last.cu_seqlens_q)
        results = torch.library.opcheck(torch.ops.c2v.packed_attention.default, args)
        assert set(results.values()) == {"SUCCESS"}


class Attention(torch.nn.Module):
    """The op as a layer calls it."""

    def forward(self, query, key, value, cu_seqlens, cu_seqlens_q):
        options = {"max_seqlen": 400, "causal": True, "scale": 0.125}
        return packed_attention(query, key, value, cu_seqlens, **options, cu_seqlens_q=cu_seqlens_q)


def arguments_of(texts):
    last = make_last_rows(texts)
    return tuple(x.contiguous() for x in (*last.arguments(), last.cu_seqlens_q))


def test_torch_compile_takes_it_in_one_graph():
    compiled = torch.compile(Attention(), backend="aot_eager", fullgraph=True)
    for texts in ([(5, 33), (7, 0)], EVERY_TEXT, [(3, 20)]):
        arguments = arguments_of(texts)
        assert torch.equal(compiled(*arguments), Attention()(*arguments))


def test_torch_export_serves_batches_of_another_size():
    rows, tokens = (torch.export.Dim(name, min=2, max=9999) for name in ("rows", "tokens"))
    sizes = [{0: size} for size in (rows, tokens, tokens)]
    offsets = {0: torch.export.Dim("texts", min=1, max=99) + 1}
    example = arguments_of([(5, 33), (7, 0), (2, 3)])
    exported = torch.export.export(
        Attention(), example, dynamic_shapes=(*sizes, offsets, offsets)
    ).module()
    arguments = arguments_of(EVERY_TEXT)
    assert torch.equal(exported(*arguments), Attention()(*arguments))


@pytest.mark.parametrize("texts", [[], [(0, 0)], [(0, 5)], [(3, 0)], [(3, 2)], EVERY_TEXT])
def test_row_bounds_give_each_query_its_sequence_s_keys_and_its_own(texts):
    last = make_last_rows(texts)
    ends = last.case.cu_seqlens.tolist()
    expected = [
        [ends[b], ends[b + 1], ends[b + 1] - queries + i]
        for b, (queries, _) in enumerate(texts)
        for i in range(queries)
    ]
    bounds = row_bounds(last.case.cu_seqlens, len(expected), last.cu_seqlens_q)
    assert bounds.dtype == torch.int32
    assert bounds.shape == (3, len(expected))
    assert bounds.T.tolist() == expected


@pytest.mark.parametrize(
    ("offsets", "outside"),
    [
        ([0, 2, 5], []),
        ([1, 2, 5], [0]),
        ([-7, 2, 5], []),  # the first queries would be before the first row
        ([0, 2, 4], [4]),
        ([0, 5, 5], [0]),  # five queries of four keys
        ([0, 0, 0], range(5)),
        ([2**31 - 1, 2**31 - 1, -(2**31)], range(5)),
        ([-(2**31), 0, 5], []),
    ],
)
def test_row_bounds_give_a_query_of_no_sequence_no_key(offsets, outside):
    cu_seqlens, cu_seqlens_q = (torch.tensor(x).int() for x in ([0, 4, 9], offsets))
    first, last, own = row_bounds(cu_seqlens, 5, cu_seqlens_q).tolist()
    assert [row for row in range(5) if own[row] == -1] == list(outside)
    inside = set(range(5)) - set(outside)
    assert all(first[row] <= own[row] < last[row] for row in inside)
