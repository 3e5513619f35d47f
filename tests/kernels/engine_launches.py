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
from c2v_engine.model import encoder, projector
from c2v_engine.model.arithmetic import make_arithmetic
from c2v_engine.model.attention.select import BACKENDS
from c2v_engine.model.causal2vec import ContextModel, PackedCausal2Vec
from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig
from c2v_engine.model.decoder_loading import load_decoder
from c2v_engine.model.loading import Placement
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.rounding import NoRounding
from c2v_engine.runtime.packing import PackingRules, lay_out
from c2v_engine.runtime.tokenization import TokenizedText

META = torch.device("meta")
CAPABILITY = 90
FLOAT8 = (torch.bfloat16, "float8")
PROMPT = tuple(range(33))
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


def build(model, activations, config, dtype, weights="dtype"):
    attention = BACKENDS["packed_triton"]()
    stock = stock_config(model, hidden_act=activations[0])
    place = Placement(META, dtype, weights)
    loaded = load_decoder(Folder(), stock, 512, place, make_arithmetic(place), "")
    context = None
    if config.encoder is not None:
        stock = stock_config(BERT, hidden_act=activations[1])
        sizes = BERT.hidden, model.hidden
        context = ContextModel(
            encoder.Encoder.load(Folder(), stock, place, ""),
            attention,
            projector.Projector.load(Folder(), config.projector, *sizes, place),
        )
    return PackedCausal2Vec(config, loaded, attention, context, place.rounding)


def batch_of(config, texts, length, prompt):
    """Like texts; the encoder reads them in two passes, for want of budget."""
    template = config.parsed_template
    sizes = [1 if entry.format is None else length for entry in template.entries]
    bounds = tuple(np.cumsum([0, *sizes]).tolist())
    windows = (np.zeros(length, dtype=np.int32),) if config.encoder else ()
    text = TokenizedText(np.zeros(bounds[-1], dtype=np.int32), bounds, windows)
    rules = PackingRules.from_template(template, config.encoder.pooling if windows else "mean")
    return lay_out([text] * texts, rules, texts * length // 2 + 1, NoRounding(), prompt)


def run(engine, texts, length, width):
    """Embeds a batch as it is, and where the template allows it behind a shared prompt."""
    prompts = [()]
    if length > len(PROMPT) and engine.config.template == ("{text}", "<eos>"):
        prompts.append(PROMPT)
    for prompt in prompts:
        batch = batch_of(engine.config, texts, length, prompt)
        states = engine.prompt_states(prompt) if prompt else None
        buffer = torch.empty(len(batch.buffer), dtype=torch.int32, device=META)
        engine.forward(batch.on(buffer), OutputFormat(keep=width), states)


def main():
    for name, form in TRITON_FORMS.items():
        setattr(torch.ops.c2v, name, as_on_cuda(getattr(torch.ops.c2v, name), form))
    compiled = record(TRITON_FORMS, CAPABILITY)
    unknown, launched = {}, {}
    for label, width, make in engines():
        for dtype, weights in (*((dtype, "dtype") for dtype in DTYPES), FLOAT8):
            engine = make(dtype, weights)
            with recorded_launches(CAPABILITY) as launches:
                for texts, length in ((1, 1), (7, 200)):
                    run(engine, texts, length, width)
            for launch in launches:
                launched.setdefault(launch.key, (launch, f"{label}, {dtype}, {weights}"))
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
