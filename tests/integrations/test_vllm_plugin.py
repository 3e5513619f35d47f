"""The decoder in vLLM: its options, prompts and pooling; with vLLM's own classes where it is.

vLLM 0.33 wants a CUDA build of torch of its own, so it is no part of the ``test`` extra.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe
from recipes import TEMPLATES, TEXTS

from c2v_engine.errors import InputError, MissingPackageError, UnsupportedError
from c2v_engine.integrations.contextual import ContextualInputs
from c2v_engine.integrations.vllm import ARCHITECTURES, register, vllm_options, vllm_requests
from c2v_engine.integrations.vllm.pooling import pool_prompts

RECIPES = {
    "instruction-first": Recipe(decoder="qwen3", template=INSTRUCTION_FIRST),
    "mean": TEMPLATES["mean-of-prompt-and-text"],
}


@pytest.fixture
def vllm(monkeypatch):
    """vLLM, or as much of it as making requests needs."""
    try:
        import vllm
    except ImportError:
        vllm = SimpleNamespace(PoolingParams=lambda **fields: SimpleNamespace(**fields))
        monkeypatch.setitem(sys.modules, "vllm", vllm)
    return vllm


def opened(checkpoint, recipe):
    return ContextualInputs.from_pretrained(checkpoint(recipe), device="cpu", dtype="float32")


def states_of(reference, recipe, prompts):
    """What the decoder gives for all prompts, end to end, as vLLM hands it to a pooler."""
    with torch.inference_mode():
        return torch.cat(
            [
                reference(recipe).decoder(inputs_embeds=one["prompt_embeds"][None])[0][0]
                for one in prompts
            ]
        )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("options", [{}, {"normalize_embeddings": False}, {"truncate_dim": 32}])
def test_the_pooled_states_are_our_embeddings(vllm, checkpoint, reference, engine, name, options):
    recipe = RECIPES[name]
    inputs = opened(checkpoint, recipe)
    prompts, parameters = vllm_requests(inputs, TEXTS[:8], prompt="Find it: ", **options)
    found = pool_prompts(
        states_of(reference, recipe, prompts),
        [len(one["prompt_embeds"]) for one in prompts],
        [one.extra_kwargs for one in parameters],
        [one.use_activation for one in parameters],
    )
    expected = engine(recipe).encode(TEXTS[:8], prompt="Find it: ", **options)
    # The engine's own bound, relative to the size of the vectors, which may not be normalised.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(torch.stack(found).numpy() / scale, expected / scale, atol=1e-5)


def test_trial_runs_pool_the_first_row_and_the_last():
    states = torch.arange(10.0).view(5, 2)
    found = pool_prompts(states, [2, 3], [None, None], [False, False])
    assert [one.tolist() for one in found] == [[0, 1, 2, 3], [4, 5, 8, 9]]


def test_the_options_open_the_folder_of_the_decoder(checkpoint):
    folder = checkpoint(Recipe(decoder="qwen2"))
    options = vllm_options(folder)
    assert options["model"] == str(folder / "decoder")
    assert options["hf_overrides"] == {
        "architectures": ["Causal2VecQwen2Model"],
        "embedding_size": 128,
    }
    with pytest.raises(UnsupportedError, match="adapter"):
        vllm_options(checkpoint(Recipe(adapter="lora")))


def test_mistakes_are_named(vllm, checkpoint, monkeypatch):
    inputs = opened(checkpoint, Recipe())
    with pytest.raises(InputError, match="truncate_dim is 33"):
        vllm_requests(inputs, ["a"], truncate_dim=33)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingPackageError, match=r"c2v-engine\[vllm\]"):
        vllm_requests(inputs, ["a"])


def real(name):
    """A module of vLLM's, or a skip: it can be imported without its compiled parts."""
    return pytest.importorskip(name, reason="vLLM is not installed", exc_type=ImportError)


def test_vllm_knows_the_architectures_and_how_they_run(checkpoint):
    registry = real("vllm").ModelRegistry
    register()
    register()  # in every process, and maybe more than once
    assert set(ARCHITECTURES.values()) <= set(registry.get_supported_archs())
    options = vllm_options(checkpoint(Recipe()))
    arguments = real("vllm.engine.arg_utils").EngineArgs(**options, dtype="float32")
    config = arguments.create_model_config()
    assert (config.runner_type, config.convert_type) == ("pooling", "none")
    assert config.embedding_size == 128
    assert config.enable_prompt_embeds
    assert not config.is_chunked_prefill_supported
    assert not config.is_prefix_caching_supported


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2", "qwen3"])
def test_vllms_decoder_gives_our_embeddings(checkpoint, engine, monkeypatch, decoder):
    real("vllm.model_executor.models.llama")
    from vllm_on_cpu import hidden_states, loaded_model, pooling_batch

    register()
    recipe = Recipe(decoder=decoder, template=INSTRUCTION_FIRST)
    inputs = opened(checkpoint, recipe)
    prompts, parameters = vllm_requests(inputs, TEXTS[:8], prompt_name="query")
    with loaded_model(vllm_options(checkpoint(recipe)), monkeypatch) as (model, config):
        for one in parameters:
            one.task = "embed"
            one.verify(config)
        states, lengths = hidden_states(model, prompts)
        found = torch.stack(model.pooler(states, pooling_batch(parameters, lengths, lengths)))
        expected = engine(recipe).encode(TEXTS[:8], prompt_name="query")
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)  # the engine's own bound
        with pytest.raises(RuntimeError, match="enable_chunked_prefill=False"):
            model.pooler(states, pooling_batch(parameters, lengths, lengths - 1))
