"""The whole engine on its Triton kernels, in Triton's interpreter, against the reference.

Where a GPU is, it runs the kernels themselves: see ``gpu/test_cuda_parity.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe
from interpreter import counted_launches, triton_on_cpu
from recipes import ARCHITECTURES, ECHO, ENCODERS, LAST_TOKEN, MEAN, TEMPLATES, TEXTS

from c2v_engine.model.attention import base
from c2v_engine.model.attention.packed_triton import PackedTritonAttention

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the kernels itself")

FLOAT32_TOLERANCE = 1e-5
BFLOAT16_COSINE = 0.999
# Every kernel once, and lengths from nothing to more than max_length; the interpreter is slow.
FEW_TEXTS = [TEXTS[0], TEXTS[4], TEXTS[7], TEXTS[-1]]

RECIPES = {
    **{name: ARCHITECTURES[name] for name in ("llama", "qwen2", "qwen3-bias", "qwen2-window")},
    "mistral-instruction-first": Recipe(decoder="mistral", template=INSTRUCTION_FIRST),
    **{name: TEMPLATES[name] for name in TEMPLATES},
    **{name: ENCODERS[name] for name in ("roberta-windows", "windows-cls", "cls", "relu", "tanh")},
}
ALWAYS = {"prefix_concat", "add_rms_norm", "qk_norm_rope_", "silu_and_mul", "packed_attention"}
CONTEXTUAL = {"embed_layer_norm", "add_layer_norm", "bias_act_", "segment_pool"}

PACKED_TRITON = {
    name: RECIPES[name]
    for name in ("llama", "qwen2-window", "mistral-instruction-first", "mean", "bidirectional")
}


@pytest.fixture
def on_packed_triton(monkeypatch):
    """Has a model's attention take the way of the backend that only a GPU is given."""

    def put(model):
        inner = model._runner.checkpoint.model
        monkeypatch.setattr(inner, "attention", PackedTritonAttention())
        if inner.context is not None:
            context = replace(inner.context, attention=PackedTritonAttention())
            monkeypatch.setattr(inner, "context", context)
        monkeypatch.setattr(base, "triton_serves", lambda device: True)
        return model

    return put


@pytest.mark.parametrize("recipe", PACKED_TRITON.values(), ids=PACKED_TRITON)
def test_the_triton_backend_shares_its_plan_between_layers(
    plain_engine, reference, recipe, on_packed_triton
):
    model = on_packed_triton(plain_engine(recipe))
    expected = reference(recipe).encode(FEW_TEXTS).numpy()
    with triton_on_cpu() as calls:
        actual = model.encode(FEW_TEXTS)
    layers = model._runner.checkpoint.model.decoder.shape.num_layers
    assert calls["packed_attention"] >= layers
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_layout_in_float32(plain_engine, reference, recipe):
    model = plain_engine(recipe)
    prompt_name = "query" if model.config.reads_prompt else None
    expected = reference(recipe).encode(FEW_TEXTS, prompt_name=prompt_name).numpy()
    with triton_on_cpu() as calls:
        actual = model.encode(FEW_TEXTS, prompt_name=prompt_name)
    assert calls.keys() >= ALWAYS | (CONTEXTUAL if recipe.encoder else set())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(decoder="qwen3", template=INSTRUCTION_FIRST), LAST_TOKEN, MEAN, ECHO],
    ids=["dual", "qwen3", "last-token", "mean", "echo"],
)
def test_bfloat16_keeps_the_direction_of_the_float32_reference(plain_engine, reference, recipe):
    model = plain_engine(recipe, dtype="bfloat16")
    expected = reference(recipe).encode(FEW_TEXTS).numpy()
    with triton_on_cpu():
        actual = model.encode(FEW_TEXTS)
    assert (actual * expected).sum(axis=1).min() >= BFLOAT16_COSINE


def test_a_batch_of_any_size_takes_the_same_few_launches(plain_engine):
    """Pooling, the projector's activation and the decoder's input, whatever the number of texts."""
    model = plain_engine(Recipe())
    counted = []
    for texts in (TEXTS[4:5], TEXTS[4:9]):
        with triton_on_cpu(), counted_launches() as launches:
            model.encode(texts)
        counted.append(dict(launches))
    assert counted[0] == counted[1]
    assert counted[0]["_segment_pool_kernel"] == 1
    assert counted[0]["_prefix_concat_kernel"] == 1
    layers = model._runner.checkpoint.model.context.encoder.shape.num_layers
    assert counted[0]["_bias_act_kernel"] == layers + 1  # the encoder's own, and the projector's


def test_windows_in_several_encoder_passes(plain_engine, reference):
    recipe = replace(ENCODERS["windows"], encoder_max_length=11)
    texts = [TEXTS[-1], TEXTS[-2]]
    expected = reference(recipe).encode(texts).numpy()
    with triton_on_cpu() as calls:
        actual = plain_engine(recipe).encode(texts, batch_tokens=16)
    assert calls["segment_pool"] > 2
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)
