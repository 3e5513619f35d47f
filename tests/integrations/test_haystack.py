"""The engine as embedders of Haystack, used by Haystack itself."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import threading

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.telemetry._telemetry import telemetry
from haystack.utils import ComponentDevice

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, InputError, MissingPackageError, TextError
from c2v_engine.integrations import local_model
from c2v_engine.integrations.haystack import Causal2VecDocumentEmbedder, Causal2VecTextEmbedder

TEXTS = ["Bread rises because yeast makes gas.", "A lock is held\nby one thread.", ""]
OPTIONS = {"device": ComponentDevice.from_str("cpu"), "model_kwargs": {"dtype": "float32"}}
# Haystack makes components of files only of modules that are named, its own ones aside.
ALLOWED = ["c2v_engine.integrations.haystack"]
EMBEDDERS = (Causal2VecTextEmbedder, Causal2VecDocumentEmbedder)


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def collected():
    """Haystack's stores wait for their threads when they are freed, which a pipeline's cycle leaves
    to the garbage collector: where that runs in a thread that is just beginning, for ever.
    """
    yield
    gc.collect()


def embed(documents, **options):
    embedded = Causal2VecDocumentEmbedder(**OPTIONS, **options).run(documents=documents)
    return [document.embedding for document in embedded["documents"]]


def test_documents_and_a_query_have_their_own_prompts(engine):
    documents = [Document(content=text) for text in TEXTS]
    embedder = Causal2VecDocumentEmbedder(**OPTIONS)
    embedded = embedder.run(documents=documents)["documents"]
    assert [document.embedding for document in embedded] == engine.encode_document(TEXTS).tolist()
    assert [document.id for document in embedded] == [document.id for document in documents]
    assert all(document.embedding is None for document in documents)  # they are copies
    assert embedder.run(documents=[]) == {"documents": []}
    query = Causal2VecTextEmbedder(**OPTIONS).run(text=TEXTS[0])["embedding"]
    assert query == engine.encode_query([TEXTS[0]])[0].tolist()


def test_pipelines_index_and_retrieve_also_when_loaded_from_yaml():
    store = InMemoryDocumentStore()
    indexing = Pipeline()
    indexing.add_component("embedder", Causal2VecDocumentEmbedder(**OPTIONS))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing = Pipeline.loads(indexing.dumps(), allowed_modules=ALLOWED)
    indexing.get_component("writer").document_store = store
    indexing.run({"embedder": {"documents": [Document(content=text) for text in TEXTS[:2]]}})

    asking = Pipeline()
    asking.add_component("embedder", Causal2VecTextEmbedder(**OPTIONS))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    question = {"embedder": {"text": "why does dough rise with yeast"}}
    [found] = asking.run(question)["retriever"]["documents"]
    assert found.content == TEXTS[0]
    loaded = Pipeline.loads(asking.dumps(), allowed_modules=ALLOWED)
    loaded.get_component("retriever").document_store = store
    [found] = asyncio.run(loaded.run_async(question))["retriever"]["documents"]
    assert found.content == TEXTS[0]


def test_prefix_and_meta_fields_stand_before_the_content(engine):
    meta = {"title": "Bread", "year": 1999, "none": None, "other": "x"}
    documents = [Document(content="It rises.", meta=meta), Document(content=None)]
    found = embed(
        documents,
        prefix="<",
        suffix=">",
        meta_fields_to_embed=["title", "none", "missing", "year"],
        embedding_separator=" | ",
    )
    texts = ["<Bread | 1999 | It rises.>", "<>"]
    assert found == engine.encode_document(texts).tolist()
    text = Causal2VecTextEmbedder(**OPTIONS, prefix="<", suffix=">").run(text="a")["embedding"]
    assert text == engine.encode_query(["<a>"])[0].tolist()


def test_options_reach_the_engine(engine):
    options = {"truncate_dim": 64, "normalize_embeddings": False, "precision": "float16"}
    [found] = embed([Document(content="a")], **options, encode_kwargs={"prompt": "p: "})
    assert found == engine.encode(["a"], prompt="p: ", **options)[0].tolist()
    [bits] = embed([Document(content="a")], precision="ubinary")
    assert bits == engine.encode_document(["a"], precision="ubinary")[0].tolist()


def test_the_model_is_loaded_by_warm_up_once_for_both(monkeypatch):
    opened = []

    def open_engine(model, options):
        opened.append((model, options))
        return local_model_open(model, options)

    local_model_open = local_model.open_engine
    monkeypatch.setattr(local_model, "open_engine", open_engine)
    text, document = (make(**OPTIONS) for make in EMBEDDERS)
    assert opened == []
    text.warm_up()
    text.warm_up()
    document.warm_up()
    assert opened == [(None, {"dtype": "float32", "device": "cpu"})] * 2
    assert text._model.engine is document._model.engine


class Held:
    """An engine whose texts are embedded when it is let go."""

    def __init__(self):
        self.let_go = threading.Event()

    def output_dimension(self, truncate_dim=None, precision="float32"):
        return 1

    def encode_document(self, texts, **options):
        assert self.let_go.wait(10)
        return np.ones((len(texts), 1), np.float32)

    encode_query = encode_document


def test_the_event_loop_is_free_while_it_embeds(monkeypatch):
    held = Held()
    monkeypatch.setattr(local_model, "open_engine", lambda model, options: held)

    async def ask():
        text, documents = (make() for make in EMBEDDERS)
        tasks = [
            asyncio.create_task(text.run_async(text="a")),
            asyncio.create_task(documents.run_async(documents=[Document(content="a")])),
        ]
        await asyncio.sleep(0.01)
        held.let_go.set()  # never reached where one of them blocks
        return await asyncio.gather(*tasks)

    text, documents = asyncio.run(ask())
    assert text["embedding"] == documents["documents"][0].embedding == [1.0]


@pytest.mark.parametrize("make", EMBEDDERS)
def test_arguments_are_stored_and_read_again(make):
    plain = make()
    assert make.from_dict(plain.to_dict()).to_dict() == plain.to_dict()
    arguments = {
        "model": "someone/model",
        "device": "cpu",
        "prefix": "<",
        "suffix": ">",
        "progress_bar": False,
        "normalize_embeddings": True,
        "truncate_dim": 64,
        "precision": "int8",
        "model_kwargs": {"dtype": "float32"},
        "encode_kwargs": {"prompt_name": "query"},
    }
    if make is Causal2VecDocumentEmbedder:
        arguments |= {"meta_fields_to_embed": ["title"], "embedding_separator": " | "}
    data = make(**arguments).to_dict()
    assert data["type"] == f"c2v_engine.integrations.haystack.{make.__name__}"
    device = {"type": "single", "device": "cpu"}
    assert data["init_parameters"] == {**arguments, "device": device}
    assert make.from_dict(data).to_dict() == data


@pytest.mark.parametrize("make", EMBEDDERS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "no/such/folder"}, CheckpointError, "no/such/folder: no such directory"),
        ({"model_kwargs": {"dvice": "cpu"}}, InputError, "from_pretrained has no option 'dvice'"),
        ({"encode_kwargs": {"batch_size": 8}}, InputError, "encode has no option 'batch_size'"),
        (
            {"truncate_dim": 8, "encode_kwargs": {"truncate_dim": 8}},
            InputError,
            "truncate_dim is given, and in encode_kwargs too",
        ),
        ({"truncate_dim": 7}, InputError, "truncate_dim is 7"),
        ({"precision": "int4"}, InputError, "precision is 'int4'"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(make, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        make(**arguments).warm_up()
    assert "\n" not in str(caught.value)


def test_each_embedder_names_the_other_for_what_it_does_not_take():
    with pytest.raises(TypeError, match="documents go to Causal2VecDocumentEmbedder"):
        Causal2VecTextEmbedder().run(text=[Document(content="a")])
    with pytest.raises(TypeError, match="a text goes to Causal2VecTextEmbedder"):
        Causal2VecDocumentEmbedder().run(documents="a")


def test_a_document_that_can_not_be_embedded_is_named():
    with pytest.raises(TextError, match="text 1: "):
        embed(
            [Document(content="a"), Document(content="b", meta={"t": "\ud800"})],
            meta_fields_to_embed=["t"],
        )


def test_no_telemetry_is_sent_and_none_would_name_the_model():
    assert telemetry is None
    assert Causal2VecTextEmbedder(model="/home/me/secret")._get_telemetry_data() == {}


def test_without_haystack_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "haystack", None)
    monkeypatch.delitem(sys.modules, "c2v_engine.integrations.haystack")
    with pytest.raises(MissingPackageError, match=r"pip install 'c2v-engine\[haystack\]'"):
        importlib.import_module("c2v_engine.integrations.haystack")
