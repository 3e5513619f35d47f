"""Batches that do not fit in memory, and batches filled up to the shapes that graphs replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus

from c2v_engine import Causal2Vec
from c2v_engine.errors import TextError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.rounding import NoRounding, WholeBlocks
from c2v_engine.runtime.graphs import GraphCache, ShapeChooser, bucket
from c2v_engine.runtime.packing import lay_out

WORDS = " ".join(corpus()).split()
TEXTS = [" ".join(WORDS[n : n + (n * 7) % 23]) for n in range(40)]
PROMPT = "Answer with all that this question needs to be answered:\n"


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- out of memory --------------------------------------------------------------------------------


class Memory:
    """In place of an execution's ``launch``: memory for so many decoder rows, and no more."""

    def __init__(self, execution, rows):
        self.rows = rows
        self.launched = []
        self.given_back = 0
        self._launch = execution.launch

    def launch(self, texts, output, batch_tokens, prompt):
        rows = sum(len(text.token_ids) - len(prompt) for text in texts)
        if rows > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        self.launched.append(rows)
        return self._launch(texts, output, batch_tokens, prompt)

    def out_of_memory(self):
        self.given_back += 1


@pytest.fixture
def short_of_memory(checkpoint, monkeypatch):
    """``short_of_memory(rows)`` gives an engine with room for so many rows, and that memory."""

    def make(rows, ahead=0):
        model = Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu", dtype="float32")
        execution = model._runner._execution
        memory = Memory(execution, rows)
        execution.launch, execution.out_of_memory = memory.launch, memory.out_of_memory
        execution.ahead = ahead
        return model, memory

    return make


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("rows", [48, 64, 200])
def test_a_batch_that_does_not_fit_is_cut_and_all_goes_on(engine, short_of_memory, rows, ahead):
    model, memory = short_of_memory(rows, ahead=ahead)
    expected = engine(Recipe()).encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert memory.given_back > 0
    assert max(memory.launched) <= rows
    assert sum(memory.launched) == model.stats.tokens


def test_later_batches_are_no_larger_than_what_did_fit(short_of_memory, monkeypatch):
    from c2v_engine.runtime import pipeline

    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", 16)
    model, memory = short_of_memory(90)
    list(model.encode_stream(TEXTS * 4, batch_tokens=300))
    # The first batch tells, halved by texts from 300 rows to under 90; then nothing fails.
    assert 0 < memory.given_back <= 4
    assert len(memory.launched) > 40


def test_one_text_that_can_not_fit_says_what_to_lower(short_of_memory):
    model, _ = short_of_memory(20)
    texts = [*["short"] * 3, " ".join(WORDS[:40])]
    with pytest.raises(TextError, match=r"do not fit in the device's memory.*max_length") as caught:
        model.encode(texts)
    assert caught.value.row == 3
    assert np.isfinite(model.encode(texts[:3])).all()  # the engine goes on after an error


def test_blocks_before_a_text_that_can_not_fit_come_first(engine, short_of_memory, monkeypatch):
    from c2v_engine.runtime import pipeline

    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", 4)
    model, _ = short_of_memory(20, ahead=2)
    stream = model.encode_stream([*"abcdefg", " ".join(WORDS[:40])])
    expected = engine(Recipe()).encode([*"abcd"])
    np.testing.assert_allclose(next(stream), expected, rtol=0, atol=1e-6)
    with pytest.raises(TextError, match="text 7"):
        next(stream)


def test_an_allocation_that_fails_on_the_cpu_counts_as_out_of_memory(checkpoint, monkeypatch):
    model = Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu", dtype="float32")
    inner = model._runner.checkpoint.model
    forward = inner.forward

    def greedy(batch, *rest):
        if batch.num_texts > 2:
            torch.empty(2**62, dtype=torch.uint8)
        return forward(batch, *rest)

    monkeypatch.setattr(inner, "forward", greedy)
    assert model.encode(TEXTS).shape == (len(TEXTS), model.dimension)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (4096, 4096)]
)
def test_a_bucket_is_the_next_power_of_two(count, expected):
    assert bucket(count) == expected
    assert bucket(count, 16) == max(16, expected)


@pytest.fixture
def tokenized(engine):
    """``tokenized(recipe, texts)`` gives a model, its rules, and the texts tokenised."""

    def make(recipe, texts, prompt=""):
        pipeline = engine(recipe)._runner
        return pipeline._execution, pipeline._tokenizer(texts, prompt)

    return make


