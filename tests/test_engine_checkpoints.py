"""Saving, creating and calibrating checkpoints through the public face, and what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import DUAL, INSTRUCTION_FIRST, Recipe, corpus
from damage import assert_refused, open_engine

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, ConfigError

RECIPE = Recipe()
WIDTH = 64  # of the decoder; the embedding is twice as wide
TEXTS = ["", "a", *(" ".join(text.split()[:30]) for text in corpus()[40:50])]
LAST_TOKEN = {"template": ("{prompt}{text}", "<eos>"), "pooling": ("<eos>",)}


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(engine):
    return engine(RECIPE)


def near(actual, expected):
    """Batches of other sizes sum in another order: some 1e-7 on a unit vector."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# --- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, Recipe(adapter="lora", storage="bfloat16"), Recipe(decoder="mistral", sharded=True)],
    ids=["plain", "adapter", "shards"],
)
def test_a_saved_checkpoint_gives_bitwise_equal_vectors(engine, tmp_path, recipe):
    original = engine(recipe)
    original.save_pretrained(tmp_path / "saved")
    saved = open_engine(tmp_path / "saved")
    assert saved.config == original.config
    assert np.array_equal(saved.encode(TEXTS), original.encode(TEXTS))
    assert (tmp_path / "saved/adapter").exists() is (recipe.adapter is not None)


def test_a_last_token_model_is_saved_without_encoder(engine, tmp_path):
    original = engine(Recipe(encoder=None, **LAST_TOKEN))
    original.save_pretrained(tmp_path / "deep/saved")
    assert not (tmp_path / "deep/saved/encoder").exists()
    assert np.array_equal(
        open_engine(tmp_path / "deep/saved").encode(TEXTS), original.encode(TEXTS)
    )


