"""What makes batches fast on a GPU: no waiting, graphs, workspace, shared prompts, 8 bits."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus

from c2v_engine import Causal2Vec
from c2v_engine.errors import TextError
from c2v_engine.model.device import why_not_float8

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

WORDS = " ".join(corpus()).split()
GENERATOR = np.random.default_rng(7)
TEXTS = ["", "one"] + [
    " ".join(WORDS[start : start + length])
    for start, length in zip(
        GENERATOR.integers(0, len(WORDS) - 60, 60), GENERATOR.integers(1, 60, 60), strict=True
    )
]
TEXTS = list(dict.fromkeys(TEXTS))
PROMPT = "Answer with all that this question needs to be answered:\n"
DUAL, BEHIND = Recipe(), Recipe(decoder="mistral", template=INSTRUCTION_FIRST)
HALF_COSINE = 0.999
# FlashAttention takes no heads as small as the tiny encoders', and what serves them otherwise
# launches by the lengths of a batch, which no graph can hold.
CAPTURABLE = "packed_triton"
COMPOSITIONS = 200


@pytest.fixture(scope="module")
def on_gpu(checkpoint):
    @functools.cache
    def load(recipe=DUAL, dtype="bfloat16", **options):
        return Causal2Vec.from_pretrained(checkpoint(recipe), device="cuda", dtype=dtype, **options)

    return load


def assert_alike(actual, expected):
    assert np.isfinite(actual).all()
    assert (actual * expected).sum(axis=1).min() >= HALF_COSINE


# --- nothing waits --------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "replayed"])
@pytest.mark.parametrize(("recipe", "prompt"), [(DUAL, ""), (BEHIND, PROMPT)])
def test_no_step_between_launch_and_result_waits_for_the_device(on_gpu, recipe, prompt, graphs):
    model = on_gpu(recipe, cuda_graphs=graphs, attention=CAPTURABLE)
    pipeline = model._runner
    expected = model.encode(TEXTS, prompt=prompt)  # compiles, captures, and computes the prompt
    texts = pipeline._tokenizer(TEXTS, prompt)
    shared = pipeline._shared_prompt(prompt).token_ids
    from c2v_engine.model.pooling import OutputFormat

    output = OutputFormat(keep=model.dimension // 2)
    assert all(pipeline._shared_prompt(prompt).begins(text) for text in texts) == bool(prompt)
    execution = pipeline._execution
    for _ in range(3):  # every slot's buffers are there
        execution.launch(texts, output, 4096, shared).result()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        flights = [execution.launch(texts, output, 4096, shared) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for flight in flights:
        assert_alike(flight.result().embeddings.numpy(), expected)


def test_two_streams_and_a_given_up_one_do_not_disturb_each_other(on_gpu):
    model = on_gpu()
    expected = model.encode(TEXTS)
    given_up = model.encode_stream(TEXTS * 3, batch_tokens=100)
    next(given_up)
    streams = [model.encode_stream(texts, batch_tokens=100) for texts in (TEXTS, TEXTS[::-1])]
    given_up.close()
    forward, backward = (np.concatenate(list(stream)) for stream in streams)
    assert_alike(forward, expected)
    assert_alike(backward, expected[::-1])


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "prompt"), [(DUAL, ""), (BEHIND, PROMPT)])
def test_replays_give_what_launches_give(on_gpu, recipe, prompt):
    launched = on_gpu(recipe, cuda_graphs=False).encode(TEXTS, prompt=prompt)
    model = on_gpu(recipe, attention=CAPTURABLE)
    graphs = model._runner._execution.graphs
    for count in (1, 2, 5, 11):
        for begin in range(0, len(TEXTS) - count, 7):
            part = slice(begin, begin + count)
            # The second time it is replayed for certain, with other lengths than at its capture.
            assert_alike(model.encode(TEXTS[part], prompt=prompt), launched[part])
    assert len(graphs) > 2


def test_graphs_are_dropped_where_memory_is_short_and_captured_again(on_gpu):
    model = on_gpu(attention=CAPTURABLE)
    for _ in range(2):
        expected = model.encode(TEXTS[:3])
    assert len(model._runner._execution.graphs) > 0
    model._runner._execution.out_of_memory()
    assert len(model._runner._execution.graphs) == 0
    assert_alike(model.encode(TEXTS[:3]), expected)


# --- memory ---------------------------------------------------------------------------------------


def test_a_corpus_takes_no_memory_beyond_its_workspace(on_gpu):
    model = on_gpu(cuda_graphs=False)
    model.encode(TEXTS * 20, batch_tokens=2000)
    before = torch.cuda.memory_reserved()
    for budget in (1999, 1500, 1777, 300):
        model.encode([f"{text} {budget}" for text in TEXTS * 20], batch_tokens=budget)
    # Small tensors beside it come in blocks of 2 MB.
    assert torch.cuda.memory_reserved() - before <= 16 * 2**20


def test_a_batch_that_does_not_fit_is_cut(on_gpu, checkpoint):
    model = Causal2Vec.from_pretrained(checkpoint(DUAL), device="cuda", cuda_graphs=False)
    expected = on_gpu().encode(TEXTS)
    inner = model._runner.checkpoint.model
    forward = inner.forward

    def greedy(batch, *rest):
        if batch.num_texts > 5:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return forward(batch, *rest)

    inner.forward = greedy
    assert_alike(model.encode(TEXTS), expected)

    def greedier(batch, *rest):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    inner.forward = greedier
    with pytest.raises(TextError, match="do not fit in the device's memory"):
        model.encode(TEXTS[:2])


# --- shared prompts, deterministic mode, float8 ---------------------------------------------------


@pytest.mark.parametrize("attention", ["auto", "packed_triton", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_computed_once_gives_what_it_gives_in_every_text(on_gpu, dtype, attention):
    options = {"dtype": dtype, "attention": attention}
    apart = on_gpu(BEHIND, share_prompts=False, **options).encode(TEXTS, prompt=PROMPT)
    shared = on_gpu(BEHIND, **options).encode(TEXTS, prompt=PROMPT)
    if dtype == "float32":
        np.testing.assert_allclose(shared, apart, rtol=0, atol=1e-5)
    else:
        assert_alike(shared, apart)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("recipe", "prompt"), [(DUAL, ""), (BEHIND, PROMPT)])
def test_deterministic_mode_keeps_every_bit(on_gpu, recipe, prompt, dtype):
    model = on_gpu(recipe, dtype=dtype, deterministic=True)
    alone = np.stack([model.encode(text, prompt=prompt) for text in TEXTS])
    for seed in range(COMPOSITIONS // 6):
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(TEXTS))[: generator.integers(1, len(TEXTS))]
        budget = int(generator.choice([1, 300, 1500, 20_000]))
        texts = [TEXTS[i] for i in chosen]
        vectors = model.encode(texts, prompt=prompt, batch_tokens=budget)
        assert np.array_equal(vectors, alone[chosen]), seed


@pytest.mark.parametrize("recipe", [DUAL, Recipe(decoder="qwen2")], ids=["llama", "qwen2"])
def test_float8_points_where_bfloat16_does(on_gpu, recipe):
    reason = why_not_float8(torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    actual = on_gpu(recipe, dtype="float8").encode(TEXTS)
    expected = on_gpu(recipe).encode(TEXTS)
    cosines = (actual * expected).sum(axis=1)
    # The bounds for layers 64 wide: see test_eight_bits.
    assert cosines.mean() >= 0.995
    assert cosines.min() >= 0.99


def test_two_processes_on_one_gpu_share_the_texts(on_gpu, checkpoint):
    expected = on_gpu().encode(TEXTS)
    with Causal2Vec.from_pretrained(checkpoint(DUAL), devices=[0, 0]) as model:
        assert_alike(model.encode(TEXTS), expected)
