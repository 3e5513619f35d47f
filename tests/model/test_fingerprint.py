"""The fingerprint stays while the model does, and changes with whatever changes its embeddings."""

import json
import shutil

import numpy as np
import pytest

from c2v_engine.engine import Causal2Vec
from c2v_engine.errors import CheckpointError
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.fingerprint import checkpoint_fingerprint


def fingerprint(directory):
    return checkpoint_fingerprint(directory, Causal2VecConfig.load(directory))


@pytest.fixture
def copied(checkpoint, tmp_path):
    return shutil.copytree(checkpoint(), tmp_path / "copy")


def test_a_copy_has_the_same_and_is_not_told_apart_by_what_is_no_part_of_the_model(
    checkpoint, copied
):
    assert fingerprint(copied) == fingerprint(checkpoint())
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config, indent=7, sort_keys=True))
    (copied / "README.md").write_text("notes")
    (copied / "trainer_state.json").write_text("{}")
    (copied / "ranges.safetensors").write_bytes(b"ranges")
    assert fingerprint(copied) == fingerprint(checkpoint())


@pytest.mark.parametrize(
    "name",
    ["projector.safetensors", "decoder/model.safetensors", "encoder/model.safetensors"],
)
def test_weights_that_were_trained_on_give_another(copied, name):
    before = fingerprint(copied)
    path = copied / name
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[-4000:] ^= 1
    path.write_bytes(data.tobytes())
    assert fingerprint(copied) != before


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_another_config_or_tokenizer_gives_another(copied, part):
    before = fingerprint(copied)
    if part == "config":
        config = json.loads((copied / "config.json").read_text())
        config["max_length"] = config["max_length"] - 1
        (copied / "config.json").write_text(json.dumps(config))
    else:
        with (copied / "decoder" / "tokenizer.json").open("a") as file:
            file.write(" ")
    assert fingerprint(copied) != before


def test_an_engine_keeps_that_of_the_weights_it_has_loaded(copied):
    engine = Causal2Vec.from_pretrained(copied, device="cpu")
    before = fingerprint(copied)
    path = copied / "decoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert fingerprint(copied) != before
    assert engine.info()["fingerprint"] == before


def test_a_folder_without_weights_has_none(copied):
    (copied / "decoder" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="decoder: holds no weights"):
        fingerprint(copied)


def test_large_weights_are_sampled_to_their_last_byte(copied, tmp_path):
    path = copied / "decoder" / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(50_000_000)  # sparse
    before = fingerprint(copied)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(copied) != before
