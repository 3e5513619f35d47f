"""A converted model against sentence-transformers' own answers, float32.

The tolerance is that of ``test_parity.py``: the same sums in another order differ by about 3e-7 on
a unit vector, so 1e-5 lets rounding pass and no mistake.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import corpus
from stock_models import (
    E5_MISTRAL,
    MEAN_LLAMA,
    QUERY,
    QWEN2_LAST,
    QWEN3_EMBEDDING,
    TWO_AT_EACH_END,
    build,
    update,
)
from transformers import AutoModel, AutoTokenizer

from c2v_engine import Causal2Vec
from c2v_engine.cli import main
from c2v_engine.errors import ConfigError

sentence_transformers = pytest.importorskip("sentence_transformers")

TOLERANCE = 1e-5
TEXTS = [
    "a",
    "",
    " ",
    "Grüße, naïve café – 日本語のテキスト 🙂🙂🙂",
    "<s> </s> <|endoftext|> <|im_end|> are its own tokens",
    "trailing newline\n",
    *corpus()[5:8],
    "one word after another " * 30,
    "x" * 400,
]
REAL = {
    "qwen3-embedding": QWEN3_EMBEDDING,
    "qwen3-embedding-tokenizer-class": replace(
        QWEN3_EMBEDDING, tokenizer_settings={"tokenizer_class": "Qwen2Tokenizer"}
    ),
    "e5-mistral": E5_MISTRAL,
    "mean-llama": MEAN_LLAMA,
    "qwen2-last-token": QWEN2_LAST,
}
MORE = {
    "left-padded-mean": replace(MEAN_LLAMA, padding_side="left", path=""),
    "mean-between-bos-and-eos": replace(
        E5_MISTRAL, pooling="mean", transformer=(), config={"max_position_embeddings": 60}
    ),
    "two-tokens-at-each-end": TWO_AT_EACH_END,
    "tokenizer-s-own-length": replace(
        QWEN2_LAST, tokenizer_settings={"model_max_length": 50, "split_special_tokens": False}
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """``source(name)`` gives the folder of a stock model."""
    folder = tmp_path_factory.mktemp("stock")
    return functools.cache(lambda name: build(folder / name, {**REAL, **MORE}[name]))


def stock(folder):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def opened(folder):
    return Causal2Vec.from_pretrained(folder, device="cpu", dtype="float32")


def assert_same(model, engine, texts=TEXTS, **options):
    expected = model.encode(texts, batch_size=4, **options)
    np.testing.assert_allclose(engine.encode(texts, **options), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [*REAL, *MORE])
def test_it_embeds_as_sentence_transformers_does(source, tmp_path, name):
    Causal2Vec.convert(source(name), tmp_path / "out")
    model, engine = stock(source(name)), opened(tmp_path / "out")
    assert engine.config.max_length == model.max_seq_length
    assert_same(model, engine)
    for prompt_name in engine.prompts:
        assert_same(model, engine, prompt_name=prompt_name)
    assert_same(model, engine, prompt="Any other: ")
    assert_same(model, engine, normalize_embeddings=True)


@pytest.mark.parametrize("name", ["qwen3-embedding", "mean-llama"])
def test_the_files_of_release_6_say_the_same(source, tmp_path, name):
    stock(source(name)).save_pretrained(str(tmp_path / "saved"))
    pooling = json.loads((tmp_path / "saved/1_Pooling/config.json").read_text(encoding="utf-8"))
    assert pooling["pooling_mode"] == {"lasttoken": "lasttoken"}.get(REAL[name].pooling, "mean")
    old = Causal2Vec.convert(source(name), tmp_path / "old")
    new = Causal2Vec.convert(tmp_path / "saved", tmp_path / "new")
    # What is saved names a query and a document prompt, empty ones where it was told none.
    prompts = {**dict.fromkeys(("query", "document"), ""), **old.description.config.prompts}
    assert new.description.config == replace(old.description.config, prompts=prompts)
    assert_same(stock(tmp_path / "saved"), opened(tmp_path / "new"), prompt_name="query")


def test_the_template_is_what_the_tokenizer_does(source, tmp_path):
    found = {}
    for name in REAL:
        config = Causal2Vec.convert(source(name), tmp_path / name).description.config
        found[name] = (config.template, config.pooling, config.normalize, config.max_length)
    last, text = ("<eos>",), "{prompt}{text}"
    assert found == {
        "qwen3-embedding": ((text, "<eos>"), last, True, 256),
        "qwen3-embedding-tokenizer-class": ((text, "<eos>"), last, True, 256),
        "e5-mistral": (("<bos>", text, "<eos>"), last, True, 60),
        "mean-llama": (("<bos>", text), ("<all>",), False, 33),
        "qwen2-last-token": ((text, "<eos>"), last, True, 256),
    }


def test_the_copy_names_the_token_that_is_appended_as_eos(source, tmp_path):
    conversion = Causal2Vec.convert(source("qwen3-embedding"), tmp_path / "out")
    (note,) = conversion.notes
    assert note.startswith(
        "the tokenizer appends '<|endoftext|>' to a text, while its eos_token is"
    )
    settings, config = (
        json.loads((tmp_path / "out" / "decoder" / name).read_text(encoding="utf-8"))
        for name in ("tokenizer_config.json", "config.json")
    )
    assert settings["eos_token"] == "<|endoftext|>"
    assert config["eos_token_id"] == 0
    original = json.loads((source("qwen3-embedding") / "tokenizer_config.json").read_text())
    assert original["eos_token"] == "<|im_end|>"
    assert Causal2Vec.convert(source("e5-mistral"), tmp_path / "e5").notes == ()


def test_queries_and_documents_get_the_prompts_that_they_get_there(source, tmp_path):
    Causal2Vec.convert(source("qwen2-last-token"), tmp_path / "out")
    model, engine = stock(source("qwen2-last-token")), opened(tmp_path / "out")
    assert engine.prompts == {"query": QUERY, "document": ""}
    for way in ("encode_query", "encode_document"):
        expected = getattr(model, way)(TEXTS, batch_size=4)
        found = getattr(engine, way)(TEXTS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_text_of_no_special_tokens_is_pooled_alone(tmp_path):
    plain = replace(QWEN2_LAST, single="$A", pooling="mean", default_prompt_name=None)
    source = build(tmp_path / "stock", plain)
    assert Causal2Vec.convert(source, tmp_path / "out").description.config.template == (
        "{prompt}{text}",
    )
    texts = [text for text in TEXTS if text]
    assert_same(stock(source), opened(tmp_path / "out"), texts)


def test_a_mean_without_the_prompt_is_one_where_no_prompt_is_named(tmp_path):
    source = build(tmp_path / "stock", replace(MEAN_LLAMA, prompts=(), default_prompt_name=None))
    update(source / "1_Pooling" / "config.json", include_prompt=False)
    conversion = Causal2Vec.convert(source, tmp_path / "out")
    assert conversion.description.config.template == ("<bos>", "{text}")
    assert conversion.notes[0].startswith("the template reads no prompt")
    assert_same(stock(source), opened(tmp_path / "out"))


def test_shards_are_copied_with_their_index_and_nothing_else(source, tmp_path):
    folder = build(tmp_path / "stock", QWEN2_LAST)
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "consolidated.safetensors").touch()
    Causal2Vec.convert(folder, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "decoder").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert {name for name in names if name.endswith(".safetensors")} == {
        path.name for path in folder.glob("model-*.safetensors")
    }
    assert not names & {"modules.json", "consolidated.safetensors"}
    assert_same(stock(source("qwen2-last-token")), opened(tmp_path / "out"))


def test_an_adapter_becomes_the_checkpoint_s(tmp_path):
    from checkpoints import Recipe, _save_adapter

    base = build(tmp_path / "base", QWEN2_LAST)
    source = build(tmp_path / "stock", QWEN2_LAST)
    for name in ("model.safetensors", "config.json"):
        (source / name).unlink()
    _save_adapter(Recipe(decoder="qwen2", adapter="lora"), base, source)
    conversion = Causal2Vec.convert(source, tmp_path / "out")
    assert conversion.description.config.decoder.adapter == "adapter"
    model = stock(source)
    assert_same(model, opened(tmp_path / "out"))
    assert np.abs(model.encode(TEXTS) - stock(base).encode(TEXTS)).max() > 0.01


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_attention_is_what_is_said_where_the_config_leaves_a_doubt(tmp_path, attention):
    doubtful = replace(
        MEAN_LLAMA, config={"is_causal": False, "auto_map": {"AutoModel": "its_own.Model"}}
    )
    source = build(tmp_path / "stock", doubtful)
    Causal2Vec.convert(source, tmp_path / "out", attention=attention)
    copied = json.loads((tmp_path / "out/decoder/config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in copied
    assert copied.get("is_causal", True) == (attention == "causal")
    # What transformers makes of these keys: is_causal counts, and code is left out.
    update(
        source / "0_Transformer" / "config.json",
        auto_map=None,
        is_causal=False if attention == "bidirectional" else None,
    )
    assert_same(stock(source), opened(tmp_path / "out"))


def test_a_folder_of_transformers_alone_is_what_it_is_said_to_be(source, tmp_path):
    folder = source("qwen3-embedding")
    plain = build(tmp_path / "plain", QWEN3_EMBEDDING)
    (plain / "modules.json").unlink()
    options = {"pooling": "last-token", "max_length": 20}
    notes = Causal2Vec.convert(plain, tmp_path / "out", **options).notes
    assert notes[-1].startswith("prompt 'query' can not be used: the prompt and the template take")
    engine = opened(tmp_path / "out")
    short = stock(folder)
    short.max_seq_length = 20
    assert_same(short, engine)
    Causal2Vec.convert(plain, tmp_path / "mean", pooling="mean", normalize=False)
    model = AutoModel.from_pretrained(plain, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    with torch.inference_mode():
        states = model(**tokenizer(TEXTS[3], return_tensors="pt")).last_hidden_state[0]
    found = opened(tmp_path / "mean").encode(TEXTS[3])
    np.testing.assert_allclose(found, states.mean(dim=0), rtol=0, atol=TOLERANCE)


def test_what_is_converted_opens_in_sentence_transformers_again(source, tmp_path):
    update(source("e5-mistral") / "config_sentence_transformers.json", similarity_fn_name="dot")
    Causal2Vec.convert(source("e5-mistral"), tmp_path / "out")
    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), trust_remote_code=True, device="cpu"
    )
    assert model.similarity_fn_name == "dot"
    expected = stock(source("e5-mistral")).encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=TOLERANCE)


def test_the_command_prints_what_it_understood(source, tmp_path, capsys):
    options = ["--check", "a text", "--check", ""]
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source("e5-mistral")), "-o", str(tmp_path / "out"), *options])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split("  ", 1) for line in lines if "  " in line)
    assert json.loads(facts["template"]) == ["<bos>", "{prompt}{text}", "<eos>"]
    assert facts["max length"].strip() == "60"
    assert json.loads(facts["prompts"]) == dict(E5_MISTRAL.prompts)
    checks = [line for line in lines if line.startswith("check: ")]
    assert len(checks) == 3
    assert all(float(line.split("differs by ")[1].split()[0]) <= TOLERANCE for line in checks)
    assert lines[-1] == f"converted {source('e5-mistral')} to {tmp_path / 'out'}"


@pytest.mark.parametrize("name", ["qwen3-embedding", "mean-llama"])
def test_opening_the_source_itself_names_the_command(source, name):
    with pytest.raises(ConfigError, match="model of sentence-transformers, of which c2v convert"):
        Causal2Vec.from_pretrained(source(name))


def test_opening_a_decoder_alone_names_the_command(source):
    with pytest.raises(ConfigError, match=r"a decoder \(llama\), of which c2v convert --pooling"):
        Causal2Vec.from_pretrained(source("mean-llama") / "0_Transformer")


def test_opening_what_is_no_model_names_nothing(tmp_path):
    with pytest.raises(ConfigError) as raised:
        Causal2Vec.from_pretrained(tmp_path)
    assert "convert" not in str(raised.value)
