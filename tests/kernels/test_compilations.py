"""A batch of another size compiles nothing anew: one compilation for each kernel and model."""

import json

import pytest
from compiling import output_of

pytest.importorskip("triton")

# Tokens or texts: one alone, multiples of 16 and what is beside them, and more than 2^31 elements.
SIZES = (1, 2, 3, 7, 16, 17, 1000, 4096, 4097, 2**20)
MAX_GRID = (2**31 - 1, 65535, 65535)  # of CUDA
COUNT = """
import json
from collections import defaultdict
from aot_launches import recorded_launches


def count(calls):
    '''Distinct compilations of each kernel, and its largest grid, over several launches.'''
    keys, grids = defaultdict(set), defaultdict(lambda: (0, 0, 0))
    for call in calls:
        with recorded_launches(90) as launches:
            call()
        for launch in launches:
            keys[launch.kernel].add(launch.key)
            grid = launch.grid + (1,) * (3 - len(launch.grid))
            grids[launch.kernel] = tuple(map(max, grid, grids[launch.kernel]))
    return {kernel: (len(keys[kernel]), grids[kernel]) for kernel in keys}
"""
EVERY_OP = f"""{COUNT}
import aot
from aot_cases import CASES, Batch, cases_of
from c2v_engine.kernels._ops import TRITON_FORMS

batches = []
for n in {SIZES}:
    batches += [Batch(tokens=n, texts=n, longest=1), Batch(tokens=n, texts=1, longest=n)]
    batches.append(Batch(tokens=n, texts=-(-n // 3), longest=min(n, 3)))
found = {{}}
for op, form in TRITON_FORMS.items():
    calls = defaultdict(list)
    for batch in batches:
        for case in cases_of(op, batch):
            calls[case.label].append(lambda form=form, case=case: form(*case.arguments))
    found[op] = {{label: count(of_case) for label, of_case in calls.items()}}
print(json.dumps(found))
"""
CARELESS = f"""{COUNT}
import torch
import triton
import triton.language as tl


def kernel(x, tokens, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    tl.store(x + row * WIDTH + columns, 0.0, mask=row < tokens)


def launches(jit):
    for tokens in {SIZES}:
        x = torch.empty(tokens, 64, device="meta")
        yield lambda x=x, tokens=tokens: jit[(tokens,)](x, tokens, WIDTH=64)


careless, careful = triton.jit(kernel), triton.jit(do_not_specialize=["tokens"])(kernel)
print(json.dumps([count(launches(careless)), count(launches(careful))]))
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """For every op and case, how often each kernel would be compiled, and its largest grid."""
    return json.loads(output_of(EVERY_OP, tmp_path_factory.mktemp("count") / "every_op.py"))


def test_batches_of_every_size_share_one_compilation_of_each_kernel(counted):
    assert counted
    for op, cases in counted.items():
        assert cases, op
        again = {
            (label, kernel): compilations
            for label, kernels in cases.items()
            for kernel, (compilations, _) in kernels.items()
            if compilations != 1
        }
        assert again == {}
        assert all(cases.values()), op


def test_no_batch_exceeds_the_grid(counted):
    for cases in counted.values():
        for label, kernels in cases.items():
            for kernel, (_, grid) in kernels.items():
                fits = all(size <= most for size, most in zip(grid, MAX_GRID, strict=True))
                assert fits, (label, kernel, grid)


def test_a_kernel_that_is_specialised_for_its_tokens_would_be_found(tmp_path):
    careless, careful = json.loads(output_of(CARELESS, tmp_path / "careless.py"))
    # Triton has one kernel for 1, one for multiples of 16, and one for all other numbers.
    assert careless["kernel"][0] == 3
    assert careful["kernel"][0] == 1
    assert careful["kernel"][1] == [SIZES[-1], 1, 1]


FAR_ROWS = """
import inspect
import json
import sys

import torch
import aot
from aot_launches import recorded_launches
from c2v_engine.kernels._ops import TRITON_FORMS
from triton.runtime.jit import JITFunction

far = torch.empty_strided((4, 64), (2**31, 1), dtype=torch.bfloat16, device="meta")
heads = torch.empty_strided((4, 2, 16), (16, 2**31, 1), dtype=torch.bfloat16, device="meta")
weight = torch.empty(64, dtype=torch.bfloat16, device="meta")
offsets = torch.empty(2, dtype=torch.int32, device="meta")
with recorded_launches(90) as launches:
    TRITON_FORMS["add_rms_norm"](far, far, weight, 1e-6)
    TRITON_FORMS["packed_attention"](heads, heads, heads, offsets, 4, True, -1, 1.0, None)
kinds = {name: kind for l in launches for name, kind in l.source.signature.items()}
named = []
for name, module in list(sys.modules.items()):
    if name.startswith("c2v_engine.kernels."):
        for kernel in vars(module).values():
            if isinstance(kernel, JITFunction):
                named += [
                    f"{kernel.__name__}({p.name}: {p.annotation_type})"
                    for p in kernel.params
                    if p.name.endswith("stride") and p.annotation_type
                ]
print(json.dumps([kinds, named]))
"""


def test_a_stride_of_over_2_31_elements_is_passed_in_64_bits(tmp_path):
    """Triton would cut it to what an annotation names, without a word."""
    kinds, named = json.loads(output_of(FAR_ROWS, tmp_path / "far_rows.py"))
    assert kinds["residual_stride"] == "i64"
    assert kinds["x_stride"] == "i64"
    assert kinds["key_head_stride"] == "i64"
    assert kinds["query_stride"] == "i32"
    assert named == []
