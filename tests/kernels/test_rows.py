"""How the row-wise ops are served: for every instruction set, and without the extension."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from row_cases import DTYPES, FLOAT32_RTOL, assert_rounded_alike, random

from c2v_engine.kernels.add_layer_norm import add_layer_norm
from c2v_engine.kernels.add_rms_norm import add_rms_norm
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_
from c2v_engine.kernels.quantize_rows import quantize_rows_int8
from c2v_engine.kernels.silu_and_mul import silu_and_mul

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LAUNCHERS = {
    "add_rms_norm": "AddRmsNormArguments",
    "add_layer_norm": "AddLayerNormArguments",
    "silu_and_mul": "SiluAndMulArguments",
    "qk_norm_rope": "QkNormRopeArguments",
    "quantize_rows_int8": "QuantizeRowsInt8Arguments",
    "scale_rows": "ScaleRowsArguments",
}
SHIM = '#include "fused_rows.h"\n' + "\n".join(
    f'extern "C" void {op}(const c2v::{arguments}& a, int64_t rows)'
    f" {{ c2v::{op}_cpu(a, 0, rows); }}"
    for op, arguments in LAUNCHERS.items()
)
EPS = 1e-6
ROWS = 7


class Rows(ctypes.Structure):
    """``InputRows`` and ``OutputRows`` of csrc/fused_rows.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))

    def __init__(self, tensor):
        super().__init__(tensor.data_ptr(), tensor.stride(0))


def arguments(*values):
    """A struct of the given members: rows, pointers, sizes, and what else is a ctypes value."""
    members = []
    for value in values:
        if isinstance(value, torch.Tensor):
            value = ctypes.c_void_p(value.data_ptr())
        elif isinstance(value, int):
            value = ctypes.c_int64(value)
        members.append(value)
    fields = [(f"member_{i}", type(member)) for i, member in enumerate(members)]
    struct = type("Arguments", (ctypes.Structure,), {"_fields_": fields})
    return ctypes.byref(struct(*members))


@pytest.fixture(scope="module", params=[0, 1], ids=["baseline", "avx2"])
def library(request, tmp_path_factory):
    """The CPU kernels as a processor runs them that has no more than the given instructions."""
    compiler = next(filter(shutil.which, ["c++", "g++", "clang++"]), None)
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    folder = tmp_path_factory.mktemp("fused")
    (folder / "shim.cpp").write_text(SHIM)
    flags = ["-std=c++20", "-O3", "-fPIC", "-shared", "-Wall", "-Werror", f"-I{CSRC}"]
    sources = [folder / "shim.cpp", *(CSRC / f"fused_{op}_cpu.cpp" for op in LAUNCHERS)]
    command = [compiler, *flags, f"-DC2V_MAX_X86_LEVEL={request.param}", *sources]
    path = folder / "libfused.so"
    result = subprocess.run([*command, "-o", path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(path))


def assert_same_op(actual, expected):
    """Of two instruction sets: sums and products of float32 may be rounded at once or apart."""
    if actual.dtype == torch.float32:
        torch.testing.assert_close(actual, expected, rtol=FLOAT32_RTOL, atol=2.0**-19)
    else:
        assert_rounded_alike(actual, expected)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 123, 768])
def test_every_instruction_set_gives_the_same_norms_and_activation(library, width, dtype):
    code, eps = ctypes.c_int(DTYPES.index(dtype)), ctypes.c_float(EPS)
    x, residual = random(ROWS, width, dtype=dtype), random(ROWS, width, dtype=dtype, seed=1)
    weight, bias = (random(width, dtype=dtype, seed=seed).abs() + 0.5 for seed in (2, 3))
    total, output = residual.clone(), torch.empty_like(x)

    library.add_rms_norm(arguments(Rows(total), Rows(x), weight, output, width, eps, code), ROWS)
    same = residual.clone()
    assert_same_op(output, add_rms_norm(same, x, weight, eps=EPS))
    assert torch.equal(total, same)

    # As far from zero as the norm goes, for ulps to mean something: 0.5 or more of both signs.
    far = bias + 8
    for x_bias in (None, weight):
        none = ctypes.c_void_p(None)
        members = (Rows(x), none if x_bias is None else x_bias, Rows(residual), weight, far, output)
        library.add_layer_norm(arguments(*members, width, eps, code), ROWS)
        assert_same_op(output, add_layer_norm(x, residual, weight, far, eps=EPS, x_bias=x_bias))

    gate_up = torch.cat([x * 4, residual], dim=1)
    library.silu_and_mul(arguments(Rows(gate_up), output, width, code), ROWS)
    assert_same_op(output, silu_and_mul(gate_up))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [20, 64, 80])
