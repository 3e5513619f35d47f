"""The engine as an encoder of mteb, on tasks whose few texts lie here."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from c2v_engine import Causal2Vec
from c2v_engine.errors import InputError, MissingPackageError

mteb = pytest.importorskip("mteb")

from mteb.types import PromptType  # noqa: E402
from mteb_tasks import TinyClassification, TinyRetrieval, TinySTS  # noqa: E402

from c2v_engine.integrations.mteb import MtebEncoder  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


class Recording:
    """An engine that notes how it is called."""

    name = "someone/model"
    prompts = {"query": "Q: ", "document": "", "STS": "S: "}  # noqa: RUF012 - never changed

    def __init__(self):
        self.calls = []

    def info(self):
        return {"fingerprint": "00ff", "dtype": "float32", "max length": 64}

    def output_dimension(self, truncate_dim=None):
        return truncate_dim or 8

    def encode(self, texts, kind=None, **options):
        self.calls.append((kind, texts, options))
        return np.ones((len(texts), 8), dtype=np.float32)

    def encode_query(self, texts, **options):
        return self.encode(texts, "query", **options)

    def encode_document(self, texts, **options):
        return self.encode(texts, "document", **options)


def encode(
    encoder, task, prompt_type=None, batches=({"text": ["a", "b"]}, {"text": ["c"]}), **rest
):
    return encoder.encode(
        batches,
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=prompt_type,
        **rest,
    )


def test_mteb_runs_its_kinds_of_tasks(engine):
    tasks = [TinyRetrieval(), TinySTS(), TinyClassification()]
    result = mteb.evaluate(MtebEncoder(engine), tasks, cache=None, show_progress_bar=False)
    scores = {task.task_name: task.get_score() for task in result.task_results}
    # A passage is nearest to itself, and a text to its like, for any model that is not broken.
    assert scores == {
        "TinyRetrieval": pytest.approx(1.0),
        "TinySTS": pytest.approx(1.0),
        "TinyClassification": pytest.approx(1.0),
    }
    assert result.model_name == "c2v-engine/default"


def test_the_metadata_are_the_checkpoint_s(engine):
    meta = MtebEncoder(engine).mteb_model_meta
    assert meta.name == "c2v-engine/default"
    assert meta.revision == f"{engine.info()['fingerprint']}-float32"
    assert meta.embed_dim == engine.dimension
    assert meta.max_tokens == engine.config.max_length
    assert meta.similarity_fn_name.value == "cosine"
    assert meta.use_instructions


def test_what_changes_results_changes_the_revision(engine):
    revisions = {
        MtebEncoder(engine, **options).mteb_model_meta.revision
        for options in (
            {},
            {"truncate_dim": 32},
            {"precision": "float16"},
            {"prompts": {"query": "a"}},
            {"prompts": {"query": "b"}},
            {"prompts": {"document": "a"}},
        )
    }
    assert len(revisions) == 6
    plain = MtebEncoder(engine).mteb_model_meta.revision
    assert MtebEncoder(engine, precision="float32").mteb_model_meta.revision == plain
    assert MtebEncoder(engine, truncate_dim=32).mteb_model_meta.embed_dim == 32


@pytest.mark.parametrize(
    ("task", "prompt_type", "kind", "prompt"),
    [
        (TinyRetrieval, PromptType.query, "query", "Q: "),
        (TinyRetrieval, PromptType.document, "document", ""),
        (TinySTS, None, None, "S: "),
        (TinyClassification, None, None, None),
    ],
)
def test_a_prompt_is_chosen_by_task_and_side(task, prompt_type, kind, prompt):
    engine = Recording()
    found = encode(MtebEncoder(engine), task, prompt_type, batch_size=4, show_progress_bar=False)
    assert found.shape == (3, 8)
    [(called, texts, options)] = engine.calls
    assert called == kind
    assert texts == ["a", "b", "c"]
    assert options.pop("show_progress_bar") is False
    assert options.pop("truncate_dim") is None
    assert options.pop("precision") == "float32"
    assert options == ({} if prompt is None else {"prompt": prompt})


def test_given_prompts_win_the_more_exact_the_sooner():
    engine = Recording()
    prompts = {"query": "q ", "TinyRetrieval-query": "t ", "Classification": "c "}
    encoder = MtebEncoder(engine, prompts=prompts)
    encode(encoder, TinyRetrieval, PromptType.query)
    encode(encoder, TinyClassification)
    encode(encoder, TinySTS, PromptType.query)
    assert [options["prompt"] for _, _, options in engine.calls] == ["t ", "c ", "S: "]


def test_precision_and_dimensions_reach_the_engine(engine):
    encoder = MtebEncoder(engine, truncate_dim=16, precision="float16")
    found = encode(encoder, TinySTS)
    assert (found.shape, found.dtype) == ((3, 16), np.float16)
    np.testing.assert_array_equal(
        found, engine.encode(["a", "b", "c"], truncate_dim=16, precision="float16")
    )


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary", "bfloat16"])
def test_what_is_not_a_vector_to_mteb_is_refused(precision):
    with pytest.raises(InputError, match=f"'{precision}', expected float32 or float16"):
        MtebEncoder(Recording(), precision=precision)
    engine = Recording()
    with pytest.raises(InputError, match=f"precision is '{precision}', the encoder has 'float32'"):
        encode(MtebEncoder(engine), TinySTS, precision=precision)
    assert engine.calls == []
    encode(MtebEncoder(engine), TinySTS, precision="float32")  # what it has may be said


def test_a_task_without_texts_is_refused():
    with pytest.raises(InputError, match="task TinySTS: it has image, expected text"):
        encode(MtebEncoder(Recording()), TinySTS, batches=[{"image": [1]}])


@pytest.mark.parametrize(
    ("opened", "expected"),
    [("default", "c2v-engine/default"), ("someone/model", "someone/model")],
)
def test_the_name_is_the_hub_s_or_the_folder_s(opened, expected):
    engine = Recording()
    engine.name = opened
    assert MtebEncoder(engine).mteb_model_meta.name == expected
    assert MtebEncoder(engine, name="a/b").mteb_model_meta.name == "a/b"
    with pytest.raises(InputError, match="name is 'plain', expected organization/model"):
        MtebEncoder(engine, name="plain")


def test_a_folder_s_name_is_its_last_part(tmp_path):
    engine = Recording()
    (tmp_path / "mine").mkdir()
    engine.name = str(tmp_path / "mine")
    assert MtebEncoder(engine).mteb_model_meta.name == "c2v-engine/mine"


def test_without_mteb_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    monkeypatch.delitem(sys.modules, "c2v_engine.integrations.mteb")
    with pytest.raises(MissingPackageError, match=r"mteb .* pip install 'c2v-engine\[mteb\]'"):
        importlib.import_module("c2v_engine.integrations.mteb")
    assert issubclass(MissingPackageError, ImportError)
