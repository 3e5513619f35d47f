"""The way of a batch to a GPU and back, on a stand-in: order, buffers, copies and graphs.

The stand-in's streams do what they are told at once, on the CPU: what is tested is which buffers
are read and written when, not that a GPU keeps the order. ``gpu/test_cuda_speed.py`` does that.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus
from interpreter import poisoned_memory, triton_on_cpu

from c2v_engine import Causal2Vec
from c2v_engine.errors import TextError
from c2v_engine.model.attention import base
from c2v_engine.model.attention.packed_triton import PackedTritonAttention
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime import cuda_execution, pipeline
from c2v_engine.runtime.cuda_execution import CudaExecution

WORDS = " ".join(corpus()).split()
TEXTS = [" ".join(WORDS[n : n + (n * 7) % 23]) for n in range(48)]
PROMPT = "Answer with all that this question needs to be answered:\n"


class FakeStream:
    def __init__(self, device=None):
        self.waits = []

    def wait_stream(self, stream):
        self.waits.append(stream)

    def wait_event(self, event):
        self.waits.append(event)

    def synchronize(self):
        pass


class FakeEvent:
    def __init__(self):
        self.recorded = None
        self.waited = 0

    def record(self, stream):
        self.recorded = stream

    def synchronize(self):
        assert self.recorded is not None, "nothing to wait for"
        self.waited += 1


class FakePool:
    """Counts what is allocated while it is in use."""

    entered = 0


@contextmanager
def use_pool(pool, device):
    pool.entered += 1
    yield


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    default = FakeStream()
    for name, value in {
        "Stream": FakeStream,
        "Event": FakeEvent,
        "MemPool": FakePool,
        "use_mem_pool": use_pool,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "current_stream": lambda device: default,
        "graph_pool_handle": lambda: None,
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "get_allocator_backend": lambda: "native",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        cuda_execution, "_page_locked", lambda n, dtype: torch.empty(n, dtype=dtype)
    )
    monkeypatch.setattr(cuda_execution, "triton_serves", lambda device: True)
    yield
    torch.set_num_threads(threads)


def with_lengths_of_buffer(batch):
    """A GPU's kernels read lengths from the buffer, those of the CPU the host's, of the capture."""

    def told(sequences):
        lengths = sequences.cu_seqlens.diff().numpy().astype(np.int64)
        keys = getattr(sequences, "keys", None)
        changes = {} if keys is None else {"keys": told(keys)}
        return replace(sequences, lengths=lengths, **changes)

    passes = tuple(replace(part, sequences=told(part.sequences)) for part in batch.encoder)
    return replace(batch, decoder=told(batch.decoder), encoder=passes)


class Captures:
    """In place of a capture: computes from the graph's own buffer at every replay."""

    def __init__(self, execution):
        self.execution = execution
        self.shapes = []
        self.replays = 0

    def __call__(self, batch, output):
        model = self.execution.model
        states = model.prompt_states(batch.prompt) if batch.prompt else None
        own = torch.from_numpy(batch.buffer.copy())
        output = replace(output, ranges=None if output.ranges is None else output.ranges.clone())
        self.shapes.append(batch.shape)

        def replay(buffer, ranges):
            own.copy_(buffer)
            if ranges is not None:
                output.ranges.copy_(ranges)
            self.replays += 1
            return model.forward(with_lengths_of_buffer(batch.on(own)), output, states)

        return replay


@pytest.fixture
def on_gpu(checkpoint, monkeypatch):
    """``on_gpu(recipe)`` gives an engine whose batches go by way of a GPU's stand-in."""

    def make(recipe, graphs=False):
        model = Causal2Vec.from_pretrained(checkpoint(recipe), device="cpu", dtype="float32")
        pipeline = model._runner
        inner = pipeline.checkpoint.model
        if graphs:
            monkeypatch.setattr(type(inner.attention), "capturable", True)
        execution = CudaExecution(inner, pipeline._execution.rules, 4096, graphs)
        captures = execution._capture = Captures(execution)
        pipeline._execution = execution
        return model, execution, captures

    return make


