"""LoRA adapters: merged as peft merges them, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import Recipe
from damage import REMOVED, assert_refused, copy, edit_json, edit_weights, open_engine

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.model.lora import LoraAdapter

RECIPE = Recipe(adapter="lora")
CONFIG = "adapter/adapter_config.json"
WEIGHTS = "adapter/adapter_model.safetensors"
PREFIX = "base_model.model."
QUERY_A = PREFIX + "layers.0.self_attn.q_proj.lora_A.weight"
QUERY_B = PREFIX + "layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def model(checkpoint, tmp_path):
    """A sound checkpoint with an adapter that the test may spoil."""
    return copy(checkpoint(RECIPE), tmp_path)


def refused(model, *words, error=CheckpointError):
    assert_refused(lambda: open_engine(model), *words, error=error)


# --- merging --------------------------------------------------------------------------------------


def factors(model, module):
    from safetensors.torch import load_file

    tensors = load_file(model / WEIGHTS)
    return (tensors[f"{PREFIX}{module}.lora_{which}.weight"].double() for which in "AB")


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 6 / 4), (True, 6 / 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scaled_product_of_the_factors_is_added(model, rslora, scaling, dtype):
    edit_json(model / CONFIG, use_rslora=rslora)
    module = "layers.1.mlp.down_proj"
    a, b = factors(model, module)
    weight = torch.randn(64, 112, generator=torch.Generator().manual_seed(0)).to(dtype)
    merged = LoraAdapter(model / "adapter").merge(f"{module}.weight", weight)
    assert merged.dtype == torch.float32  # rounded once, after the sum
    expected = weight.double() + scaling * (b @ a)
    np.testing.assert_allclose(merged.double(), expected, rtol=1e-6, atol=1e-6)


def test_weights_that_the_adapter_does_not_name_stay_as_they_are(model):
    adapter = LoraAdapter(model / "adapter")
    weight = torch.randn(112, 64)
    assert adapter.merge("layers.0.mlp.up_proj.weight", weight) is weight
    assert adapter.merge("layers.0.self_attn.q_proj.bias", weight) is weight


@pytest.mark.parametrize("with_head", [False, True])
def test_rank_and_alpha_patterns_are_read_as_peft_reads_them(checkpoint, tmp_path, with_head):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        alpha_pattern={
            "down_proj": 10,
            r"^layers\.0\.self_attn\.q_proj": 1,
            "model.layers.1.self_attn.v_proj": 64,
        },
    )
    auto_class = AutoModelForCausalLM if with_head else AutoModel
    base = auto_class.from_pretrained(checkpoint(Recipe()) / "decoder", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before.pop("lm_head.weight", None)
    model = get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    expected = model.merge_and_unload().state_dict()
    adapter = LoraAdapter(tmp_path)
    changed = 0
    for name, weight in before.items():
        merged = adapter.merge(name.removeprefix("model."), weight)
        np.testing.assert_allclose(merged, expected[name], rtol=1e-5, atol=1e-5)
        changed += not torch.equal(merged, weight)
    assert changed == 6
    adapter.refuse_unmerged()


def test_an_adapter_changes_the_embedding_and_a_zero_one_does_not(model, engine):
    texts = ["one", "two words"]
    plain, adapted = engine(Recipe()).encode(texts), engine(RECIPE).encode(texts)
    assert np.abs(plain - adapted).max() > 0.01
    edit_weights(model / WEIGHTS, lambda tensors: {k: v * 0 for k, v in tensors.items()})
    assert np.array_equal(open_engine(model).encode(texts), plain)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(model, file):
    (model / file).unlink()
    refused(model, model / "adapter", file.removeprefix("adapter/"))


def test_a_pickled_adapter_is_refused(model):
    (model / WEIGHTS).rename(model / "adapter/adapter_model.bin")
    refused(model, model / "adapter/adapter_model.bin", "pickled weights are refused")


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_config_is_named(model, content):
    (model / CONFIG).write_text(content, encoding="utf-8")
    refused(model, model / CONFIG)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"peft_type": "IA3"}, "peft_type LORA"),
        ({"peft_type": REMOVED}, "peft_type LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
    ],
)
def test_another_kind_of_adapter_is_refused(model, changes, word):
    edit_json(model / CONFIG, **changes)
    refused(model, model / CONFIG, word, error=UnsupportedError)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"r": REMOVED}, "r is None"),
        ({"r": "4"}, "r is '4'"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": 4.0}, "r is 4.0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj is 0"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern has '('"),
        ({"alpha_pattern": {"q_proj": []}}, "q_proj is []"),
    ],
)
def test_a_rank_or_alpha_that_can_not_be_is_refused(model, changes, word):
    edit_json(model / CONFIG, **changes)
    refused(model, model / CONFIG, word)


def test_a_rank_that_the_weights_do_not_have_is_refused(model):
    edit_json(model / CONFIG, r=8)
    refused(model, model / WEIGHTS, "[8, ", "[4, ")


@pytest.mark.parametrize(("name", "shape"), [(QUERY_A, (4, 63)), (QUERY_B, (60, 4))])
def test_a_misshapen_factor_is_named(model, name, shape):
    edit_weights(model / WEIGHTS, lambda tensors: {**tensors, name: torch.zeros(shape)})
    refused(model, model / WEIGHTS, name, str(list(shape)))


def test_factors_of_integers_are_refused(model):
    edit_weights(model / WEIGHTS, lambda tensors: {**tensors, QUERY_A: tensors[QUERY_A].int()})
    refused(model, model / WEIGHTS, QUERY_A, "torch.int32")


@pytest.mark.parametrize(("gone", "left"), [(QUERY_A, "B"), (QUERY_B, "A")])
def test_half_a_pair_of_factors_is_refused(model, gone, left):
    edit_weights(model / WEIGHTS, lambda tensors: {k: v for k, v in tensors.items() if k != gone})
    refused(model, model / WEIGHTS, "layers.0.self_attn.q_proj", f"only factor {left}")


@pytest.mark.parametrize(
    ("old", "new", "module"),
    [
        ("layers.1.", "layers.9.", "layers.9."),
        ("q_proj", "z_proj", "layers.0.self_attn.z_proj"),
        ("layers.0.self_attn.q_proj", "layers.0.input_layernorm", "layers.0.input_layernorm"),
    ],
)
def test_a_module_that_the_decoder_has_not_is_named(model, old, new, module):
    edit_weights(model / WEIGHTS, lambda ts: {k.replace(old, new): v for k, v in ts.items()})
    refused(model, model / WEIGHTS, f"adapts {module}", "which the decoder has not")


@pytest.mark.parametrize(
    "name",
    [
        PREFIX + "embed_tokens.lora_embedding_A",
        PREFIX + "layers.0.self_attn.q_proj.lora_magnitude_vector",
        PREFIX + "norm.weight",
        PREFIX + "lm_head.lora_A.weight",
    ],
)
def test_a_weight_that_is_no_factor_of_a_layer_is_named(model, name):
    edit_weights(model / WEIGHTS, lambda tensors: {**tensors, name: torch.zeros(4, 64)})
    refused(model, model / WEIGHTS, name, error=UnsupportedError)


def test_two_factors_of_one_module_are_refused(model):
    twin = QUERY_A.replace(PREFIX, PREFIX + "model.")
    edit_weights(model / WEIGHTS, lambda tensors: {**tensors, twin: tensors[QUERY_A].clone()})
    refused(model, model / WEIGHTS, QUERY_A, twin)


def test_an_adapter_that_holds_nothing_is_refused(model):
    edit_weights(model / WEIGHTS, lambda _: {})
    refused(model, model / WEIGHTS, "holds no LoRA factor")
