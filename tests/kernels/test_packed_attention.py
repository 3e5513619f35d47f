"""Packed attention against float64, its own PyTorch form and itself in another batch."""

import json
from importlib.util import find_spec

import pytest
import torch
from attention_cases import Case, assert_agrees, float64_attention, make_case
from compiling import output_of
from interpreter import triton_form

from c2v_engine.kernels.packed_attention import (
    MAX_TOKENS,
    CpuVariant,
    cpu_variant,
    cpu_variants,
    packed_attention,
    packed_attention_reference,
    row_bounds,
)

FLOATS = [torch.float32, torch.bfloat16]
DTYPES = [*FLOATS, torch.float16]
LENGTHS = [1, 2, 15, 16, 17, 31, 33, 64, 100, 129, 513, 1025]
MIXED = [100, 1, 33, 2, 64, 17, 3, 16]
# Every compiled kernel of this processor for every dtype it serves.
KERNELS = [
    pytest.param(dtype, variant, id=f"{str(dtype)[6:]}-{variant.name}")
    for dtype in FLOATS
    for variant in cpu_variants()
    if dtype == torch.bfloat16 or variant is not CpuVariant.avx512_bf16
] or [pytest.param(dtype, None, id=str(dtype)[6:]) for dtype in FLOATS]
MASKS = [
    pytest.param(causal, window, id=f"{'causal' if causal else 'full'}-{window}")
    for causal in (True, False)
    for window in (None, 1, 5, 64)
]
pytestmark = pytest.mark.usefixtures("compiled")


def run(case, variant=None, causal=True, window=None, query_rows=None):
    """The op as users call it, or one variant of it."""
    max_seqlen, scale = max(case.lengths(), default=0), case.query.shape[-1] ** -0.5
    if variant is not None:
        code = -1 if window is None else window
        op = torch.ops.c2v._packed_attention_variant
        return op(*case, max_seqlen, causal, code, scale, query_rows, int(variant))
    return packed_attention(
        *case,
        max_seqlen=max_seqlen,
        causal=causal,
        scale=scale,
        window=window,
        query_rows=query_rows,
    )


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_agrees_with_float64(length, causal, dtype, variant):
    case = make_case([length], dtype=dtype)
    assert_agrees(run(case, variant, causal), case, causal=causal)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("lengths", [MIXED, [700]], ids=["mixed", "long"])
def test_any_mask_agrees_with_float64(lengths, causal, window, dtype, variant):
    case = make_case(lengths, heads=3, kv_heads=1, dtype=dtype)
    actual = run(case, variant, causal, window)
    assert_agrees(actual, case, causal=causal, window=window)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("head_dim", [1, 5, 16, 20, 24, 64, 80, 96, 128, 256])
