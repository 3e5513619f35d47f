"""OpenAI's routes."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from c2v_engine.errors import InputError
from c2v_engine.serving.contract import EmbedOptions

TEXTS = ["a cat", "a dog", ""]


def embeddings(client, **body):
    body = {"model": "fake", **body}
    return client.post("/v1/embeddings", json=body)


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], dtype=np.float32)


def test_embeddings_come_in_order_and_read_back_exactly(client, service):
    answer = embeddings(client, input=TEXTS)
    assert np.array_equal(vectors(answer), service.vectors(TEXTS))
    body = answer.json()
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    assert {row["object"] for row in body["data"]} == {"embedding"}
    assert (body["object"], body["model"]) == ("list", "fake")
    assert body["usage"] == {"prompt_tokens": 16, "total_tokens": 16}


def test_one_text_is_a_list_of_one(client, service):
    assert np.array_equal(vectors(embeddings(client, input="a cat")), service.vectors(["a cat"]))


def test_base64_holds_little_endian_float32(client, service):
    rows = embeddings(client, input=TEXTS, encoding_format="base64").json()["data"]
    read = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
    assert np.array_equal(read, service.vectors(TEXTS))


def test_fields_become_options(client, service):
    embeddings(
        client,
        input="a",
        dimensions=8,
        user="u",
        prompt_name="document",
        normalize=False,
        truncate=False,
    )
    assert service.asked == [(["a"], EmbedOptions("document", False, 8, "float32", False))]


def test_whole_floats_are_integers_as_json_schema_has_it(client, service):
    assert embeddings(client, input="a", dimensions=8.0).status_code == 200
    assert service.asked[0][1].truncate_dim == 8


def test_null_is_as_good_as_nothing(client, service):
    answer = embeddings(
        client,
        input="a",
        dimensions=None,
        encoding_format=None,
        user=None,
        prompt_name=None,
        normalize=None,
        truncate=None,
    )
    assert answer.status_code == 200
    assert service.asked[0][1] == EmbedOptions()


@pytest.mark.parametrize("model", ["fake:query", "text-embedding-3-small:query"])
@pytest.mark.parametrize("given", [{}, {"prompt_name": "query"}])
def test_a_suffix_of_the_model_chooses_the_prompt(client, service, model, given):
    answer = embeddings(client, input=TEXTS, model=model, **given)
    assert np.array_equal(vectors(answer), service.vectors(TEXTS, "query"))
    assert answer.json()["model"] == model


def test_two_different_prompts_are_refused(client):
    answer = embeddings(client, input="a", model="fake:query", prompt_name="document")
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "prompt_name"


@pytest.mark.parametrize("model", ["other", "fake:nothing", "", "fake:"])
def test_an_unknown_model_is_refused_by_naming_the_known(client, model):
    answer = embeddings(client, input="a", model=model)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "fake, text-embedding-3-small, fake:query, fake:document" in error["message"]


@pytest.mark.parametrize("given", [[1, 2], [[1, 2], [3]], ["a", 3], 5])
def test_token_ids_are_refused_with_the_setting_to_change(client, given):
    answer = embeddings(client, input=given)
    assert answer.status_code == 422
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "code", "words"),
    [
        ({}, "input", "missing_field", "input is missing"),
        ({"input": {}}, "input", "invalid_type", "input is an object, expected text"),
        ({"input": None}, "input", "invalid_type", "input is null"),
        ({"input": True}, "input", "invalid_type", "input is a truth value"),
        ({"input": ["a", None]}, "input", "invalid_type", "input.1 is null"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "invalid_type", "a valid integer"),
        ({"input": "a", "dimensions": True}, "dimensions", "invalid_type", "a valid integer"),
        ({"input": "a", "normalize": 1}, "normalize", "invalid_type", "a valid boolean"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", None, "'base64'"),
        ({"input": "a", "extra": 1}, "extra", "unknown_field", "extra is no field"),
        ({"input": []}, "input", "invalid_value", "input is an empty list"),
        ({"input": "a", "dimensions": 7}, "dimensions", "invalid_value", "dimensions is 7, "),
        ({"input": "a", "prompt_name": "poem"}, "prompt_name", "invalid_value", "'poem'"),
    ],
)
def test_a_wrong_field_is_named(client, body, param, code, words):
    answer = embeddings(client, **body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": "a", "x" * 10**6: 1}, "is no field of this route"),
        ({"input": "a", "model": "x" * 10**6}, "expected one of: fake"),
    ],
)
def test_an_error_quotes_little_of_what_was_sent(client, body, words):
    answer = embeddings(client, **body)
    assert words in answer.json()["error"]["message"]
    assert len(answer.content) < 4000


def test_too_many_texts_are_refused(client_of):
    client = client_of(max_texts=3)
    assert embeddings(client, input=["a"] * 3).status_code == 200
    answer = embeddings(client, input=["a"] * 4)
    assert answer.status_code == 413
    assert "4 texts, expected at most 3" in answer.json()["error"]["message"]


def test_too_long_a_text_is_refused_by_its_row(client_of):
    client = client_of(max_characters=10)
    assert embeddings(client, input=["a" * 10, "ü" * 10]).status_code == 200
    answer = embeddings(client, input=["a", "ü" * 11], truncate=True)
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert error["message"] == "text 1: has 11 characters, expected at most 10"
    assert error["code"] == "text_too_long"


def test_models_are_listed_with_their_prompts(client):
    models = client.get("/v1/models").json()
    names = [model["id"] for model in models["data"]]
    assert names[:3] == ["fake", "text-embedding-3-small", "fake:query"]
    for name in names:
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    assert client.get("/v1/models/other").status_code == 404


def test_a_model_name_may_have_a_slash_and_a_colon(client_of):
    client = client_of(model_names=("org/name:latest",))
    assert embeddings(client, input="a", model="org/name:latest").status_code == 200
    assert embeddings(client, input="a", model="org/name:latest:query").status_code == 200
    assert client.get("/v1/models/org%2Fname:latest").json()["id"] == "org/name:latest"
    assert client.get("/v1/models/org/name:latest").status_code == 200


def test_a_name_that_means_a_prompt_of_another_is_refused(client_of):
    with pytest.raises(InputError, match="'fake:query' means prompt 'query' of 'fake'"):
        client_of(model_names=("fake:query", "fake"))


@pytest.mark.parametrize("count", [1, 300])
def test_many_texts_are_written_as_few_are(client, service, count):
    """Above some thousands of numbers a thread writes them."""
    texts = [f"text {number}" for number in range(count)]
    assert np.array_equal(vectors(embeddings(client, input=texts)), service.vectors(texts))
