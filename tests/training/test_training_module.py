"""The module that is trained computes what the reference computes, and its gradients."""

import numpy as np
import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from training_pairs import pairs

from c2v_engine.errors import ConfigError
from c2v_engine.reference import Causal2VecReference
from c2v_engine.training.module import Causal2VecModule

TEXTS = ["", "one", "a somewhat longer text about files and sockets", "two words", "x " * 60]
RECIPES = [
    Recipe(),
    Recipe(template=INSTRUCTION_FIRST, encoder_text="{prompt}{text}"),
    Recipe(decoder="qwen3", encoder="roberta"),
    Recipe(template=("{prompt}{text}", "<eos>"), pooling=("<eos>",), encoder=None),
    Recipe(template=("<bos>", "{text}"), pooling=("{text}",), encoder=None),
]


def module_of(path, **options):
    return Causal2VecModule(Causal2VecReference.from_pretrained(path), path, **options)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_eager_attention_masks_as_the_default_does(checkpoint, reference, attention):
    recipe = Recipe(attention=attention)
    eager = Causal2VecReference.from_pretrained(checkpoint(recipe), attn_implementation="eager")
    expected = reference(recipe).encode(TEXTS, batch_size=len(TEXTS))
    torch.testing.assert_close(
        eager.encode(TEXTS, batch_size=len(TEXTS)), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(recipe.template))
@pytest.mark.parametrize("group_rows", [None, 1, 2, 64])
def test_a_batch_in_groups_is_each_text_alone(checkpoint, reference, recipe, group_rows):
    model = SentenceTransformer(modules=[module_of(checkpoint(recipe), group_rows=group_rows)])
    found = model.encode(TEXTS, prompt="a prompt: ", normalize_embeddings=True)
    expected = reference(recipe).encode(TEXTS, prompt="a prompt: ").numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # DESIGN's float32 bound


def test_training_can_shorten_texts_more_than_the_checkpoint(checkpoint):
    module = module_of(checkpoint(), max_length=12)
    features = module.preprocess(TEXTS)
    assert features["input_ids"].shape[1] == 12
    assert features["encoder_mask"].sum(dim=1).max() == 12
    assert module.reference.config.max_length == 12


def test_encoder_windows_are_refused(checkpoint):
    with pytest.raises(ConfigError, match="windows"):
        module_of(checkpoint(Recipe(overflow="windows")))


@pytest.mark.parametrize("negatives", [False, True])
def test_cached_gradients_are_the_plain_ones(checkpoint, negatives):
    """Also where a piece of the batch is shorter than the batch, and widths meet by chance."""
    rows = [*pairs(7, negatives), {"query": "q " * 30, "positive": "p", "negative": "n " * 9}]
    columns = ["query", "positive", *(["negative"] if negatives else [])]
    gradients = []
    for kind, options in (
        (MultipleNegativesRankingLoss, {}),
        (CachedMultipleNegativesRankingLoss, {"mini_batch_size": 3}),
    ):
        module = module_of(checkpoint())
        module.reference.requires_grad_(True)
        model = SentenceTransformer(modules=[module]).eval()
        features = [module.preprocess([row[column] for row in rows]) for column in columns]
        with torch.enable_grad():
            loss = kind(model, **options)(features, None)
            loss.backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    plain, cached = gradients
    assert plain
    assert set(plain) == set(cached)
    scale = max(value.abs().max() for value in plain.values())
    for name, value in plain.items():
        # Sums of another order; float32 keeps seven digits.
        assert (cached[name] - value).abs().max() <= 1e-5 * scale, name
