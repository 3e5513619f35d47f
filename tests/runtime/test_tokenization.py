"""Texts to token ids: the template's rows, what stays when a text is too long, and bad texts."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import Recipe, corpus
from checkpoints import tokenizer as trained
from damage import assert_refused
from tokenizers import Tokenizer

from c2v_engine.errors import CheckpointError, TextError
from c2v_engine.model.checkpoint import load_transformers_config
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig
from c2v_engine.model.template import Template
from c2v_engine.runtime.tokenization import (
    CheckpointTokenizer,
    DecoderTokenizer,
    EncoderTokenizer,
    plain_backend,
)

CONTEXT_FIRST = ("<context>", "{prompt}{text}", "<eos>")
INSTRUCTION_FIRST = ("<bos>", "{prompt}", "<context>", "{text}", "<eos>")
BOS, EOS = 0, 1  # of the byte-level tokenizer
LONG = " ".join(" ".join(corpus()).split()[:300])


def decoder_tokenizer(template, max_length=64, name="llama"):
    pooled = Template(template, (0,))
    return DecoderTokenizer(plain_backend(trained(name)), pooled, max_length, BOS, EOS)


def plain_ids(text, name="llama"):
    return trained(name)(text, add_special_tokens=False)["input_ids"]


def encoder_tokenizer(**options):
    return EncoderTokenizer(plain_backend(trained("bert")), EncoderConfig(**options))


# --- the decoder's sequence -----------------------------------------------------------------------


def test_prompt_and_text_of_one_entry_are_one_string():
    [(ids, bounds, _)] = decoder_tokenizer(CONTEXT_FIRST)(["cat food"], "the ")
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, *plain_ids("the cat food"), EOS]
    assert bounds == (0, 1, len(ids) - 1, len(ids))


def test_every_entry_has_its_bounds():
    [(ids, bounds, _)] = decoder_tokenizer(INSTRUCTION_FIRST)(["cat food"], "the ")
    prompt, text = plain_ids("the "), plain_ids("cat food")
    assert ids.tolist() == [BOS, *prompt, 0, *text, EOS]
    first = 1 + len(prompt)
    assert bounds == (0, 1, first, first + 1, first + 1 + len(text), len(ids))


def test_an_empty_text_has_the_template_alone():
    [(ids, bounds, _)] = decoder_tokenizer(CONTEXT_FIRST)([""], "")
    assert ids.tolist() == [0, EOS]
    assert bounds == (0, 1, 1, 2)


@pytest.mark.parametrize("max_length", range(3, 40))
def test_only_the_text_is_shortened_and_from_the_right(max_length):
    prompt = plain_ids("the ")
    tokenizer = decoder_tokenizer(INSTRUCTION_FIRST, max_length)
    room = max_length - 3 - len(prompt)
    if room < 1:
        with pytest.raises(TextError, match="prompt"):
            tokenizer([LONG], "the ")
        return
    [(ids, _, _)] = tokenizer([LONG], "the ")
    assert ids.tolist() == [BOS, *prompt, 0, *plain_ids(LONG)[:room], EOS]
    assert len(ids) == max_length


def test_a_text_of_just_max_length_is_left_whole():
    length = len(plain_ids(LONG)) + 2
    [(whole, _, cut)] = decoder_tokenizer(CONTEXT_FIRST, length)([LONG], "")
    assert whole.tolist() == [0, *plain_ids(LONG), EOS]
    assert not cut
    [(shortened, _, cut_short)] = decoder_tokenizer(CONTEXT_FIRST, length - 1)([LONG], "")
    assert shortened.tolist() == [0, *plain_ids(LONG)[:-1], EOS]
    assert cut_short


@pytest.mark.parametrize("max_length", [7, 8, 20, 21])
def test_copies_of_the_text_are_shortened_alike(max_length):
    tokenizer = decoder_tokenizer(("{text}", "<context>", "{text}", "<eos>"), max_length)
    [(ids, bounds, _)] = tokenizer([LONG], "")
    each = (max_length - 2) // 2
    kept = plain_ids(LONG)[:each]
    assert ids.tolist() == [*kept, 0, *kept, EOS]
    assert bounds == (0, each, each + 1, 2 * each + 1, 2 * each + 2)


def test_literals_after_the_text_stay():
    template = ("In a word: {text} means", "<eos>")
    [(ids, _, _)] = decoder_tokenizer(template, 24)([LONG], "")
    head, tail = plain_ids("In a word:"), plain_ids(" means")
    assert ids.tolist()[: len(head)] == head
    assert ids.tolist()[-len(tail) - 1 :] == [*tail, EOS]
    assert len(ids) == 24


def test_special_tokens_of_the_tokenizer_are_not_added():
    """The tokenizer's own template puts BOS in front; the engine's template alone decides."""
    assert trained("llama")("cat")["input_ids"][0] == BOS
    [(ids, _, _)] = decoder_tokenizer(("{text}", "<eos>"))(["cat"], "")
    assert ids.tolist() == [*plain_ids("cat"), EOS]


def test_truncation_and_padding_of_the_tokenizer_are_not_applied():
    backend = Tokenizer.from_str(trained("llama").backend_tokenizer.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)

    class Fast:
        backend_tokenizer = backend

    plain = plain_backend(Fast)
    assert plain.encode(LONG, add_special_tokens=False).ids == plain_ids(LONG)
    assert backend.truncation is not None  # the original keeps its own


@pytest.mark.parametrize("template", [CONTEXT_FIRST, INSTRUCTION_FIRST])
@pytest.mark.parametrize("text", ["a", LONG])
def test_a_prompt_without_room_for_the_text_names_row_and_length(template, text):
    tokenizer = decoder_tokenizer(template, 32)
    with pytest.raises(TextError, match="max_length 32") as caught:
        tokenizer([text], LONG)
    assert caught.value.row == 0
    assert "prompt" in caught.value.reason
    assert "\n" not in str(caught.value)


# --- the encoder's windows ------------------------------------------------------------------------


def bert_ids(text):
    return plain_ids(text, "bert")


CLS, SEP = 2, 3


def test_the_encoder_reads_its_own_special_tokens():
    [(window,)] = encoder_tokenizer()(["the cat"], "unused: ")
    assert window.dtype == np.int32
    assert window.tolist() == [CLS, *bert_ids("the cat"), SEP]


def test_the_encoder_reads_the_prompt_only_where_its_format_has_it():
    [(window,)] = encoder_tokenizer(text="{prompt}{text}")(["cat"], "the ")
    assert window.tolist() == [CLS, *bert_ids("the cat"), SEP]


def test_an_empty_text_gives_the_encoder_its_special_tokens():
    for overflow in ("truncate", "windows"):
        [windows] = encoder_tokenizer(overflow=overflow)([""], "")
        assert [window.tolist() for window in windows] == [[CLS, SEP]]


@pytest.mark.parametrize("max_length", [3, 4, 17, 512])
def test_truncation_keeps_the_separator_at_the_end(max_length):
    [(window,)] = encoder_tokenizer(max_length=max_length)([LONG], "")
    assert window.tolist() == [CLS, *bert_ids(LONG)[: max_length - 2], SEP]


@pytest.mark.parametrize("max_length", [3, 4, 17, 512])
def test_windows_hold_every_token_once(max_length):
    [windows] = encoder_tokenizer(max_length=max_length, overflow="windows")([LONG], "")
    assert all(len(window) <= max_length for window in windows)
    assert all((window[0], window[-1]) == (CLS, SEP) for window in windows)
    assert [token for window in windows for token in window[1:-1]] == bert_ids(LONG)
    assert all(len(window) == max_length for window in windows[:-1])


@pytest.mark.parametrize("max_length", [1, 2])
def test_no_room_beside_the_special_tokens_is_refused(max_length):
    assert_refused(
        lambda: encoder_tokenizer(max_length=max_length),
        "encoder",
        f"encoder.max_length is {max_length}",
        "take 2",
        error=CheckpointError,
    )


# --- both -----------------------------------------------------------------------------------------


@pytest.fixture
def both(checkpoint):
    path = checkpoint(Recipe())
    config = Causal2VecConfig.load(path)
    return CheckpointTokenizer(config, path, load_transformers_config(path / "decoder"), 703)


def test_a_text_is_tokenised_for_both_models(both):
    first, second = both(["cat", "dog food"], "the ")
    assert first.token_ids.tolist() == [0, *plain_ids("the cat"), EOS]
    assert [window.tolist() for window in second.windows] == [[CLS, *bert_ids("dog food"), SEP]]
    assert second.encoder_tokens == len(bert_ids("dog food")) + 2


BAD = {
    "None": (None, "is NoneType"),
    "number": (3, "is int"),
    "float": (float("nan"), "is float"),
    "bytes": (b"text", "is bytes"),
    "list": (["text"], "is list"),
    "pair": (("a", "b"), "is tuple"),
    "lone surrogate": ("text \ud800", "not valid Unicode: surrogates not allowed at 5"),
    "lone surrogate far beyond the cut": (
        "text " * 20_000 + "\ud800",
        "not valid Unicode: surrogates not allowed at 100000",
    ),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_text_is_named_by_its_row(both, bad, reason):
    with pytest.raises(TextError) as caught:
        both(["fine", "", bad, "fine"], "")
    assert caught.value.row == 2
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_threads_share_one_tokenizer(both):
    from concurrent.futures import ThreadPoolExecutor

    texts = [" ".join(corpus()[number % 50].split()[: number % 70]) for number in range(400)]
    expected = both(texts, "")
    with ThreadPoolExecutor(4) as pool:
        chunks = [texts[begin : begin + 20] for begin in range(0, 400, 20)]
        actual = [text for chunk in pool.map(lambda c: both(c, ""), chunks) for text in chunk]
    for left, right in zip(actual, expected, strict=True):
        assert np.array_equal(left.token_ids, right.token_ids)
        assert all(map(np.array_equal, left.windows, right.windows))
