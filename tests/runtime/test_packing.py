"""Packing: token budget, one buffer, and where every row of a text stands in it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from checkpoints import Recipe, corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from c2v_engine.model.rounding import FewSizes
from c2v_engine.model.template import Template
from c2v_engine.runtime.packing import PackingRules, lay_out, split_by_tokens
from c2v_engine.runtime.tokenization import TokenizedText

CPU = torch.device("cpu")
DUAL = Template(("<context>", "{prompt}{text}", "<eos>"), ("<context>", "<eos>"))
MEAN = Template(("<bos>", "{text}"), ("{text}",))
TWO = Template(("<context>", "{text}", "<context>", "<eos>"), (2, 1))
LENGTHS = (5, 1, 9, 0, 3)


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dual(length, windows=((7, 8, 9),), first=100):
    """A text of the DUAL template: one contextual row, ``length`` tokens, EOS."""
    ids = np.array([0, *range(first, first + length), 2], dtype=np.int32)
    parts = tuple(np.array(window, dtype=np.int32) for window in windows)
    return TokenizedText(ids, (0, 1, 1 + length, 2 + length), parts)


def rules(template, pooling="mean"):
    return PackingRules.from_template(template, pooling)


def packed(lengths=LENGTHS, pooling="mean", batch_tokens=1000):
    texts = [
        dual(length, (range(20, 23 + length),), 100 * number)
        for number, length in enumerate(lengths)
    ]
    return texts, pack(texts, rules(DUAL, pooling), batch_tokens, CPU)


def pack(texts, rules, batch_tokens, device):
    """A batch as a CPU is given it."""
    batch = lay_out(texts, rules, batch_tokens, FewSizes())
    return batch.on(torch.from_numpy(batch.buffer).to(device))


# --- the budget -----------------------------------------------------------------------------------

sizes = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30)


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(sizes, st.integers(1, 90))
def test_batches_keep_the_budget_and_lose_no_text(sizes, batch_tokens):
    texts = [dual(decoder, (range(encoder),)) for decoder, encoder in sizes]
    batches = list(split_by_tokens(texts, batch_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(texts)))
    for batch in batches:
        decoder = sum(len(texts[i].token_ids) for i in batch)
        encoder = sum(texts[i].encoder_tokens for i in batch)
        assert len(batch) == 1 or max(decoder, encoder) <= batch_tokens
    order = [len(texts[i].token_ids) for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)
    for batch, following in pairwise(batches):
        both = [*batch, following[0]]
        decoder = sum(len(texts[i].token_ids) for i in both)
        encoder = sum(texts[i].encoder_tokens for i in both)
        assert max(decoder, encoder) > batch_tokens  # or the batch was closed too early


def test_a_text_longer_than_the_budget_stands_alone():
    texts = [dual(3), dual(50), dual(3)]
    assert list(split_by_tokens(texts, 12)) == [[1], [0, 2]]


def test_no_texts_are_no_batches():
    assert list(split_by_tokens([], 10)) == []


def test_the_encoders_tokens_count_as_well():
    texts = [dual(1, (range(30),)), dual(1, (range(30),))]
    assert list(split_by_tokens(texts, 59)) == [[0], [1]]
    assert list(split_by_tokens(texts, 60)) == [[0, 1]]


# --- the buffer -----------------------------------------------------------------------------------


def tensors_of(batch):
    found = [batch.encoder_counts, batch.pooled_rows, batch.pooled_offsets]
    sequences = [batch.decoder, *(part.sequences for part in batch.encoder)]
    for packed_sequences in sequences:
        found += [packed_sequences.token_ids, packed_sequences.position_ids]
        found.append(packed_sequences.cu_seqlens)
    for part in batch.encoder:
        found += [part.offsets, *([] if part.rows is None else [part.rows])]
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1000, 4])
def test_everything_travels_in_one_buffer(pooling, batch_tokens):
    _, batch = packed(pooling=pooling, batch_tokens=batch_tokens)
    storage = batch.buffer.untyped_storage().data_ptr()
    tensors = tensors_of(batch)
    assert len(tensors) >= 10
    for tensor in tensors:
        assert tensor.dtype == torch.int32
        assert tensor.untyped_storage().data_ptr() == storage
    # The parts do not overlap.
    spans = sorted((t.storage_offset(), t.storage_offset() + t.numel()) for t in tensors)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_sequences_stand_end_to_end_and_count_from_zero():
    texts, batch = packed()
    decoder = batch.decoder
    assert decoder.lengths.tolist() == [length + 2 for length in LENGTHS]
    assert decoder.num_tokens == sum(LENGTHS) + 2 * len(LENGTHS)
    assert decoder.max_seqlen == 11
    assert batch.num_texts == len(LENGTHS)
    bounds = decoder.cu_seqlens.tolist()
    assert bounds[0] == 0
    for number, text in enumerate(texts):
        rows = slice(bounds[number], bounds[number + 1])
        assert decoder.token_ids[rows].tolist() == [-1 - number, *text.token_ids.tolist()[1:]]
        assert decoder.position_ids[rows].tolist() == list(range(len(text.token_ids)))


def context_marks(batch):
    """The rows whose ids are negative, and the text that each of them names."""
    token_ids = batch.decoder.token_ids
    rows = (token_ids < 0).nonzero().flatten()
    return rows.tolist(), (-1 - token_ids[rows]).tolist()


def test_rows_of_context_and_pooling_point_at_their_texts():
    _, batch = packed()
    starts, ends = batch.decoder.cu_seqlens[:-1], batch.decoder.cu_seqlens[1:] - 1
    assert context_marks(batch) == (starts.tolist(), list(range(len(LENGTHS))))
    assert batch.pooled_rows.view(-1, 2).tolist() == torch.stack((starts, ends), 1).tolist()
    assert batch.pooled_offsets.tolist() == list(range(2 * len(LENGTHS) + 1))


def test_a_pooled_text_entry_gives_all_its_rows():
    texts = [TokenizedText(np.arange(n + 1, dtype=np.int32), (0, 1, n + 1), ()) for n in (3, 1)]
    batch = pack(texts, rules(MEAN), 100, CPU)
    assert batch.pooled_rows.tolist() == [1, 2, 3, 5]
    assert batch.pooled_offsets.tolist() == [0, 3, 4]
    assert batch.encoder == ()
    assert context_marks(batch) == ([], [])


def test_an_entry_without_rows_is_replaced_by_the_whole_sequence():
    texts = [TokenizedText(np.array([1], dtype=np.int32), (0, 1, 1), ())]
    batch = pack(texts, rules(MEAN), 100, CPU)
    assert batch.pooled_rows.tolist() == [0]
    assert batch.pooled_offsets.tolist() == [0, 1]


def test_pooling_all_rows_gives_every_row_and_leaves_none_to_be_shared():
    ids = np.arange(12, dtype=np.int32)
    text = TokenizedText(ids, (0, 1, 11, 12), ())
    all_rows = rules(Template(("<bos>", "{prompt}{text}", "<eos>"), ("<all>", "<eos>")))
    batch = pack([text, text], all_rows, 100, CPU)
    assert batch.pooled_rows.tolist() == [*range(12), 11, *range(12, 24), 23]
    assert batch.pooled_offsets.tolist() == [0, 12, 13, 25, 26]
    assert all_rows.first_own_row(text) == 0


def test_entries_are_pooled_in_the_order_of_the_embedding():
    ids = np.array([0, 5, 6, 0, 2], dtype=np.int32)
    window = (np.array([1, 2], dtype=np.int32),)
    text = TokenizedText(ids, (0, 1, 3, 4, 5), window)
    batch = pack([text, text], rules(TWO), 100, CPU)
    assert context_marks(batch) == ([0, 3, 5, 8], [0, 0, 1, 1])
    assert text.token_ids.tolist() == ids.tolist()  # the text is left as it was
    assert batch.pooled_rows.tolist() == [3, 1, 2, 8, 6, 7]
    assert batch.pooled_offsets.tolist() == [0, 1, 3, 4, 6]


# --- the encoder's passes -------------------------------------------------------------------------


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from(["mean", "cls"]),
)
def test_windows_are_cut_into_passes_that_keep_the_budget(windows, batch_tokens, pooling):
    texts = [dual(1, [range(n) for n in lengths]) for lengths in windows]
    batch = pack(texts, rules(DUAL, pooling), batch_tokens, CPU)
    for part in batch.encoder:
        sequences = part.sequences
        assert len(sequences.lengths) == 1 or sequences.num_tokens <= batch_tokens
    found = [n for part in batch.encoder for n in part.sequences.lengths.tolist()]
    assert found == [n for lengths in windows for n in lengths]
    pooled = np.sum([part.offsets.diff().tolist() for part in batch.encoder], axis=0).tolist()
    counts = batch.encoder_counts.tolist()
    if pooling == "cls":
        assert counts == [len(lengths) for lengths in windows]
        for part in batch.encoder:
            assert part.rows.tolist() == part.sequences.cu_seqlens[:-1].tolist()
    else:
        assert counts == [sum(lengths) for lengths in windows]
        assert all(part.rows is None for part in batch.encoder)
    assert pooled == counts
    for part in batch.encoder:
        rows = part.sequences.num_tokens if part.rows is None else len(part.rows)
        assert part.offsets[0] == 0
        assert part.offsets[-1] == rows


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_windows_in_several_passes_give_the_embedding_of_one(engine, monkeypatch, pooling):
    """One long text beside short ones, read in so many windows that they exceed the budget."""
    from c2v_engine.runtime import execution

    recipe = Recipe(overflow="windows", encoder_max_length=11, encoder_pooling=pooling)
    model = engine(recipe)
    texts = ["\n".join(corpus()[:3])[:2500], "short", "", *corpus()[5:8]]
    passes = []

    def counting(*arguments):
        batch = lay_out(*arguments)
        passes.append(len(batch.on(torch.from_numpy(batch.buffer)).encoder))
        return batch

    monkeypatch.setattr(execution, "lay_out", counting)
    whole = model.encode(texts, batch_tokens=100_000)
    assert passes == [1]
    passes.clear()
    several = model.encode(texts, batch_tokens=60)
    assert max(passes) > 5
    np.testing.assert_allclose(several, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_rounded_batches_give_what_small_ones_give(engine, pooling):
    model = engine(Recipe(encoder_pooling=pooling))
    texts = [" ".join(["word"] * (number % 23)) + f" {number}" for number in range(300)]
    whole = model.encode(texts, batch_tokens=100_000)
    small = model.encode(texts, batch_tokens=200)
    # Sums in another order, some 1e-7 on a unit vector.
    np.testing.assert_allclose(whole, small, rtol=0, atol=1e-6)


def test_large_batches_have_few_sizes_and_small_ones_their_own():
    assert [FewSizes().tokens(n) for n in (1, 12, 1023, 1024, 1025, 8192)] == [
        1, 12, 1023, 1024, 1088, 8192,
    ]  # fmt: skip
    assert len({FewSizes().tokens(n) for n in range(4097, 8193)}) == 16
    assert all(n <= FewSizes().tokens(n) <= n * 1.0625 for n in range(1024, 20_000))
    assert all(n <= FewSizes().pooled(n) <= n * 1.25 for n in range(16, 5_000))
