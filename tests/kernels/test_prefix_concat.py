"""The decoder's packed input: every row comes from where its id says."""

from importlib.util import find_spec

import pytest
import torch
from far_rows import amid_ones, far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, random, with_row_stride

from c2v_engine.errors import InputError
from c2v_engine.kernels import prefix_concat as module
from c2v_engine.kernels.prefix_concat import prefix_concat, prefix_concat_reference

WORDS, CONTEXTS = 50, 9
FORMS = forms(prefix_concat, prefix_concat_reference)


def make_case(tokens, width, dtype, device="cpu"):
    """Ids of both kinds, in any order."""
    generator = torch.Generator().manual_seed(tokens + width)
    ids = torch.randint(-CONTEXTS, WORDS, (tokens,), generator=generator).int()
    words, contexts = random(WORDS, width, dtype=dtype), random(CONTEXTS, width, dtype=dtype)
    return ids.to(device), words.to(device), contexts.to(device)


def rows_one_by_one(ids, words, contexts):
    rows = [words[i] if i >= 0 else contexts[-1 - i] for i in ids.tolist()]
    return torch.stack(rows) if rows else words[:0]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("tokens", [0, 1, 5, 123])
@pytest.mark.parametrize("width", [1, 3, 123, 896, 2048])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_is_the_one_that_its_id_names(dtype, width, tokens, op):
    case = make_case(tokens, width, dtype, op.device)
    with poisoned_memory():
        rows = op(*case)
    assert rows.is_contiguous()
    assert torch.equal(rows, rows_one_by_one(*case))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("lengths", [[1], [4097], [0, 5, 0], [3] * 10_000])
