"""Tokenizers and lengths that do not fit their models: refused when the checkpoint is opened."""

from __future__ import annotations

import json

import pytest
from checkpoints import Recipe
from damage import REMOVED, assert_refused, copy, edit_json, edit_weights, open_engine

from c2v_engine.errors import CheckpointError


@pytest.fixture
def model(checkpoint, tmp_path):
    """A sound checkpoint that the test may spoil."""
    return copy(checkpoint(Recipe()), tmp_path)


def refused(path, *words):
    assert_refused(lambda: open_engine(path), *words, error=CheckpointError)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_missing_tokenizer_is_refused(model, part):
    for path in (model / part).glob("*token*"):
        path.unlink()
    refused(model, model / part, "tokenizer")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "1.0"}', b"\xff", b"[]"])
def test_a_damaged_tokenizer_is_refused(model, part, content):
    (model / part / "tokenizer.json").write_bytes(content)
    refused(model, model / part, "tokenizer")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_tokenizer_without_a_fast_form_is_refused(model, part):
    (model / part / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "CanineTokenizer"}  # a tokenizer of characters, in Python
    (model / part / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    refused(model, model / part, "CanineTokenizer has no fast form")


def test_decoder_tokenizer_ids_beyond_the_embedding_table_are_refused(model):
    name = "embed_tokens.weight"
    edit_weights(
        model / "decoder/model.safetensors",
        lambda tensors: {**tensors, name: tensors[name][:650].clone()},
    )
    edit_json(model / "decoder/config.json", vocab_size=650)
    refused(model, model / "decoder", "tokenizer id 699", "beyond the embedding table", "650 rows")


def test_encoder_tokenizer_ids_beyond_the_embedding_table_are_refused(model):
    name = "embeddings.word_embeddings.weight"
    edit_weights(
        model / "encoder/model.safetensors",
        lambda tensors: {**tensors, name: tensors[name][:600].clone()},
    )
    edit_json(model / "encoder/config.json", vocab_size=600)
    refused(model, model / "encoder", "tokenizer id 699", "beyond the embedding table", "600 rows")


@pytest.mark.parametrize("added", [5, 6])
def test_added_tokens_beyond_the_embedding_table_are_refused(model, added):
    path = model / "decoder/tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    first = values["added_tokens"][0]
    values["added_tokens"] += [
        {**first, "id": 700 + number, "content": f"<|added {number}|>"} for number in range(added)
    ]
    path.write_text(json.dumps(values), encoding="utf-8")
    if added == 5:  # the table has 705 rows
        assert open_engine(model).encode("<|added 4|>").shape == (128,)
    else:
        refused(model, model / "decoder", "tokenizer id 705", "<|added 5|>", "705 rows")


def remove_special(model, name):
    edit_json(model / "decoder/tokenizer_config.json", **{f"{name}_token": REMOVED})
    edit_json(model / "decoder/config.json", **{f"{name}_token_id": None})
    for path in (model / "decoder").glob("special_tokens_map.json"):
        path.unlink()


def test_no_eos_anywhere_is_refused(model):
    remove_special(model, "eos")
    refused(model, model / "decoder", "<eos>", "names a eos token")


def test_no_bos_is_refused_only_where_the_template_has_one(model):
    remove_special(model, "bos")
    assert open_engine(model).encode("a").shape == (128,)
    edit_json(model / "config.json", template=["<bos>", "<context>", "{prompt}{text}", "<eos>"])
    refused(model, model / "decoder", "<bos>")


def test_eos_of_the_config_serves_where_the_tokenizer_names_none(model, engine):
    edit_json(model / "decoder/tokenizer_config.json", eos_token=REMOVED)
    expected = engine(Recipe()).encode("a")
    assert (open_engine(model).encode("a") == expected).all()


def test_an_eos_id_beyond_the_embedding_table_is_refused(model):
    edit_json(model / "decoder/tokenizer_config.json", eos_token=REMOVED)
    edit_json(model / "decoder/config.json", eos_token_id=90_000)
    refused(model, model / "decoder", "90000", "beyond the embedding table")


# --- lengths ------------------------------------------------------------------------------------


def test_encoder_max_length_beyond_its_positions_is_refused(model):
    edit_json(model / "config.json", encoder={"max_length": 65})
    refused(model, model / "encoder", "encoder.max_length is 65", "64 tokens")


def test_positions_that_a_roberta_encoder_reserves_are_not_counted(checkpoint, tmp_path):
    path = copy(checkpoint(Recipe(encoder="roberta")), tmp_path)
    edit_json(path / "config.json", encoder={"max_length": 62})
    assert open_engine(path).encode("a " * 90).shape == (128,)
    edit_json(path / "config.json", encoder={"max_length": 63})
    refused(path, path / "encoder", "encoder.max_length is 63", "62 tokens")


def test_encoder_max_length_without_room_for_a_text_is_refused(model):
    edit_json(model / "config.json", encoder={"max_length": 2})
    refused(model, "encoder.max_length is 2", "special tokens")
