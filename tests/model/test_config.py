import dataclasses
import json

import pytest

from c2v_engine.errors import ConfigError
from c2v_engine.model.config import (
    Causal2VecConfig,
    DecoderConfig,
    EncoderConfig,
    ProjectorConfig,
)

VALUES = {
    "model_type": "causal2vec",
    "format_version": 1,
    "template": ["<context>", "{prompt}{text}", "<eos>"],
    "pooling": ["<context>", "<eos>"],
    "attention": "causal",
    "normalize": True,
    "max_length": 512,
    "encoder": {"path": "encoder", "text": "{text}", "pooling": "mean", "max_length": 512},
    "projector": {"hidden_size": 2048, "activation": "gelu", "bias": True},
    "decoder": {"path": "decoder", "adapter": None},
    "prompts": {"query": "Instruct: find\nQuery: ", "document": ""},
    "default_prompt_name": None,
}
LAST_TOKEN = {
    **VALUES,
    "template": ["{prompt}{text}", "<eos>"],
    "pooling": ["<eos>"],
    "encoder": None,
    "projector": None,
}


def changed(**values):
    return {**VALUES, **values}


def test_the_documented_example_is_read():
    config = Causal2VecConfig.from_dict(VALUES)
    assert config.encoder == EncoderConfig()
    assert config.projector == ProjectorConfig(hidden_size=2048)
    assert config.decoder == DecoderConfig()
    assert config.template == ("<context>", "{prompt}{text}", "<eos>")
    assert config.segments == 2


def test_what_is_left_out_has_its_default():
    minimal = {
        key: VALUES[key]
        for key in ("model_type", "format_version", "template", "pooling", "decoder", "encoder")
    }
    config = Causal2VecConfig.from_dict({**minimal, "projector": {"hidden_size": 8}})
    assert config.normalize
    assert config.attention == "causal"
    assert config.max_length == 512
    assert config.prompts == {}


def test_a_template_without_context_has_one_part():
    config = Causal2VecConfig.from_dict(LAST_TOKEN)
    assert config.encoder is None
    assert config.segments == 1


@pytest.mark.parametrize("values", [VALUES, LAST_TOKEN], ids=["dual", "last-token"])
def test_saving_and_loading_gives_an_equal_config(tmp_path, values):
    config = Causal2VecConfig.from_dict(values)
    config.save(tmp_path)
    assert Causal2VecConfig.load(tmp_path) == config
    assert Causal2VecConfig.from_dict(config.to_dict()) == config


def test_the_saved_file_is_plain_json_that_keeps_other_scripts_readable(tmp_path):
    config = dataclasses.replace(Causal2VecConfig.from_dict(VALUES), prompts={"q": "質問: "})
    config.save(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "質問" in text
    assert json.loads(text)["model_type"] == "causal2vec"


def test_a_config_can_not_be_changed_after_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Causal2VecConfig.from_dict(VALUES).max_length = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'causal2vec'"),
        ({"format_version": 2}, "format_version is 2, this release reads version 1"),
        ({"format_version": True}, "format_version is True"),
        ({"format_version": None}, "format_version is None"),
        ({"template": None}, "template is missing"),
        ({"template": "{text}"}, r"template is '\{text\}', expected a list"),
        ({"pooling": None}, "pooling is missing"),
        ({"decoder": None}, "decoder is missing"),
        ({"decoder": "decoder"}, "decoder is 'decoder', expected an object"),
        ({"atention": "causal"}, "unknown key atention; known are attention"),
        ({"attention": "full"}, "attention is 'full', expected one of causal, bidirectional"),
        ({"normalize": 1}, "normalize is 1, expected true or false"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 12.5}, "max_length is 12.5"),
        ({"max_length": True}, "max_length is True"),
        ({"encoder": None}, "template has <context>, so encoder and projector"),
        ({"projector": None}, "template has <context>, so encoder and projector"),
        ({"projector": {}}, "projector.hidden_size is missing"),
        ({"projector": {"hidden_size": 8, "activation": "mish"}}, "projector.activation is 'mish'"),
        ({"projector": {"hidden_size": 8, "bias": "no"}}, "projector.bias is 'no'"),
        ({"projector": {"hidden_size": -8}}, "projector.hidden_size is -8"),
        ({"projector": {"hidden": 8, "hidden_size": 8}}, "unknown key projector.hidden"),
        ({"encoder": {"pooling": "max"}}, "encoder.pooling is 'max', expected one of mean, cls"),
        ({"encoder": {"overflow": "drop"}}, "encoder.overflow is 'drop'"),
        ({"encoder": {"text": "{query}"}}, "encoder.text is '{query}'"),
        ({"encoder": {"text": None}}, "encoder.text is None"),
        ({"encoder": {"max_length": 0}}, "encoder.max_length is 0"),
        ({"encoder": {"path": "/abs"}}, "encoder.path is '/abs': it must stay inside"),
        ({"decoder": {"path": "../other"}}, "decoder.path is '../other': it must stay inside"),
        ({"decoder": {"path": ""}}, "decoder.path is ''"),
        ({"decoder": {"adapter": "a/../../b"}}, "decoder.adapter is 'a/../../b'"),
        ({"prompts": ["query"]}, r"prompts is \['query'\]"),
        ({"prompts": {"query": None}}, r"prompts\['query'\] is None, expected a text"),
        ({"default_prompt_name": "title"}, "default_prompt_name is 'title', expected one of"),
        ({"template": ["<context>", "<eos>"], "encoder": {"text": "x"}}, r"contains \{text\}"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        Causal2VecConfig.from_dict(changed(**values))


def test_encoder_without_context_in_the_template_is_refused():
    with pytest.raises(ConfigError, match="must be null"):
        Causal2VecConfig.from_dict({**LAST_TOKEN, "encoder": VALUES["encoder"]})


def test_the_text_may_reach_the_model_through_the_encoder_alone():
    config = Causal2VecConfig.from_dict(changed(template=["{prompt}", "<context>", "<eos>"]))
    assert config.template == ("{prompt}", "<context>", "<eos>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"{}", "model_type is None"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Causal2VecConfig.load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file") as caught:
        Causal2VecConfig.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