def test_saving_over_something_is_refused(model, tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    assert_refused(
        lambda: model.save_pretrained(tmp_path), tmp_path, "not empty", error=CheckpointError
    )
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert_refused(
        lambda: model.save_pretrained(tmp_path / "note.txt"), "note.txt", error=CheckpointError
    )
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "mine"


@pytest.fixture
def parts(checkpoint):
    path = checkpoint(Recipe(adapter="lora"))
    return {name: path / name for name in ("encoder", "decoder", "adapter")}


def test_a_created_model_has_the_documented_layout(parts, tmp_path):
    path = Causal2Vec.create(
        tmp_path / "new",
        decoder=parts["decoder"],
        encoder=parts["encoder"],
        prompts={"query": "Q: "},
        max_length=48,
    )
    assert path == tmp_path / "new"
    created = open_engine(path)
    assert created.dimension == 2 * WIDTH
    assert created.config.template == ("<context>", "{prompt}{text}", "<eos>")
    assert created.config.pooling == DUAL
    assert created.config.encoder.max_length == 64  # what its positions allow
    near(np.linalg.norm(created.encode(TEXTS), axis=1), 1)
    assert np.abs(created.encode_query("a") - created.encode("a")).max() > 1e-3


def test_the_seed_decides_the_projector_and_nothing_else(parts, tmp_path):
    both = {"decoder": parts["decoder"], "encoder": parts["encoder"]}
    first, again, other = (
        open_engine(Causal2Vec.create(tmp_path / name, **both, seed=seed)).encode(TEXTS)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_a_created_model_takes_every_option(parts, tmp_path):
    path = Causal2Vec.create(
        tmp_path / "new",
        **parts,
        template=INSTRUCTION_FIRST,
        pooling=DUAL,
        attention="bidirectional",
        normalize=False,
        encoder_options={"pooling": "cls", "max_length": 20, "overflow": "windows"},
        projector_hidden_size=10,
        projector_activation="tanh",
        projector_bias=False,
        prompts={"query": "Q: "},
        default_prompt_name="query",
    )
    created = open_engine(path)
    assert created.config.encoder.overflow == "windows"
    assert created.config.projector.hidden_size == 10
    assert created.info()["adapter"] == "adapter"
    assert np.isfinite(created.encode(TEXTS)).all()


def test_a_last_token_model_is_created_without_encoder(parts, engine, tmp_path):
    path = Causal2Vec.create(
        tmp_path / "new", decoder=parts["decoder"], **LAST_TOKEN, max_length=48
    )
    assert not (path / "projector.safetensors").exists()
    expected = engine(Recipe(encoder=None, **LAST_TOKEN)).encode(TEXTS)
    assert np.array_equal(open_engine(path).encode(TEXTS), expected)


def test_creating_over_something_is_refused(parts, tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    assert_refused(
        lambda: Causal2Vec.create(tmp_path, parts["decoder"], parts["encoder"]),
        tmp_path,
        "not empty",
        error=CheckpointError,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("options", "word", "error"),
    [
        ({"encoder": None}, "an encoder must be given", ConfigError),
        (LAST_TOKEN, "no encoder can be given", ConfigError),
        ({"encoder_options": {"path": "x"}}, "encoder_options has 'path'", ConfigError),
        ({"encoder_options": {"max_length": 65}}, "64 tokens", CheckpointError),
        ({"projector_activation": "mish"}, "projector.activation is 'mish'", ConfigError),
        ({"projector_hidden_size": 0}, "projector.hidden_size is 0", ConfigError),
        ({"max_length": 0}, "max_length is 0", ConfigError),
        ({"default_prompt_name": "query"}, "default_prompt_name is 'query'", ConfigError),
        ({"decoder": "nowhere"}, "nowhere", CheckpointError),
        ({"adapter": "nowhere"}, "nowhere", CheckpointError),
    ],
)
def test_a_model_that_can_not_be_is_not_created(parts, tmp_path, options, word, error):
    given = {"decoder": parts["decoder"], "encoder": parts["encoder"], **options}
    assert_refused(lambda: Causal2Vec.create(tmp_path / "new", **given), word, error=error)
    assert not (tmp_path / "new").exists()


def test_ranges_are_calibrated_stored_and_found_again(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    first = open_engine(tmp_path / "saved")
    assert first.info()["calibrated ranges"] is False
    found = first.calibrate(iter(TEXTS))
    vectors = model.encode(TEXTS)
    near(found, np.stack([vectors.min(axis=0), vectors.max(axis=0)]))
    quantised = first.encode(TEXTS, precision="int8")
    assert first.save_ranges() == tmp_path / "saved/ranges.safetensors"
    again = open_engine(tmp_path / "saved")
    assert again.info()["calibrated ranges"] is True
    assert np.array_equal(again.encode(TEXTS, precision="int8"), quantised)
    again.save_pretrained(tmp_path / "copy")
    copied = open_engine(tmp_path / "copy")
    assert np.array_equal(copied.encode(TEXTS, precision="int8"), quantised)


def test_ranges_serve_only_the_kind_of_vectors_they_were_found_on(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    calibrated = open_engine(tmp_path / "saved")
    calibrated.calibrate(TEXTS, truncate_dim=24, prompt_name="query")
    options = {"precision": "uint8", "truncate_dim": 24}
    assert calibrated.encode(TEXTS, **options).shape == (len(TEXTS), 24)
    assert_refused(lambda: calibrated.encode("a", precision="uint8"), "24 dimensions", "128")
    assert_refused(
        lambda: calibrated.encode("a", **options, normalize_embeddings=False), "normalize=True"
    )


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_too_few_texts_give_no_ranges(model, texts):
    assert_refused(lambda: model.calibrate(texts), f"{len(texts)} texts", "at least two")
    assert model.info()["calibrated ranges"] is False


def test_ranges_that_are_not_there_can_not_be_saved(model, tmp_path):
    assert_refused(model.save_ranges, "no ranges", "calibrate first", error=CheckpointError)


def test_ranges_are_saved_into_checkpoints_only(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    calibrated = open_engine(tmp_path / "saved")
    calibrated.calibrate(TEXTS)
    (tmp_path / "empty").mkdir()
    assert_refused(
        lambda: calibrated.save_ranges(tmp_path / "empty"), tmp_path / "empty", "not a checkpoint"
    )
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_damaged_ranges_are_refused_by_their_file(model, tmp_path, content):
    from safetensors.torch import save_file

    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/ranges.safetensors"
    if content is None:
        save_file({"ranges": torch.full((2, 128), torch.nan)}, path)
    else:
        path.write_bytes(content)
    assert_refused(lambda: open_engine(tmp_path / "saved"), path, error=CheckpointError)


# --- what a model says of itself ------------------------------------------------------------------


def test_info_describes_the_model(model, checkpoint):
    info = model.info()
    assert info["directory"] == str(checkpoint(RECIPE))
    assert info["dimension"] == model.dimension == 2 * WIDTH
    assert info["template"] == list(RECIPE.template)
    assert info["decoder"].startswith("llama, 2 layers, 64 wide")
    assert info["encoder"].startswith("bert, 2 layers, 48 wide")
    assert (info["device"], info["dtype"], info["stored dtype"]) == ("cpu", "float32", "float32")
    assert info["max length"] == RECIPE.max_length
    assert info["adapter"] is None


def test_info_of_a_model_without_encoder_names_none(engine):
    assert "encoder" not in engine(Recipe(encoder=None, **LAST_TOKEN)).info()
