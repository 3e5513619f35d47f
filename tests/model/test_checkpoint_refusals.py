"""Checkpoints that can not be: each is refused in one line that names the file and the reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoints import Recipe
from damage import (
    REMOVED,
    assert_refused,
    copy,
    edit_json,
    edit_weights,
    open_engine,
)
from safetensors.torch import load_file

from c2v_engine.errors import BackendError, CheckpointError, ConfigError, UnsupportedError

SHARDED = Recipe(sharded=True)
INDEX = "decoder/model.safetensors.index.json"


@pytest.fixture
def model(checkpoint, tmp_path):
    """A sound checkpoint that the test may spoil."""
    return copy(checkpoint(Recipe()), tmp_path)


@pytest.fixture
def sharded(checkpoint, tmp_path):
    return copy(checkpoint(SHARDED), tmp_path)


def refused(path, *words, error=CheckpointError):
    assert_refused(lambda: open_engine(path), *words, error=error)


def test_the_copies_that_the_tests_below_spoil_are_sound(model, checkpoint, tmp_path):
    assert open_engine(model).encode(["a"]).shape == (1, 128)
    assert open_engine(copy(checkpoint(SHARDED), tmp_path / "2")).encode(["a"]).shape == (1, 128)


# --- config.json --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format_version": 2}, "format_version is 2, this release reads version 1"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"format_version": REMOVED}, "format_version is None"),
        ({"model_type": "bert"}, "model_type is 'bert', expected 'causal2vec'"),
        ({"model_type": REMOVED}, "model_type is None"),
        ({"temperature": 0.1}, "unknown key temperature"),
        ({"encoder": {"dropout": 0}}, "unknown key encoder.dropout"),
    ],
)
def test_a_wrong_config_is_refused_with_its_path(model, changes, word):
    edit_json(model / "config.json", **changes)
    refused(model, model / "config.json", word, error=ConfigError)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"null"])
def test_a_config_that_is_no_json_object_is_refused(model, content):
    (model / "config.json").write_bytes(content)
    refused(model, model / "config.json", "JSON", error=ConfigError)


def test_a_directory_without_config_is_refused(model):
    (model / "config.json").unlink()
    refused(model, model / "config.json", "no such file", error=ConfigError)


def test_a_config_that_is_a_directory_is_refused(model):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    refused(model, model / "config.json", error=ConfigError)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_part_without_a_sound_config_is_refused(model, part, content):
    path = model / part / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(model, path)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_missing_folder_is_refused(model, part):
    shutil.rmtree(model / part)
    refused(model, model / part)


# --- architectures ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "bert", "nonsense", None, ["llama"], 3])
def test_an_unknown_decoder_architecture_is_named(model, kind):
    edit_json(model / "decoder/config.json", model_type=kind)
    refused(model, model / "decoder", f"architecture {kind!r}", error=UnsupportedError)


@pytest.mark.parametrize("kind", ["distilbert", "electra", "llama", "nonsense", None])
def test_an_unknown_encoder_architecture_is_named(model, kind):
    edit_json(model / "encoder/config.json", model_type=kind)
    refused(model, model / "encoder", f"architecture {kind!r}", error=UnsupportedError)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_unknown_activation_is_named(model, part):
    edit_json(model / part / "config.json", hidden_act="mish")
    refused(model, model / part, "activation 'mish'", error=UnsupportedError)


LONGROPE = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "factor": 2.0}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "original_max_position_embeddings": 128, **LONGROPE},
        {"rope_type": "nonsense"},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_an_unsupported_rope_type_is_named(model, rope, legacy):
    changes = (
        {"rope_parameters": REMOVED, "rope_theta": 1000.0, "rope_scaling": rope}
        if legacy
        else {"rope_parameters": {"rope_theta": 1000.0, **rope}}
    )
    edit_json(model / "decoder/config.json", **changes)
    refused(model, model / "decoder", f"rope type {rope['rope_type']!r}", error=UnsupportedError)


def test_a_partial_rotation_is_refused(model):
    rope = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}
    edit_json(model / "decoder/config.json", rope_parameters=rope)
    refused(model, model / "decoder", "partial_rotary_factor", error=UnsupportedError)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_quantised_part_is_refused(model, part):
    quantization = {"quant_method": "gptq", "bits": 4}
    edit_json(model / part / "config.json", quantization_config=quantization)
    refused(model, model / part, "quantised", error=UnsupportedError)


def test_relative_positions_of_an_encoder_are_refused(model):
    edit_json(model / "encoder/config.json", position_embedding_type="relative_key")
    refused(model, model / "encoder", "relative_key", error=UnsupportedError)


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("encoder", {"num_attention_heads": 5}, "num_attention_heads is 5"),
        ("decoder", {"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ("decoder", {"num_attention_heads": 0}, "config.json"),
        ("decoder", {"hidden_size": "wide"}, "hidden_size"),
        ("decoder", {"head_dim": 15}, "head_dim"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(model, part, changes, word):
    edit_json(model / part / "config.json", **changes)
    refused(model, model / part, word)


# --- weights ------------------------------------------------------------------------------------

FILES = {
    "decoder": ("decoder/model.safetensors", "layers.1.mlp.up_proj.weight"),
    "decoder-norm": ("decoder/model.safetensors", "norm.weight"),
    "encoder": ("encoder/model.safetensors", "encoder.layer.0.attention.self.key.bias"),
    "encoder-norm": ("encoder/model.safetensors", "embeddings.LayerNorm.weight"),
    "projector": ("projector.safetensors", "linear_2.weight"),
    "projector-bias": ("projector.safetensors", "linear_1.bias"),
}
each_part = pytest.mark.parametrize(("file", "name"), FILES.values(), ids=FILES)


@each_part
def test_a_missing_weight_is_named(model, file, name):
    edit_weights(model / file, lambda tensors: {k: v for k, v in tensors.items() if k != name})
    refused(model, (model / file).parent, f"weight {name} is missing")


@each_part
def test_a_misshapen_weight_is_named_with_both_shapes(model, file, name):
    shape = list(load_file(model / file)[name].shape)
    wrong = [shape[0] + 1, *shape[1:]]
    edit_weights(model / file, lambda tensors: {**tensors, name: torch.zeros(wrong)})
    refused(model, model / file, f"weight {name} has shape {wrong}", str(shape))


@each_part
def test_a_transposed_or_scalar_weight_is_misshapen(model, file, name):
    edit_weights(model / file, lambda tensors: {**tensors, name: torch.zeros(())})
    refused(model, model / file, f"weight {name} has shape []")


@each_part
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_a_weight_that_is_not_floating_point_is_named(model, file, name, dtype):
    edit_weights(model / file, lambda tensors: {**tensors, name: tensors[name].to(dtype)})
    refused(model, model / file, f"weight {name} is {dtype}")


@pytest.mark.parametrize("part", ["decoder", "encoder", "projector"])
def test_an_extra_weight_is_named_and_others_counted(model, part):
    file = "projector.safetensors" if part == "projector" else f"{part}/model.safetensors"
    extra = {"layers.0.extra.weight": torch.zeros(2), "surplus": torch.zeros(2)}
    edit_weights(model / file, lambda tensors: {**tensors, **extra})
    refused(model, model / file, "layers.0.extra.weight and 1 more", "not part of")


@pytest.mark.parametrize("layers", [1, 3])
def test_a_number_of_layers_that_the_weights_do_not_have_is_refused(model, layers):
    edit_json(model / "decoder/config.json", num_hidden_layers=layers)
    refused(model, model / "decoder", "weight layers.")


@pytest.mark.parametrize("part", ["decoder", "encoder", "projector"])
@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(model, part, keep):
    file = "projector.safetensors" if part == "projector" else f"{part}/model.safetensors"
    path = model / file
    path.write_bytes(path.read_bytes()[:keep])
    refused(model, path, "not a safetensors file")


@pytest.mark.parametrize("part", ["decoder", "encoder", "projector"])
def test_a_part_without_weights_is_refused(model, part):
    file = "projector.safetensors" if part == "projector" else f"{part}/model.safetensors"
    (model / file).unlink()
    refused(model, (model / file).parent, (model / file).name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_pickled_weights_are_refused_unread(model, part, name):
    weights = model / part / "model.safetensors"
    weights.unlink()
    (model / part / name).write_bytes(b"this must never be unpickled")
    refused(model, model / part / name, "pickled weights are refused")


def test_a_pickled_projector_is_refused(model):
    torch.save(load_file(model / "projector.safetensors"), model / "projector.pt")
    (model / "projector.safetensors").unlink()
    refused(model, model / "projector.pt", "pickled weights are refused", "projector.safetensors")


def test_a_pickle_beside_sound_weights_is_not_read(model):
    (model / "decoder/pytorch_model.bin").write_bytes(b"this must never be unpickled")
    assert open_engine(model).encode("a").shape == (128,)


# --- shards -------------------------------------------------------------------------------------


def edit_index(model, **changes):
    path = model / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index), encoding="utf-8")


def test_a_missing_shard_is_named(sharded):
    shard = sorted((sharded / "decoder").glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(sharded, shard, "no such file")


def test_a_truncated_shard_is_named(sharded):
    shard = sorted((sharded / "decoder").glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, shard, "not a safetensors file")


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(sharded):
    shard = sorted((sharded / "decoder").glob("model-*.safetensors"))[0]
    name = sorted(load_file(shard))[0]
    edit_weights(shard, lambda tensors: {k: v for k, v in tensors.items() if k != name})
    refused(sharded, shard, name)


def test_a_shard_with_a_tensor_that_the_index_does_not_name_is_refused(sharded):
    shard = sorted((sharded / "decoder").glob("model-*.safetensors"))[0]
    edit_weights(shard, lambda tensors: {**tensors, "surplus.weight": torch.zeros(2)})
    refused(sharded, shard, "surplus.weight")


def test_a_weight_that_neither_index_nor_shard_holds_is_named(sharded):
    path = sharded / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    shard = sharded / "decoder" / index["weight_map"].pop("norm.weight")
    path.write_text(json.dumps(index), encoding="utf-8")
    edit_weights(shard, lambda tensors: {k: v for k, v in tensors.items() if k != "norm.weight"})
    refused(sharded, sharded / "decoder", "weight norm.weight is missing")


@pytest.mark.parametrize(
    "shard", ["../encoder/model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ""]
)
def test_an_index_that_points_out_of_its_folder_is_refused(sharded, shard):
    edit_index(sharded, **{"norm.weight": shard})
    refused(sharded, sharded / INDEX, repr(shard))


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": []}', "[]", '{"weight_map": null}'])
def test_a_damaged_index_is_refused(sharded, content):
    (sharded / INDEX).write_text(content, encoding="utf-8")
    refused(sharded, sharded / INDEX, "index")


# --- where it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, ("device is 'tpu'", "expected auto, cpu, cuda")),
        ({"device": "meta"}, ("device is 'meta'",)),
        ({"device": "gpu 0"}, ("device is 'gpu 0'",)),
        ({"device": None}, ("device is None",)),
        ({"dtype": "int4"}, ("dtype is 'int4'", "float32, bfloat16, float16")),
        ({"dtype": "fp32"}, ("dtype is 'fp32'",)),
        ({"attention": "eager"}, ("attention is 'eager'", "sdpa")),
        ({"attention": "flash_attn_2"}, ("flash_attn_2", "needs a CUDA GPU")),
        ({"attention": "torch_varlen"}, ("torch_varlen", "needs a CUDA GPU")),
    ],
)
def test_a_device_dtype_or_backend_that_can_not_be_is_refused(checkpoint, options, words):
    from c2v_engine import Causal2Vec

    where = {"device": "cpu", **options}
    assert_refused(
        lambda: Causal2Vec.from_pretrained(checkpoint(Recipe()), **where),
        *words,
        error=BackendError,
    )


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./nowhere", "/no/where", "~/model"])
def test_a_path_that_is_nothing_is_refused_without_asking_the_hub(name, monkeypatch):
    import huggingface_hub

    def never(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    refused(name, name, "no such directory")


def test_a_repository_that_can_not_be_reached_is_one_clear_line(tmp_path):
    script = (
        "from c2v_engine import Causal2Vec\n"
        "try:\n"
        "    Causal2Vec.from_pretrained('nobody-here/no-such-model')\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error, sep='|')\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kind, _, message = done.stdout.partition("|")
    assert kind == "CheckpointError"
    assert message.startswith("nobody-here/no-such-model: no such directory")
    assert message.count("\n") == 1
    assert "can not be fetched from the Hub" in message