def test_any_head_dim_agrees_with_float64(head_dim, dtype, variant):
    case = make_case([37, 90], head_dim=head_dim, dtype=dtype)
    assert_agrees(run(case, variant), case)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_query_heads_share_their_key_head(group, dtype, variant):
    case = make_case(MIXED, heads=2 * group, kv_heads=2, head_dim=32, dtype=dtype)
    assert_agrees(run(case, variant), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_the_pytorch_form_agrees_with_float64(causal, window, dtype):
    case = make_case(MIXED, heads=4, dtype=dtype)
    mask = {"causal": causal, "window": window}
    actual = packed_attention_reference(*case, max_seqlen=100, scale=0.125, **mask)
    assert_agrees(actual, case, **mask)
    rows = torch.stack([case.cu_seqlens[:-1], case.cu_seqlens[1:] - 1], dim=1).flatten()
    chosen = packed_attention_reference(
        *case.at(rows), max_seqlen=100, scale=0.125, query_rows=rows, **mask
    )
    # another order of sums
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    torch.testing.assert_close(chosen, actual[rows.long()], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("group", [1, 3])
def test_chosen_rows_have_the_bits_of_all_rows(group, causal, window, dtype, variant):
    case = make_case([5, 700, 1, 1100, 64], heads=group, kv_heads=1, dtype=dtype)
    lengths = torch.tensor(case.lengths())
    offsets = torch.stack([lengths - 1, lengths * 0, lengths // 2], dim=1)  # in any order
    rows = (case.cu_seqlens[:-1, None] + offsets).flatten().int()
    whole = run(case, variant, causal, window)
    chosen = run(case.at(rows), variant, causal, window, query_rows=rows)
    assert chosen.is_contiguous()
    assert torch.equal(chosen, whole[rows.long()])


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (False, 20)])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(causal, window, dtype, variant):
    case = make_case([100, 1, 33, 600, 64, 17], heads=3, kv_heads=1, dtype=dtype)
    together = run(case, variant, causal, window).split(case.lengths())
    for sequence, expected in enumerate(together):
        assert torch.equal(run(case.of(sequence), variant, causal, window), expected)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype, variant):
    case = make_case([1000, 40, 300], heads=3, kv_heads=1, head_dim=72, dtype=dtype)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(run(case, variant))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_best_variant_of_the_processor_serves(dtype):
    case = make_case(MIXED, dtype=dtype)
    best = cpu_variant(dtype)
    assert best is not None
    assert best is max(parameter.values[1] for parameter in KERNELS if parameter.values[0] == dtype)
    assert torch.equal(run(case), run(case, best))


def test_the_variants_are_those_that_torch_knows_the_processor_to_have():
    capability = torch.backends.cpu.get_cpu_capability()
    assert CpuVariant.generic in cpu_variants()
    assert CpuVariant.avx2 in cpu_variants() or capability not in ("AVX2", "AVX512")
    assert CpuVariant.avx512 in cpu_variants() or capability != "AVX512"
    assert cpu_variant(torch.float16) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_strides_do_not_change_the_bits(dtype):
    case = make_case(MIXED, heads=6, kv_heads=3, head_dim=24, dtype=dtype)
    expected = run(case)
    assert not case.query.is_contiguous()
    assert torch.equal(run(Case(*(x.contiguous() for x in case))), expected)
    heads_first = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in case[:3])
    assert torch.equal(run(Case(*heads_first, case.cu_seqlens)), expected)
    dimensions_first = (x.mT.contiguous().mT for x in case[:3])
    spread = torch.stack([case.cu_seqlens] * 2, dim=1)[:, 0]
    assert torch.equal(run(Case(*dimensions_first, spread)), expected)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_not_finite_reaches_what_sees_it_and_no_other_sequence(
    causal, part, value, dtype, variant
):
    case = make_case([40, 70, 23], dtype=dtype)
    clean = run(case, variant, causal)
    getattr(case, part)[40 + 33, 1, 9] = value
    actual = run(case, variant, causal)
    seen_by = slice(73, 74) if part == "query" else slice(73 if causal else 40, 110)
    column = slice(9, 10) if part == "value" else slice(None)
    reached = actual[seen_by, 1, column]
    if value == float("inf") and part == "key":
        # A score of minus infinity is a weight of zero, in every form.
        reached = reached[case.query[seen_by, 1, 9] > 0]
    assert len(reached) > 0
    assert not reached.isfinite().any()
    assert torch.equal(actual[:40], clean[:40])
    assert torch.equal(actual[110:], clean[110:])
    assert torch.equal(actual[40:110, 0], clean[40:110, 0])


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_scores_far_apart_neither_overflow_nor_vanish(dtype, variant):
    case = make_case([700], dtype=dtype)
    loud = case._replace(query=case.query * 64)
    expected, _ = float64_attention(loud)
    # Scores reach 300, whose float32 rounding alone moves a weight by 300 * 2^-23.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6}[dtype]
    actual = run(loud, variant).double()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
def test_empty_batches_and_empty_sequences(dtype, variant):
    no_rows = torch.zeros(0, dtype=torch.int32)
    case = make_case([], dtype=dtype)
    assert run(case, variant).shape == (0, 2, 64)
    assert run(case, variant, query_rows=no_rows).shape == (0, 2, 64)
    gaps = make_case([0, 20, 0, 0, 7, 0], dtype=dtype)
    assert_agrees(run(gaps, variant), make_case([20, 7], dtype=dtype))
    assert run(gaps.at(no_rows), variant, query_rows=no_rows).shape == (0, 2, 64)


def test_empty_batches_and_empty_sequences_in_the_pytorch_form():
    no_rows = torch.zeros(0, dtype=torch.int32)
    options = {"max_seqlen": 20, "causal": True, "scale": 0.125}
    for case in (make_case([]), make_case([0, 20, 0, 7])):
        whole = packed_attention_reference(*case, **options)
        assert whole.shape == case.query.shape
        chosen = packed_attention_reference(*case.at(no_rows), **options, query_rows=no_rows)
        assert chosen.shape == (0, 2, 64)


def test_max_seqlen_may_be_larger_than_any_sequence():
    case = make_case(MIXED)
    loose = packed_attention(*case, max_seqlen=2**31 - 1, causal=True, scale=0.125)
    assert torch.equal(loose, run(case))


@pytest.mark.parametrize(("dtype", "variant"), KERNELS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1025, 2**31 - 1])
def test_a_window_longer_than_any_sequence_is_no_window(window, causal, dtype, variant):
    case = make_case([30, 1025], dtype=dtype)
    assert torch.equal(run(case, variant, causal, window), run(case, variant, causal))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [2**31, 2**62, 2**63 - 1])
