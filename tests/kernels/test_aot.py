"""Every Triton kernel compiles as it is meant to, GPU or not, and ``tools/aot.py`` tells if not."""

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compiling import ROOT, TOOLS, output_of, run_compiler

pytest.importorskip("triton")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
JUDGE = """
import json
import aot
import torch
import triton
import triton.language as tl
from aot_launches import recorded_launches


def judge(launch, capability=90):
    '''What the tool finds wrong with the kernels that a function launches.'''
    with recorded_launches(capability) as launches:
        launch()
    compilations = [aot.Compilation(each) for each in launches]
    aot.compile_all(compilations)
    return [problem for entry in compilations for problem in entry.problems]


def new(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")
"""
KERNELS = """
@triton.jit
def copy(x, y, stride, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + at, tl.load(x + at * stride))


@triton.jit
def two_loads_of_a_line(x, y, ids, N: tl.constexpr):
    at = tl.arange(0, N)
    i = tl.load(ids + tl.program_id(0)); tl.store(y + i * N + at, tl.load(x + i * N + at))


@triton.jit
def reverse(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + (N - 1 - at)))


@triton.jit
def transpose(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tile = tl.load(x + at[:, None] * N + at[None, :])
    tl.store(y + at[:, None] * N + at[None, :], tl.trans(tile))


@triton.jit
def product(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tile = at[:, None] * N + at[None, :]
    total = tl.zeros((N, N), dtype=tl.float32)
    for block in range(8):
        left = tl.load(x + tile)
        x += N * N
        total += tl.dot(left, tl.load(x + tile))
    tl.store(y + tile, total.to(tl.bfloat16))


@triton.jit
def nonsense(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, N - 1)))
"""
LAUNCHES = {
    "copy": "copy[(9,)](new(9999), new(9999), 1, N=1024, enable_fp_fusion=True)",
    "two loads of a line": "two_loads_of_a_line[(9,)](new(9999), new(9999), "
    "new(9, dtype=torch.int32), N=1024, enable_fp_fusion=True)",
    "small copy": "copy[(9,)](new(9999), new(9999), 1, N=64, enable_fp_fusion=True)",
    "strided": "copy[(9,)](new(9999), new(9999), 3, N=1024, enable_fp_fusion=True)",
    "reversed": "reverse[(9,)](new(9999), new(9999), N=1024, enable_fp_fusion=True)",
    "unaligned": "copy[(9,)](new(9999)[1:], new(9999), 1, N=1024, enable_fp_fusion=True)",
    "spilling": "transpose[(1,)](new(128, 128, dtype=torch.float32), "
    "new(128, 128, dtype=torch.float32), N=128, num_warps=1, enable_fp_fusion=True)",
    "product": "product[(1,)](new(16, 64, 64), new(64, 64), N=64, enable_fp_fusion=True)",
    "much shared memory": "product[(1,)](new(16, 128, 128), new(128, 128), N=128, num_stages=6, "
    "num_warps=8, enable_fp_fusion=True)",
    "nonsense": "nonsense[(1,)](new(64), new(64), N=64, enable_fp_fusion=True)",
    "fusion left open": "copy[(9,)](new(9999), new(9999), 1, N=1024)",
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """What is wrong with each of the launches above."""
    calls = ", ".join(f"{name!r}: lambda: {call}" for name, call in LAUNCHES.items())
    end = f"print(json.dumps({{name: judge(call) for name, call in {{{calls}}}.items()}}))"
    path = tmp_path_factory.mktemp("judge") / "judge.py"
    return json.loads(output_of("\n\n".join((JUDGE, KERNELS, end)), path))


@pytest.mark.parametrize("name", ["copy", "two loads of a line", "small copy", "product"])
def test_a_good_kernel_has_no_fault(judged, name):
    assert judged[name] == []


@pytest.mark.parametrize("name", ["strided", "reversed", "unaligned"])
def test_scalar_loads_where_vectors_are_meant_are_a_fault(judged, name):
    (problem,) = judged[name]
    assert "loads of 2 bytes" in problem
    assert "where 16 bytes are meant" in problem


def test_spilled_registers_are_a_fault(judged):
    assert any("bytes on its stack" in problem for problem in judged["spilling"])


def test_more_shared_memory_than_a_block_has_is_a_fault(judged):
    assert any("bytes of shared memory" in problem for problem in judged["much shared memory"])


def test_a_kernel_that_does_not_compile_is_a_fault(judged):
    (problem,) = judged["nonsense"]
    assert problem.startswith("could not be compiled")


def test_a_launch_that_leaves_the_fusion_of_products_and_sums_open_is_a_fault(judged):
    assert judged["fusion left open"] == ["the launch does not pass enable_fp_fusion"]


def test_a_product_beside_the_tensor_cores_is_a_fault(tmp_path):
    script = """
from aot_code import Code
plain = Code(registers=32, stack=0, shared=0, warps=4, stages=3, products=1)
print(plain.problems(90))
plain.tensor_cores["mma.sync"] = 4
print(plain.problems(90))
"""
    without, on_them = output_of(script, tmp_path / "products.py").splitlines()
    assert "does not run on tensor cores" in without
    assert on_them == "[]"


def test_an_op_without_a_case_is_an_error(tmp_path):
    script = """
import aot
from c2v_engine.kernels import _ops
_ops._triton_forms["forgotten_op"] = lambda: None
print(aot.main(["--arch", "sm_90"]))
"""
    path = tmp_path / "forgotten.py"
    path.write_text(script)
    result = run_compiler(path)
    assert result.stdout.splitlines() == ["1"], result.stdout
    assert "forgotten_op has a Triton kernel and no case" in result.stderr


def test_the_counted_loads_and_stores_are_those_of_the_machine_code(tmp_path):
    script = f"""{JUDGE}
import re
import subprocess
from collections import Counter
from aot_code import compile_launch
from triton.backends.compiler import GPUTarget

for capability in (80, 90, 100):
    compilations = aot.record(["add_rms_norm"], capability)
    launch = compilations[0].launch
    code = compile_launch(launch)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(launch.source, target=target, options=dict(vars(launch.options)))
    with open({str(tmp_path / "code.cubin")!r}, "wb") as file:
        file.write(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, counted in (("LDG", code.load_widths), ("STG", code.stores)):
        assert re.findall(name + r"\\.E\\S*", listing) == [name + ".E.128"] * counted[16]
        assert set(counted) == {{16}}
print("alike")
"""
    assert output_of(script, tmp_path / "machine_code.py") == "alike\n"


def test_every_kernel_compiles_as_it_is_meant_to(tmp_path):
    result = run_compiler(TOOLS / "aot.py", "--json", tmp_path / "table.json")
    assert result.returncode == 0, "\n".join(
        line for line in (result.stdout + result.stderr).splitlines() if line.startswith("FAIL")
    )
    rows = json.loads((tmp_path / "table.json").read_text())
    shown = {(op, row["arch"]) for row in rows for op in row["ops"]}
    assert shown == {
        (op, arch)
        for op in triton_ops()
        for arch in ARCHITECTURES
        if not (op.endswith("_fp8") and arch == "sm_80")  # float8 begins with sm_89
    }
    assert result.stdout.count("\n") == len(rows) + 2  # the table, its head and what it comes to


@pytest.mark.parametrize("arguments", [["--arch", "sm_77"], ["--op", "no_such_op"]])
def test_an_unknown_choice_is_refused_in_one_line(arguments):
    result = run_compiler(TOOLS / "aot.py", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: argument {arguments[0]}: invalid choice")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["", "missing/table.json", "file/table.json"])
def test_a_table_that_can_not_be_written_is_refused_before_anything_is_compiled(place, tmp_path):
    (tmp_path / "file").touch()
    result = run_compiler(TOOLS / "aot.py", "--json", tmp_path / place)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: --json {tmp_path / place} can not be written: ")
    assert result.stderr.count("\n") == 1


def test_trying_the_table_s_place_leaves_what_is_there_and_makes_nothing(tmp_path):
    there, new = tmp_path / "there.json", tmp_path / "new.json"
    there.write_text("earlier")
    script = f"import aot\nfor path in {[str(there), str(new)]!r}: aot.parse(['--json', path])"
    assert output_of(script, tmp_path / "parse.py") == ""
    assert there.read_text() == "earlier"
    assert not new.exists()


def test_without_triton_it_ends_with_one_line(tmp_path):
    script = f"""
import runpy, sys
sys.modules["triton"] = None
sys.argv = ["aot.py"]
runpy.run_path({str(TOOLS / "aot.py")!r}, run_name="__main__")
"""
    path = tmp_path / "without.py"
    path.write_text(script)
    result = run_compiler(path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: Triton can not be imported")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_its_workers_end_with_it(number, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(TOOLS / "aot.py"), "--op", "packed_attention"]
    with (tmp_path / "error").open("w+") as error:
        process = subprocess.Popen(command, env=environment, stdout=error, stderr=error)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            wait_for(lambda: len(children.read_text().split()) >= len(os.sched_getaffinity(0)))
            workers = children.read_text().split()
        finally:
            process.send_signal(number)
        assert process.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
        wait_for(lambda: not any(runs(worker) for worker in workers))
        assert (tmp_path / "error").read_text() == ""


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def triton_ops():
    import c2v_engine.kernels
    from c2v_engine.kernels._ops import TRITON_FORMS

    for module in pkgutil.iter_modules(c2v_engine.kernels.__path__):
        importlib.import_module(f"c2v_engine.kernels.{module.name}")
    return set(TRITON_FORMS)
