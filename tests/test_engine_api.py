"""The public face: what ``encode`` and its kin take, give and refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import Recipe, corpus
from damage import assert_refused

from c2v_engine.errors import InputError, TextError

RECIPE = Recipe()
WIDTH = 64  # of the decoder; the embedding is twice as wide
TEXTS = ["", "a", *(" ".join(text.split()[:30]) for text in corpus()[40:52]), "a"]
LAST_TOKEN = {"template": ("{prompt}{text}", "<eos>"), "pooling": ("<eos>",)}
ONES = np.ones(2 * WIDTH)
INTEGERS = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(engine):
    return engine(RECIPE)


@pytest.fixture(scope="module")
def vectors(model):
    return model.encode(TEXTS)


@pytest.fixture(scope="module")
def ranges(vectors):
    """Narrower than the embeddings, so that both ends are clipped somewhere."""
    return np.stack([vectors.min(axis=0) * 0.9, vectors.max(axis=0) * 0.9]).astype(np.float32)


def near(actual, expected):
    """Batches of other sizes sum in another order: some 1e-7 on a unit vector."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# --- what goes in ---------------------------------------------------------------------------------


def test_one_string_gives_one_vector(model, vectors):
    vector = model.encode(TEXTS[3])
    assert vector.shape == (2 * WIDTH,)
    near(vector, vectors[3])
    assert model.encode(np.str_(TEXTS[3])).shape == (2 * WIDTH,)


@pytest.mark.parametrize("make", [tuple, np.array, list, lambda t: np.array(t, dtype=object)])
def test_every_sequence_of_strings_is_taken(model, vectors, make):
    near(model.encode(make(TEXTS)), vectors)


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=str)])
@pytest.mark.parametrize("convert_to", ["numpy", "tensor"])
def test_no_texts_give_no_rows_of_the_right_width(model, empty, convert_to):
    embeddings = model.encode(empty, convert_to=convert_to)
    assert tuple(embeddings.shape) == (0, 2 * WIDTH)
    bits = model.encode(empty, convert_to=convert_to, precision="ubinary", truncate_dim=24)
    assert tuple(bits.shape) == (0, 3)
    assert str(bits.dtype).endswith("uint8")


def test_rows_stand_in_the_order_of_the_texts_and_equal_texts_are_equal(model, vectors):
    assert np.array_equal(vectors[1], vectors[-1])
    near(model.encode(TEXTS[::-1]), vectors[::-1])


@pytest.mark.parametrize(
    "texts", [5, None, b"bytes", bytearray(b"x"), {"a"}, {"a": 1}, iter("ab"), np.array("abc")]
)
def test_what_is_no_sequence_of_texts_is_refused(model, texts):
    name = type(texts).__name__
    assert_refused(lambda: model.encode(texts), f"texts is {name}", error=InputError)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(None, "NoneType"), (1, "int"), (b"b", "bytes"), ("\ud800", "Unicode"), (["a"], "list")],
)
def test_what_is_no_text_is_named_by_its_row(model, bad, reason):
    assert_refused(lambda: model.encode(["a", "b", bad, "c"]), "text 2: ", reason, error=TextError)
    assert_refused(
        lambda: list(model.encode_stream(["a", bad])), "text 1: ", reason, error=TextError
    )


def test_a_two_dimensional_array_is_refused(model):
    assert_refused(lambda: model.encode(np.array([["a", "b"]])), "text 0: is list")


# --- what comes out -------------------------------------------------------------------------------


def test_a_tensor_is_the_same_vectors(model, vectors):
    tensor = model.encode(TEXTS, convert_to="tensor")
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    assert tensor.device.type == "cpu"
    near(tensor.numpy(), vectors)
    assert model.encode("a", convert_to="tensor").shape == (2 * WIDTH,)


def test_vectors_are_writable_float32_of_unit_length(vectors):
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    near(np.linalg.norm(vectors, axis=1), 1)


def test_normalize_embeddings_wins_over_the_checkpoint(engine, vectors, model):
    raw = model.encode(TEXTS, normalize_embeddings=False)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    near(raw / lengths, vectors)
    unnormalised = engine(Recipe(normalize=False))
    np.testing.assert_allclose(unnormalised.encode(TEXTS), raw, rtol=1e-5, atol=1e-5)
    near(unnormalised.encode(TEXTS, normalize_embeddings=True), vectors)


