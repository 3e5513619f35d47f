"""Triton model repositories: the files, the model in them, and the real server where there is one.

``tritonserver`` with its Python backend is not on the package index by itself. Where it is on the
PATH the last tests run it, with the interpreter that ``TRITON_PYTHON`` names, else with this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import triton_utils_stand_in
from checkpoints import Recipe
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from c2v_engine.cli import main
from c2v_engine.errors import BackendError, CheckpointError, InputError, OutputError
from c2v_engine.integrations.triton_server import TritonOptions, export_triton

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["list.sort() sorts in place.", "", "Grüße, 日本語 🙂 \x00", "long " * 600]
SERVER = shutil.which("tritonserver")


def config_of(folder):
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, ModelConfig())


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    options = TritonOptions(name="tiny", kind="cpu", dtype="float32")
    return export_triton(checkpoint(), tmp_path_factory.mktemp("repository"), options)


@pytest.fixture
def opened(monkeypatch):
    """Opens an exported model as Triton does: by its ``model.py``, config and folder."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_utils_stand_in)
    monkeypatch.setattr(triton_utils_stand_in, "LOGGED", [])

    def open_model(folder):
        spec = importlib.util.spec_from_file_location("exported_model", folder / "1/model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = json_format.MessageToDict(config_of(folder), preserving_proto_field_name=True)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return model

    return open_model


def asking(*texts, prompts=None, cancelled=False):
    """A request as it arrives: strings as bytes, ``[texts, 1]``."""
    inputs = {"TEXT": texts} if prompts is None else {"TEXT": texts, "PROMPT_NAME": prompts}
    tensors = []
    for name, strings in inputs.items():
        raw = [text if isinstance(text, bytes) else text.encode() for text in strings]
        array = np.array(raw, dtype=object).reshape(-1, 1)
        tensors.append(triton_utils_stand_in.Tensor(name, array))
    return triton_utils_stand_in.InferenceRequest(tensors, cancelled)


def embeddings_of(response):
    assert not response.has_error(), response.error().message()
    (tensor,) = response.output_tensors()
    assert tensor.name() == "EMBEDDING"
    return tensor.as_numpy()


def test_the_config_is_what_triton_reads(exported, engine):
    config = config_of(exported)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 256)
    assert [(i.name, i.data_type, list(i.dims), i.optional) for i in config.input] == [
        ("TEXT", 13, [1], False),  # TYPE_STRING
        ("PROMPT_NAME", 13, [1], True),
    ]
    (output,) = config.output
    assert (output.name, output.data_type) == ("EMBEDDING", 11)  # TYPE_FP32
    assert list(output.dims) == [engine(Recipe()).dimension] == [128]
    (group,) = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 1)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (1024, ModelQueuePolicy.REJECT)


@pytest.mark.parametrize(
    ("precision", "type_name", "dtype", "columns"),
    [
        ("float16", "TYPE_FP16", np.float16, 32),
        ("binary", "TYPE_INT8", np.int8, 4),
        ("ubinary", "TYPE_UINT8", np.uint8, 4),
    ],
)
def test_options_change_the_output(
    checkpoint, engine, opened, tmp_path, precision, type_name, dtype, columns
):
    options = TritonOptions(dtype="float32", precision=precision, truncate_dim=32, normalize=False)
    folder = export_triton(checkpoint(), tmp_path, options)
    (output,) = config_of(folder).output
    assert output.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[
        type_name
    ].number == (output.data_type)
    assert list(output.dims) == [columns]
    (response,) = opened(folder).execute([asking(*TEXTS)])
    found = embeddings_of(response)
    assert found.dtype == dtype
    expected = engine(Recipe()).encode(
        TEXTS, precision=precision, truncate_dim=32, normalize_embeddings=False
    )
    np.testing.assert_array_equal(found, expected)  # the same call of the same engine


