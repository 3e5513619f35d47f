"""A run's YAML file is checked before anything else."""

import pytest

from c2v_engine.errors import ConfigError, InputError
from c2v_engine.training.config import LoraConfig, TrainConfig

SMALLEST = {"model": "m", "output": "o", "data": [{"path": "d.jsonl"}]}


def config(**values):
    return TrainConfig.from_dict(SMALLEST | values)


def test_the_smallest_file_trains_lora_at_the_default_temperature():
    smallest = config()
    assert (smallest.decoder, smallest.lora, smallest.temperature) == ("lora", LoraConfig(), 0.05)


def test_relative_paths_start_at_the_files_folder(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\noutput: /o\ndata: [{path: d.jsonl}]\nlearning_rate: 1e-4\n")
    loaded = TrainConfig.load(path)
    assert (loaded.model, loaded.output) == (str(tmp_path / "m"), "/o")
    assert loaded.data[0].path == str(tmp_path / "d.jsonl")
    assert loaded.learning_rate == 1e-4  # YAML itself reads 1e-4 as a text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": "x"}, "unknown key modle"),
        ({"model": None}, "model is missing"),
        ({"data": []}, "data is empty"),
        ({"data": [{"name": "x"}]}, r"data\[0\].path is missing"),
        ({"data": [{"path": "a", "weight": 2}]}, r"unknown key data\[0\].weight"),
        ({"data": [{"path": "x/a.jsonl"}, {"path": "y/a.jsonl"}]}, "two sets of one name"),
        ({"decoder": "qlora"}, "decoder is 'qlora', expected one of lora, full, frozen"),
        ({"decoder": "full", "lora": {"r": 4}}, "decoder is 'full', not 'lora'"),
        ({"decoder": "frozen", "encoder": False, "projector": False}, "nothing is trained"),
        ({"lora": {"rank": 4}}, "unknown key lora.rank"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "8"}, "batch_size is '8', expected a whole number"),
        ({"steps": True}, "steps is True"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0"),
        ({"directions": ["doc_to_query"]}, "lacks query_to_doc"),
        ({"directions": ["sideways"]}, r"directions\[0\] is 'sideways'"),
        ({"validation_steps": 5}, "no validation"),
        ({"learning_rates": {"encoder": "fast"}}, "learning_rates.encoder is 'fast'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"learning_rates": {"[": 1e-4}}, "is no regular expression"),
        ({"learning_rates": {"encoder": -1}}, "learning_rates.encoder is -1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"data": [{"path": "a", "name": "x/y"}]}, "the name 'x/y'"),
        ({"data": [{"path": "a", "max_rows": 1}]}, "max_rows is 1"),
        ({"lora": {"r": 0}}, "lora has r 0"),
        ({"lora": {"dropout": 2.0}}, "lora.dropout is 2.0"),
        ({"lora": {"target_modules": []}}, "target_modules is empty"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(values, words):
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_a_file_that_is_missing_or_no_mapping_says_so(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        TrainConfig.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    for text, words in (("a: [", "not valid YAML"), ("- a", "expected keys and values")):
        broken.write_text(text)
        with pytest.raises(ConfigError, match=words):
            TrainConfig.load(broken)
