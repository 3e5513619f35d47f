"""The engine as embeddings of LangChain, used by LangChain itself."""

from __future__ import annotations

import asyncio
import copy
import importlib
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from c2v_engine.engine import Causal2Vec, default_model_path
from c2v_engine.errors import CheckpointError, InputError, MissingPackageError, TextError
from c2v_engine.integrations.langchain import Causal2VecEmbeddings

TEXTS = ["Bread rises because yeast makes gas.", "A lock is held\nby one thread.", ""]
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(**CPU)


@pytest.fixture(scope="module")
def embeddings():
    return Causal2VecEmbeddings(model_kwargs=CPU)


def test_documents_and_a_query_have_their_own_prompts(embeddings, engine):
    assert embeddings.embed_documents(TEXTS) == engine.encode_document(TEXTS).tolist()
    assert embeddings.embed_query(TEXTS[0]) == engine.encode_query([TEXTS[0]])[0].tolist()
    assert embeddings.embed_query(TEXTS[0]) != embeddings.embed_documents(TEXTS)[0]
    assert embeddings.embed_documents([]) == []


def test_a_vector_store_finds_what_was_asked_for(embeddings):
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS[:2])
    [found] = store.similarity_search("why does dough rise with yeast", k=1)
    assert found.page_content == TEXTS[0]
    [found] = asyncio.run(store.asimilarity_search("which thread holds the lock", k=1))
    assert found.page_content == TEXTS[1]


def test_dimensions_and_normalisation_hold_for_both_sides(engine):
    made = Causal2VecEmbeddings(engine=engine, truncate_dim=64, normalize_embeddings=False)
    options = {"truncate_dim": 64, "normalize_embeddings": False}
    assert made.embed_documents(TEXTS) == engine.encode_document(TEXTS, **options).tolist()
    assert made.embed_query("a") == engine.encode_query(["a"], **options)[0].tolist()
    same = Causal2VecEmbeddings(engine=engine, encode_kwargs=options)
    assert same.embed_query("a") == made.embed_query("a")


def test_a_prompt_of_documents_is_not_that_of_queries(engine):
    made = Causal2VecEmbeddings(engine=engine, encode_kwargs={"prompt": "passage: "})
    assert made.embed_documents(["a"]) == engine.encode(["a"], prompt="passage: ").tolist()
    assert made.embed_query("a") == engine.encode_query(["a"])[0].tolist()
    made = Causal2VecEmbeddings(engine=engine, query_encode_kwargs={"prompt": "ask: "})
    assert made.embed_documents(["a"]) == engine.encode_document(["a"]).tolist()
    assert made.embed_query("a") == engine.encode(["a"], prompt="ask: ")[0].tolist()


class Held:
    """An engine whose texts are embedded when it is let go."""

    name = "held"

    def __init__(self):
        self.let_go = threading.Event()

    def output_dimension(self, truncate_dim=None):
        return 1

    def encode_document(self, texts, **options):
        assert self.let_go.wait(10)
        return np.ones((len(texts), 1), np.float32)

    encode_query = encode_document


def test_the_event_loop_is_free_while_it_embeds():
    held = Held()
    made = Causal2VecEmbeddings(engine=held)

    async def ask():
        tasks = [asyncio.create_task(made.aembed_documents(["a", "b"]))]
        tasks.append(asyncio.create_task(made.aembed_query("a")))
        await asyncio.sleep(0.01)
        held.let_go.set()  # never reached where one of them blocks
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [[[1.0], [1.0]], [1.0]]


def test_one_model_and_options_are_one_engine(embeddings):
    again = Causal2VecEmbeddings(model_kwargs=dict(reversed(CPU.items())), truncate_dim=8)
    assert again._model.engine is embeddings._model.engine
    other = Causal2VecEmbeddings(model_kwargs={**CPU, "deterministic": True})
    assert other._model.engine is not embeddings._model.engine


def test_it_pickles_and_is_opened_again(embeddings):
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 2000  # its fields, not its weights
    again = pickle.loads(pickled)
    assert again.model_dump() == embeddings.model_dump()
    assert again.embed_query("a") == embeddings.embed_query("a")


def test_fields_are_checked_and_dumped(engine, embeddings):
    dumped = embeddings.model_dump()
    assert dumped["engine"] is None
    assert Causal2VecEmbeddings(**dumped).embed_query("a") == embeddings.embed_query("a")
    with pytest.raises(ValidationError, match="model_nmae"):
        Causal2VecEmbeddings(model_nmae="x")


def test_an_open_engine_does_not_travel(engine):
    made = Causal2VecEmbeddings(engine=engine)
    for send in (pickle.dumps, lambda made: copy.deepcopy(made._model)):
        with pytest.raises(InputError, match="'default' was given as an open engine"):
            send(made)  # what arrived would open the shipped model
    with pytest.raises(
        InputError, match=r"engine is 'default, .*, float32', expected a Causal2Vec"
    ):
        Causal2VecEmbeddings(**made.model_dump())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "no/such/folder"}, CheckpointError, "no/such/folder: no such directory"),
        ({"model_kwargs": {"dvice": "cpu"}}, InputError, "from_pretrained has no option 'dvice'"),
        ({"encode_kwargs": {"batch_size": 8}}, InputError, "encode has no option 'batch_size'"),
        ({"truncate_dim": 7}, InputError, "truncate_dim is 7"),
        (
            {"truncate_dim": 8, "query_encode_kwargs": {"truncate_dim": 16}},
            InputError,
            "truncate_dim is given, and in query_encode_kwargs too",
        ),
        ({"engine": "default"}, InputError, "engine is 'default', expected a Causal2Vec"),
        (
            {"engine": Held(), "model": "m", "model_kwargs": {"device": "cpu"}},
            InputError,
            "a model, device is given besides an engine",
        ),
    ],
)
def test_what_can_not_be_is_said_in_one_line(fields, error, message):
    with pytest.raises(error, match=message) as caught:
        Causal2VecEmbeddings(**fields)
    assert "\n" not in str(caught.value)


def test_a_text_that_can_not_be_embedded_is_named(embeddings):
    with pytest.raises(TextError, match="text 1: is int"):
        embeddings.embed_documents(["a", 3])
    with pytest.raises(InputError, match="texts is one string"):
        embeddings.embed_documents("abc")


def test_another_checkpoint_in_the_folder_is_another_engine(tmp_path):
    folder = shutil.copytree(default_model_path(), tmp_path / "model")
    first = Causal2VecEmbeddings(model=str(folder), model_kwargs=CPU)
    again = Causal2VecEmbeddings(model=str(folder), model_kwargs=CPU)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    other = Causal2VecEmbeddings(model=str(folder), model_kwargs=CPU)
    engines = [made._model.engine for made in (first, again, other)]
    assert engines[0] is engines[1]
    assert engines[0] is not engines[2]


def test_without_langchain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", None)
    monkeypatch.delitem(sys.modules, "c2v_engine.integrations.langchain")
    with pytest.raises(MissingPackageError, match=r"pip install 'c2v-engine\[langchain\]'"):
        importlib.import_module("c2v_engine.integrations.langchain")
