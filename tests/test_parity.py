"""The engine against the reference: stock transformers, one text at a time, float32.

Tolerances: in float32 the same sums in another order differ by about 3e-7 on a unit vector, so 1e-5
lets rounding pass and no mistake. In bfloat16 the weights themselves are rounded to 8 bits, which
turns these models' vectors by a cosine of up to 3e-4; 0.999 is three times that.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import CONTEXT_FIRST, INSTRUCTION_FIRST, PROMPTS, Recipe, corpus, tokenizer
from recipes import ARCHITECTURES, ECHO, ENCODERS, LAST_TOKEN, STORED, TEMPLATES, TEXTS

from c2v_engine import Causal2Vec
from c2v_engine.errors import ConfigError, TextError

FLOAT32_TOLERANCE = 1e-5
BFLOAT16_COSINE = 0.999


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_float32_parity(engine, reference, recipe, **options):
    expected = reference(recipe).encode(TEXTS, **options).numpy()
    actual = engine(recipe).encode(TEXTS, **options)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("prompt_name", [None, "query"])
@pytest.mark.parametrize("recipe", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architectures_and_layouts(engine, reference, recipe, prompt_name):
    assert_float32_parity(engine, reference, recipe, prompt_name=prompt_name)


@pytest.mark.parametrize("recipe", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.filterwarnings("ignore:a prompt was given")
def test_templates_and_poolings(engine, reference, recipe):
    assert_float32_parity(engine, reference, recipe, prompt_name="query")
    assert_float32_parity(engine, reference, recipe)


@pytest.mark.parametrize("recipe", ENCODERS.values(), ids=ENCODERS)
def test_encoders_and_projectors(engine, reference, recipe):
    assert_float32_parity(engine, reference, recipe, prompt_name="query")


@pytest.mark.parametrize("recipe", STORED.values(), ids=STORED)
def test_rope_types_and_ways_of_storing(engine, reference, recipe):
    assert_float32_parity(engine, reference, recipe, prompt_name="query")


BFLOAT16 = {**ARCHITECTURES, **{name: TEMPLATES[name] for name in ("last-token", "mean", "echo")}}


@pytest.mark.parametrize("recipe", BFLOAT16.values(), ids=BFLOAT16)
@pytest.mark.filterwarnings("ignore:a prompt was given")
def test_bfloat16_stays_near_the_float32_reference(engine, reference, recipe):
    expected = reference(recipe).encode(TEXTS, prompt_name="query").numpy()
    actual = engine(recipe, dtype="bfloat16").encode(TEXTS, prompt_name="query")
    assert (actual * expected).sum(axis=1).min() >= BFLOAT16_COSINE


@pytest.mark.parametrize("prompt", ["", "Retrieve: ", "Trailing spaces   ", "日本語\n"])
@pytest.mark.parametrize("template", [CONTEXT_FIRST, INSTRUCTION_FIRST])
def test_any_prompt_at_the_call(engine, reference, template, prompt):
    recipe = Recipe(decoder="qwen2", template=template)
    assert_float32_parity(engine, reference, recipe, prompt=prompt)


def test_the_default_prompt(engine, reference):
    recipe = Recipe(default_prompt_name="query")
    assert_float32_parity(engine, reference, recipe)
    named = engine(recipe).encode(TEXTS, prompt_name="document")
    assert np.abs(engine(recipe).encode(TEXTS) - named).max() > 0.01


@pytest.mark.parametrize("recipe", [Recipe(), ECHO], ids=["dual", "echo"])
def test_vectors_that_are_not_normalised(engine, reference, recipe):
    expected = reference(recipe).encode(TEXTS, normalize_embeddings=False).numpy()
    actual = engine(recipe).encode(TEXTS, normalize_embeddings=False)
    assert np.linalg.norm(expected, axis=1).min() > 2
    assert np.abs(actual - expected).max() <= FLOAT32_TOLERANCE * np.linalg.norm(expected[0])


def test_a_checkpoint_that_does_not_normalise(engine, reference):
    recipe = Recipe(normalize=False)
    expected = reference(recipe).encode(TEXTS).numpy()
    assert np.abs(np.linalg.norm(engine(recipe).encode(TEXTS), axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(engine(recipe).encode(TEXTS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", [Recipe(), LAST_TOKEN], ids=["dual", "last-token"])
def test_truncated_vectors(engine, reference, recipe):
    assert_float32_parity(engine, reference, recipe, truncate_dim=24)


@pytest.mark.parametrize("max_length", [3, 4, 17, 25])
@pytest.mark.parametrize("recipe", [Recipe(), ECHO], ids=["dual", "echo"])
def test_every_max_length(engine, reference, recipe, max_length):
    assert_float32_parity(engine, reference, replace(recipe, max_length=max_length))


@pytest.mark.parametrize("decoder", ["llama", "llama_2", "mistral", "qwen2"])
def test_texts_far_over_max_length_are_cut_as_if_all_had_been_tokenised(engine, reference, decoder):
    recipe = Recipe(decoder=decoder, overflow="truncate")
    joined = "\n".join(corpus())
    texts = [joined, "a" * 40_000, " " * 5_000 + joined, "é🙂" * 9_000, "word " * 9_000]
    expected = reference(recipe).encode(texts, prompt_name="query").numpy()
    actual = engine(recipe).encode(texts, prompt_name="query")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


# --- order and company --------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Recipe(), ARCHITECTURES["mistral-lora"]], ids=["plain", "lora"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 300, 100_000])
def test_a_text_has_one_vector_in_any_batch(engine, reference, recipe, batch_tokens):
    expected = reference(recipe).encode(TEXTS, prompt_name="query").numpy()
    actual = engine(recipe).encode(TEXTS, prompt_name="query", batch_tokens=batch_tokens)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_one_text_alone_equals_the_same_text_among_many(engine):
    together = engine(Recipe()).encode(TEXTS)
    for text, expected in zip(TEXTS, together, strict=True):
        alone = engine(Recipe()).encode(text)
        assert alone.shape == (128,)
        np.testing.assert_allclose(alone, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_rows_come_back_in_the_order_of_the_texts(engine):
    order = np.random.default_rng(7).permutation(len(TEXTS))
    expected = engine(Recipe()).encode(TEXTS)[order]
    actual = engine(Recipe()).encode([TEXTS[index] for index in order])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_duplicates_get_equal_vectors_each_in_its_place(engine, reference):
    texts = [TEXTS[index % 5] for index in range(23)]
    expected = reference().encode(TEXTS[:5]).numpy()
    actual = engine(Recipe()).encode(texts)
    np.testing.assert_allclose(actual, expected[np.arange(23) % 5], rtol=0, atol=FLOAT32_TOLERANCE)
    assert all(np.array_equal(actual[row], actual[row % 5]) for row in range(23))


def test_the_padded_reference_agrees_too(engine, reference):
    padded = reference().encode(TEXTS, batch_size=8).numpy()
    np.testing.assert_allclose(
        engine(Recipe()).encode(TEXTS), padded, rtol=0, atol=FLOAT32_TOLERANCE
    )


# --- EOS and BOS --------------------------------------------------------------------------------


@torch.inference_mode()
def last_state(path, ids):
    from transformers import AutoModel

    states = AutoModel.from_pretrained(path / "decoder")(torch.tensor([ids])).last_hidden_state
    return torch.nn.functional.normalize(states[0, -1], dim=0).numpy()


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("decoder", ["llama", "llama_2", "qwen2"])
def test_the_eos_row_is_there_whatever_the_tokenizers_flag_says(engine, checkpoint, decoder, flag):
    recipe = replace(LAST_TOKEN, decoder=decoder, add_eos_token=flag)
    text = "One short sentence."
    ids = tokenizer(decoder)(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer(decoder).eos_token_id
    actual = engine(recipe).encode(text)
    with_eos = last_state(checkpoint(recipe), [*ids, eos])
    np.testing.assert_allclose(actual, with_eos, rtol=0, atol=FLOAT32_TOLERANCE)
    assert np.abs(actual - last_state(checkpoint(recipe), ids)).max() > 0.01
    assert np.abs(actual - last_state(checkpoint(recipe), [*ids, eos, eos])).max() > 0.01


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A </s>", "$A"])
def test_special_tokens_of_the_tokenizers_own_template_are_not_doubled(
    checkpoint, engine, tmp_path, single
):
    recipe = replace(LAST_TOKEN, decoder="llama_2")
    path = shutil.copytree(checkpoint(recipe), tmp_path / "model")
    file = path / "decoder" / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    names = {"<s>": 1, "</s>": 2}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}}
            if piece == "$A"
            else {"SpecialToken": {"id": piece, "type_id": 0}}
            for piece in single.split()
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()
        },
    }
    file.write_text(json.dumps(values), encoding="utf-8")
    changed = Causal2Vec.from_pretrained(path, device="cpu", dtype="float32")
    np.testing.assert_allclose(
        changed.encode(TEXTS), engine(recipe).encode(TEXTS), rtol=0, atol=FLOAT32_TOLERANCE
    )


def test_bos_is_a_row_only_where_the_template_has_it(engine, checkpoint):
    text = "One short sentence."
    recipe = replace(LAST_TOKEN, decoder="mistral")
    ids = [*tokenizer("mistral")(text, add_special_tokens=False)["input_ids"], 2]
    without = engine(recipe).encode(text)
    np.testing.assert_allclose(
        without, last_state(checkpoint(recipe), ids), rtol=0, atol=FLOAT32_TOLERANCE
    )
    recipe = replace(recipe, template=("<bos>", "{prompt}{text}", "<eos>"))
    np.testing.assert_allclose(
        engine(recipe).encode(text),
        last_state(checkpoint(recipe), [1, *ids]),
        rtol=0,
        atol=FLOAT32_TOLERANCE,
    )


# --- the same things are refused ----------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(template=INSTRUCTION_FIRST), LAST_TOKEN])
def test_a_prompt_longer_than_max_length_is_refused_by_both(engine, reference, recipe):
    for model in (engine(recipe), reference(recipe)):
        with pytest.raises(ValueError, match=r"text 0: .*max_length 48.*prompt"):
            model.encode(["some text"], prompt="very long " * 60)


def test_a_text_that_gives_no_row_at_all_is_named_by_both(engine, reference):
    recipe = Recipe(template=("{text}",), pooling=("{text}",), encoder=None)
    for model in (engine(recipe), reference(recipe)):
        with pytest.raises(TextError, match="text 1"):
            model.encode(["one", ""])


def test_an_unknown_prompt_name_is_refused_by_both(engine, reference):
    for model in (engine(Recipe()), reference(Recipe())):
        with pytest.raises(ValueError, match="title") as caught:
            model.encode(["some text"], prompt_name="title")
        assert all(name in str(caught.value) for name, _ in PROMPTS)


@pytest.mark.parametrize("truncate_dim", [0, 7, 130, -2])
def test_an_impossible_truncation_is_refused_by_both(engine, reference, truncate_dim):
    for model in (engine(Recipe()), reference(Recipe())):
        with pytest.raises(ValueError, match="truncate_dim"):
            model.encode(["a"], truncate_dim=truncate_dim)


def test_a_directory_without_config_is_refused_by_both(tmp_path):
    from c2v_engine.reference import Causal2VecReference

    for cls in (Causal2Vec, Causal2VecReference):
        with pytest.raises(ConfigError, match="no such file"):
            cls.from_pretrained(tmp_path)