@pytest.mark.parametrize("batch_tokens", [60, 300, 100_000])
@pytest.mark.parametrize("precision", ["float32", "binary"])
def test_every_text_gets_its_own_vector(engine, on_gpu, batch_tokens, precision):
    model, execution, _ = on_gpu(Recipe())
    expected = engine(Recipe()).encode(TEXTS, precision=precision)
    actual = model.encode(TEXTS, precision=precision, batch_tokens=batch_tokens)
    if precision == "binary":
        assert np.array_equal(actual, expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert execution._pool.entered == model.stats.batches


def test_a_batch_is_copied_once_each_way(on_gpu, monkeypatch):
    model, execution, _ = on_gpu(Recipe())
    counted = {"there": 0, "back": 0}
    send, receive = execution._send, execution._receive

    def count(name, call):
        def counted_call(*arguments):
            counted[name] += 1
            return call(*arguments)

        return counted_call

    monkeypatch.setattr(execution, "_send", count("there", send))
    monkeypatch.setattr(execution, "_receive", count("back", receive))
    model.encode(TEXTS, batch_tokens=100)
    assert counted == {"there": model.stats.batches, "back": model.stats.batches}
    assert model.stats.batches > 3


def test_batches_are_launched_before_the_first_is_waited_for(on_gpu, monkeypatch):
    model, execution, _ = on_gpu(Recipe())
    under_way, most = [], 0
    launch = execution._launch

    def counting(batch, output):
        nonlocal most
        flight = launch(batch, output)
        under_way.append(flight)
        most = max(most, sum(flight._embedded is None for flight in under_way))
        return flight

    monkeypatch.setattr(execution, "_launch", counting)
    model.encode(TEXTS, batch_tokens=60)
    assert most == execution.ahead + 1
    assert all(flight._embedded is not None for flight in under_way)


def test_the_first_chunk_is_launched_without_waiting_for_those_behind_it(
    engine, on_gpu, monkeypatch
):
    monkeypatch.setattr(pipeline, "_FIRST_CHUNKS", (4, 8))
    expected = engine(Recipe()).encode(TEXTS)
    model, execution, _ = on_gpu(Recipe())
    tokenizer, launch = model._runner._tokenizer, execution._launch
    launched, tokenised = threading.Event(), []

    def waiting(texts, prompt):
        if len(texts) > 4:
            assert launched.wait(60), "the first batch waits for the second chunk"
        tokenised.append(len(texts))
        return tokenizer(texts, prompt)

    def noting(batch, output):
        launched.set()
        return launch(batch, output)

    monkeypatch.setattr(model._runner, "_tokenizer", waiting)
    monkeypatch.setattr(model._runner, "_share_prompts", False)
    monkeypatch.setattr(execution, "_launch", noting)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert sorted(tokenised) == [4, 8, len(set(TEXTS)) - 12]


def test_a_result_that_two_threads_ask_for_leaves_the_next_owner_alone(on_gpu, monkeypatch):
    """The one that waits for it is overtaken, between reading and letting go, by a launch."""
    model, execution, _ = on_gpu(Recipe())
    runner = model._runner
    texts = runner._tokenizer(TEXTS[:3], "")
    output = OutputFormat(keep=model.dimension // 2)
    first = execution.launch(texts, output, 1000, ())
    slot = first._slot
    reading, overtaken = threading.Event(), threading.Event()
    split = cuda_execution._Layout.split

    def slow(self, flat):
        found = split(self, flat)
        reading.set()
        overtaken.wait(0.3)
        return found

    monkeypatch.setattr(cuda_execution._Layout, "split", slow)
    waiting = threading.Thread(target=first.result)
    waiting.start()
    reading.wait()
    flights = [execution.launch(texts, output, 1000, ()) for _ in range(3)]
    overtaken.set()
    waiting.join()
    assert slot.owner in flights
    assert slot.output is not None
    for flight in flights:
        assert torch.equal(flight.result().embeddings, first.result().embeddings)


def test_a_slot_is_not_overwritten_before_its_result_was_taken(engine, on_gpu):
    """Two streams interleaved, and one that is given up: more batches under way than slots."""
    model, execution, _ = on_gpu(Recipe())
    expected = engine(Recipe()).encode(TEXTS)
    given_up = model.encode_stream(TEXTS, batch_tokens=60)
    next(given_up)
    first, second = (model.encode_stream(texts, batch_tokens=60) for texts in (TEXTS, TEXTS[::-1]))
    given_up.close()
    forward, backward = next(first), next(second)
    np.testing.assert_allclose(forward, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(backward, expected[::-1], rtol=0, atol=1e-6)
    assert {id(slot.owner) for slot in execution._slots} == {id(None)}


@pytest.mark.parametrize(
    ("recipe", "prompt"),
    [(Recipe(), ""), (Recipe(decoder="qwen3", template=INSTRUCTION_FIRST), PROMPT)],
    ids=["dual", "instruction-first"],
)
def test_small_batches_are_replayed(engine, on_gpu, recipe, prompt):
    model, _, captures = on_gpu(recipe, graphs=True)
    expected = engine(recipe).encode(TEXTS, prompt=prompt)
    for _ in range(2):
        for begin in range(0, len(TEXTS), 3):
            part = slice(begin, begin + 3)
            actual = model.encode(TEXTS[part], prompt=prompt)
            np.testing.assert_allclose(actual, expected[part], rtol=0, atol=1e-6)
    assert len(set(captures.shapes)) == len(captures.shapes) < captures.replays
    # But for first meetings, and those whose next power of two would be over twice their rows.
    assert model.stats.batches > captures.replays > model.stats.batches / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the kernels itself")
@pytest.mark.parametrize(
    ("recipe", "prompt"),
    [(Recipe(), ""), (Recipe(decoder="qwen3", template=INSTRUCTION_FIRST), PROMPT)],
    ids=["dual", "instruction-first"],
)
def test_batches_that_are_filled_up_go_through_the_triton_kernels(
    engine, on_gpu, monkeypatch, recipe, prompt
):
    """Sequences of no text, and rows of none, stand in them behind the texts' own."""
    pytest.importorskip("triton")
    expected = engine(recipe).encode(TEXTS[:6], prompt=prompt)
    model, execution, captures = on_gpu(recipe, graphs=True)
    inner = execution.model
    monkeypatch.setattr(inner, "attention", PackedTritonAttention())
    if inner.context is not None:
        monkeypatch.setattr(
            inner, "context", replace(inner.context, attention=PackedTritonAttention())
        )
    monkeypatch.setattr(base, "triton_serves", lambda device: True)
    with triton_on_cpu() as calls, poisoned_memory():
        for part in (slice(1, 2), slice(2, 3), slice(0, 3), slice(3, 6), slice(1, 2)):
            actual = model.encode(TEXTS[part], prompt=prompt)
            np.testing.assert_allclose(actual, expected[part], rtol=0, atol=1e-5)
    assert calls["packed_attention"] >= 5 * inner.decoder.shape.num_layers
    assert captures.replays > 0


def test_ranges_may_change_between_replays(engine, on_gpu):
    model, _, captures = on_gpu(Recipe(), graphs=True)
    plain = engine(Recipe())
    for scale in (0.1, 0.2, 0.3, 0.4):
        ranges = np.stack([np.full(model.dimension, -scale), np.full(model.dimension, scale)])
        options = {"precision": "int8", "ranges": ranges.astype(np.float32)}
        expected = plain.encode(TEXTS[:3], **options).astype(int)
        # A value at the edge of a level may fall on either side.
        assert np.abs(model.encode(TEXTS[:3], **options).astype(int) - expected).max() <= 1
    assert len(captures.shapes) == 1


def test_a_warm_up_captures_every_size_of_one_text_and_of_many(on_gpu):
    model, _, captures = on_gpu(Recipe(), graphs=True)
    model.warmup()
    sizes = {shape.decoder_tokens for shape in captures.shapes}
    assert sizes == {16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
    assert {shape.decoder_tokens for shape in captures.shapes if shape.texts == 1} >= {16, 32, 64}
    captured = len(captures.shapes)
    model.encode(TEXTS[5])
    assert len(captures.shapes) == captured  # the first text is replayed


def test_a_warm_up_behind_a_prompt_is_for_that_prompt(on_gpu):
    recipe = Recipe(decoder="qwen3", template=INSTRUCTION_FIRST)
    model, execution, captures = on_gpu(recipe, graphs=True)
    model.warmup(prompt=PROMPT)
    assert {bool(key.prompt) for key in execution.graphs._replays} == {True}
    captured = len(captures.shapes)
    model.encode("short", prompt=PROMPT)
    assert len(captures.shapes) == captured


def test_mean_pooling_over_text_is_run_as_it_is(engine, on_gpu):
    recipe = Recipe(encoder=None, template=("<bos>", "{text}"), pooling=("{text}",))
    model, _, captures = on_gpu(recipe, graphs=True)
    expected = engine(recipe).encode(TEXTS[:4])
    np.testing.assert_allclose(model.encode(TEXTS[:4]), expected, rtol=0, atol=1e-6)
    assert captures.replays == 0


def test_the_workspace_holds_the_largest_batch_from_the_first_on(on_gpu, monkeypatch):
    model, execution, _ = on_gpu(Recipe())
    sizes = []
    monkeypatch.setattr(execution, "_reserve", lambda: sizes.append(execution._reserved))
    model.encode(TEXTS[:2])
    assert sizes == [False]
    monkeypatch.undo()
    assert execution.batch_tokens == 4096


def test_lack_of_memory_drops_the_graphs_and_goes_on(engine, on_gpu, monkeypatch):
    model, execution, captures = on_gpu(Recipe(), graphs=True)
    expected = engine(Recipe()).encode(TEXTS)
    for _ in range(2):
        model.encode(TEXTS[:2])
    assert len(execution.graphs) == 1
    run = execution._run
    failed = []

    def scarce(batch, output, buffer):
        if batch.num_texts > 9:
            failed.append(batch.num_texts)
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return run(batch, output, buffer)

    monkeypatch.setattr(execution, "_run", scarce)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert failed
    for _ in range(2):
        model.encode(TEXTS[:2])
    assert captures.shapes[0] in captures.shapes[1:]  # captured again after it was dropped


def test_what_is_not_finite_is_named_by_its_row(on_gpu, monkeypatch):
    model, execution, _ = on_gpu(Recipe())
    run = execution._run

    def spoilt(batch, output, buffer):
        embeddings, norms = run(batch, output, buffer)
        return embeddings, norms.index_fill(0, torch.tensor([0]), torch.nan)

    monkeypatch.setattr(execution, "_run", spoilt)
    with pytest.raises(TextError, match="text 2: its embedding is not finite"):
        model.encode(["a", "b", "the longest of them all"])