def test_the_op_itself_takes_any_window_of_64_bits(window, causal, dtype):
    case = make_case([30, 1025], dtype=dtype)
    op = torch.ops.c2v.packed_attention
    assert torch.equal(op(*case, 1025, causal, window, 0.125, None), run(case, None, causal))


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_float16_is_computed_in_float32_and_rounded_once(causal, window):
    case = make_case(MIXED, heads=4, dtype=torch.float16)
    wide = Case(*(x.float() for x in case[:3]), case.cu_seqlens)
    actual = run(case, None, causal, window)
    assert torch.equal(actual, run(wide, None, causal, window).half())
    assert_agrees(actual, case, causal=causal, window=window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [-1, 5])
@pytest.mark.parametrize("chosen", [False, True])
def test_opcheck_passes(chosen, window, dtype):
    case = make_case([9, 20], heads=4, kv_heads=2, head_dim=24, dtype=dtype)
    rows = torch.tensor([8, 28], dtype=torch.int32) if chosen else None
    case = case if rows is None else case.at(rows)
    for bounds in ((), (None,), (row_bounds(case.cu_seqlens, 29),)):
        args = (*case, 20, True, window, 0.2, rows, *bounds)
        results = torch.library.opcheck(torch.ops.c2v.packed_attention.default, args)
        assert set(results.values()) == {"SUCCESS"}


def test_the_bounds_of_rows_change_nothing_on_the_cpu():
    case = make_case([9, 0, 20])
    options = {"max_seqlen": 20, "causal": True, "scale": 0.125}
    for op in (packed_attention, packed_attention_reference):
        given = op(*case, **options, row_bounds=row_bounds(case.cu_seqlens, 29))
        assert torch.equal(given, op(*case, **options))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [3], [0, 3, 0, 0, 1, 5, 0]])
def test_row_bounds_say_where_each_row_s_sequence_begins_and_ends(lengths):
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    expected = [
        [int(ends[b]), int(ends[b + 1]), row]
        for b in range(len(lengths))
        for row in range(ends[b], ends[b + 1])
    ]
    bounds = row_bounds(ends, sum(lengths))
    assert bounds.dtype == torch.int32
    assert bounds.shape == (3, sum(lengths))
    assert bounds.T.tolist() == expected


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_a_window_at_the_end_of_a_sequence_of_2_31_keys_ends_there():
    op = triton_form(packed_attention)
    row = torch.arange(16.0, device=op.device).view(1, 1, 16)
    key = row.expand(MAX_TOKENS, 1, 16)  # one key in memory
    options = {"max_seqlen": MAX_TOKENS, "causal": False, "window": 2000, "scale": 0.01}
    cu_seqlens = torch.tensor([0, MAX_TOKENS], dtype=torch.int32, device=op.device)
    rows = torch.tensor([MAX_TOKENS - 70], dtype=torch.int32, device=op.device)
    actual = op(row, key, key, cu_seqlens, query_rows=rows, **options)
    torch.testing.assert_close(actual, row, rtol=1e-6, atol=0)


CHOSEN_ROWS = """
import json
import torch
from aot_launches import recorded_launches
from c2v_engine.kernels.packed_attention_triton import attend_chosen_rows

keys, grids = set(), []
for texts, chosen in ((3, 1), (1, 2), (7, 17), (2, 2**20), (1, 2**28)):
    rows, heads = texts * chosen, 4
    query, key, offsets, chosen_rows = (
        torch.empty(*shape, dtype=dtype, device="meta")
        for shape, dtype in (
            ((rows, heads, 64), torch.bfloat16),
            ((rows, 2, 64), torch.bfloat16),
            ((texts + 1,), torch.int32),
            ((rows,), torch.int32),
        )
    )
    with recorded_launches(90) as launches:
        attend_chosen_rows(query, key, key, offsets, chosen_rows, True, -1, 0.125)
    keys.update(launch.key for launch in launches)
    grids += [launch.grid for launch in launches]
print(json.dumps([len(keys), grids]))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_any_number_of_chosen_rows_fits_the_grid_with_one_compilation(tmp_path):
    compilations, grids = json.loads(output_of(CHOSEN_ROWS, tmp_path / "chosen_rows.py"))
    assert compilations == 1
    assert [grid[1:] for grid in grids] == [[2]] * 5
    # 16 queries a program, of two query heads that share a key head
    assert [grid[0] for grid in grids] == [3, 1, 21, 2**18, 2**25]


def test_the_op_traces_into_one_graph():
    case = make_case(MIXED)
    scale = {"max_seqlen": 100, "scale": 0.125}
    traced = torch.compile(
        lambda: packed_attention(*case, causal=True, **scale), backend="eager", fullgraph=True
    )
    assert torch.equal(traced(), packed_attention(*case, causal=True, **scale))