def test_small_batches_are_filled_up_to_powers_of_two(engine, tokenized):
    execution, texts = tokenized(Recipe(), TEXTS[:9])
    chooser = ShapeChooser(execution.model.config, NoRounding())
    shape = chooser.choose(texts, 0)
    rows = sum(len(text.token_ids) for text in texts)
    encoder_rows = sum(text.encoder_tokens for text in texts)
    assert shape.texts == 16
    assert shape.decoder_tokens == bucket(rows + 7)
    assert shape.encoder_tokens == bucket(encoder_rows + 7)
    assert shape.longest == 48  # max_length: no sequence is longer
    one = chooser.choose(texts[:1], 0)
    assert (one.texts, one.decoder_tokens, one.longest) == (1, 16, 16)


def test_large_and_wasteful_batches_are_run_as_they_are(tokenized):
    execution, texts = tokenized(Recipe(), TEXTS)
    chooser = ShapeChooser(execution.model.config, NoRounding())
    assert chooser.choose(texts * 6, 0) is None  # beyond 4,096 rows
    # 33 texts of two rows would be 64, of which 31 are added: 97 rows, and a bucket of 128.
    _, empty = tokenized(Recipe(), [""])
    rows = len(empty[0].token_ids)
    batch = empty * 33
    shape = chooser.choose(batch, 0)
    assert shape is None or shape.decoder_tokens <= 2 * rows * len(batch)


def test_shapes_of_deterministic_mode_are_whole_blocks(tokenized):
    execution, texts = tokenized(Recipe(), TEXTS[:3])
    shape = ShapeChooser(execution.model.config, WholeBlocks(64)).choose(texts, 0)
    assert shape.decoder_tokens % 64 == 0
    assert shape.encoder_tokens % 64 == 0


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize(
    ("recipe", "prompt"),
    [
        (Recipe(), ""),
        (Recipe(encoder_pooling="cls"), ""),
        (Recipe(decoder="mistral", template=INSTRUCTION_FIRST), PROMPT),
        (Recipe(encoder=None, template=("{prompt}{text}", "<eos>"), pooling=("<eos>",)), PROMPT),
    ],
    ids=["dual", "cls", "instruction-first", "last-token"],
)
def test_a_batch_that_is_filled_up_gives_what_it_gives_alone(
    engine, tokenized, recipe, prompt, count
):
    execution, texts = tokenized(recipe, TEXTS[3 : 3 + count], prompt)
    pipeline = engine(recipe)._runner
    shared = pipeline._shared_prompt(prompt).token_ids
    assert bool(shared) == bool(prompt)
    model, rules = execution.model, execution.rules
    chooser = ShapeChooser(model.config, NoRounding())
    shape = chooser.choose(texts, len(shared))
    assert shape is not None
    output = OutputFormat(keep=model.decoder.shape.hidden_size)
    plain = lay_out(texts, rules, 10_000, NoRounding(), shared)
    filled = lay_out(texts, rules, 10_000, NoRounding(), shared, shape)
    assert filled.num_texts == count
    on_host = filled.on(torch.from_numpy(filled.buffer))
    assert on_host.num_texts == shape.texts
    assert on_host.decoder.num_tokens == shape.decoder_tokens
    assert sum(p.sequences.num_tokens for p in on_host.encoder) == shape.encoder_tokens
    expected, actual = execution.run(plain, output), execution.run(filled, output)
    assert actual.embeddings.shape == expected.embeddings.shape
    # Sums in another order, some 1e-7 on a unit vector.
    torch.testing.assert_close(actual.embeddings, expected.embeddings, rtol=0, atol=1e-6)


def test_batches_of_one_shape_have_one_layout(tokenized):
    """A graph reads every part of a later batch where it stood at its capture."""
    execution, texts = tokenized(Recipe(), TEXTS)
    chooser = ShapeChooser(execution.model.config, NoRounding())
    layouts = {}
    for begin in range(len(texts) - 5):
        for count in (3, 4):
            chosen = texts[begin : begin + count]
            shape = chooser.choose(chosen, 0)
            batch = lay_out(chosen, execution.rules, 10_000, NoRounding(), (), shape)
            spans = [
                (part.storage_offset(), part.numel())
                for part in tensors_of(batch.on(torch.from_numpy(batch.buffer)))
            ]
            assert layouts.setdefault(shape, spans) == spans
    assert 1 < len(layouts) < 20


def tensors_of(batch):
    parts = [batch.decoder, *(part.sequences for part in batch.encoder)]
    found = [batch.encoder_counts, batch.pooled_rows, batch.pooled_offsets]
    for part in parts:
        found += [part.token_ids, part.position_ids, part.cu_seqlens]
    return found + [part.offsets for part in batch.encoder]


def test_a_capture_is_made_for_the_longest_sequences_of_its_shape(tokenized):
    execution, texts = tokenized(Recipe(), TEXTS[:5])
    shape = ShapeChooser(execution.model.config, NoRounding()).choose(texts, 0)
    batch = lay_out(texts, execution.rules, 10_000, NoRounding(), (), shape)
    longest = batch.with_longest_sequences().on(torch.from_numpy(batch.buffer))
    assert longest.decoder.max_seqlen == shape.longest
    assert longest.encoder[0].sequences.max_seqlen == shape.encoder_longest
    assert longest.decoder.num_tokens == shape.decoder_tokens