@pytest.mark.parametrize("place", ["first", "after the prompt"])
def test_batches_of_every_size_in_both_layouts(place, lengths, op):
    prompt, eos = [7, 8], 2
    words = random(WORDS, 4).to(op.device)
    contexts = random(len(lengths), 4, seed=1).to(op.device)
    ids, expected = [], []
    for number, length in enumerate(lengths):
        head = [*prompt, -1 - number] if place == "after the prompt" else [-1 - number, *prompt]
        ids += [*head, *(3 + (number + i) % 40 for i in range(length)), eos]
        # In one table, the contextual rows stand behind the words.
        expected += [WORDS - 1 - i if i < 0 else i for i in ids[len(expected) :]]
    with poisoned_memory():
        rows = op(torch.tensor(ids, dtype=torch.int32, device=op.device), words, contexts)
    assert torch.equal(rows, torch.cat([words, contexts])[expected])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_contextual_rows_all_are_words(dtype, op):
    ids, words, contexts = make_case(123, 24, dtype, op.device)
    ids = ids.clamp(min=0)
    assert torch.equal(op(ids, words, None), words[ids.long()])
    assert torch.equal(op(ids, words, contexts), words[ids.long()])
    assert torch.equal(op(ids, words, contexts[:0]), words[ids.long()])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_copied_bit_by_bit(dtype, op):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    bits = bits.int() << 16 if dtype == torch.float32 else bits
    words = bits.view(dtype).view(64, 1024).to(op.device)
    ids = torch.arange(-10, 64).int().to(op.device)
    rows = op(ids, words, words)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    expected = torch.cat([words[:10].flip(0), words]).view(integers)
    assert torch.equal(rows.view(integers), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_may_have_any_strides_and_are_not_changed(dtype, op):
    ids, words, contexts = make_case(123, 24, dtype, op.device)
    same = ids.clone(), words.clone(), contexts.clone()
    expected = op(ids, words, contexts)
    strided = with_row_stride(words, torch.nan)[0], with_row_stride(contexts, torch.nan)[0]
    assert torch.equal(op(ids, *strided), expected)
    scattered = words.t().contiguous().t(), contexts.t().contiguous().t()
    assert torch.equal(op(torch.stack([ids, ids], dim=1)[:, 0], *scattered), expected)
    assert all(torch.equal(a, b) for a, b in zip((ids, words, contexts), same, strict=True))


OUT_OF_RANGE = [WORDS, 2**31 - 1, -1 - CONTEXTS, -(2**31)]


@pytest.mark.parametrize("op", [form for form in FORMS if form.id in ("cpu", "reference")])
@pytest.mark.parametrize("value", OUT_OF_RANGE)
def test_on_the_cpu_an_id_out_of_range_is_an_error(value, op):
    ids, words, contexts = make_case(5, 24, torch.float32)
    ids[2] = value
    with pytest.raises(IndexError, match="out of range"):
        op(ids, words, contexts)
    ids[2] = -1
    with pytest.raises(IndexError, match="out of range"):
        op(ids, words, None)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_table_serves_where_every_row_is_contextual(dtype, op):
    _, words, contexts = make_case(0, 24, dtype, op.device)
    for places in ([3, 0, 8, 3], []):
        ids = torch.tensor([-1 - place for place in places], dtype=torch.int32, device=op.device)
        assert torch.equal(op(ids, words[:0], contexts), contexts[places])
    assert op(ids, words[:0], None).shape == (0, 24)


@pytest.mark.parametrize("op", [form for form in FORMS if form.id in ("cpu", "reference")])
def test_on_the_cpu_a_row_of_an_empty_table_is_an_error(op):
    _, words, contexts = make_case(0, 24, torch.float32)
    for ids, table, absent in (
        ([0], words[:0], None),
        ([-1], words[:0], None),
        ([-1, 0], words[:0], contexts),
        ([-1], words[:0], contexts[:0]),
        ([5, -1], words, contexts[:0]),
    ):
        with pytest.raises(IndexError, match="out of range"):
            op(torch.tensor(ids, dtype=torch.int32), table, absent)


@pytest.mark.parametrize("without_waiting", [False, True])
@pytest.mark.parametrize("value", OUT_OF_RANGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_cuda_an_id_out_of_range_makes_a_row_of_nan(dtype, value, without_waiting):
    if without_waiting:  # what serves on CUDA without Triton, and can run anywhere
        op, device = module._without_waiting, "cpu"
    elif find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    else:
        op = triton_form(prefix_concat)
        device = op.device
    ids, words, contexts = make_case(5, 123, dtype, device)
    expected = op(ids, words, contexts)
    assert torch.equal(expected, rows_one_by_one(ids, words, contexts))
    words, contexts = amid_ones(words), amid_ones(contexts)
    ids[2] = value
    expected[2] = torch.nan
    rows = op(ids, words, contexts)
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
    for absent in (None, contexts[:0]):
        nans = op(ids, words, absent).isnan()
        assert torch.equal(nans.all(dim=1), (ids < 0) | (ids >= WORDS))
        assert torch.equal(nans.all(dim=1), nans.any(dim=1))
    nans = op(ids, words[:0], contexts).isnan()
    assert torch.equal(nans.all(dim=1), (ids < -CONTEXTS) | (ids >= 0))
    assert torch.equal(nans.all(dim=1), nans.any(dim=1))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_offsets_beyond_two_to_the_31_are_right():
    op = triton_form(prefix_concat)
    rows = random(3, 24, dtype=torch.bfloat16).to(op.device)
    ids = torch.tensor([2, 0, -1, -3], dtype=torch.int32, device=op.device)
    far = far_rows(rows)
    assert torch.equal(op(ids, far, rows), rows[[2, 0, 0, 2]])
    assert torch.equal(op(ids, rows, far), rows[[2, 0, 0, 2]])


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, with_context):
    ids, words, contexts = make_case(5, 24, dtype)
    args = (ids, words, contexts) if with_context else (ids.clamp(min=0), words, None)
    results = torch.library.opcheck(torch.ops.c2v.prefix_concat.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.zeros(5).long()}, r"token_ids is .*int64.*\[tokens\] int32 on cpu"),
        ({"token_ids": torch.zeros(5, 1).int()}, r"token_ids is \[5, 1\]"),
        ({"token_ids": torch.zeros(5, device="meta").int()}, "token_ids is .*on meta"),
        ({"embed_tokens": torch.zeros(24)}, r"embed_tokens is \[24\]"),
        ({"embed_tokens": torch.zeros(9, 24).double()}, "embed_tokens is .*float64"),
        ({"contextual": torch.zeros(24)}, r"contextual is \[24\]"),
        ({"contextual": torch.zeros(2, 23)}, r"contextual is \[2, 23\].*expected \[2, 24\]"),
        ({"contextual": torch.zeros(2, 24).half()}, "contextual is .*float16"),
        ({"contextual": torch.zeros(2, 24, device="meta")}, "contextual is .*on meta"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    case = {
        "token_ids": torch.zeros(5).int(),
        "embed_tokens": torch.zeros(9, 24),
        "contextual": torch.zeros(2, 24),
    }
    with pytest.raises(InputError, match=message):
        op(**{**case, **change})
