"""The rows that other engines feed to a decoder: with stock transformers they embed as we do."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import INSTRUCTION_FIRST, Recipe
from recipes import ENCODERS, LAST_TOKEN, TEMPLATES, TEXTS
from stock_decoder import embeddings_by_the_stock_decoder

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, InputError, TextError, UnsupportedError
from c2v_engine.integrations.contextual import ContextualInputs, describe_plain

RECIPES = {
    "context-first": Recipe(),
    "instruction-first": Recipe(decoder="qwen3", template=INSTRUCTION_FIRST),
    "bos": Recipe(decoder="mistral", template=("<bos>", *INSTRUCTION_FIRST)),
    "two-contexts": TEMPLATES["two-contexts"],
    "last-token": LAST_TOKEN,
    "mean": TEMPLATES["mean"],
    "windows": ENCODERS["windows"],
    "with-head": Recipe(decoder="qwen2", head=True),
}


def opened(checkpoint, recipe=None):
    return ContextualInputs.from_pretrained(checkpoint(recipe), device="cpu", dtype="float32")


@pytest.mark.parametrize("name", RECIPES)
def test_the_stock_decoder_gives_our_embeddings_of_the_rows(checkpoint, engine, reference, name):
    recipe = RECIPES[name]
    inputs = opened(checkpoint, recipe)(TEXTS, "query", batch_tokens=64)
    found = embeddings_by_the_stock_decoder(reference(recipe), inputs)
    expected = engine(recipe).encode(TEXTS, prompt_name="query")
    # The bound of the engine itself, float32 on a CPU, against the stock modules.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_input_says_what_its_rows_are(checkpoint, engine):
    inputs = opened(checkpoint, RECIPES["instruction-first"])
    prompted, plain = inputs(["one"], "query") + inputs(["one"])
    (context,) = prompted.contextual
    assert context > 1
    assert plain.contextual == (0,)  # without a prompt there is nothing before it
    assert prompted.pooled == ((context, context + 1), (len(prompted.rows) - 1, len(prompted.rows)))
    assert prompted.token_ids[context] == 0
    width = engine(RECIPES["instruction-first"]).dimension // 2
    assert prompted.rows.shape == (len(prompted.token_ids), width)


def test_the_shipped_model_opens_without_the_layers_of_its_decoder(engine):
    inputs = ContextualInputs.from_pretrained(device="cpu", dtype="float32")
    assert inputs([]) == []
    (one,) = inputs(["list.sort() sorts in place."], "document")
    assert one.rows.shape[1] * 2 == Causal2Vec.from_pretrained(device="cpu").dimension


def test_mistakes_are_named(checkpoint):
    inputs = opened(checkpoint)
    with pytest.raises(TextError, match="text 1: is int"):
        inputs(["a", 2])
    with pytest.raises(InputError, match="one string"):
        inputs("a")
    with pytest.raises(InputError, match="prompt_name is 'nope'"):
        inputs(["a"], "nope")
    with pytest.raises(UnsupportedError, match="causal mask only"):
        opened(checkpoint, Recipe(attention="bidirectional"))
    with pytest.raises(UnsupportedError, match="merge it into the decoder's weights"):
        describe_plain(checkpoint(Recipe(adapter="lora")))
    with pytest.raises(CheckpointError, match="no such directory"):
        ContextualInputs.from_pretrained("missing")


def test_rows_that_are_not_finite_are_an_error(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint(Recipe()), broken)
    weights = load_file(broken / "projector.safetensors")
    weights["linear_2.weight"][0, 0] = float("nan")
    save_file(weights, broken / "projector.safetensors")
    inputs = ContextualInputs.from_pretrained(broken, device="cpu", dtype="float32")
    with pytest.raises(TextError, match="text 0: its input rows are not finite"):
        inputs(["a"])