def test_every_instruction_set_gives_the_same_rotation(library, head_dim, dtype):
    qkv = random(ROWS, 8 * head_dim, dtype=dtype)
    positions = torch.arange(ROWS, dtype=torch.int32).flip(0)
    angles = random(ROWS, head_dim // 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    rotated, same = qkv.clone(), qkv.clone()
    none = ctypes.c_void_p(None)
    members = (Rows(rotated), none, positions, Rows(cos), Rows(sin), none, none)
    sizes = (8 * head_dim, 4, 2, head_dim)
    code, eps = ctypes.c_int(DTYPES.index(dtype)), ctypes.c_float(EPS)
    library.qk_norm_rope(arguments(*members, *sizes, eps, code), ROWS)
    counts = {"num_query_heads": 4, "num_key_heads": 2, "head_dim": head_dim}
    qk_norm_rope_(same, positions, cos, sin, **counts)
    assert_same_op(rotated, same)

    bias = random(8 * head_dim, dtype=dtype, seed=2)
    members = (members[0], bias, *members[2:])
    library.qk_norm_rope(arguments(*members, *sizes, eps, code), ROWS)
    qk_norm_rope_(same, positions, cos, sin, **counts, bias=bias)
    assert_same_op(rotated, same)

    # A quarter turn keeps what the norm gives, and ulps tell how it was rounded.
    cos.zero_()
    sin.fill_(1)
    norm = random(head_dim, dtype=dtype, seed=1).abs() + 0.5
    members = (members[0], none, *members[2:5], norm, norm)
    library.qk_norm_rope(arguments(*members, *sizes, eps, code), ROWS)
    qk_norm_rope_(same, positions, cos, sin, **counts, query_norm=norm, key_norm=norm, eps=EPS)
    torch.testing.assert_close(rotated, same, rtol=0, atol={2: 0.08, 4: 1e-5}[dtype.itemsize])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 123, 896])
def test_every_instruction_set_gives_the_same_bytes_and_scales_rows_alike(library, width, dtype):
    code = ctypes.c_int(DTYPES.index(dtype))
    x = random(ROWS, width, dtype=dtype)
    x[3, 2], x[5] = torch.nan, 0
    values, scales = torch.empty(ROWS, width, dtype=torch.uint8), torch.empty(ROWS, 1)
    library.quantize_rows_int8(arguments(Rows(x), values, scales, width, code), ROWS)
    same_values, same_scales = quantize_rows_int8(x)
    assert torch.equal(values, same_values)
    assert torch.equal(scales.view(torch.int32), same_scales.view(torch.int32))

    factors, bias = random(ROWS, 1, seed=2).abs(), random(width, dtype=dtype, seed=3)
    for shift in (ctypes.c_void_p(None), bias):
        scaled, same = (random(ROWS, width, dtype=dtype, seed=1) for _ in range(2))
        members = (Rows(scaled), factors, shift)
        library.scale_rows(arguments(*members, width, code), ROWS)
        torch.ops.c2v.scale_rows_(same, factors, bias if shift is bias else None)
        # A product and a sum may be rounded at once or apart, near zero by a few ulps.
        torch.testing.assert_close(scaled, same, rtol=2 * torch.finfo(dtype).eps, atol=2.0**-20)


CALLS = """
import torch
from c2v_engine.kernels._extension import load_extension
from c2v_engine.kernels.add_layer_norm import add_layer_norm
from c2v_engine.kernels.add_rms_norm import add_rms_norm
from c2v_engine.kernels import linear_int8
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_
from c2v_engine.kernels.quantize_rows import quantize_rows_int8
from c2v_engine.kernels.silu_and_mul import silu_and_mul
x, residual, w = torch.arange(8.0).reshape(2, 4), torch.ones(2, 4), torch.ones(4)
show = lambda tensor: print([round(value, 3) for value in tensor.flatten().tolist()])
show(add_rms_norm(residual, x, w, eps=1e-6))
show(residual)
show(add_layer_norm(x, residual, w, w, eps=1e-6))
show(silu_and_mul(x))
tables = (torch.full((2, 1), 0.6), torch.full((2, 1), 0.8))
heads = dict(num_query_heads=1, num_key_heads=1, head_dim=2)
qk_norm_rope_(x, torch.tensor([0, 1], dtype=torch.int32), *tables, **heads)
show(x)
values, scales = quantize_rows_int8(torch.arange(8.0).reshape(2, 4))
show(values.float())
show(scales)
scaled = values.float()
torch.ops.c2v.scale_rows_(scaled, scales, w)
show(scaled)
print(load_extension().available)
"""


@pytest.mark.usefixtures("compiled")
def test_without_the_extension_the_pytorch_forms_serve_under_the_same_ops():
    outputs = []
    for hidden in ("", "import sys\nsys.modules['c2v_engine._C'] = None\n"):
        result = subprocess.run(
            [sys.executable, "-c", hidden + CALLS], capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout.splitlines())
    assert outputs[0][:-1] == outputs[1][:-1]
    assert (outputs[0][-1], outputs[1][-1]) == ("True", "False")
