"""The snippets of docs/integrations.md run with the real libraries, and print what is shown.

Servers that are no part of a test environment are stood in for: Ray's cluster, Triton, vLLM and
SGLang get what the page gives them, checked against what they take. The adapters' own tests go
further.
"""

from __future__ import annotations

import gc
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from snippets import commands_in, is_as_shown, read_blocks, run_python
from typer.main import get_command

from c2v_engine.cli import app, main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
PYTHON = [block for block in read_blocks(PAGE) if block.language == "python"]
COMMANDS = [
    line
    for block in read_blocks(PAGE)
    if block.language == "sh"
    for line in commands_in(block.text, "c2v")
]
# A word of each snippet: those that run as they are, and those whose server is stood in for.
LIBRARIES = (
    "import SentenceTransformer",
    "MtebEncoder",
    "langchain_core",
    "llama_index",
    "haystack",
)
STOOD_IN = (
    *("encode_dataset", "ray_serve", "tritonclient", "import vllm"),
    *("sglang_command", "sglang_request"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``my-model`` in it."""
    from c2v_engine import Causal2Vec

    folder = tmp_path_factory.mktemp("integrations")
    Causal2Vec.from_pretrained(device="cpu").save_pretrained(folder / "my-model")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")


def run_snippet(word):
    """Runs the one snippet that has the word, compares its output and gives it."""
    assert word in (*LIBRARIES, *STOOD_IN)
    (block,) = (block for block in PYTHON if word in block.text)
    printed = run_python(block.text, f"docs/integrations.md, line {block.line}")
    if block.shown is not None:
        assert is_as_shown(printed, block.shown), printed
    return printed


@pytest.mark.parametrize("word", LIBRARIES)
def test_the_libraries_find_what_is_shown(word):
    run_snippet(word)
    gc.collect()  # Haystack's store can not be freed at any time: see tests/integrations


def test_ray_data_is_given_what_it_takes(monkeypatch):
    from c2v_engine.integrations import ray as integration

    written = []
    dataset = SimpleNamespace(write_parquet=written.append)
    taken = inspect.signature(integration.encode_dataset)

    def encode_dataset(*arguments, **options):
        options = taken.bind(*arguments, **options).arguments.get("options", {})
        assert set(options) <= set(inspect.signature(integration.Embedder).parameters)
        return dataset

    monkeypatch.setattr(integration, "encode_dataset", encode_dataset)
    monkeypatch.setattr("ray.data.read_parquet", lambda path: dataset)
    run_snippet("encode_dataset")
    assert written == ["embedded"]


def test_ray_serve_is_given_what_it_takes(monkeypatch):
    from c2v_engine.integrations import ray_serve

    asked = []

    def remote(*arguments, **options):
        inspect.signature(ray_serve.Replica.embed).bind(None, *arguments, **options)
        asked.append(arguments)
        return SimpleNamespace(result=lambda: None)

    def run(application):
        assert type(application).__name__ == "Application"
        return SimpleNamespace(embed=SimpleNamespace(remote=remote))

    monkeypatch.setattr("ray.serve.run", run)
    run_snippet("ray_serve")
    assert len(asked) == 1


def test_triton_s_client_asks_for_what_the_exported_model_has(folder, monkeypatch):
    import tritonclient.grpc
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    class Server:
        def __init__(self, url):
            assert url.endswith(":8001")

        def infer(self, name, inputs):
            text = (folder / "model-repository" / name / "config.pbtxt").read_text()
            config = text_format.Parse(text, ModelConfig())
            known = {one.name: one for one in config.input}
            assert {one.name() for one in inputs} <= set(known)
            assert [one.datatype() for one in inputs] == ["BYTES"]
            (output,) = config.output
            rows = np.zeros((inputs[0].shape()[0], *output.dims), dtype=np.float32)
            return SimpleNamespace(as_numpy={output.name: rows}.__getitem__)

    (command,) = (line for line in COMMANDS if line.startswith("c2v export triton"))
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command)[1:])
    assert not caught.value.code
    monkeypatch.setattr(tritonclient.grpc, "InferenceServerClient", Server)
    run_snippet("tritonclient")


def test_vllm_is_given_rows_and_options(monkeypatch):
    calls = {}

    class LLM:
        def __init__(self, **options):
            calls["options"] = options

        def embed(self, prompts, pooling_params):
            assert len(prompts) == len(pooling_params) == 1
            calls["rows"] = prompts[0]["prompt_embeds"].shape
            width = calls["options"]["hf_overrides"]["embedding_size"]
            return [SimpleNamespace(outputs=SimpleNamespace(embedding=[0.0] * width))]

    stand_in = ModuleType("vllm")
    stand_in.LLM, stand_in.PoolingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    run_snippet("import vllm")
    assert Path(calls["options"]["model"]).is_dir()
    rows, width = calls["rows"]
    assert rows > 3
    assert width == 256


def test_sglang_is_started_and_asked_as_shown(monkeypatch):
    import httpx

    bodies = []

    def post(url, json, timeout):
        assert url.endswith(":30000/v1/embeddings")
        bodies.append(json)
        data = [{"embedding": [0.0] * 512} for _ in json["input"]]
        return SimpleNamespace(json=lambda: {"data": data})

    monkeypatch.setattr(httpx, "post", post)
    command = run_snippet("sglang_command")
    assert command.startswith("SGLANG_EXTERNAL_MODEL_PACKAGE=c2v_engine.integrations.sglang python")
    run_snippet("sglang_request")
    (body,) = bodies
    assert body["input"][0].count(body["embed_override_token_id"]) == 1
    assert np.array(body["embed_overrides"]).shape == (1, 1, 256)


def test_every_snippet_is_one_of_those():
    for block in PYTHON:
        assert sum(word in block.text for word in (*LIBRARIES, *STOOD_IN)) == 1, block


def test_the_commands_and_the_extras_exist():
    commands = get_command(app).commands
    export = commands["export"].commands
    assert COMMANDS
    for command in COMMANDS:
        _, group, name, *words = shlex.split(command)
        assert group == "export"
        export[name].make_context(name, words)
    known = {
        option
        for command in (*export.values(), commands["encode"])
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"`(?:c2v encode )?(--[a-z][a-z-]+)", PAGE)) <= known
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    cells = re.findall(r"^\| \[.*?\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    for extra in re.findall(r"`([\w-]+)`", " ".join(cells)):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra
