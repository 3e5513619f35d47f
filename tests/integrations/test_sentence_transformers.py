"""A checkpoint as sentence-transformers opens it: the engine's vectors, through all its options."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import queue
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import mteb
import numpy as np
import pytest
import torch
from checkpoints import Recipe
from langchain_huggingface import HuggingFaceEmbeddings
from mteb_tasks import TinyRetrieval, TinySTS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Dense

from c2v_engine import Causal2Vec
from c2v_engine.engine import default_model_path
from c2v_engine.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    InputError,
    MissingPackageError,
    TextError,
)
from c2v_engine.integrations import sentence_transformers as integration
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.fingerprint import checkpoint_fingerprint
from c2v_engine.model.modules_json import MODULE_CLASS, export_sentence_transformers

FLOAT32 = {"dtype": torch.float32}
TEXTS = [
    "How do I read a file line by line?",
    "",
    "Iterate over an open file to read it line by line.",
    "Grüße, 日本語 🙂",
    "word " * 700,
    "How do I read a file line by line?",
    *(f"text {number} " * (number % 13) for number in range(24)),
]
# A text's float32 vector may differ in its last bits with the batch it is in, and
# sentence-transformers does not sort texts of one length as the engine does.
BATCHED = {"rtol": 0, "atol": 1e-6}


def open_model(directory=None, **options):
    options = {"device": "cpu", "trust_remote_code": True, "model_kwargs": FLOAT32, **options}
    return SentenceTransformer(str(directory or default_model_path()), **options)


@pytest.fixture(scope="module")
def model():
    return open_model()


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(default_model_path(), tmp_path / "copy")


def edit_config(directory, **values):
    path = directory / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(config), encoding="utf-8")
    export_sentence_transformers(directory)
    return directory


def fingerprint(directory):
    return checkpoint_fingerprint(Path(directory), Causal2VecConfig.load(directory))


@pytest.mark.parametrize("way", ["encode", "encode_query", "encode_document"])
def test_vectors_are_the_engine_s(model, engine, way):
    found, expected = getattr(model, way)(TEXTS), getattr(engine, way)(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 512))
    np.testing.assert_allclose(found, expected, **BATCHED)
    np.testing.assert_array_equal(found[0], found[5])


def test_where_batches_do_not_matter_they_are_so_to_the_bit():
    options = {**FLOAT32, "deterministic": True}
    engine = Causal2Vec.from_pretrained(device="cpu", dtype="float32", deterministic=True)
    model = open_model(model_kwargs=options)
    np.testing.assert_array_equal(model.encode(TEXTS), engine.encode(TEXTS))
    np.testing.assert_array_equal(model.encode(TEXTS[0]), engine.encode(TEXTS)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_name": "query"},
        {"prompt": "Find: "},
        {"truncate_dim": 64},
        {"truncate_dim": 64, "normalize_embeddings": True},
        {"precision": "binary"},
        {"precision": "ubinary", "truncate_dim": 128},
    ],
)
def test_options_mean_what_they_mean_to_the_engine(model, engine, options):
    found, expected = model.encode(TEXTS, **options), engine.encode(TEXTS, **options)
    assert found.dtype == expected.dtype
    if "precision" in options:  # a bit may turn where a number is within 1e-6 of zero
        assert (found != expected).mean() < 0.01
    else:
        np.testing.assert_allclose(found, expected, **BATCHED)


def test_options_are_those_of_sentence_transformers_too(model, engine):
    texts = TEXTS[:4]
    expected = engine.encode(texts)
    tensor = model.encode(texts, convert_to_tensor=True)
    assert (tensor.device, tensor.dtype) == (model.device, torch.float32)
    np.testing.assert_allclose(tensor.numpy(), expected, **BATCHED)
    rows = model.encode(texts, convert_to_numpy=False)
    np.testing.assert_allclose(torch.stack(rows).numpy(), expected, **BATCHED)
    [first, *_] = model.encode(texts, output_value=None)
    np.testing.assert_allclose(first["sentence_embedding"].numpy(), expected[0], **BATCHED)
    np.testing.assert_allclose(model.encode(np.array(texts)), expected, **BATCHED)
    assert model.encode([]).shape == (0,)
    similarity = model.similarity(expected[:2], expected)
    np.testing.assert_allclose(similarity, engine.similarity(expected[:2], expected), atol=1e-6)


def test_a_truncating_model_cuts_every_part_as_the_engine_does(model, engine):
    short = open_model(truncate_dim=32)
    expected = engine.encode(TEXTS, truncate_dim=32)
    np.testing.assert_allclose(short.encode(TEXTS), expected, **BATCHED)
    assert short.get_embedding_dimension() == 32
    assert short.encode(TEXTS[0], truncate_dim=64).shape == (64,)
    with model.truncate_embeddings(32):
        np.testing.assert_allclose(model.encode(TEXTS), expected, **BATCHED)
    with pytest.raises(InputError, match="truncate_dim is 33, expected a multiple of 2"):
        open_model(truncate_dim=33)


def test_a_checkpoint_that_does_not_normalise_leaves_it_to_the_call(copied):
    directory = edit_config(copied, normalize=False)
    model = open_model(directory)
    engine = Causal2Vec.from_pretrained(directory, device="cpu", dtype="float32")
    for asked in (False, True):
        found = model.encode(TEXTS, normalize_embeddings=asked)
        expected = engine.encode(TEXTS, normalize_embeddings=asked)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_levels_are_those_of_the_checkpoint_s_ranges(model, copied):
    engine = Causal2Vec.from_pretrained(copied, device="cpu", dtype="float32")
    engine.calibrate(TEXTS)
    engine.save_ranges()
    found = open_model(copied).encode(TEXTS[:5], precision="int8")
    expected = engine.encode(TEXTS[:5], precision="int8")
    assert np.abs(found.astype(int) - expected).max() <= 1  # at the edge of a level
    # Without ranges they are of the texts given, as sentence-transformers does it.
    levels = model.encode(TEXTS, precision="uint8")
    assert levels.dtype == np.uint8
    assert set(levels.min(axis=0)) == {0}


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"passage": "P: ", "other": "O: "}, "other"),
        ({"query": "Q: "}, None),
        ({}, None),
        ({"query": "Q: ", "document": "D: "}, "document"),
    ],
)
def test_prompts_are_chosen_as_the_engine_chooses_them(copied, prompts, default):
    directory = edit_config(copied, prompts=prompts, default_prompt_name=default)
    model = open_model(directory)
    engine = Causal2Vec.from_pretrained(directory, device="cpu", dtype="float32")
    for way in ("encode", "encode_query", "encode_document"):
        found, expected = getattr(model, way)(TEXTS[:3]), getattr(engine, way)(TEXTS[:3])
        np.testing.assert_allclose(found, expected, **BATCHED)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_computes_in_the_dtype_it_is_given_or_cast_to(dtype):
    expected = Causal2Vec.from_pretrained(device="cpu", dtype=dtype).encode(TEXTS[:3])
    given = open_model(model_kwargs={"torch_dtype": dtype})
    cast = open_model().to(getattr(torch, dtype))
    for model in (given, cast):
        assert model[0].engine.dtype == model.dtype == getattr(torch, dtype)
        found = model.encode(TEXTS[:3])
        assert found.dtype == np.float32
        # Batches matter in the last bits of such a dtype too: 2^-8 of numbers below 0.3.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_kwargs": {"load_in_8bit": True}}, "has 'load_in_8bit', expected some of dtype"),
        ({"model_kwargs": {"device_map": "auto"}}, "pass device= to SentenceTransformer"),
        ({"model_kwargs": {"dtype": "float64"}}, "dtype is 'float64', expected auto"),
        ({"model_kwargs": {"attn_implementation": "eager"}}, "attention is 'eager', expected one"),
        ({"processor_kwargs": {"padding_side": "left"}}, "processor_kwargs has 'padding_side'"),
        ({"backend": "onnx"}, "backend is 'onnx', expected 'torch'"),
        ({"trust_remote_code": False}, "trust_remote_code=True"),
    ],
)
def test_what_the_engine_does_not_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_model(**options)


def test_attention_goes_by_transformers_names_and_ours(engine):
    for name in ("sdpa", "packed_cpu"):
        model = open_model(model_kwargs={**FLOAT32, "attn_implementation": name})
        assert model[0].engine.info()["attention backend"] == name


def test_a_shorter_max_seq_length_shortens_texts(copied, model, engine):
    short = open_model()
    assert short.max_seq_length == 512
    short.max_seq_length = 24
    shortened = Causal2Vec.from_pretrained(
        edit_config(copied, max_length=24), device="cpu", dtype="float32"
    )
    np.testing.assert_allclose(short.encode(TEXTS), shortened.encode(TEXTS), **BATCHED)
    assert np.abs(short.encode(TEXTS[4]) - engine.encode(TEXTS[4])).max() > 1e-3
    with pytest.raises(ConfigError, match="max_length is 0"):
        short.max_seq_length = 0


def test_what_it_saves_opens_in_both(tmp_path, model):
    model.save_pretrained(str(tmp_path / "same"))
    assert fingerprint(tmp_path / "same") == fingerprint(default_model_path())
    changed = open_model(tmp_path / "same", prompts={"query": "Q: "}, truncate_dim=64)
    changed.max_seq_length = 100
    for _ in range(2):  # another time into what is there
        changed.save_pretrained(str(tmp_path / "changed"))
    expected = changed.encode_query(TEXTS)
    changed[0].save(str(tmp_path / "same"))  # into where it came from
    saved = open_model(tmp_path / "changed")
    assert (saved.max_seq_length, saved.truncate_dim) == (100, 64)
    np.testing.assert_allclose(saved.encode_query(TEXTS), expected, **BATCHED)
    engine = Causal2Vec.from_pretrained(tmp_path / "changed", device="cpu", dtype="float32")
    assert engine.prompts == {"query": "Q: ", "document": ""}
    np.testing.assert_allclose(engine.encode_query(TEXTS, truncate_dim=64), expected, **BATCHED)
    with pytest.raises(InputError, match="safetensors only"):
        model.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)


def test_nothing_of_a_checkpoint_is_left_beside_what_is_saved_over_it(checkpoint, tmp_path, model):
    target = shutil.copytree(checkpoint(Recipe(adapter="lora")), tmp_path / "over")
    model.save_pretrained(str(target))
    assert not list((target / "adapter").glob("*.safetensors"))
    assert fingerprint(target) == fingerprint(default_model_path())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="model_type is 'bert'"):
        model.save_pretrained(str(other))


def test_every_checkpoint_that_is_written_is_one_of_sentence_transformers(
    checkpoint, reference, engine, tmp_path
):
    from c2v_engine.training.saving import save_checkpoint

    source = checkpoint()
    Causal2Vec.create(
        decoder=source / "decoder", encoder=source / "encoder", output=tmp_path / "created"
    )
    Causal2Vec.from_pretrained(source, device="cpu").save_pretrained(tmp_path / "saved")
    save_checkpoint(reference(), source, tmp_path / "trained", torch.float32)
    written = [tmp_path / name for name in ("created", "saved", "trained")]
    for directory in (default_model_path(), *written):
        [module] = json.loads((directory / "modules.json").read_text())
        assert (module["path"], module["type"]) == ("", MODULE_CLASS)
        config = Causal2VecConfig.load(directory)
        settings = json.loads((directory / "config_sentence_transformers.json").read_text())
        assert settings["prompts"].items() >= dict(config.prompts).items()
    vectors = open_model(tmp_path / "trained").encode(TEXTS)
    trained = Causal2Vec.from_pretrained(tmp_path / "trained", device="cpu", dtype="float32")
    np.testing.assert_allclose(vectors, trained.encode(TEXTS), **BATCHED)


def test_a_checkpoint_without_its_files_gets_them(copied):
    before = fingerprint(copied)
    names = ["modules.json", "config_sentence_transformers.json"]
    for name in names:
        (copied / name).unlink()
    assert [path.name for path in export_sentence_transformers(copied)] == names
    assert fingerprint(copied) == before
    assert open_model(copied).encode("a").shape == (512,)
    (copied / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling"}]')
    with pytest.raises(CheckpointError, match="names other modules"):
        export_sentence_transformers(copied)
    (copied / "modules.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not what sentence-transformers reads"):
        export_sentence_transformers(copied)
    with pytest.raises(ConfigError, match="no such file"):
        export_sentence_transformers(copied / "decoder" / "nothing")


def test_the_engine_gets_all_texts_together_whatever_batch_size_is(monkeypatch):
    model = open_model()
    calls = []
    encode = Causal2Vec.encode

    def counted(self, texts, **options):
        calls.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(Causal2Vec, "encode", counted)
    model.encode(TEXTS, batch_size=2)
    assert calls == [len(TEXTS)]


@pytest.mark.parametrize(
    ("texts", "row", "reason"),
    [
        (["long enough", "\ud800", "b"], 1, "not valid Unicode"),
        (["long enough", "b", 3], 2, "is int"),
        ([("a", "pair"), "long enough"], 0, "is tuple"),
        ("\ud800", 0, "not valid Unicode"),
    ],
)
def test_a_bad_text_is_named_by_its_row(model, texts, row, reason):
    with pytest.raises(TextError, match=f"text {row}: .*{reason}"):
        model.encode(texts)


def test_what_it_can_not_give_is_refused(model):
    with pytest.raises(InputError, match="token_embeddings"):
        model.encode(TEXTS, output_value="token_embeddings")
    with pytest.raises(InputError, match="features hold input_ids, expected what preprocess"):
        model({"input_ids": torch.zeros(1, 2)})
    training = open_model().train()
    with pytest.raises(BackendError, match="train with c2v train"):
        training(training.preprocess(["a"]))


@pytest.mark.parametrize(
    "options", [{}, {"truncate_dim": 4}, {"precision": "binary"}, {"normalize_embeddings": True}]
)
def test_modules_that_follow_get_whole_vectors(options):
    model, dense = open_model(), Dense(512, 16, activation_function=torch.nn.Identity())
    model.append(dense)
    found = model.encode(TEXTS[:4], **options)
    width = 2 if "precision" in options else options.get("truncate_dim", 16)
    assert found.shape == (4, width)
    if not options:
        whole = torch.from_numpy(open_model().encode(TEXTS[:4]))
        expected = dense.linear(whole.to(dense.linear.weight.dtype))
        np.testing.assert_allclose(found, expected.detach().numpy(), **BATCHED)


def test_threads_may_share_it(model, engine):
    texts = TEXTS[5:]
    expected = engine.encode_query(texts)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: model.encode_query(texts), range(8)):
            np.testing.assert_allclose(found, expected, **BATCHED)


def test_copies_open_an_engine_of_their_own(model, engine):
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].engine is not model[0].engine
        np.testing.assert_allclose(other.encode(TEXTS), engine.encode(TEXTS), **BATCHED)


def test_a_pool_of_processes_gives_the_same_vectors(model, engine):
    """With a thread in place of a process, which would take seconds to start."""
    sent = pickle.loads(pickle.dumps(model))  # as it gets there
    queues = {"input": queue.Queue(), "output": queue.Queue()}
    work = type(model)._multi_process_worker
    worker = Thread(target=work, args=("cpu", sent, *queues.values()), daemon=True)
    worker.start()
    pool = {**queues, "processes": [worker]}
    found = model.encode(TEXTS[:6], pool=pool, chunk_size=2, truncate_dim=32)
    np.testing.assert_allclose(found, engine.encode(TEXTS[:6], truncate_dim=32), **BATCHED)


def test_its_tokenizer_counts_tokens(model):
    assert len(model.tokenizer("read a file")["input_ids"]) > 2


def test_langchain_s_own_class_takes_it(engine):
    embeddings = HuggingFaceEmbeddings(
        model_name=str(default_model_path()),
        model_kwargs={"device": "cpu", "trust_remote_code": True, "model_kwargs": FLOAT32},
        query_encode_kwargs={"prompt_name": "query"},
    )
    np.testing.assert_allclose(
        embeddings.embed_documents(TEXTS[:3]), engine.encode_document(TEXTS[:3]), **BATCHED
    )
    np.testing.assert_allclose(
        embeddings.embed_query(TEXTS[0]), engine.encode_query(TEXTS[0]), **BATCHED
    )


def test_its_evaluator_takes_it(model):
    evaluator = InformationRetrievalEvaluator(
        {"q": "read a file line by line"},
        {"a": TEXTS[2], "b": "The Zen of Python, by Tim Peters."},
        {"q": {"a"}},
    )
    assert evaluator(model)["cosine_ndcg@10"] == 1.0


def test_mteb_takes_it(model):
    tasks = [TinyRetrieval(), TinySTS()]
    result = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
    scores = {task.task_name: task.get_score() for task in result.task_results}
    # A passage is nearest to itself, and a text to its like, for any model that is not broken.
    assert scores == {"TinyRetrieval": 1.0, "TinySTS": 1.0}


def test_a_release_that_does_not_name_the_model_is_warned_about(model, monkeypatch):
    monkeypatch.setattr(integration, "_HAS_HOOK", False)
    old = pickle.loads(pickle.dumps(model))
    old.__class__ = SentenceTransformer
    with pytest.warns(UserWarning, match=rf"before 6\.0 .* {integration.__name__}\.Sentence"):
        old.encode(TEXTS[:2])


def test_a_class_with_an_encode_of_its_own_is_warned_about():
    class Other(SentenceTransformer):
        pass

    with pytest.warns(UserWarning, match="Other has an encode of its own"):
        Other(str(default_model_path()), device="cpu", trust_remote_code=True)


def test_without_sentence_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, integration.__name__)
    with pytest.raises(MissingPackageError, match=r"c2v-engine\[sentence-transformers\]"):
        importlib.import_module(integration.__name__)
