"""Which form of an op serves: by the device of its tensors and by what is installed."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from c2v_engine.kernels import _ops, _triton

for path in (Path(__file__).resolve().parents[2] / "kernels").glob("[!_]*.py"):
    importlib.import_module(f"c2v_engine.kernels.{path.stem}")


@pytest.fixture
def forms():
    """The form that runs on CUDA, made of two that say which they are."""
    return lambda capability: _ops._cuda_form(
        lambda *_: "pytorch", lambda *_: "triton", oldest_capability=capability
    )


@pytest.mark.parametrize(
    ("found", "needed", "served"),
    [
        ((9, 0), (8, 0), "triton"),
        ((8, 0), (8, 0), "triton"),
        ((7, 5), (8, 0), "pytorch"),
        ((8, 6), (8, 9), "pytorch"),
        ((8, 9), (8, 9), "triton"),
    ],
)
def test_a_gpu_runs_the_triton_form_where_it_can_be_compiled(
    monkeypatch, forms, found, needed, served
):
    pytest.importorskip("triton")

    def serves(device, oldest):
        # As triton_serves asks, of a GPU that is not there.
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found)
        return _triton.triton_serves.__wrapped__(torch.device("cuda", 0), oldest)

    monkeypatch.setattr(_ops, "triton_serves", serves)
    assert forms(needed)(None, torch.zeros(1)) == served


def test_no_cpu_is_taken_for_a_gpu():
    assert not _triton.triton_serves(torch.device("cpu"))


def test_without_triton_everything_is_imported_and_the_pytorch_forms_serve():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from c2v_engine.kernels import _ops, _triton\n"
        "from c2v_engine.kernels.packed_attention import packed_attention\n"
        "from c2v_engine.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference\n"
        "assert not _ops.TRITON_FORMS\n"
        "assert not _triton.triton_status().available\n"
        "x = torch.randn(3, 8)\n"
        "torch.testing.assert_close(silu_and_mul(x), silu_and_mul_reference(x))\n"
        "print(_triton.triton_status().reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install triton" in done.stdout


@pytest.mark.parametrize("name", sorted(_ops.TRITON_FORMS))
def test_every_triton_form_takes_what_the_ops_schema_says(name):
    """torch leaves out arguments at the end that have their default, so a form needs defaults."""
    schema = getattr(torch.ops.c2v, name).default._schema
    parameters = list(inspect.signature(_ops.TRITON_FORMS[name]).parameters.values())
    assert len(parameters) == len(schema.arguments)
    for parameter, argument in zip(parameters, schema.arguments, strict=True):
        assert (parameter.default is not parameter.empty) == argument.has_default_value()
