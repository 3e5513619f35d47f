"""The engine on a GPU against the reference on the CPU; every backend that can serve there."""

import numpy as np
import pytest
import torch
from checkpoints import Recipe
from recipes import LAST_TOKEN

from c2v_engine import Causal2Vec
from c2v_engine.kernels.dual_token_pool import dual_token_pool, dual_token_pool_reference
from c2v_engine.model.attention.select import BACKENDS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

WORDS = [
    "the",
    "engine",
    "reads",
    "a",
    "text",
    "once",
    "and",
    "every",
    "token",
    "sees",
    "a",
    "summary",
    "of",
    "it",
]
TEXTS = ["", "one", *(" ".join(WORDS[i % len(WORDS) :] * (1 + i % 7)) for i in range(40))]

RECIPE = Recipe()


def cosines(engine, truth):
    embeddings = engine.encode(TEXTS)
    assert np.isfinite(embeddings).all()
    return (embeddings * truth).sum(axis=1)


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_usable_backend_agrees_with_the_float32_reference(checkpoint, reference, name, dtype):
    reasons = {}
    # The heads of the tiny encoder are 12 wide, which FlashAttention does not take.
    for recipe in (LAST_TOKEN, RECIPE):
        model = Causal2Vec.from_pretrained(
            checkpoint(recipe), device="cpu"
        )._runner.checkpoint.model
        sizes = [model.decoder.shape.head_dim]
        sizes += [] if model.context is None else [model.context.encoder.shape.head_dim]
        found = [
            BACKENDS[name].why_not(torch.device("cuda"), getattr(torch, dtype), size)
            for size in sizes
        ]
        reasons[recipe] = next(filter(None, found), None)
    usable = [recipe for recipe, reason in reasons.items() if reason is None]
    if not usable:
        pytest.skip(reasons[LAST_TOKEN])
    for recipe in usable:
        engine = Causal2Vec.from_pretrained(
            checkpoint(recipe), device="cuda", dtype=dtype, attention=name
        )
        truth = reference(recipe).encode(TEXTS).numpy()
        # bfloat16 keeps 8 bits: the bound of the whole engine in half precision.
        assert cosines(engine, truth).min() >= 0.999


def test_float32_on_cuda_agrees_closely(checkpoint, reference):
    engine = Causal2Vec.from_pretrained(checkpoint(RECIPE), device="cuda", dtype="float32")
    truth = reference(RECIPE).encode(TEXTS).numpy()
    # TF32 is off by default: sums differ in their order only.
    assert np.abs(engine.encode(TEXTS) - truth).max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 64, 123, 2048])
def test_the_pooling_kernel_agrees_with_its_reference(dtype, width):
    generator = torch.Generator().manual_seed(width)
    hidden = torch.randn(77, width, generator=generator).to("cuda", dtype)
    rows = torch.randint(77, (64,), generator=generator, dtype=torch.int32).cuda()
    offsets = torch.arange(0, 65, 2, dtype=torch.int32).cuda()
    weight = torch.rand(width, generator=generator).to("cuda", dtype)
    options = {"eps": 1e-6, "segments": 2, "keep": width}
    found, norms = dual_token_pool(hidden, rows, offsets, weight, **options)
    expected, expected_norms = dual_token_pool_reference(hidden, rows, offsets, weight, **options)
    # float32 sums of a few thousand terms in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-5, atol=1e-6)
