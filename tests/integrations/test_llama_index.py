"""The engine as an embedding of LlamaIndex, used by LlamaIndex itself."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys
import threading

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores import SimpleVectorStore

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, InputError, MissingPackageError, TextError
from c2v_engine.integrations.llama_index import Causal2VecEmbedding

TEXTS = ["Bread rises because yeast makes gas.", "A lock is held\nby one thread.", ""]
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(**CPU)


@pytest.fixture(scope="module")
def embedding():
    return Causal2VecEmbedding(device="cpu", model_kwargs={"dtype": "float32"})


class Recording:
    """An engine that notes how many texts a call has, and embeds them when it is let go."""

    name = "recording"

    def __init__(self):
        self.calls = []
        self.let_go = threading.Event()

    def info(self):
        return {"model": self.name, "fingerprint": "00ff", "dtype": "float32"}

    def output_dimension(self, truncate_dim=None):
        return 1

    def encode_document(self, texts, **options):
        assert self.let_go.wait(10)
        self.calls.append(len(texts))
        return np.array([[float(len(text))] for text in texts])

    encode_query = encode_document


def test_texts_and_a_query_have_their_own_prompts(embedding, engine):
    documents = engine.encode_document(TEXTS).tolist()
    query = engine.encode_query([TEXTS[0]])[0].tolist()
    assert embedding.get_text_embedding_batch(TEXTS) == documents
    assert embedding.get_query_embedding(TEXTS[0]) == query
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == documents
    assert asyncio.run(embedding.aget_query_embedding(TEXTS[0])) == query
    # Alone a text may differ from itself in a batch by the rounding of float32.
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[1]), documents[1], atol=1e-5)
    alone = asyncio.run(embedding.aget_text_embedding(TEXTS[1]))
    np.testing.assert_allclose(alone, documents[1], atol=1e-5)


def test_an_index_retrieves_what_was_asked_for(embedding):
    nodes = [TextNode(text=text, id_=str(row)) for row, text in enumerate(TEXTS[:2])]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    assert isinstance(index.vector_store, SimpleVectorStore)
    retriever = index.as_retriever(similarity_top_k=1)
    [found] = retriever.retrieve("why does dough rise with yeast")
    assert found.node_id == "0"
    [found] = asyncio.run(retriever.aretrieve("which thread holds the lock"))
    assert found.node_id == "1"


def test_nodes_are_embedded_with_their_metadata(embedding, engine):
    node = TextNode(text="a", metadata={"title": "b"})
    [embedded] = embedding([node])
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    assert embedded.embedding == engine.encode_document([text])[0].tolist()


def test_a_pipeline_knows_texts_again_by_the_engine_they_had(engine):
    pipeline = IngestionPipeline(transformations=[Causal2VecEmbedding(engine=engine)])
    [first] = pipeline.run(nodes=[TextNode(text="a", id_="a")])
    assert first.embedding == engine.encode_document(["a"])[0].tolist()
    recording = Recording()  # another engine, so the cache does not answer
    recording.let_go.set()
    pipeline.transformations = [Causal2VecEmbedding(engine=recording)]
    [second] = pipeline.run(nodes=[TextNode(text="a", id_="a")])
    assert second.embedding == [1.0]


def test_many_texts_are_one_call_of_the_engine():
    recording = Recording()
    recording.let_go.set()
    made = Causal2VecEmbedding(engine=recording)
    texts = ["a" * (row % 7) for row in range(5000)]
    assert made.get_text_embedding_batch(texts) == [[float(row % 7)] for row in range(5000)]
    assert recording.calls == [5000]
    made = Causal2VecEmbedding(engine=recording, embed_batch_size=2000)
    made.get_text_embedding_batch(texts)
    assert recording.calls[1:] == [2000, 2000, 1000]


def test_the_event_loop_is_free_while_it_embeds():
    recording = Recording()
    made = Causal2VecEmbedding(engine=recording)

    async def ask():
        calls = [
            made.aget_text_embedding_batch(["a", "bb"]),
            made.aget_text_embedding("a"),
            made.aget_query_embedding("a"),
        ]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.01)
        recording.let_go.set()  # never reached where one of them blocks
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [[[1.0], [2.0]], [1.0], [1.0]]


def test_instructions_are_the_prompts(engine):
    made = Causal2VecEmbedding(
        engine=engine,
        query_instruction="ask: ",
        text_instruction="text: ",
        truncate_dim=64,
        normalize=False,
    )
    options = {"truncate_dim": 64, "normalize_embeddings": False}
    expected = engine.encode(["a"], prompt="text: ", **options)[0].tolist()
    assert made.get_text_embedding("a") == expected
    expected = engine.encode(["a"], prompt="ask: ", **options)[0].tolist()
    assert made.get_query_embedding("a") == expected
    made = Causal2VecEmbedding(engine=engine, query_instruction="")  # none, not the checkpoint's
    assert made.get_query_embedding("a") == engine.encode(["a"], prompt="")[0].tolist()


def test_it_is_stored_and_opened_again(embedding):
    data = embedding.to_dict()
    assert data["class_name"] == Causal2VecEmbedding.class_name() == "Causal2VecEmbedding"
    assert (data["device"], data["model_kwargs"]) == ("cpu", {"dtype": "float32"})
    assert embedding.to_payload()["class_name"] == "Causal2VecEmbedding"
    for again in (
        Causal2VecEmbedding.from_dict(data),
        Causal2VecEmbedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
    ):
        assert again.to_dict() == data
        assert again._model.engine is embedding._model.engine
        assert again.get_query_embedding("a") == embedding.get_query_embedding("a")


def test_an_open_engine_is_given_again(engine):
    made = Causal2VecEmbedding(engine=engine, truncate_dim=64)
    data = made.to_dict()
    assert data["engine"] == f"default, {engine.info()['fingerprint']}, float32"
    again = Causal2VecEmbedding.from_dict(data, engine=engine)
    assert again.get_query_embedding("a") == made.get_query_embedding("a")
    with pytest.raises(InputError, match=r"engine is 'default, .*', expected a Causal2Vec"):
        Causal2VecEmbedding.from_dict(data)
    with pytest.raises(InputError, match="'default' was given as an open engine"):
        pickle.dumps(made)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_name": "no/such/folder"}, CheckpointError, "no/such/folder: no such directory"),
        ({"model_kwargs": {"dvice": "cpu"}}, InputError, "from_pretrained has no option 'dvice'"),
        (
            {"device": "cpu", "model_kwargs": {"device": "cpu"}},
            InputError,
            "device is given, and in model_kwargs too",
        ),
        ({"truncate_dim": 7}, InputError, "truncate_dim is 7"),
        ({"engine": Recording(), "device": "cpu"}, InputError, "device is given besides an engine"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(fields, error, message):
    with pytest.raises(error, match=message) as caught:
        Causal2VecEmbedding(**fields)
    assert "\n" not in str(caught.value)


def test_a_text_that_can_not_be_embedded_is_named(embedding):
    with pytest.raises(TextError, match="text 1: "):
        embedding.get_text_embedding_batch(["a", "\ud800"])


def test_without_llama_index_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_index.core.base.embeddings.base", None)
    monkeypatch.delitem(sys.modules, "c2v_engine.integrations.llama_index")
    with pytest.raises(MissingPackageError, match=r"pip install 'c2v-engine\[llama-index\]'"):
        importlib.import_module("c2v_engine.integrations.llama_index")
