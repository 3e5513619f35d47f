"""Which device and dtype a name stands for."""

from __future__ import annotations

import pytest
import torch
from checkpoints import Recipe
from damage import assert_refused

from c2v_engine import Causal2Vec
from c2v_engine.errors import BackendError
from c2v_engine.model import device as device_module
from c2v_engine.model.device import cpu_has_bfloat16, resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(n)`` makes torch find as many."""

    def pretend(count, bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)

    return pretend


def test_auto_is_cuda_where_there_is_one(gpus):
    gpus(1)
    assert resolve_device("auto").type == "cuda"
    gpus(0)
    assert resolve_device("auto") == CPU


def test_names_are_taken_as_they_are(gpus):
    gpus(2)
    assert resolve_device("cpu") == CPU
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    "name", ["tpu", "mps", "meta", "xpu", "", "cuda:x", "cuda:-1", "CPU", None]
)
def test_another_device_is_refused_by_its_name(name, gpus):
    gpus(1)
    assert_refused(lambda: resolve_device(name), f"device is {name!r}", error=BackendError)


def test_cuda_without_a_gpu_is_refused(gpus):
    gpus(0)
    assert_refused(lambda: resolve_device("cuda"), "device is 'cuda'", "no CUDA GPU", "c2v doctor")


@pytest.mark.parametrize("name", ["cuda:1", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused(name, gpus):
    gpus(1)
    assert_refused(lambda: resolve_device(name), repr(name), "only 1 GPU")


@pytest.mark.parametrize("has", [True, False])
def test_auto_dtype_on_a_cpu_is_bfloat16_only_where_stored_and_fast(monkeypatch, has):
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: has)
    expected = torch.bfloat16 if has else torch.float32
    assert resolve_dtype("auto", CPU, torch.bfloat16)[0] == expected
    assert resolve_dtype("auto", CPU, torch.float32) == (torch.float32, "dtype")
    assert resolve_dtype("auto", CPU, torch.float16) == (torch.float32, "dtype")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_auto_dtype_on_cuda_is_half_precision(gpus, stored):
    gpus(1, bfloat16=True)
    assert resolve_dtype("auto", CUDA, stored) == (torch.bfloat16, "dtype")
    gpus(1, bfloat16=False)
    assert resolve_dtype("auto", CUDA, stored) == (torch.float16, "dtype")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_is_taken_by_its_name(name):
    assert resolve_dtype(name, CPU, torch.float32) == (getattr(torch, name), "dtype")


@pytest.mark.parametrize("name", ["float64", "int4", "half", "torch.float32", "", None])
def test_another_dtype_is_refused_by_its_name(name):
    assert_refused(lambda: resolve_dtype(name, CPU, torch.float32), f"dtype is {name!r}", "float16")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_instructions_are_read_from_torch(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bfloat16() is expected


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_checkpoint_is_opened_in_the_dtype_that_auto_means(monkeypatch, checkpoint, storage):
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: True)
    path = checkpoint(Recipe(storage=storage))
    engine = Causal2Vec.from_pretrained(path, device="cpu")
    assert engine.dtype == getattr(torch, storage)
    assert engine.device == CPU
    assert engine.info()["stored dtype"] == storage
    assert engine.encode("a").dtype == "float32"
