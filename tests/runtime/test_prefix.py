"""Cutting a long text before it is tokenised gives exactly the tokens of cutting after."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from checkpoints import corpus
from checkpoints import tokenizer as trained
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from c2v_engine.model.config import EncoderConfig
from c2v_engine.model.template import Template
from c2v_engine.runtime.prefix import PrefixCutter
from c2v_engine.runtime.tokenization import DecoderTokenizer, EncoderTokenizer

MAX_LENGTH = 9
MANY_WORDS = "one added token that is made of many words"

# --- tokenizers of every kind ---------------------------------------------------------------------


def backend(name: str) -> Tokenizer:
    return Tokenizer.from_str(trained(name).backend_tokenizer.to_str())


def with_added(name: str, **options: bool) -> Tokenizer:
    """A tokenizer with added tokens that take space beside them or look at their neighbours."""
    tokenizer = backend(name)
    tokenizer.add_special_tokens([AddedToken("<m>", **options)])
    tokenizer.add_tokens([AddedToken(content, **options) for content in ("two words", MANY_WORDS)])
    return tokenizer


def with_pre_tokenizer(name: str, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = backend(name)
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
KINDS = {
    "llama-3-byte-level": lambda: backend("llama"),
    "qwen-byte-level-nfc": lambda: backend("qwen2"),
    "gpt-2-byte-level": lambda: with_pre_tokenizer("roberta", pre_tokenizers.ByteLevel()),
    "byte-level-digits": lambda: with_pre_tokenizer("roberta", DIGITS),
    "metaspace-unsplit": lambda: backend("mistral"),
    "metaspace-split": lambda: with_pre_tokenizer("mistral", pre_tokenizers.Metaspace()),
    "sentencepiece-without-pre-tokenizer": lambda: backend("llama_2"),
    "unigram-metaspace": lambda: backend("xlm_roberta"),
    "word-piece": lambda: backend("bert"),
    "byte-level-added-left": lambda: with_added("llama", lstrip=True),
    "unigram-added-left": lambda: with_added("xlm_roberta", lstrip=True),
    "unigram-added-normalized": lambda: with_added(
        "xlm_roberta", lstrip=True, rstrip=True, normalized=True
    ),
    "sentencepiece-added-right": lambda: with_added("llama_2", rstrip=True),
    "word-piece-added-single-word": lambda: with_added("bert", single_word=True),
}
get = functools.cache(lambda kind: KINDS[kind]())
each_kind = pytest.mark.parametrize("kind", KINDS)

PIECES = [
    *("a", "word", "the quick ", "return ", "supercalifragilistic", "x" * 30, "'s", "'re "),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\x00"),
    *("日本語", "テキスト。", "한국", "\u1112\u1161\u11ab", "é", "e\u0301", "\u0316", "\u0301"),
    *("🙂", "👩\u200d👩\u200d👧", "7", "123", "1,234.5 ", ".", "!?", "-", "_", "ß", "Σ", "ﬁ"),
    *("\ufffd", "▁", "▁▁", "<s>", "</s>", "[CLS]", "[SEP]", "<|end_of_text|>", "<|end"),
    *("<m>", " <m>", "two words", "two", MANY_WORDS),
]
pieces = st.sampled_from(PIECES) | st.text(max_size=4)
runs = st.tuples(st.lists(pieces, min_size=1, max_size=3), st.sampled_from([1, 2, 5, 30, 150]))
nasty_texts = st.lists(runs, min_size=1, max_size=6).map(
    lambda parts: "".join("".join(strings) * count for strings, count in parts)
)
quick = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FIXED = [
    "x" * 400,
    "x y" * 200,
    " " * 400,
    "\n" * 400,
    " \n" * 200,
    "word\n\n\n" * 90,
    "日本語のテキスト" * 60,
    "日本語、テキスト。" * 60,
    "🙂" * 300,
    "👩‍👩‍👧 " * 90,
    "e\u0301" * 300,
    "e" + "\u0301\u0316" * 300,
    "7" * 400,
    "123 456," * 60,
    "</s>" * 100,
    "[CLS] word " * 60,
    "a" + " " * 300 + "<m>" * 30,
    "a" + "\u3000" * 300 + "<m> b",
    "word " * 20 + "<m>" + " " * 300 + "word",
    "two words" * 60,
    "a" * 120 + "<s>" + "b" * 400,
]


@pytest.fixture(autouse=True)
def no_second_pass(monkeypatch):
    """Tokens are compared, so the tokenizers' own threads would only start and stop."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