def test_a_graph_serves_its_shape_output_and_prompt_alone(tokenized, monkeypatch):
    from c2v_engine.runtime import graphs

    execution, texts = tokenized(Recipe(), TEXTS[:5])
    chooser = ShapeChooser(execution.model.config, NoRounding())
    captured = []

    def capture(batch, output):
        captured.append((batch.shape, output))
        return lambda buffer, ranges: (buffer, buffer)

    cache = GraphCache()

    def ask(count, keep=8, precision="float32", ranges=None):
        shape = chooser.choose(texts[:count], 0)
        batch = lay_out(texts[:count], execution.rules, 10_000, NoRounding(), (), shape)
        output = OutputFormat(keep, precision=precision, ranges=ranges)
        return cache.replay_for(batch, output, capture)

    assert ask(1) is None  # what is met once may never come again
    first = ask(1)
    assert ask(1) is first is not None
    assert len(captured) == 1
    for _ in range(2):
        ranges = torch.zeros(2, 16)  # a graph has ranges of its own, so theirs may be any tensor
        different = [ask(4), ask(1, keep=4), ask(1, precision="int8", ranges=ranges)]
    assert len({id(replay) for replay in (first, *different)}) == 4
    assert ask(1, precision="int8", ranges=ranges.clone()) is different[-1]
    assert len(captured) == 4
    monkeypatch.setattr(graphs, "_KEPT_GRAPHS", 2)
    ask(5)
    assert len(cache) == 1  # of the two kept, one was met once


def test_what_has_no_memory_for_a_graph_is_run_as_it_is(tokenized):
    execution, texts = tokenized(Recipe(), TEXTS[:1])
    shape = ShapeChooser(execution.model.config, NoRounding()).choose(texts, 0)
    batch = lay_out(texts, execution.rules, 10_000, NoRounding(), (), shape)
    tried = []

    def capture(batch, output):
        tried.append(batch)
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    cache = GraphCache()
    for _ in range(4):
        assert cache.replay_for(batch, OutputFormat(8), capture) is None
    assert len(tried) == 1
    cache.clear()
    for _ in range(2):
        cache.replay_for(batch, OutputFormat(8), capture)
    assert len(tried) == 2  # memory was given back


def test_texts_read_in_several_windows_have_no_shape(tokenized):
    """How many windows there are differs between batches of the same counts."""
    execution, texts = tokenized(Recipe(overflow="windows", encoder_max_length=11), TEXTS[:9])
    chooser = ShapeChooser(execution.model.config, NoRounding())
    assert any(len(text.windows) > 1 for text in texts)
    assert chooser.choose(texts, 0) is None
    assert chooser.choose([text for text in texts if len(text.windows) == 1], 0) is not None


def test_a_windowed_text_gets_the_same_passes_beside_any_other_in_deterministic_mode(tokenized):
    recipe = Recipe(overflow="windows", encoder_max_length=11)
    execution, texts = tokenized(recipe, TEXTS[:9])
    batch = lay_out(texts, execution.rules, 30, WholeBlocks(64))
    passes = batch.on(torch.from_numpy(batch.buffer)).encoder
    assert len(passes) > 2
    counts = torch.stack([part.offsets.diff() for part in passes])
    assert ((counts > 0).sum(dim=0) == 1).all()  # every text in one pass alone


def test_a_prompt_filled_up_to_blocks_stays_in_the_rotary_table(checkpoint):
    model = Causal2Vec.from_pretrained(
        checkpoint(Recipe(decoder="qwen3", template=INSTRUCTION_FIRST)), device="cpu"
    )
    inner = model._runner.checkpoint.model
    inner.rounding = WholeBlocks(1024)  # a GPU's; the table has 48 rows
    inner.prompt_states(tuple(range(9)))


def test_a_prompts_copies_count_for_the_budget(tokenized, engine):
    recipe = Recipe(decoder="mistral", template=INSTRUCTION_FIRST)
    model = engine(recipe)
    pipeline = model._runner
    rows = len(pipeline._shared_prompt(PROMPT).token_ids)
    cost = pipeline.checkpoint.model.prompt_cost(rows)
    assert 0 < cost < rows
    before = model.stats.batches
    texts = [f"{n}" for n in range(64)]
    model.encode(texts, prompt=PROMPT, batch_tokens=10 * (cost + 4))
    assert model.stats.batches - before >= 6


def test_an_engine_that_is_dropped_frees_its_weights_at_once(checkpoint):
    import gc
    import weakref

    model = Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu")
    model.encode("a text")
    seen = weakref.ref(model._runner.checkpoint.model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        gc.enable()