@pytest.mark.parametrize("keep", [2, 24, 64, 126, 128])
def test_truncation_keeps_the_front_of_each_half_and_normalises_again(model, vectors, keep):
    halves = np.split(vectors, 2, axis=1)
    front = np.concatenate([half[:, : keep // 2] for half in halves], axis=1)
    truncated = model.encode(TEXTS, truncate_dim=keep)
    assert truncated.shape == (len(TEXTS), keep)
    near(truncated, front / np.linalg.norm(front, axis=1, keepdims=True))
    raw = model.encode(TEXTS, normalize_embeddings=False)
    fronts = np.concatenate([half[:, : keep // 2] for half in np.split(raw, 2, axis=1)], axis=1)
    kept = model.encode(TEXTS, truncate_dim=keep, normalize_embeddings=False)
    np.testing.assert_allclose(kept, fronts, rtol=1e-5, atol=1e-5)


def test_a_single_part_is_truncated_to_any_width(engine):
    single = engine(Recipe(encoder=None, **LAST_TOKEN))
    assert single.dimension == WIDTH
    assert single.encode(TEXTS, truncate_dim=7).shape == (len(TEXTS), 7)
    assert_refused(lambda: single.encode("a", truncate_dim=65), "truncate_dim is 65", "1 and 64")


@pytest.mark.parametrize("keep", [0, -2, 1, 7, 129, 130, 24.0, True, False, "24"])
def test_an_impossible_truncation_is_refused(model, keep):
    for run in (model.encode, model.encode_stream):
        assert_refused(lambda run=run: run(["a"], truncate_dim=keep), f"truncate_dim is {keep!r}")


# --- precisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("keep", [None, 24])
def test_a_precision_is_what_sentence_transformers_makes_of_the_vectors(
    model, vectors, ranges, precision, keep
):
    from sentence_transformers.util import quantize_embeddings

    floats = model.encode(TEXTS, truncate_dim=keep)
    chosen = ranges[:, : floats.shape[1]]
    actual = model.encode(TEXTS, truncate_dim=keep, precision=precision, ranges=chosen)
    expected = quantize_embeddings(floats, precision, ranges=chosen)
    assert actual.dtype == expected.dtype == INTEGERS[precision]
    assert np.array_equal(actual, expected)
    assert len(np.unique(actual)) > 20  # not all clipped
    assert actual.shape[1] == model.output_dimension(keep, precision)
    assert actual.dtype == model.output_dtype(precision)


def test_binary_needs_as_many_bytes_as_bits_fill(model):
    assert model.output_dimension(20, "binary") == 3
    assert model.encode("a", truncate_dim=20, precision="binary").shape == (3,)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_half_precision_rounds_the_vectors(model, vectors, precision, dtype):
    half = model.encode(TEXTS, precision=precision, convert_to="tensor")
    assert half.dtype == dtype
    assert torch.equal(half, torch.from_numpy(vectors).to(dtype))
    if precision == "float16":
        assert np.array_equal(model.encode(TEXTS, precision="float16"), half.numpy())
        assert model.output_dtype("float16") == np.float16


def test_bfloat16_has_no_array(model):
    for run in (
        lambda: model.encode("a", precision="bfloat16"),
        lambda: model.encode_stream(["a"], precision="bfloat16"),
        lambda: model.output_dtype("bfloat16"),
    ):
        assert_refused(run, "bfloat16", "float16 or float32", error=InputError)


@pytest.mark.parametrize("precision", INTEGERS)
def test_the_bytes_of_a_row_do_not_depend_on_its_neighbours(model, ranges, precision):
    options = {"precision": precision, "ranges": ranges}
    whole = model.encode(TEXTS, **options).astype(int)
    for row in (0, 3, 9):
        alone = model.encode(TEXTS[row], **options).astype(int)
        pair = model.encode([TEXTS[row], "another text altogether"], **options)[0].astype(int)
        # A value within rounding of a level's edge may fall on either side; the range may not move.
        for other in (alone, pair):
            if precision in ("int8", "uint8"):
                assert np.abs(whole[row] - other).max() <= 1
            assert (whole[row] == other).mean() > 0.97


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integers_without_ranges_are_refused(model, precision):
    assert_refused(
        lambda: model.encode("a", precision=precision), precision, "ranges", "c2v calibrate"
    )


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.stack([-ONES, ONES])[:, :100], "100 dimensions, the output has 128"),
        (ONES, "shape [128]"),
        (np.stack([ONES, ONES, ONES]), "shape [3, 128]"),
        (np.stack([-ONES, ONES * np.nan]), "finite"),
        (np.stack([-ONES, ONES * np.inf]), "finite"),
        (np.stack([ONES, -ONES]), "no minimum above its maximum"),
        ("wide", "not an array of numbers"),
        ([[1, 2], [3]], "not an array of numbers"),
    ],
)
@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges_that_can_not_be_are_refused(model, precision, bad, word):
    for run in (model.encode, model.encode_stream):
        assert_refused(
            lambda run=run: run(["a"], precision=precision, ranges=bad), word, error=InputError
        )


# --- options --------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"batch_tokens": 0}, "batch_tokens is 0"),
    ({"batch_tokens": -1}, "batch_tokens is -1"),
    ({"batch_tokens": "x"}, "batch_tokens is 'x'"),
    ({"batch_tokens": 64.0}, "batch_tokens is 64.0"),
    ({"batch_tokens": True}, "batch_tokens is True"),
    ({"prompt_name": "title"}, "prompt_name is 'title', expected one of: 'query', 'document'"),
    ({"prompt_name": ""}, "prompt_name is ''"),
    ({"prompt": 3}, "prompt is int"),
    ({"prompt": b"query: "}, "prompt is bytes"),
    ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
    ({"precision": "int4"}, "precision is 'int4'"),
    ({"precision": None}, "precision is None"),
    ({"truncate_dim": 3}, "truncate_dim is 3"),
]


@pytest.mark.parametrize(("options", "word"), BAD_OPTIONS, ids=lambda value: str(value)[:24])
def test_an_option_that_can_not_be_is_refused_at_once(model, options, word):
    assert_refused(lambda: model.encode(["a"], **options), word, error=InputError)
    assert_refused(lambda: model.encode([], **options), word, error=InputError)
    assert_refused(lambda: model.encode_stream(["a"], **options), word, error=InputError)


def test_convert_to_is_numpy_or_tensor(model):
    assert_refused(lambda: model.encode("a", convert_to="list"), "convert_to is 'list'")


def test_a_prompt_longer_than_max_length_names_the_row(model):
    assert_refused(
        lambda: model.encode(["a"], prompt="long " * 80),
        "text 0: ",
        "max_length 48",
        "shorter prompt",
        error=TextError,
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_a_progress_bar_changes_nothing(model, vectors, wanted, capfd):
    near(model.encode(TEXTS, show_progress_bar=wanted), vectors)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert bool(printed.err) is wanted


# --- prompts --------------------------------------------------------------------------------------


def test_named_prompts_are_those_of_the_checkpoint(model):
    query = dict(RECIPE.prompts)["query"]
    assert model.prompts == dict(RECIPE.prompts)
    by_name = model.encode(TEXTS, prompt_name="query")
    near(by_name, model.encode(TEXTS, prompt=query))
    near(by_name, model.encode_query(TEXTS))
    assert np.abs(by_name - model.encode(TEXTS)).max() > 0.01


def test_a_prompt_given_wins_over_a_name(model, vectors):
    near(model.encode(TEXTS, prompt_name="query", prompt=""), vectors)
    near(model.encode(TEXTS, prompt_name="query", prompt="X: "), model.encode(TEXTS, prompt="X: "))


def test_the_prompts_dictionary_can_not_be_changed_from_outside(model, vectors):
    model.prompts["query"] = "changed"
    assert model.prompts == dict(RECIPE.prompts)


def test_documents_take_the_first_prompt_that_there_is(engine):
    prompts = (("corpus", "C: "), ("passage", "P: "), ("query", "Q: "))
    named = engine(Recipe(prompts=prompts))
    near(named.encode_document(TEXTS), named.encode(TEXTS, prompt="P: "))
    named = engine(Recipe(prompts=prompts[:1]))
    near(named.encode_document(TEXTS), named.encode(TEXTS, prompt="C: "))
    near(named.encode_query(TEXTS), named.encode(TEXTS))  # none for queries: no prompt


def test_a_default_prompt_serves_where_a_call_names_none(engine):
    named = engine(Recipe(default_prompt_name="query"))
    near(named.encode(TEXTS), named.encode(TEXTS, prompt_name="query"))
    near(named.encode_document(TEXTS), named.encode(TEXTS, prompt=""))
    near(named.encode(TEXTS, prompt=""), engine(RECIPE).encode(TEXTS))
    blocks = named.encode_stream(TEXTS)
    near(np.concatenate(list(blocks)), named.encode(TEXTS, prompt_name="query"))


def test_options_of_encode_reach_queries_and_documents(model):
    options = {"truncate_dim": 8, "convert_to": "tensor", "normalize_embeddings": False}
    for run in (model.encode_query, model.encode_document):
        embeddings = run(TEXTS, **options)
        assert isinstance(embeddings, torch.Tensor)
        assert embeddings.shape == (len(TEXTS), 8)
    near(model.encode_query(TEXTS, prompt="X: "), model.encode(TEXTS, prompt="X: "))
    near(
        model.encode_query(TEXTS, prompt_name="document"),
        model.encode(TEXTS, prompt_name="document"),
    )


# --- similarity -----------------------------------------------------------------------------------


def test_similarity_is_the_cosine_of_every_pair(model, vectors):
    raw = model.encode(TEXTS[:4], normalize_embeddings=False)
    similarity = model.similarity(raw, vectors)
    assert isinstance(similarity, torch.Tensor)
    assert similarity.shape == (4, len(TEXTS))
    near(similarity.numpy(), vectors[:4] @ vectors.T)
    assert model.similarity(vectors[0], vectors[1]).shape == (1, 1)
    near(model.similarity(torch.from_numpy(raw), raw).diagonal().numpy(), 1)


def test_similarity_of_int8_is_near_that_of_floats(model, vectors):
    # One range around 0 for every dimension, so that angles stay what they are.
    wide = np.abs(vectors).max() * np.stack([-ONES, ONES])
    quantised = model.encode(TEXTS, precision="int8", ranges=wide)
    similarity = model.similarity(quantised, quantised).numpy()
    # A dimension errs by at most one level, the largest value divided by 128.
    np.testing.assert_allclose(similarity, vectors @ vectors.T, rtol=0, atol=0.02)


@pytest.mark.parametrize("precision", ["uint8", "ubinary"])
def test_similarity_of_bytes_that_are_no_numbers_is_refused(model, ranges, precision):
    packed = model.encode(TEXTS, precision=precision, ranges=ranges)
    assert_refused(lambda: model.similarity(packed, packed), "uint8", error=InputError)


def test_similarity_of_other_widths_is_refused(model, vectors):
    assert_refused(lambda: model.similarity(vectors, vectors[:, :5]), "128 and 5 wide")
    assert_refused(lambda: model.similarity(vectors[None], vectors), "3 dimensions")


# --- streams --------------------------------------------------------------------------------------


def test_a_generator_is_streamed_like_a_list_is_encoded(model, vectors):
    blocks = list(model.encode_stream(text for text in TEXTS))
    assert all(isinstance(block, np.ndarray) for block in blocks)
    near(np.concatenate(blocks), vectors)


def test_every_option_of_encode_serves_in_a_stream(model, ranges):
    options = {"prompt_name": "query", "batch_tokens": 70, "truncate_dim": 24, "precision": "int8"}
    options["ranges"] = ranges[:, :24]
    [block] = model.encode_stream(TEXTS, **options)
    assert np.array_equal(block, model.encode(TEXTS, **options))


@pytest.mark.parametrize("texts", ["one string", 5, None, b"bytes"])
def test_a_stream_of_nothing_iterable_is_refused_at_once(model, texts):
    assert_refused(lambda: model.encode_stream(texts), "texts is ", "iterable of strings")


# --- threads --------------------------------------------------------------------------------------


def test_two_threads_may_use_one_engine(model):
    groups = [[f"{word} {text}" for text in TEXTS] for word in ("left", "right", "third", "last")]
    prompts = ["", "Q: ", "", "A longer prompt: "]
    expected = [model.encode(g, prompt=p) for g, p in zip(groups, prompts, strict=True)]

    def repeat(index):
        return [
            model.encode(groups[index], prompt=prompts[index], batch_tokens=50 + 40 * turn)
            for turn in range(4)
        ]

    with ThreadPoolExecutor(4) as pool:
        for results, right in zip(pool.map(repeat, range(4)), expected, strict=True):
            for result in results:
                near(result, right)
