"""No step of a batch asks the device for a value: told without a device, by tensors without values.

Every op of a forward is run on fake tensors. What would have to read one, such as ``item`` or a
shape that depends on values, has nothing to read there and raises. On a GPU
``gpu/test_cuda_speed.py`` counts what waits.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus
from recipes import ECHO, MEAN
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from c2v_engine.model import linear
from c2v_engine.model.arithmetic import make_arithmetic
from c2v_engine.model.attention import base
from c2v_engine.model.attention.packed_triton import PackedTritonAttention
from c2v_engine.model.causal2vec import ContextModel, PackedCausal2Vec
from c2v_engine.model.decoder_loading import load_decoder
from c2v_engine.model.encoder import Encoder
from c2v_engine.model.loading import Placement
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.projector import Projector
from c2v_engine.model.rounding import NoRounding
from c2v_engine.runtime.packing import lay_out

CPU = torch.device("cpu")
TEXTS = ["", *(" ".join(text.split()[:n]) for n, text in enumerate(corpus()[:9]))]
PROMPT = "Answer with all that this question needs to be answered:\n"
RECIPES = {
    "dual": (Recipe(), ""),
    "cls": (Recipe(encoder_pooling="cls"), ""),
    "windows": (Recipe(overflow="windows", encoder_max_length=11), ""),
    "qwen3 behind a prompt": (Recipe(decoder="qwen3", template=INSTRUCTION_FIRST), PROMPT),
    "mean": (MEAN, ""),
    "echo": (ECHO, ""),
    "bidirectional": (Recipe(attention="bidirectional"), ""),
}


class AnyWeights:
    """Holds every name, in the shape that is asked for."""

    names = ()

    def __contains__(self, name):
        return not name.startswith(("model.", "bert.", "roberta.")) and "gamma" not in name

    def take(self, name, shape):
        return torch.empty(shape, device=CPU)

    def refuse_extra(self, ignorable=()):
        pass


@contextmanager
def without_values(monkeypatch):
    """Tensors without values, and layers and attention as they are on CUDA."""
    monkeypatch.setattr(base, "triton_serves", lambda device: True)
    monkeypatch.setattr(linear, "onednn_serves", lambda dtype: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def build(description):
    config, placement = description.config, Placement(CPU, torch.bfloat16)
    decoder = load_decoder(
        AnyWeights(),
        description.decoder_config,
        config.max_length,
        placement,
        make_arithmetic(placement),
        "decoder",
    )
    context = None
    if config.encoder is not None:
        encoder = Encoder.load(AnyWeights(), description.encoder_config, placement, "encoder")
        sizes = encoder.shape.hidden_size, decoder.shape.hidden_size
        projector = Projector.load(AnyWeights(), config.projector, *sizes, placement)
        context = ContextModel(encoder, PackedTritonAttention(), projector)
    return PackedCausal2Vec(config, decoder, PackedTritonAttention(), context, NoRounding())


@pytest.mark.parametrize(("recipe", "prompt"), RECIPES.values(), ids=RECIPES)
def test_a_forward_reads_no_value_from_the_device(engine, monkeypatch, recipe, prompt):
    pipeline = engine(recipe)._runner
    texts = pipeline._tokenizer(TEXTS, prompt)
    shared = pipeline._shared_prompt(prompt).token_ids
    assert bool(shared) == bool(prompt)
    with without_values(monkeypatch):
        model = build(pipeline.checkpoint.description)
        batch = lay_out(texts, pipeline._execution.rules, 60, model.rounding, shared)
        states = model.prompt_states(shared) if shared else None
        on_device = batch.on(torch.empty(len(batch.buffer), dtype=torch.int32, device=CPU))
        output = OutputFormat(keep=model.decoder.shape.hidden_size)
        embeddings, norms = model.forward(on_device, output, states)
    assert embeddings.shape == (len(TEXTS), model.dimension)
    assert norms.shape == (len(TEXTS),)


def test_what_reads_a_value_is_found(monkeypatch):
    with without_values(monkeypatch), pytest.raises(DataDependentOutputException):
        torch.ones(3, device=CPU).sum().item()
