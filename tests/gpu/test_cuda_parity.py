"""Every layout and architecture on a GPU against the float32 reference on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipes import ARCHITECTURES, ENCODERS, TEMPLATES, TEXTS

from c2v_engine import Causal2Vec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

# The same bounds as on the CPU: TF32 is off unless a user turns it on, so that float32 sums differ
# in their order alone.
FLOAT32_TOLERANCE = 1e-5
HALF_COSINE = 0.999
RECIPES = {**ARCHITECTURES, **TEMPLATES, **ENCODERS}


@pytest.fixture(autouse=True)
def adapters_need_peft(recipe):
    """The checkpoint's maker needs it; the engine merges adapters by itself."""
    if recipe.adapter is not None:
        pytest.importorskip("peft")


@pytest.mark.parametrize("attention", ["auto", "packed_triton"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_float32(checkpoint, reference, recipe, attention):
    engine = Causal2Vec.from_pretrained(
        checkpoint(recipe), device="cuda", dtype="float32", attention=attention
    )
    prompt_name = "query" if engine.config.reads_prompt else None
    expected = reference(recipe).encode(TEXTS, prompt_name=prompt_name).numpy()
    actual = engine.encode(TEXTS, prompt_name=prompt_name)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("attention", ["auto", "packed_triton"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_half_precision_keeps_the_direction(checkpoint, reference, recipe, dtype, attention):
    engine = Causal2Vec.from_pretrained(
        checkpoint(recipe), device="cuda", dtype=dtype, attention=attention
    )
    expected = reference(recipe).encode(TEXTS).numpy()
    actual = engine.encode(TEXTS)
    assert np.isfinite(actual).all()
    assert (actual * expected).sum(axis=1).min() >= HALF_COSINE
