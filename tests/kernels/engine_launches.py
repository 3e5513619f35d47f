"""Run by ``test_aot_engine``: what the engine's own forward launches, beside what ``aot`` compiles.

Models of real sizes, of tensors without values, embed batches as they do on CUDA: their ops call
the Triton forms, whose launches are written down. Prints, as JSON, the launches that are not among
those of ``tools/aot_cases.py``, and every case of these with whether the engine launches it.
"""

import json
import sys
from functools import partial

import numpy as np
import torch
from aot import record
from aot_cases import DTYPES, MODELS, cases_of
from aot_launches import recorded_launches
from transformers import BertConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from c2v_engine.kernels._ops import TRITON_FORMS
from c2v_engine.model import decoder, encoder, projector
from c2v_engine.model.attention.select import BACKENDS
from c2v_engine.model.causal2vec import ContextModel, PackedCausal2Vec
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.packing import PackingRules, pack
from c2v_engine.runtime.tokenization import TokenizedText

META = torch.device("meta")
CAPABILITY = 90
STOCK = {
    "Mistral-7B": MistralConfig,
    "S-LLaMA-1.3B": LlamaConfig,
    "Qwen2.5-0.5B": Qwen2Config,
    "Qwen3-0.6B": Qwen3Config,
}
BERT = next(model for model in MODELS if model.kind == "encoder")
PAPER = {"encoder": EncoderConfig(pooling="mean"), "projector": ProjectorConfig(hidden_size=2048)}
CHECKPOINTS = {
    "the paper's": PAPER,
    "cls pooling": PAPER | {"encoder": EncoderConfig(pooling="cls")},
    "bidirectional": PAPER | {"attention": "bidirectional"},
    "last token": {"template": ("{text}", "<eos>"), "pooling": ("<eos>",)},
    "mean pooling": {"template": ("<bos>", "{text}"), "pooling": ("{text}",)},
}
ENCODER_ACTIVATIONS = ("gelu_new", "relu", "silu", "tanh")


class Folder:
    """In place of a folder of weights: holds every name, in the shape that is asked for."""

    names = ()

    def __init__(self, *path):
        pass

    def __contains__(self, name):
        return True

    def take(self, name, shape):
        return torch.empty(shape, device=META)

    def refuse_extra(self, *unused):
        pass


def as_on_cuda(op, form):
    """A Triton form, called with what the op is called with."""
    schema = op.default._schema.arguments

    def call(*given):
        return form(*given, *(argument.default_value for argument in schema[len(given) :]))

    return call


def stock_config(model, **options):
    options |= {
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": 3,
    }
    if model.kind == "encoder":
        return BertConfig(**options)
    options |= {"num_key_value_heads": model.kv_heads, "head_dim": model.head_dim}
    if model.window is not None:
        options["sliding_window"] = 100  # short, so that small batches reach it
    return STOCK[model.name](**options)


def engines():
    """Every engine to run, as what it is, its width, and a call that makes it from a dtype."""
    decoders = [model for model in MODELS if model.kind == "decoder"]
    runs = [(model, "silu", "gelu", name) for model in decoders for name in CHECKPOINTS]
    runs += [(model, "gelu_pytorch_tanh", "gelu", "the paper's") for model in decoders]
    runs += [(decoders[0], "silu", activation, "the paper's") for activation in ENCODER_ACTIVATIONS]
    for model, *activations, name in runs:
        config = Causal2VecConfig(**CHECKPOINTS[name])
        label = ", ".join((model.name, *activations, name))
        yield label, model.hidden, partial(build, model, activations, config)


def build(model, activations, config, dtype):
    attention = BACKENDS["packed_triton"]()
    stock = stock_config(model, hidden_act=activations[0])
    loaded = decoder.Decoder.load("", stock, 512, dtype, META)
    context = None
    if config.encoder is not None:
        context = ContextModel(
            encoder.Encoder.load("", stock_config(BERT, hidden_act=activations[1]), dtype, META),
            attention,
            projector.Projector.load("", config.projector, BERT.hidden, model.hidden, dtype, META),
        )
    return PackedCausal2Vec(config, loaded, attention, context)


def batch_of(config, texts, length):
    """Like texts; the encoder reads them in two passes, for want of budget."""
    template = config.parsed_template
    sizes = [1 if entry.format is None else length for entry in template.entries]
    bounds = tuple(np.cumsum([0, *sizes]).tolist())
    windows = (np.zeros(length, dtype=np.int32),) if config.encoder else ()
    text = TokenizedText(np.zeros(bounds[-1], dtype=np.int32), bounds, windows)
    rules = PackingRules.from_template(template, config.encoder.pooling if windows else "mean")
    return pack([text] * texts, rules, texts * length // 2 + 1, META)


def main():
    for module in (decoder, encoder, projector):
        module.WeightFolder = Folder
    for name, form in TRITON_FORMS.items():
        setattr(torch.ops.c2v, name, as_on_cuda(getattr(torch.ops.c2v, name), form))
    compiled = record(TRITON_FORMS, CAPABILITY)
    unknown, launched = {}, {}
    for label, width, make in engines():
        for dtype in DTYPES:
            engine = make(dtype)
            with recorded_launches(CAPABILITY) as launches:
                for texts, length in ((1, 1), (7, 200)):
                    batch = batch_of(engine.config, texts, length)
                    engine.forward(batch, OutputFormat(keep=width))
            for launch in launches:
                launched.setdefault(launch.key, (launch, f"{label}, {dtype}"))
    for key in launched.keys() - {entry.launch.key for entry in compiled}:
        launch, where = launched[key]
        unknown[f"{launch.kernel} {launch.source.constants}"] = where
    unused = {
        label for entry in compiled if entry.launch.key not in launched for label in entry.cases
    }
    cases = [
        {
            "label": case.label,
            "op": op,
            "variant": case.variant,
            "model": case.model,
            "launched": case.label not in unused,
        }
        for op in TRITON_FORMS
        for case in cases_of(op)
    ]
    json.dump({"unknown": unknown, "cases": cases}, sys.stdout)


if __name__ == "__main__":
    main()
