"""The decoder in SGLang: its requests and pooling; with SGLang's own classes where it is.

SGLang 0.5.23 wants a CUDA build of torch of its own, so it is no part of the ``test`` extra.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe
from recipes import LAST_TOKEN, TEMPLATES, TEXTS

from c2v_engine.errors import UnsupportedError
from c2v_engine.integrations.contextual import ContextualInputs
from c2v_engine.integrations.sglang import (
    ARCHITECTURES,
    sglang_command,
    sglang_options,
    sglang_request,
)
from c2v_engine.integrations.sglang.pooling import pool_sequences

RECIPES = {
    "context-first": Recipe(),
    "instruction-first": Recipe(decoder="qwen3", template=INSTRUCTION_FIRST),
}


def opened(checkpoint, recipe):
    return ContextualInputs.from_pretrained(checkpoint(recipe), device="cpu", dtype="float32")


def served(decoder, body):
    """What the server computes of a request, with the stock decoder.

    Returns:
        Hidden states of all sequences end to end, their lengths, and the overridden rows.
    """
    states, replaced, start = [], [], 0
    for ids, vectors in zip(body["input"], body["embed_overrides"], strict=True):
        places = [i for i, one in enumerate(ids) if one == body["embed_override_token_id"]]
        assert len(places) == len(vectors) == 1
        with torch.inference_mode():
            rows = decoder.get_input_embeddings()(torch.tensor(ids))
            rows[places] = torch.tensor(vectors)
            states.append(decoder(inputs_embeds=rows[None])[0][0])
        replaced += [start + place for place in places]
        start += len(ids)
    lengths = torch.tensor([len(ids) for ids in body["input"]])
    return torch.cat(states), lengths, torch.tensor(replaced)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("truncate_dim", [None, 32, 96])
def test_the_pooled_states_are_our_embeddings(checkpoint, reference, engine, name, truncate_dim):
    recipe = RECIPES[name]
    body = sglang_request(
        opened(checkpoint, recipe), TEXTS[:8], prompt_name="query", truncate_dim=truncate_dim
    )
    body = json.loads(json.dumps(body))  # as it travels
    states, lengths, replaced = served(reference(recipe).decoder, body)
    width = states.shape[1]
    # SGLang's checks and default, by the width of the decoder and not of our vectors.
    keep = [body.get("dimensions") or width] * len(lengths)
    assert 1 <= keep[0] <= width
    found = pool_sequences(states, lengths, replaced, keep)
    expected = engine(recipe).encode(TEXTS[:8], prompt_name="query", truncate_dim=truncate_dim)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)  # the engine's own bound


def test_sequences_without_an_override_and_of_their_own_width_are_pooled():
    states = torch.arange(24.0).view(6, 4)
    lengths = torch.tensor([2, 1, 3])
    found = pool_sequences(states, lengths, torch.tensor([4]), normalize=False)
    assert found[:, ::4].tolist() == [[0, 4], [8, 8], [16, 20]]
    widths = pool_sequences(states, lengths, None, [4, 2, 1])
    assert [len(one) for one in widths] == [8, 4, 2]
    assert all(abs(one.norm() - 1) < 1e-6 for one in widths)


def test_the_mark_is_a_token_of_no_text(checkpoint):
    inputs = opened(checkpoint, Recipe())
    body = sglang_request(inputs, TEXTS)
    mark = body["embed_override_token_id"]
    assert all(ids.count(mark) == 1 for ids in body["input"])
    assert mark < inputs.description.decoder_shape.vocab_size


def test_dimensions_are_those_of_a_half_and_unasked_ones_all_of_them(checkpoint):
    inputs = opened(checkpoint, Recipe())
    width = inputs.description.decoder_shape.hidden_size
    asked = [
        sglang_request(inputs, ["a"], truncate_dim=n).get("dimensions") for n in (96, 128, None)
    ]
    assert asked == [48, width, None]
    # In a batch SGLang fills in the decoder's width where a request does not say.
    keep = [one or width for one in asked]
    states, lengths = torch.ones(6, width), torch.tensor([2, 2, 2])
    assert [len(one) for one in pool_sequences(states, lengths, None, keep)] == [96, 128, 128]


def test_the_command_starts_the_server_with_the_models_here(checkpoint):
    folder = checkpoint(Recipe(decoder="mistral", normalize=False))
    options = sglang_options(folder)
    assert json.loads(options["json_model_override_args"]) == {
        "architectures": ["Causal2VecMistral"],
        "causal2vec_normalize": False,
        "is_matryoshka": True,
    }
    command = sglang_command(folder)
    assert command[:4] == ["python", "-m", "sglang.launch_server", "--model-path"]
    assert str(folder / "decoder") in command
    assert "--is-embedding" in command


@pytest.mark.parametrize("recipe", [LAST_TOKEN, TEMPLATES["two-contexts"], TEMPLATES["mean"]])
def test_another_pooling_is_refused(checkpoint, recipe):
    with pytest.raises(UnsupportedError, match="SGLang can give one <context>"):
        sglang_options(checkpoint(recipe))
    with pytest.raises(UnsupportedError, match="SGLang can give one <context>"):
        sglang_request(opened(checkpoint, recipe), ["a"])


def real(name):
    """A module of SGLang's, or a skip."""
    return pytest.importorskip(name, reason="SGLang is not installed", exc_type=ImportError)