def test_a_calibrated_checkpoint_is_served_in_int8(checkpoint, opened, tmp_path):
    from c2v_engine import Causal2Vec

    own = Causal2Vec.from_pretrained(checkpoint(), device="cpu", dtype="float32")
    with pytest.raises(InputError, match="c2v calibrate"):
        export_triton(checkpoint(), tmp_path, TritonOptions(precision="int8"))
    own.calibrate(TEXTS)
    own.save_pretrained(tmp_path / "calibrated")
    options = TritonOptions(precision="int8", dtype="float32")
    folder = export_triton(tmp_path / "calibrated", tmp_path / "repository", options)
    (response,) = opened(folder).execute([asking(*TEXTS)])
    expected = own.encode(TEXTS, precision="int8")
    np.testing.assert_array_equal(embeddings_of(response), expected)


def test_the_requests_of_a_batch_are_embedded_by_one_call(exported, opened, engine, monkeypatch):
    model = opened(exported)
    calls = []
    encode = model._engine.encode
    monkeypatch.setattr(
        model._engine, "encode", lambda texts, **o: calls.append(texts) or encode(texts, **o)
    )
    responses = model.execute([asking(TEXTS[0]), asking(*TEXTS[1:3]), asking(TEXTS[3])])
    assert calls == [TEXTS]
    found = np.concatenate([embeddings_of(response) for response in responses])
    np.testing.assert_array_equal(found, engine(Recipe()).encode(TEXTS))
    assert np.isfinite(found).all()


def test_every_text_has_its_own_prompt(exported, opened, engine):
    names = ["query", "document", "query", "query"]
    plain, prompted = opened(exported).execute([asking(*TEXTS), asking(*TEXTS, prompts=names)])
    encode = engine(Recipe()).encode
    rows = [encode(text, prompt_name=name) for text, name in zip(TEXTS, names, strict=True)]
    # Other neighbours in the batch: float32 sums in another order.
    np.testing.assert_allclose(embeddings_of(prompted), np.stack(rows), atol=1e-5)
    np.testing.assert_allclose(embeddings_of(plain), encode(TEXTS), atol=1e-5)


def test_what_is_wrong_with_one_request_fails_no_other(exported, opened, engine, monkeypatch):
    model = opened(exported)
    encode = model._engine.encode

    def with_a_bad_text(texts, **options):
        from c2v_engine.errors import TextError

        if "not finite" in texts:
            raise TextError(texts.index("not finite"), "its embedding is not finite")
        return encode(texts, **options)

    monkeypatch.setattr(model._engine, "encode", with_a_bad_text)
    requests = [
        asking("first"),
        asking("fine", b"\xff"),
        asking("fine", "not finite"),
        asking("second", prompts=["query"]),
        asking("fine", prompts=["no such prompt"]),
        asking("gone", cancelled=True),
        asking("third", "fourth"),
    ]
    responses = model.execute(requests)
    errors = {
        number: (response.error().message(), response.error().code())
        for number, response in enumerate(responses)
        if response.has_error()
    }
    codes = triton_utils_stand_in.TritonError
    assert errors == {
        1: ("TEXT 1: is not valid UTF-8: invalid start byte at byte 0", codes.INVALID_ARG),
        2: ("text 1: its embedding is not finite", codes.INVALID_ARG),
        4: (
            "prompt_name is 'no such prompt', expected one of: 'query', 'document'",
            codes.INVALID_ARG,
        ),
        5: ("the request was cancelled", codes.CANCELLED),
    }
    np.testing.assert_allclose(
        embeddings_of(responses[6]), engine(Recipe()).encode(["third", "fourth"]), atol=1e-5
    )
    assert len(embeddings_of(responses[0])) == len(embeddings_of(responses[3])) == 1


def test_a_failure_of_the_model_is_an_error_of_every_request(exported, opened, monkeypatch):
    model = opened(exported)

    def fails(texts, **options):
        raise RuntimeError("CUDA error:\nout of order")

    monkeypatch.setattr(model._engine, "encode", fails)
    responses = model.execute([asking("one"), asking("two")])
    messages = [response.error().message() for response in responses]
    assert messages == ["embedding failed: CUDA error: out of order"] * 2
    assert messages == triton_utils_stand_in.LOGGED
    model.finalize()


