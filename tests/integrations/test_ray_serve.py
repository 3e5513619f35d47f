"""The engine as a deployment of Ray Serve, on a Ray of this machine."""

from __future__ import annotations

import importlib
import logging
import pickle
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from ray import serve
from ray_cluster import local_ray

from c2v_engine import Causal2Vec
from c2v_engine.errors import InputError, MissingPackageError, TextError
from c2v_engine.integrations import ray_serve
from c2v_engine.serving.refusals import OverloadedError, UnavailableError

TEXTS = ["How do I read a file?", "Iterate over an open file.", "", "Grüße 🙂"]
# Requests that come together are computed together, and batches matter in a vector's last bits.
BATCHED = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def deployed():
    """A handle of the application, and where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"log_level": logging.ERROR, "enable_access_log": False}
    with local_ray(2):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
        application = ray_serve.build(
            {"device": "cpu", "dtype": "float32", "num_replicas": "1", "api_keys": ["secret"]}
        )
        handle = serve.run(application, logging_config=quiet)
        try:
            yield handle, f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


@pytest.fixture(scope="module")
def client(deployed):
    return openai.OpenAI(base_url=f"{deployed[1]}/v1", api_key="secret", max_retries=0)


def test_clients_of_openai_get_the_engine_s_vectors(client, engine):
    answer = client.embeddings.create(model="default:query", input=TEXTS)
    found = np.array([one.embedding for one in answer.data])
    np.testing.assert_allclose(found, engine.encode_query(TEXTS), **BATCHED)
    assert answer.usage.total_tokens > 0


def test_the_handle_gives_the_same_as_arrays(deployed, engine):
    handle, _ = deployed
    found = handle.embed.remote(TEXTS, prompt_name="query", truncate_dim=64).result()
    expected = engine.encode_query(TEXTS, truncate_dim=64)
    np.testing.assert_allclose(found, expected, **BATCHED)
    bits = handle.embed.remote(TEXTS, precision="ubinary").result()
    assert (bits.dtype, bits.shape) == (np.uint8, (4, 64))


def test_requests_at_one_time_are_all_answered(client, engine):
    def ask(number):
        answer = client.embeddings.create(model="default", input=f"text {number}")
        return answer.data[0].embedding

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(ask, range(48)))
    np.testing.assert_allclose(found, engine.encode([f"text {n}" for n in range(48)]), **BATCHED)


def test_a_bad_request_is_refused_as_c2v_serve_does(deployed, client):
    handle, url = deployed
    with pytest.raises(openai.UnprocessableEntityError, match="expected a multiple of 2"):
        client.embeddings.create(model="default", input="a", dimensions=3)
    with pytest.raises(TextError, match="text 1: is not valid Unicode"):
        handle.embed.remote(["a", "\ud800"]).result()
    with pytest.raises(InputError, match="texts is one string"):
        handle.embed.remote("abc").result()
    with pytest.raises(TextError, match="text 1: is int"):
        handle.embed.remote(["a", 1]).result()
    assert httpx.post(f"{url}/embed", json={"inputs": "a"}).status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_options_are_checked_where_they_are_given():
    with pytest.raises(InputError, match="there is no option 'batch_size', only api_keys"):
        ray_serve.app(batch_size=3)
    with pytest.raises(InputError, match="timeout is -1, expected more than 0"):
        ray_serve.build({"timeout": "-1"})
    with pytest.raises(InputError, match="max_texts is 0"):
        ray_serve.app(max_texts=0)


@pytest.mark.parametrize(
    ("given", "keys"),
    [("secret", ("secret",)), ("123", ("123",)), ('["a", "b"]', ("a", "b")), (["a"], ("a",))],
)
def test_one_api_key_is_one_key(given, keys):
    _, _, http = ray_serve.build({"api_keys": given})._bound_deployment.init_args
    assert http["api_keys"] == keys


@pytest.mark.parametrize("given", [7, [7], {"a": 1}])
def test_an_api_key_that_is_no_text_is_refused(given):
    with pytest.raises(InputError, match=r"api_keys is \w+, expected text, or a list of texts"):
        ray_serve.build({"api_keys": given})


def test_replicas_get_what_is_asked_for_them():
    made, (engine, service, http) = ray_serve.deployment(
        "my-model",
        num_replicas=2,
        num_gpus=0.5,
        num_cpus=4,
        ray_actor_options={"resources": {"fast": 1}},
        deployment_options={"name": "mine"},
        truncate=True,
        model_names=["a", "b"],
    )
    assert (made.name, made.num_replicas, made.max_ongoing_requests) == ("mine", 2, 1024)
    expected = {"num_gpus": 0.5, "num_cpus": 4, "resources": {"fast": 1}}
    assert made.ray_actor_options.items() >= expected.items()
    assert (engine.model, service.truncate, http) == ("my-model", True, {"model_names": ("a", "b")})


@pytest.mark.parametrize("kind", [OverloadedError, UnavailableError])
def test_a_refusal_travels_between_processes(kind):
    sent = pickle.loads(pickle.dumps(kind("too much to do", 7)))
    assert (str(sent), sent.retry_after) == ("too much to do", 7)


@pytest.mark.parametrize(
    ("module", "extra"), [("ray", "ray"), ("c2v_engine.serving.http.app", "serve")]
)
def test_without_what_it_needs_the_extra_is_named(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, ray_serve.__name__)
    with pytest.raises(MissingPackageError, match=rf"pip install 'c2v-engine\[{extra}\]'"):
        importlib.import_module(ray_serve.__name__)