def test_sglang_takes_the_request_and_places_its_vectors(checkpoint, reference, engine):
    from array import array

    request = real("sglang.srt.entrypoints.openai.protocol").EmbeddingRequest
    manager = real("sglang.srt.managers.tokenizer_manager").TokenizerManager
    models = real("c2v_engine.integrations.sglang.models")
    recipe = RECIPES["instruction-first"]
    body = sglang_request(opened(checkpoint, recipe), TEXTS[:8], prompt_name="query")
    taken = request.model_validate_json(json.dumps(body))
    assert taken.input == body["input"]
    start, replaced = 0, []
    for ids, vectors in zip(taken.input, taken.embed_overrides, strict=True):
        placed = manager._resolve_embed_overrides(
            array("q", ids), taken.embed_override_token_id, [torch.tensor(v) for v in vectors]
        )
        replaced += [start + position for position in placed.positions]
        start += len(ids)
    states, lengths, expected_rows = served(reference(recipe).decoder, body)
    assert replaced == expected_rows.tolist()
    batch = _Batch(lengths, torch.tensor(replaced))
    found = models.ContextualPooler(normalize=True)(states, batch).embeddings
    expected = engine(recipe).encode(TEXTS[:8], prompt_name="query")
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


class _Batch:
    """What the pooler reads of SGLang's ``ForwardBatch``."""

    dimensions = None

    def __init__(self, lengths, replaced):
        self.extend_seq_lens, self.replace_positions = lengths, replaced


def test_sglang_takes_the_options(checkpoint):
    import argparse

    arguments = real("sglang.srt.server_args").ServerArgs
    model_config = real("sglang.srt.configs.model_config").ModelConfig
    recipe = Recipe(normalize=False)
    parser = argparse.ArgumentParser()
    arguments.add_cli_args(parser)
    chosen = parser.parse_args(sglang_command(checkpoint(recipe))[3:])
    assert (chosen.is_embedding, chosen.chunked_prefill_size) == (True, -1)
    config = model_config(
        chosen.model_path,
        context_length=chosen.context_length,
        is_embedding=True,
        model_override_args=chosen.json_model_override_args,
    )
    assert config.hf_config.architectures == ["Causal2VecLlama"]
    assert config.hf_config.causal2vec_normalize is False
    assert not config.is_generation
    assert config.context_len > recipe.max_length


def test_sglang_finds_the_models():
    registry = real("sglang.srt.models.registry")
    found = registry.import_model_classes("c2v_engine.integrations.sglang", strict=True)
    assert set(found) == set(ARCHITECTURES.values())
