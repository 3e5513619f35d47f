"""Clients that people have talk to the server, and get what ``Causal2Vec.encode`` gives.

To the bit: both engines are deterministic, and float32 survives its way through JSON, which has the
shortest digits that read back as the same number.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

TEXTS = [
    "Return the sum of two numbers.",
    "How do I read a file line by line?",
    "",
    "Grüße aus 北京 👋",
]
QUERY = "open a file"


@pytest.fixture(scope="module")
def expected(engine):
    """Of TEXTS and QUERY by the name of the prompt; None for the default one."""
    return {
        name: engine.encode([*TEXTS, QUERY], prompt_name=name)
        for name in (None, "query", "document")
    }


@pytest.fixture
def online(monkeypatch):
    """huggingface_hub asks no server at all, not even one here, while it is to be offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def client(served):
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def as_float32(rows):
    return np.array(rows, dtype=np.float32)


class TestOpenAI:
    @pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
    @pytest.mark.parametrize("prompt", [None, "query", "document"])
    def test_embeddings_are_those_of_encode(self, client, expected, prompt, options):
        model = "default" if prompt is None else f"default:{prompt}"
        answer = client.embeddings.create(input=[*TEXTS, QUERY], model=model, **options)
        assert np.array_equal(as_float32([row.embedding for row in answer.data]), expected[prompt])
        assert answer.usage.total_tokens == answer.usage.prompt_tokens > len(TEXTS)

    def test_asynchronous_requests_are_answered_side_by_side(self, served, expected):
        import openai

        async def ask():
            url = f"{served.url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
                calls = (client.embeddings.create(input=text, model="default") for text in TEXTS)
                return [answer.data[0].embedding for answer in await asyncio.gather(*calls)]

        assert np.array_equal(as_float32(asyncio.run(ask())), expected[None][: len(TEXTS)])

    def test_dimensions_and_our_own_fields_go_through(self, client, engine):
        answer = client.embeddings.create(
            input=TEXTS,
            model="text-embedding-3-small",
            dimensions=64,
            extra_body={"prompt_name": "query", "normalize": False},
        )
        wanted = engine.encode(
            TEXTS, prompt_name="query", normalize_embeddings=False, truncate_dim=64
        )
        assert np.array_equal(as_float32([row.embedding for row in answer.data]), wanted)

    def test_models_are_listed(self, client):
        names = [model.id for model in client.models.list()]
        assert names[:2] == ["default", "text-embedding-3-small"]
        assert client.models.retrieve("default:query").id == "default:query"

    def test_errors_arrive_as_the_client_s_own(self, client):
        import openai

        with pytest.raises(openai.NotFoundError, match="expected one of: default"):
            client.embeddings.create(input="a", model="gpt")
        with pytest.raises(openai.UnprocessableEntityError, match="token ids"):
            client.embeddings.create(input=[1, 2], model="default")
        with pytest.raises(openai.APIStatusError, match="longer than the 512 tokens") as caught:
            client.embeddings.create(input="word " * 2000, model="default")
        assert caught.value.status_code == 413
        answer = client.embeddings.create(
            input="word " * 2000, model="default", extra_body={"truncate": True}
        )
        assert answer.usage.total_tokens == 512


@pytest.mark.usefixtures("online")
class TestHuggingFaceHub:
    @pytest.mark.parametrize("argument", ["base_url", "model"])
    @pytest.mark.parametrize("path", ["", "/", "/embed"])
    def test_feature_extraction(self, served, expected, argument, path):
        from huggingface_hub import InferenceClient

        client = InferenceClient(**{argument: f"{served.url}{path}"})
        rows = client.feature_extraction([*TEXTS, QUERY], prompt_name="query", truncate=True)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected["query"])

    def test_one_text_and_every_option(self, served, engine):
        from huggingface_hub import InferenceClient

        rows = InferenceClient(base_url=served.url).feature_extraction(
            QUERY,
            normalize=False,
            truncate=True,
            truncation_direction="right",
            dimensions=32,
            encoding_format="float",
        )
        assert np.array_equal(
            rows, engine.encode([QUERY], normalize_embeddings=False, truncate_dim=32)
        )

    def test_errors_carry_the_reason(self, served):
        from huggingface_hub import InferenceClient
        from huggingface_hub.errors import HfHubHTTPError

        client = InferenceClient(base_url=served.url)
        with pytest.raises(HfHubHTTPError, match="expected 'Right'"):
            client.feature_extraction(QUERY, truncation_direction="left")


class TestLangChain:
    def test_openai_embeddings(self, served, expected):
        from langchain_openai import OpenAIEmbeddings

        def client(model):
            return OpenAIEmbeddings(
                base_url=f"{served.url}/v1",
                api_key="none",
                model=model,
                check_embedding_ctx_length=False,
            )

        documents = client("default:document")
        assert np.array_equal(
            as_float32(documents.embed_documents(TEXTS)), expected["document"][: len(TEXTS)]
        )
        query = client("default:query")
        assert np.array_equal(as_float32(query.embed_query(QUERY)), expected["query"][-1])
        assert np.array_equal(
            as_float32(asyncio.run(query.aembed_query(QUERY))), expected["query"][-1]
        )

    @pytest.mark.usefixtures("online")
    def test_hugging_face_endpoint_embeddings(self, served, expected):
        from huggingface_hub import InferenceClient
        from langchain_huggingface import HuggingFaceEndpointEmbeddings

        # It takes no address, so its client is replaced.
        embeddings = HuggingFaceEndpointEmbeddings(
            model="default", model_kwargs={"prompt_name": "query"}
        )
        embeddings.client = InferenceClient(base_url=served.url)
        assert np.array_equal(as_float32(embeddings.embed_query(QUERY)), expected["query"][-1])
        assert np.array_equal(
            as_float32(embeddings.embed_documents(TEXTS)), expected["query"][: len(TEXTS)]
        )


class TestLlamaIndex:
    def test_openai_like_embedding(self, served, expected):
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding

        embedding = OpenAILikeEmbedding(
            model_name="default:query", api_base=f"{served.url}/v1", api_key="none"
        )
        check_llama_index(embedding, expected["query"])

    def test_openai_embedding(self, served, expected):
        from llama_index.embeddings.openai import OpenAIEmbedding

        embedding = OpenAIEmbedding(
            model_name="default:query", api_base=f"{served.url}/v1", api_key="none"
        )
        check_llama_index(embedding, expected["query"])

    def test_text_embeddings_inference(self, served, engine):
        from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

        embedding = TextEmbeddingsInference(
            model_name="default",
            base_url=served.url,
            query_instruction="",
            text_instruction="",
        )
        # Its texts are stripped before they are sent.
        check_llama_index(embedding, engine.encode([*TEXTS, QUERY]))


def check_llama_index(embedding, expected):
    assert np.array_equal(as_float32(embedding.get_query_embedding(QUERY)), expected[-1])
    texts = [text or " " for text in TEXTS]
    del texts[2]  # it replaces an empty text by a space
    rows = as_float32(embedding.get_text_embedding_batch(texts))
    assert np.array_equal(rows, expected[[0, 1, 3]])
    rows = as_float32(asyncio.run(embedding.aget_text_embedding(TEXTS[0])))
    assert np.array_equal(rows, expected[0])