# --- the promise ----------------------------------------------------------------------------------


def assert_same_tokens(tokenizer, before, text, tokens):
    prefix = PrefixCutter(tokenizer).cut(before, text, tokens)
    assert text.startswith(prefix)
    cut = tokenizer.encode(before + prefix, add_special_tokens=False)
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    assert cut.ids[:tokens] == whole.ids[:tokens]
    assert cut.offsets[:tokens] == whole.offsets[:tokens]
    return prefix


@each_kind
@pytest.mark.parametrize("before", ["", "Question: ", " "])
def test_fixed_texts_keep_their_first_tokens(kind, before):
    for text in FIXED:
        for tokens in (1, 5, 12):
            assert_same_tokens(get(kind), before, text, tokens)


@each_kind
@quick
@given(nasty_texts, st.sampled_from(["", "Q: ", "<s>", "a", " "]), st.integers(1, 12))
@example("a" + " " * 300 + "<m>", "", 5)
def test_any_text_keeps_its_first_tokens(kind, text, before, tokens):
    assert_same_tokens(get(kind), before, text, tokens)


@each_kind
def test_texts_of_words_are_really_cut(kind):
    text = " ".join(" ".join(corpus()).split()[:4000])
    prefix = assert_same_tokens(get(kind), "Question: ", text, 20)
    assert len(prefix) < 1000


@each_kind
def test_a_cut_falls_inside_an_added_token_without_harm(kind):
    """Every place of the cut, by moving the added tokens along, until far more tokens are asked."""
    for shift in range(0, 90, 3):
        for added in ("[CLS]</s><|end_of_text|><s>", MANY_WORDS):
            text = "." * shift + " " + added * 9 + "tail " * 60
            for tokens in (3, 12):
                assert_same_tokens(get(kind), "", text, tokens)


# --- through the tokenizers of a checkpoint -------------------------------------------------------

LAYOUTS = [
    (("<context>", "{prompt}{text}", "<eos>"), ("<context>", "<eos>")),
    (("{prompt}", "<context>", "{text}", "<eos>"), ("<context>", "<eos>")),
    (("{text}", "{text}", "<eos>"), (1,)),
]


def without_cutting(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer._cutter, "cut", lambda before, text, tokens: text)
    return tokenizer


@each_kind
@pytest.mark.parametrize(("template", "pooling"), LAYOUTS, ids=["context", "instruction", "echo"])
def test_decoder_sequences_are_those_of_cutting_after(kind, template, pooling, monkeypatch):
    arguments = (get(kind), Template(template, pooling), MAX_LENGTH, 1, 2)
    before, after = DecoderTokenizer(*arguments), DecoderTokenizer(*arguments)
    without_cutting(after, monkeypatch)
    texts = [text * 3 for text in FIXED]
    for actual, expected in zip(before(texts, "Q: "), after(texts, "Q: "), strict=True):
        assert np.array_equal(actual[0], expected[0])
        assert actual[1:] == expected[1:]


@pytest.mark.parametrize("kind", ["word-piece", "unigram-metaspace", "gpt-2-byte-level"])
@pytest.mark.parametrize("text_format", ["{text}", "{prompt}{text}", "{text} (in short)"])
def test_encoder_sequences_are_those_of_cutting_after(kind, text_format, monkeypatch):
    config = EncoderConfig(text=text_format, max_length=MAX_LENGTH)
    before, after = (EncoderTokenizer(get(kind), config) for _ in range(2))
    without_cutting(after, monkeypatch)
    for prompt in ("", "Q: "):
        texts = [*FIXED, *(text * 4 for text in FIXED)]
        for actual, expected in zip(before(texts, prompt), after(texts, prompt), strict=True):
            assert len(actual) == len(expected) == 1
            assert np.array_equal(actual[0], expected[0])


