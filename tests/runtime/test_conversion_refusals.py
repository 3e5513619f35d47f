"""What can not be converted is refused by what was found, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from stock_models import E5_MISTRAL, MEAN_LLAMA, QWEN2_LAST, QWEN3_EMBEDDING, build, update, write

from c2v_engine import Causal2Vec
from c2v_engine.cli import main
from c2v_engine.errors import C2VError, CheckpointError, InputError, UnsupportedError

DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
MESSAGE = {"text": {"method": "forward"}, "message": {"method": "forward"}}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    stocks = {"e5": E5_MISTRAL, "mean": replace(MEAN_LLAMA, path=""), "qwen": QWEN3_EMBEDDING}
    return {name: build(folder / name, stock) for name, stock in stocks.items()}


@pytest.fixture
def copied(originals, tmp_path):
    """``copied(name)`` gives a model's folder to damage."""
    return lambda name="e5": Path(shutil.copytree(originals[name], tmp_path / "source"))


def refusal(source, kind=C2VError, **options):
    output = source.parent / "out"
    with pytest.raises(kind) as raised:
        Causal2Vec.convert(source, output, **options)
    assert not output.exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


def set_modules(source, change):
    path = source / "modules.json"
    write(path, change(json.loads(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [*found, DENSE], "module sentence_transformers.models.Dense can not be"),
        (lambda found: found[:1], "modules are Transformer, expected Transformer, Pooling"),
        (lambda found: [found[1], found[0]], "modules are Pooling, Transformer, expected"),
        (lambda found: [], "modules are none, expected"),
        (lambda found: [{**found[0], "type": "own_code.Transformer"}], "module own_code.Transfor"),
        (lambda found: ["Transformer"], "module 'Transformer' can not be converted"),
        (lambda found: [{**found[0], "path": "../up"}, found[1]], "leads out of the folder"),
        (lambda found: {}, "expected a list, found dict"),
    ],
)
def test_other_modules(copied, change, message):
    source = copied()
    set_modules(source, change)
    assert message in refusal(source, CheckpointError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling_mode": "cls"}, "pooling mode cls can not be converted"),
        ({"pooling_mode": ["mean", "lasttoken"]}, "pooling mode mean and lasttoken can not be"),
        ({"pooling_mode_mean_tokens": True}, "pooling mode mean and lasttoken can not be"),
        ({"pooling_mode_weightedmean_tokens": True}, "pooling mode weightedmean and lasttoken"),
        ({"pooling_mode": 3}, "pooling mode 3 can not be converted"),
    ],
)
def test_other_poolings(copied, values, message):
    source = copied()
    update(source / "1_Pooling" / "config.json", **values)
    assert message in refusal(source, UnsupportedError)


def test_a_mean_that_leaves_out_prompts(copied):
    source = copied("mean")
    update(source / "1_Pooling" / "config.json", include_prompt=False)
    message = refusal(source, UnsupportedError)
    assert "leaves out the prompt's rows (include_prompt is false)" in message
    assert "prompt 'passage' has some" in message


def test_last_tokens_do_not_mind_it(copied):
    source = copied()
    update(source / "1_Pooling" / "config.json", include_prompt=False)
    Causal2Vec.convert(source, source.parent / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_lower_case": True}, "do_lower_case is True"),
        ({"transformer_task": "text-generation"}, "transformer_task is 'text-generation'"),
        ({"modality_config": MESSAGE}, "reads texts through its chat template"),
        ({"processing_kwargs": {"text": {"padding": False}}}, "processing_kwargs is"),
        ({"query_length": 8}, "query_length is 8"),
        ({"tokenizer_args": {"add_eos_token": True}}, "tokenizer_args is"),
        ({"model_args": {"layers": 3}}, "model_args has 'layers'"),
        ({"something_new": 1}, "something_new is 1"),
        ({"max_seq_length": "40"}, "max_seq_length is '40', expected a number"),
    ],
)
def test_settings_that_change_what_is_computed(copied, values, message):
    source = copied()
    update(source / "sentence_bert_config.json", **values)
    assert message in refusal(source, CheckpointError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"truncate_dim": 32}, "truncate_dim is 32, which a checkpoint can not say"),
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
        ({"default_prompt_name": "absent"}, "default_prompt_name is 'absent'"),
        ({"prompts": ["query: "]}, "prompts is ['query: '], expected names and their texts"),
        ({"prompts": {"query": 3}}, "prompts['query'] is 3, expected a text"),
    ],
)
def test_prompts_and_settings_of_the_whole(copied, values, message):
    source = copied()
    update(source / "config_sentence_transformers.json", **values)
    assert message in refusal(source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_causal": False}, "is_causal is false, which not every release"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "auto_map names code of the model's own"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"model_type": "gemma2"}, "decoder architecture 'gemma2' is not supported"),
        ({"model_type": "its_own"}, "architecture 'its_own' is not known to transformers"),
    ],
)
def test_decoders_of_another_kind(copied, values, message):
    source = copied()
    update(source / "config.json", **values)
    assert message in refusal(source, UnsupportedError)


