"""The commands with the model that ships with the package."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2v_engine import Causal2Vec
from c2v_engine.cli import main

TEXTS = ["one text", "", "a rather longer text about nothing " * 5, "ünïcödé 三", "one text"]


def c2v(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    done = capsys.readouterr()
    return caught.value.code, done.out, done.err


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture
def source(tmp_path):
    rows = [{"key": f"k{i}", "body": text} for i, text in enumerate(TEXTS)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_encode_writes_what_the_engine_computes(capsys, tmp_path, source, engine):
    output = tmp_path / "o.parquet"
    options = ["--column", "body", "--id-column", "key", "--prompt-name", "query"]
    options += ["--dtype", "float32", "--device", "cpu"]
    code, out, err = c2v(capsys, "encode", source, "-o", output, *options)
    assert (code, err) == (0, "")
    assert "rows       5" in out
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [f"k{i}" for i in range(5)]
    found = np.stack(table["embedding"].to_numpy())
    expected = engine.encode(TEXTS, prompt_name="query")
    # Batches differ between the two calls, and with them the order of float32 sums.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    about = json.loads(table.schema.metadata[b"c2v"])
    assert about == {
        "model": None,
        "fingerprint": engine.info()["fingerprint"],
        "id_column": "key",
        "prompt_name": "query",
        "prompt": None,
        "precision": "float32",
        "dimension": engine.dimension,
        "truncate_dim": None,
        "normalize": True,
        "ranges": None,
    }


@pytest.mark.parametrize("precision", ["float16", "binary", "ubinary"])
def test_npy_has_the_precision_s_shape_and_dtype(capsys, tmp_path, source, engine, precision):
    options = ["--column", "body", "--precision", precision, "--truncate-dim", 64, "--quiet"]
    assert c2v(capsys, "encode", source, "-o", tmp_path / "o.npy", *options) == (0, "", "")
    found = np.load(tmp_path / "o.npy")
    dtype = {"float16": np.float16, "binary": np.int8, "ubinary": np.uint8}[precision]
    assert found.dtype == dtype
    assert found.shape == (5, engine.output_dimension(64, precision))


def test_several_devices_write_the_same(tmp_path, source, engine):
    output = tmp_path / "o.npy"
    command = [sys.executable, "-m", "c2v_engine", "encode", str(source), "-o", str(output)]
    command += ["--column", "body", "--dtype", "float32", "--devices", "cpu, cpu", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(output), engine.encode(TEXTS), rtol=0, atol=1e-5)


def test_calibrated_model_writes_int8(capsys, tmp_path, source, engine):
    options = ["encode", source, "-o", tmp_path / "o.npy", "--column", "body"]
    options += ["--precision", "int8", "--model", tmp_path / "model"]
    engine.save_pretrained(tmp_path / "model")
    code, _, err = c2v(capsys, *options)
    assert code == 2
    assert "c2v calibrate" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o.npy").exists()
    code, out, err = c2v(
        capsys, "calibrate", source, "--column", "body", "--model", tmp_path / "model"
    )
    assert code == 0, err
    assert "from 5 texts" in out
    assert c2v(capsys, *options)[0] == 0
    found = np.load(tmp_path / "o.npy")
    assert found.dtype == np.int8
    assert found.min() == -128
    assert found.max() == 127


def test_info_names_sizes_template_and_prompts(capsys, engine):
    code, out, err = c2v(capsys, "info")
    assert (code, err) == (0, "")
    assert re.search(rf"^dimension +{engine.dimension}$", out, flags=re.MULTILINE)
    assert "<context>" in out
    assert "prompts.query" in out
    code, out, _ = c2v(capsys, "info", "--json")
    assert json.loads(out)["dimension"] == engine.dimension


def test_doctor_prints_every_finding(capsys):
    from c2v_engine.doctor import report

    code, out, err = c2v(capsys, "doctor")
    assert (code, err) == (0, "")
    for section, name, value, _ in report():
        assert section in out
        assert f"  {name} " in out
        assert str(value) in out


def test_created_model_encodes(capsys, tmp_path, source, engine):
    engine.save_pretrained(tmp_path / "parts")
    code, _, err = c2v(
        capsys,
        *["create", "--output", tmp_path / "new", "--seed", 3, "--prompt", "query=Find: "],
        *["--decoder", tmp_path / "parts" / "decoder", "--encoder", tmp_path / "parts" / "encoder"],
        *["--template", "{prompt}", "--template", "<context>", "--template", "{text}"],
        *["--template", "<eos>", "--pooling", "<context>", "--pooling", "3"],
    )
    assert code == 0, err
    options = ["--column", "body", "--model", tmp_path / "new", "--prompt-name", "query"]
    code, _, err = c2v(capsys, "encode", source, "-o", tmp_path / "o.npy", *options)
    assert code == 0, err
    assert np.isfinite(np.load(tmp_path / "o.npy")).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prompt-name", "nope"], "'nope'"),
        (["--truncate-dim", "100000"], "truncate_dim is 100000"),
        (["--dtype", "float4"], "dtype is 'float4'"),
        (["--dtype", "float8", "--device", "cpu"], "dtype 'float8' can not be used on cpu"),
        (["--device", "toaster"], "toaster"),
        (["--attention", "none"], "none"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--prompt", "word " * 5000], "prompt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistake_the_engine_finds_gives_one_line(capsys, tmp_path, source, options, reason):
    output = tmp_path / "o.npy"
    code, out, err = c2v(capsys, "encode", source, "-o", output, "--column", "body", *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_weights_that_are_not_finite_name_file_and_line(capsys, tmp_path, source, engine):
    from safetensors.torch import load_file, save_file

    engine.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "projector.safetensors"
    weights = load_file(path)
    save_file({name: weight * float("nan") for name, weight in weights.items()}, path)
    options = ["--column", "body", "--model", tmp_path / "model"]
    code, _, err = c2v(capsys, "encode", source, "-o", tmp_path / "o.npy", *options)
    assert code == 2
    assert err.startswith(f"error: {source}, line 1: ")
    assert "not finite" in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "model"]


def test_interrupt_in_the_middle_of_the_computation_ends_at_once(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"text {i} {'word ' * (i % 200)}\n" for i in range(50_000)))
    often = (
        "from c2v_engine.jobs import progress; progress.LINE_SECONDS = 0.5; "
        "from c2v_engine.cli import main; main()"
    )
    command = [sys.executable, "-c", often, "encode", str(source), "-o"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "o.npy")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = process.stderr.readline()  # the first progress line: the engine is at work
    assert "texts/s" in first
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: nothing was written to ")
    assert os.listdir(tmp_path) == ["in.txt"]