# --- what must not be cut -------------------------------------------------------------------------


def test_digits_grouped_from_the_right_are_not_cut():
    """Such a pattern looks at all digits that follow: the first token depends on the last one."""
    sevens = models.BPE({"7": 0, "77": 1, "777": 2}, [("7", "7"), ("77", "7")])
    tokenizer = Tokenizer(sevens)
    pattern = Regex(r"\d{1,3}(?=(?:\d{3})*(?!\d))")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    assert tokenizer.encode("7" * 301).tokens[0] != tokenizer.encode("7" * 302).tokens[0]
    for length in (300, 301, 302):
        assert_same_tokens(tokenizer, "", "7" * length, 3)
    assert not PrefixCutter(tokenizer).can_cut


def test_a_tokenizer_without_words_is_not_cut():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.add_tokens(["x▁y"])  # a piece that crosses from one word into the next
    cutter = PrefixCutter(tokenizer)
    assert not cutter.can_cut
    assert cutter.cut("", "ab" * 1000, 3) == "ab" * 1000


def test_a_unigram_model_without_words_is_not_cut():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("aa", -1.5)], unk_id=0))
    assert not PrefixCutter(tokenizer).can_cut


@pytest.mark.parametrize("length", [1, 100, 150])
def test_a_short_text_is_left_whole_without_looking(length):
    counting = Counting(backend("llama"))
    text = "a " * (length // 2)
    assert PrefixCutter(counting).cut("", text, 20) == text
    assert counting.characters == 0


# --- cost -----------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode(self, text, **options):
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts, **options):
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, **options)


TEN_MILLION = 10_000_000
LONG = {
    "words": "some words of a text, ",
    "lines": "a line\n",
    "paragraphs": "A paragraph.\n\n\n\n",
    "numbers": "1234 5678 ",
    "CJK with punctuation": "日本語、テキスト。 ",
    "emoji": "🙂 🙂🙂 ",
}


@pytest.mark.parametrize("kind", ["llama-3-byte-level", "metaspace-unsplit"])
@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_ten_million_characters_cost_what_max_length_tokens_cost(kind, unit):
    text = unit * (TEN_MILLION // len(unit))
    counting = Counting(get(kind))
    template = Template(("<context>", "{prompt}{text}", "<eos>"), ("<context>", "<eos>"))
    tokenizer = DecoderTokenizer(counting, template, 512, 1, 2)
    [(ids, _, shortened)] = tokenizer([text], "Q: ")
    assert len(ids) == 512
    assert shortened
    assert counting.characters < 200 * 512


@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_ten_million_characters_cost_the_encoder_as_little(unit, monkeypatch):
    text = unit * (TEN_MILLION // len(unit))
    tokenizer = EncoderTokenizer(get("word-piece"), EncoderConfig(max_length=512))
    truncating, cutting = Counting(tokenizer._tokenizer), Counting(get("word-piece"))
    monkeypatch.setattr(tokenizer, "_tokenizer", truncating)
    monkeypatch.setattr(tokenizer._cutter, "_tokenizer", cutting)
    [(window,)] = tokenizer([text], "")
    assert len(window) == 512
    assert truncating.characters + cutting.characters < 200 * 512


@pytest.mark.parametrize("text", ["x" * 300_000, " " * 300_000, "日" * 300_000])
def test_one_endless_word_is_tokenised_less_than_twice(text):
    counting = Counting(get("llama-3-byte-level"))
    assert PrefixCutter(counting).cut("", text, 512) == text
    assert counting.characters < len(text)  # and once more when it is tokenised
