"""Segment pooling against float64 and sums formed row after row."""

from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from far_rows import amid_ones, far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, random, with_row_stride

from c2v_engine.errors import InputError
from c2v_engine.kernels import segment_pool as module
from c2v_engine.kernels.segment_pool import segment_pool, segment_pool_reference

FORMS = forms(segment_pool, segment_pool_reference)
CPU_FORMS = [form for form in FORMS if form.id in ("cpu", "reference")]
LENGTHS = [3, 0, 17, 1, 0, 5, 40, 0]
RELATIVE_NORM = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def int32(values, device="cpu"):
    return torch.tensor(values, dtype=torch.int32, device=device)


def make_case(lengths, width, dtype, device="cpu", fillers=3):
    """States, offsets and counts; the last states, which are NaN, belong to no text."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    total = int(ends[-1])
    states = random(total + fillers, width, dtype=dtype)
    states[total:] = torch.nan
    counts = int32([max(1, length) for length in lengths], device)
    return states.to(device), ends.int().to(device), counts


def gathered_case(width, dtype, device="cpu"):
    """Each text's states are any of 30, some of them several times."""
    states = random(30, width, dtype=dtype)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    generator = torch.Generator().manual_seed(width)
    rows = torch.randint(0, 30, (int(ends[-1]),), generator=generator)
    partial = random(len(LENGTHS), width, seed=1)
    return states.to(device), ends.int().to(device), rows.int().to(device), partial.to(device)


def sums_in_order(states, offsets):
    """Float32 sums, formed row after row."""
    sums = torch.zeros(len(offsets) - 1, states.shape[1], device=states.device)
    for text, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for row in states[begin:end].float():
            sums[text] += row
    return sums


