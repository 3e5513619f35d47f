"""text-embeddings-inference's routes."""

from __future__ import annotations

import numpy as np
import pytest

from c2v_engine.serving.contract import EmbedOptions

TEXTS = ["a cat", "a dog"]


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embeddings_are_a_list_of_lists(client, service, path):
    answer = client.post(path, json={"inputs": TEXTS})
    assert answer.status_code == 200
    assert np.array_equal(np.float32(answer.json()), service.vectors(TEXTS))
    answer = client.post(path, json={"inputs": "a cat"})
    assert np.array_equal(np.float32(answer.json()), service.vectors(["a cat"]))


def test_fields_become_options(client, service):
    body = {
        "inputs": TEXTS,
        "truncate": True,
        "truncation_direction": "Right",
        "normalize": False,
        "prompt_name": "query",
        "dimensions": 4,
    }
    assert client.post("/embed", json=body).status_code == 200
    assert service.asked == [(TEXTS, EmbedOptions("query", False, 4, "float32", True))]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": "a", "truncation_direction": "Left"}, "expected 'Right'"),
        ({"inputs": "a", "truncation_direction": "left"}, "expected 'Right'"),
        ({"inputs": [[1, 2]]}, "token ids"),
        ({"inputs": []}, "at least one text"),
        ({"inputs": "a", "parameters": {}}, "parameters is no field"),
        ({"inputs": "a", "encoding_format": "base64"}, "'float'"),
        ({"input": "a"}, "inputs is missing"),
    ],
)
def test_what_can_not_be_is_refused_with_its_reason(client, body, words):
    answer = client.post("/embed", json=body)
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "Validation"
    assert words in answer.json()["error"]


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse", "/rerank", "/predict", "/decode"])
def test_routes_without_an_answer_say_why(client, path):
    answer = client.post(path, json={"inputs": "a"})
    assert answer.status_code == 422
    assert path in answer.json()["error"]


def test_tokens_are_told(client):
    rows = client.post("/tokenize", json={"inputs": ["ab", "c"]}).json()
    assert rows[1] == [
        {"id": 1, "text": "<s>", "special": True, "start": None, "stop": None},
        {"id": 99, "text": "c", "special": False, "start": 0, "stop": 1},
    ]
    bare = client.post("/tokenize", json={"inputs": "ab", "add_special_tokens": False}).json()
    assert [token["text"] for token in bare[0]] == ["a", "b"]


def test_info_has_the_fields_that_clients_read(client, service):
    info = client.get("/info").json()
    assert info["model_id"] == "fake"
    assert info["max_input_length"] == service.max_length
    assert info["max_client_batch_size"] == 2048
    assert info["max_batch_tokens"] == 8192
    assert info["prompts"] == service.prompts
    assert "bfloat16" not in info["precisions"]
