"""The way of a batch: order, bounded look-ahead, rows of errors, and what is counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from checkpoints import Recipe, corpus

from c2v_engine.errors import TextError
from c2v_engine.runtime import execution, pipeline
from c2v_engine.runtime.packing import lay_out

WORDS = " ".join(corpus()).split()
TEXTS = [" ".join(WORDS[n : n + (n * 7) % 23]) for n in range(64)]
WINDOW = 10


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(engine):
    return engine(Recipe())


@pytest.fixture
def expected(model):
    return model.encode(TEXTS)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", WINDOW)


class Source:
    """An iterable that counts how far it was read."""

    def __init__(self, texts):
        self.texts = texts
        self.read = 0

    def __iter__(self):
        for text in self.texts:
            self.read += 1
            yield text


# --- order and look-ahead -------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_blocks_joined_are_the_embeddings_in_order(model, expected, monkeypatch, window, chunk):
    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", window)
    monkeypatch.setattr(pipeline, "_CHUNK_TEXTS", chunk)
    blocks = list(model.encode_stream(iter(TEXTS), batch_tokens=90))
    assert [len(block) for block in blocks[:-1]] == [window] * (len(blocks) - 1)
    assert sum(map(len, blocks)) == len(TEXTS)
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=0, atol=1e-6)


def test_nothing_is_read_before_the_first_block_is_asked_for(model, small_windows):
    source = Source(TEXTS)
    stream = model.encode_stream(source)
    assert source.read == 0
    next(stream)
    assert source.read > 0


def test_no_more_than_two_windows_are_read_ahead(model, small_windows):
    source = Source(TEXTS)
    returned = 0
    for block in model.encode_stream(source):
        assert source.read - returned <= 2 * WINDOW
        returned += len(block)
    assert returned == source.read == len(TEXTS)


def test_an_endless_source_is_served(model, small_windows):
    def endless():
        number = 0
        while True:
            yield f"text {number % 5}"
            number += 1

    stream = model.encode_stream(endless())
    first, second = next(stream), next(stream)
    assert np.array_equal(first, second)  # windows of ten begin with the same text


def test_windows_are_bounded_by_characters_too(model, monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_CHARACTERS", 5000)
    source = Source(["word " * 600] * 20)
    stream = model.encode_stream(source)
    assert len(next(stream)) == 2
    assert source.read == 4


def test_an_empty_source_gives_no_block(model):
    assert list(model.encode_stream([])) == []
    assert list(model.encode_stream(iter(()))) == []


def test_streams_of_one_engine_do_not_disturb_each_other(model, expected, small_windows):
    streams = [model.encode_stream(TEXTS), model.encode_stream(reversed(TEXTS))]
    forward, backward = [], []
    for first, second in zip(*streams, strict=True):
        forward.append(first)
        backward.append(second)
    np.testing.assert_allclose(np.concatenate(forward), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(backward), expected[::-1], rtol=0, atol=1e-6)


def tokenizing_threads():
    return [t for t in threading.enumerate() if t.name.startswith("c2v-tokenize")]


@pytest.mark.parametrize("how", ["closed", "failed", "finished"])
def test_no_thread_is_left_behind(model, small_windows, how):
    texts = [*TEXTS[:25], 3, *TEXTS] if how == "failed" else TEXTS
    stream = model.encode_stream(texts)
    next(stream)
    if how == "closed":
        stream.close()
        del stream
    elif how == "failed":
        with pytest.raises(TextError):
            list(stream)
    else:
        list(stream)
    deadline = time.monotonic() + 20
    while tokenizing_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tokenizing_threads() == []


def test_a_source_that_fails_is_not_hidden(model, small_windows):
    def broken():
        yield from TEXTS[:15]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(model.encode_stream(broken()))


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 40, 200])
@pytest.mark.parametrize("chunk", [3, 256])
def test_batches_keep_the_budget_over_chunks(model, monkeypatch, batch_tokens, chunk):
    monkeypatch.setattr(pipeline, "_CHUNK_TEXTS", chunk)
    batches = []

    def recording(texts, *arguments):
        batches.append([(len(text.token_ids), text.encoder_tokens) for text in texts])
        return lay_out(texts, *arguments)

    monkeypatch.setattr(execution, "lay_out", recording)
    model.encode(TEXTS, batch_tokens=batch_tokens)
    assert sum(map(len, batches)) == len(set(TEXTS))
    for batch in batches:
        decoder, encoder = (sum(part) for part in zip(*batch, strict=True))
        assert len(batch) == 1 or max(decoder, encoder) <= batch_tokens
    if batch_tokens == 200:
        assert len(batches) < len(TEXTS) / 2


def test_stats_count_texts_tokens_and_batches(checkpoint):
    from c2v_engine import Causal2Vec

    fresh = Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu", dtype="float32")

    def counted():
        return [getattr(fresh.stats, n) for n in ("texts", "tokens", "encoder_tokens", "batches")]

    assert counted() == [0, 0, 0, 0]
    fresh.encode("")
    assert counted() == [1, 2, 2, 1]
    before = fresh.stats.tokens
    fresh.encode(["one two three"])
    once = fresh.stats.tokens - before
    before = fresh.stats.tokens
    fresh.encode(["one two three"] * 50)
    assert fresh.stats.tokens - before == once  # equal texts are computed once
    assert fresh.stats.texts == 52
    assert fresh.stats.batches == 3
    fresh.encode(["a", "b"], batch_tokens=1)
    assert fresh.stats.batches == 5


# --- rows of errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 9, 10, 37])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(None, "is NoneType"), (4.5, "is float"), (b"x", "is bytes"), ("a\udfff", "surrogates")],
)
def test_a_bad_text_is_named_by_its_absolute_row(model, small_windows, row, bad, reason):
    texts = [*TEXTS[:row], bad, *TEXTS[row:]]
    for run in (model.encode, lambda items: list(model.encode_stream(iter(items)))):
        with pytest.raises(TextError, match=reason) as caught:
            run(texts)
        assert caught.value.row == row
        assert str(caught.value).startswith(f"text {row}: ")


def test_blocks_before_a_bad_row_come_first(model, expected, small_windows):
    stream = model.encode_stream([*TEXTS[:35], None])
    blocks = [next(stream), next(stream)]
    np.testing.assert_allclose(np.concatenate(blocks), expected[:20], rtol=0, atol=1e-6)
    with pytest.raises(TextError, match="text 35"):
        list(stream)


def test_a_spoilt_embedding_is_named_by_its_absolute_row(checkpoint, tmp_path, small_windows):
    from checkpoints import tokenizer
    from damage import copy, edit_weights, open_engine

    [token, *_] = tokenizer("llama")("Zürich", add_special_tokens=False)["input_ids"]
    texts = [text.replace("Z", "") for text in TEXTS]
    texts[33] = "Zürich"
    path = copy(checkpoint(Recipe()), tmp_path)

    def spoil(tensors):
        tensors["embed_tokens.weight"][token] = torch.nan

    edit_weights(path / "decoder/model.safetensors", spoil)
    spoilt = open_engine(path)
    with pytest.raises(TextError, match=r"text 33: .*not finite"):
        list(spoilt.encode_stream(iter(texts)))
    assert np.isfinite(spoilt.encode(texts[:33])).all()  # the engine goes on after an error


def test_a_prompt_too_long_names_a_row_that_has_no_room(model, small_windows):
    with pytest.raises(TextError, match="max_length 48") as caught:
        list(model.encode_stream(TEXTS, prompt="very long " * 60))
    assert 0 <= caught.value.row < WINDOW