def test_code_of_the_tokenizer_s_own(copied):
    source = copied()
    update(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    assert "auto_map names code of the tokenizer's own" in refusal(source, UnsupportedError)


def test_a_last_token_that_is_the_text_s_own(tmp_path):
    source = build(tmp_path / "source", replace(E5_MISTRAL, single="<s> $A"))
    message = refusal(source, UnsupportedError)
    assert "its last token is pooled, but its tokenizer appends none" in message


def test_special_tokens_that_do_not_stand_around_the_text(tmp_path):
    twice = replace(QWEN2_LAST, single="$A <|im_end|> $A <|endoftext|>")
    # A text repeated could be written as one, but nothing says that both are shortened alike.
    message = refusal(build(tmp_path / "source", twice), UnsupportedError)
    assert "no template says what its tokenizer does: " in message


def test_texts_that_are_shortened_from_their_left(copied):
    source = copied()
    update(source / "tokenizer_config.json", truncation_side="left")
    message = refusal(source, UnsupportedError)
    assert "no template says what its tokenizer does: 'A text that is longer." in message


def test_pickled_weights(copied):
    source = copied()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    message = refusal(source, CheckpointError)
    assert "pytorch_model.bin: pickled weights are refused" in message
    assert "convert them to model.safetensors" in message


def test_an_adapter_beside_whole_weights(copied):
    source = copied()
    write(source / "adapter_config.json", {"peft_type": "LORA"})
    assert "stands beside a whole model's weights" in refusal(source, UnsupportedError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "only adapters with peft_type LORA are supported"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": 8}, "no adapter_model.safetensors"),
    ],
)
def test_adapters_of_another_kind(copied, values, message):
    source = copied()
    (source / "model.safetensors").unlink()
    write(source / "adapter_config.json", values)
    assert message in refusal(source, CheckpointError)


def test_a_folder_of_transformers_alone_without_a_pooling(copied):
    source = copied()
    (source / "modules.json").unlink()
    message = refusal(source, InputError)
    assert "give pooling (--pooling), last-token or mean" in message
    assert "pooling is 'cls', expected last-token or mean" in refusal(source, pooling="cls")


def test_a_pooling_where_one_is_named(copied):
    assert "modules.json names a pooling" in refusal(copied(), InputError, pooling="mean")


def test_a_missing_pooling_or_tokenizer(copied):
    source = copied()
    (source / "1_Pooling" / "config.json").unlink()
    assert "it says how states are pooled" in refusal(source, CheckpointError)
    shutil.rmtree(source)
    source = copied()
    (source / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(source, CheckpointError)


def test_a_checkpoint_of_this_engine(tmp_path):
    from c2v_engine.engine import default_model_path

    source = Path(shutil.copytree(default_model_path(), tmp_path / "source"))
    assert "is a checkpoint of this engine already" in refusal(source, InputError)


def test_a_folder_that_is_not_there(tmp_path):
    assert "no such directory, and not the id" in refusal(tmp_path / "absent", CheckpointError)


def test_an_output_that_holds_something(copied):
    source = copied()
    (source.parent / "out").mkdir()
    (source.parent / "out" / "kept").touch()
    with pytest.raises(CheckpointError, match="is not empty; choose another output directory"):
        Causal2Vec.convert(source, source.parent / "out")
    assert (source.parent / "out" / "kept").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--check", "a", "--pooling", "mean"], "--check compares with sentence-transformers'"),
        (["--attention", "sideways"], "attention is 'sideways'"),
        ([], "use_bidirectional_attention is true"),
    ],
)
def test_the_command_says_it_in_a_line(copied, capsys, options, message):
    source = copied()
    update(source / "config.json", use_bidirectional_attention=True)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), "-o", str(source.parent / "out"), *options])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize(
    "name",
    ["config.json", "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"],
)
def test_json_that_nests_without_end(copied, name):
    source = copied()
    (source / name).write_text("[" * 100_000)
    assert name in refusal(source, CheckpointError)


def test_a_comparison_that_sentence_transformers_can_not_make_is_said(copied, capsys, monkeypatch):
    from sentence_transformers import SentenceTransformer

    def encode(*words, **options):
        raise ValueError("Asking to pad but the tokenizer\ndoes not have a padding token.")

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    source = copied()
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), "-o", str(source.parent / "out"), "--check", "a"])
    assert ended.value.code == 2
    assert "can not embed with it" in capsys.readouterr().err.splitlines()[-1]
    assert (source.parent / "out" / "config.json").is_file()