def test_a_backend_that_misreads_numpy_is_refused(exported, opened, monkeypatch):
    def strides_of_zero(name, tensor):
        return triton_utils_stand_in.Tensor(name, np.zeros(len(tensor), dtype=np.uint8))

    monkeypatch.setattr(triton_utils_stand_in.Tensor, "from_dlpack", strides_of_zero)
    with pytest.raises(BackendError, match="numpy<2"):
        opened(exported)


def test_a_checkpoint_may_be_named_by_its_path(checkpoint, opened, tmp_path):
    options = TritonOptions(name="by path", copy=False, dtype="float32")
    folder = export_triton(checkpoint(), tmp_path, options)
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.py"]
    assert len(embeddings_of(opened(folder).execute([asking("a")])[0])) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "bfloat16"}, InputError, "precision is 'bfloat16', expected one of"),
        ({"kind": "tpu"}, InputError, "kind is 'tpu'"),
        ({"max_batch_size": 0}, InputError, "max_batch_size is 0, expected a number of at least 1"),
        ({"truncate_dim": 33}, InputError, "truncate_dim is 33"),
        ({"name": "a/b"}, InputError, "name is 'a/b', expected that of a folder"),
        ({"name": "there"}, OutputError, "there already"),
    ],
)
def test_mistakes_write_nothing(checkpoint, tmp_path, options, error, message):
    (tmp_path / "there").mkdir()
    with pytest.raises(error, match=message):
        export_triton(checkpoint(), tmp_path, TritonOptions(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_there_must_be_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        export_triton(tmp_path / "missing", tmp_path)


def test_the_command_writes_a_repository(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "triton", "default", str(tmp_path), "--kind", "gpu", "--instances", "2"])
    assert not ended.value.code
    config = config_of(tmp_path / "default")
    assert list(config.output[0].dims) == [512]
    assert (config.instance_group[0].kind, config.instance_group[0].count) == (1, 2)
    assert f"--model-repository={tmp_path}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["export", "triton", "default", str(tmp_path)])
    assert ended.value.code == 2
    assert "is there already" in capsys.readouterr().err


@pytest.fixture
def server(exported, tmp_path):
    """The address of a running server of the exported repository, and its process and log."""
    executable = Path(SERVER).resolve()
    python = os.environ.get("TRITON_PYTHON", sys.executable)
    library = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    libraries = [library, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = {
        **os.environ,
        # The backend finds its packages by the first python3 on the PATH.
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [
        *(executable, f"--model-repository={exported.parent}"),
        f"--backend-directory={executable.parents[1] / 'backends'}",
        *("--allow-http=false", "--allow-metrics=false", f"--grpc-port={port}"),
    ]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=output)
    try:
        yield f"localhost:{port}", process, log
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.skipif(SERVER is None, reason="tritonserver is not on the PATH")
def test_the_real_server_gives_what_encode_gives(server, engine):
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    address, process, log = server
    client = grpc.InferenceServerClient(address)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if client.is_server_ready() and client.is_model_ready("tiny"):
                break
        except InferenceServerException:
            pass
        time.sleep(0.2)

    def ask(texts, prompts=None):
        inputs = []
        for name, strings in (("TEXT", texts), ("PROMPT_NAME", prompts)):
            if strings is not None:
                raw = [text if isinstance(text, bytes) else text.encode() for text in strings]
                one = grpc.InferInput(name, [len(raw), 1], "BYTES")
                one.set_data_from_numpy(np.array(raw, dtype=object).reshape(-1, 1))
                inputs.append(one)
        try:
            return client.infer("tiny", inputs).as_numpy("EMBEDDING")
        except InferenceServerException as error:
            return error

    expected = engine(Recipe()).encode(TEXTS)
    # Other libraries and neighbours: float32 sums in another order.
    np.testing.assert_allclose(ask(TEXTS), expected, atol=1e-5)
    queries = engine(Recipe()).encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(ask(TEXTS, ["query"] * len(TEXTS)), queries, atol=1e-5)
    requests = [[TEXTS[i % 4]] if i % 5 else ["fine", b"\xff"] for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, requests))
    for number, answer in enumerate(answers):
        if number % 5:
            np.testing.assert_allclose(answer[0], expected[number % 4], atol=1e-5)
        else:
            assert "TEXT 1: is not valid UTF-8" in str(answer)
    client.close()