def float64_means(states, lengths):
    parts = states[: sum(lengths)].double().split(lengths)
    return torch.stack([part.sum(dim=0) / max(1, len(part)) for part in parts])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("width", [1, 3, 123, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_formed_row_after_row_and_divided_once(dtype, width, op):
    states, offsets, counts = make_case(LENGTHS, width, dtype, op.device)
    expected = sums_in_order(states, offsets)
    with poisoned_memory():
        sums = op(states, offsets)
        means = op(states, offsets, counts=counts)
    assert torch.equal(sums, expected)
    assert torch.equal(means, (expected / counts[:, None]).to(dtype))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("lengths", "width"),
    [([1], 768), ([4097], 24), ([0], 5), ([], 5), ([3] * 10_000, 8), ([512, 1, 200], 300)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_of_every_size_agree_with_float64(dtype, lengths, width, op):
    states, offsets, counts = make_case(lengths, width, dtype, op.device)
    with poisoned_memory():
        means = op(states, offsets, counts=counts)
    assert (means.shape, means.dtype) == ((len(lengths), width), dtype)
    if lengths:
        expected = float64_means(states, lengths)
        error = (means.double() - expected).norm()
        assert error <= RELATIVE_NORM[dtype] * expected.norm()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("width", [1, 123, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_gathered_and_partial_sums_added(dtype, width, op):
    states, offsets, rows, partial = gathered_case(width, dtype, op.device)
    expected = sums_in_order(states[rows.long()], offsets)
    with poisoned_memory():
        assert torch.equal(op(states, offsets, rows=rows), expected)
        assert torch.equal(op(states, offsets, rows=rows, partial=partial), expected + partial)
    counts = int32(range(1, 9), op.device)
    means = op(states, offsets, rows=rows, partial=partial, counts=counts)
    assert torch.equal(means, ((expected + partial) / counts[:, None]).to(dtype))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_segment_sums_to_nothing_or_to_its_partial_sum(dtype, op):
    states, offsets, _ = make_case([0, 2, 0], 24, dtype, op.device)
    partial = random(3, 24, seed=1).to(op.device)
    assert bool((op(states, offsets)[[0, 2]] == 0).all())
    assert torch.equal(op(states, offsets, partial=partial)[[0, 2]], partial[[0, 2]])
    no_rows = int32([], op.device)
    nothing = int32([0, 0, 0, 0], op.device)
    assert torch.equal(op(states, nothing, rows=no_rows, partial=partial), partial)
    assert torch.equal(op(states[:0], nothing, partial=partial), partial)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("width", [24, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_alone_gives_the_same_bits_as_among_others(dtype, width, op):
    states, offsets, counts = make_case(LENGTHS, width, dtype, op.device)
    together = op(states, offsets, counts=counts)
    for text in (2, 6):
        begin, end = offsets[text : text + 2].tolist()
        own = int32([0, end - begin], op.device)
        alone = op(states[begin:end], own, counts=counts[text : text + 1])
        assert torch.equal(together[text : text + 1], alone)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_or_an_infinity_stays_in_its_own_text_and_column(dtype, op):
    states, offsets, counts = make_case(LENGTHS, 123, dtype, op.device)
    states[5, 100], states[30, 7] = torch.nan, torch.inf
    means = op(states, offsets, counts=counts)
    assert means.isfinite().logical_not().nonzero().tolist() == [[2, 100], [6, 7]]
    assert means[6, 7] == torch.inf


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_may_have_any_strides_and_are_not_changed(dtype, op):
    states, offsets, rows, partial = gathered_case(123, dtype, op.device)
    counts = int32(range(1, 9), op.device)
    given = [states, offsets, rows, partial, counts]
    same = [tensor.clone() for tensor in given]
    expected = op(states, offsets, rows=rows, partial=partial, counts=counts)
    offsets, rows, counts = (torch.stack([x, x], dim=1)[:, 0] for x in (offsets, rows, counts))
    for strided in (with_row_stride(states, torch.nan)[0], states.t().contiguous().t()):
        wide = with_row_stride(partial, torch.nan)[0]
        assert torch.equal(op(strided, offsets, rows=rows, partial=wide, counts=counts), expected)
    scattered = partial.t().contiguous().t()
    assert torch.equal(op(states, offsets, rows=rows, partial=scattered, counts=counts), expected)
    assert all(torch.equal(a, b) for a, b in zip(given, same, strict=True))


WRONG_OFFSETS = [
    ([1, 4, 9], "offsets begins with 1; expected 0"),
    ([-2, 4, 9], "offsets begins with -2; expected 0"),
    ([0, 5, 4], "offsets falls from 5 to 4 at text 1"),
    ([0, 4, 11], "offsets ends with 11; expected 10, the number of states, at most"),
]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(("offsets", "message"), WRONG_OFFSETS)
def test_offsets_that_do_not_rise_from_0_to_the_end_are_refused(offsets, message, op):
    with pytest.raises(InputError, match=message):
        op(torch.zeros(10, 4, device=op.device), int32(offsets, op.device))


@pytest.mark.parametrize("op", FORMS)
def test_offsets_must_end_at_the_number_of_rows(op):
    states, rows = torch.zeros(10, 4, device=op.device), int32([3, 4, 5], op.device)
    for end in (2, 4):
        with pytest.raises(InputError, match=f"offsets ends with {end}; expected .* rows, 3"):
            op(states, int32([0, 1, end], op.device), rows=rows)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("count", [0, -3, -(2**31)])
def test_counts_below_1_are_refused_and_their_texts_nan_where_nobody_checks(count, op):
    states, offsets, counts = make_case([3, 2, 0, 4], 24, torch.float32, op.device)
    counts[1:3] = count
    with pytest.raises(InputError, match=f"counts gives text 1 {count}; expected 1 or more"):
        op(states, offsets, counts=counts)
    means = op(states, offsets, counts=counts, validate=False)
    assert means.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert means.isnan().any(dim=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("op", CPU_FORMS)
@pytest.mark.parametrize(("offsets", "message"), WRONG_OFFSETS)
def test_on_the_cpu_wrong_offsets_are_found_without_validation_too(offsets, message, op):
    with pytest.raises(RuntimeError, match=f"segment_pool: {message}"):
        op(torch.zeros(10, 4), int32(offsets), validate=False)


@pytest.mark.parametrize("op", CPU_FORMS)
@pytest.mark.parametrize("row", [-1, 10])
def test_on_the_cpu_a_row_out_of_range_is_an_error(row, op):
    with pytest.raises(RuntimeError, match="rows names a row out of range; states has 10 rows"):
        op(torch.zeros(10, 4), int32([0, 1, 2]), rows=int32([3, row]))


@pytest.fixture(params=["kernel", "without waiting"])
def on_cuda(request):
    """The forms that serve on CUDA, and the device to try them on."""
    if request.param == "without waiting":  # what serves without Triton, and can run anywhere
        return lambda x, offsets, rows: module._sums_without_waiting(x, offsets, rows), "cpu"
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    op = triton_form(segment_pool)
    return lambda x, offsets, rows: op(x, offsets, rows=rows, validate=False), op.device


@pytest.mark.parametrize(
    ("offsets", "wrong"),
    [
        ([0, 4, 11, 12, 5, 7], [False, True, True, True, False]),
        ([0, 5, 4, 9, 10, 10], [False, True, False, False, False]),
        ([-3, 5, -1, 4, 2**31 - 1, -(2**31)], [True, True, True, True, True]),
        ([1, 4, 9], [True, False]),
        ([4, 4, 9], [True, False]),
    ],
)
def test_on_cuda_wrong_offsets_make_their_texts_nan(on_cuda, offsets, wrong):
    op, device = on_cuda
    states = amid_ones(random(10, 123).to(device))
    sums = op(states, int32(offsets, device), None)
    assert sums.isnan().all(dim=1).tolist() == wrong
    assert sums.isnan().any(dim=1).tolist() == wrong


@pytest.mark.parametrize("end", [2, 4])
def test_on_cuda_rows_that_do_not_end_with_the_last_text_make_it_nan(on_cuda, end):
    op, device = on_cuda
    states, rows = random(10, 24).to(device), int32([3, 4, 5], device)
    sums = op(states, int32([0, 1, end], device), rows)
    assert torch.equal(sums[0], states[3])
    assert sums[1].isnan().all()


@pytest.mark.parametrize("row", [-1, 30, 2**31 - 1, -(2**31)])
def test_on_cuda_a_row_out_of_range_makes_its_text_nan(on_cuda, row):
    op, device = on_cuda
    states, offsets, rows, _ = gathered_case(123, torch.float32, device)
    expected = op(states, offsets, rows)
    assert torch.equal(expected, sums_in_order(states[rows.long()], offsets))
    rows[10] = row
    expected[2] = torch.nan
    sums = op(amid_ones(states), offsets, rows)
    torch.testing.assert_close(sums, expected, rtol=0, atol=0, equal_nan=True)
    assert op(states[:0], offsets, rows).isnan().any(dim=1).tolist() == [n > 0 for n in LENGTHS]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(segment_pool)
    states = random(3, 24, dtype=torch.bfloat16).to(op.device)
    offsets, rows = int32([0, 2, 3], op.device), int32([2, 2, 0], op.device)
    far = far_rows(states)
    assert torch.equal(op(far, offsets), op(states, offsets))
    assert torch.equal(op(far, offsets, rows=rows), op(states, offsets, rows=rows))
    partial = far_rows(random(3, 24).to(op.device))
    near, offsets = partial.contiguous(), int32([0, 1, 2, 3], op.device)
    expected = op(states, offsets, partial=near)
    assert torch.equal(op(states, offsets, partial=partial), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    states, offsets, rows, partial = gathered_case(24, dtype)
    counts = int32(range(1, 9))
    plain = make_case(LENGTHS, 24, dtype)[0]
    for args in (
        (plain, offsets, None, None, None),
        (plain, offsets, counts, None, None),
        (states, offsets, counts, rows, partial),
    ):
        # NaN states, which belong to no text, do not equal themselves.
        args = (args[0].nan_to_num(), *args[1:])
        results = torch.library.opcheck(torch.ops.c2v.segment_pool.default, args)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(24)}, r"states is \[24\] float32"),
        ({"states": torch.zeros(5, 24).double()}, "states is .*float64"),
        ({"offsets": torch.zeros(3).long()}, r"offsets is .*int64.*\[texts \+ 1\] int32"),
        ({"offsets": torch.zeros(0).int()}, r"offsets is \[0\]"),
        ({"offsets": torch.zeros(3, 1).int()}, r"offsets is \[3, 1\]"),
        ({"offsets": torch.zeros(3, device="meta").int()}, "offsets is .*on meta"),
        ({"counts": torch.ones(3).int()}, r"counts is \[3\] int32.*expected \[2\] int32"),
        ({"counts": torch.ones(2)}, r"counts is \[2\] float32"),
        ({"rows": torch.zeros(3, 1).int()}, r"rows is \[3, 1\].*\[R\] int32"),
        ({"rows": torch.zeros(3).long()}, "rows is .*int64"),
        ({"partial": torch.zeros(2, 23)}, r"partial is \[2, 23\].*expected \[2, 24\] float32"),
        ({"partial": torch.zeros(2, 24).half()}, "partial is .*float16"),
        ({"partial": torch.zeros(2, 24, device="meta")}, "partial is .*on meta"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    case = {"states": torch.zeros(5, 24), "offsets": int32([0, 2, 3])}
    with pytest.raises(InputError, match=message):
        op(**{**case, **change})
