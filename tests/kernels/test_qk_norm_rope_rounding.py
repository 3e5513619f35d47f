"""The code of the rotation's kernel rounds every product, as transformers does, before its sum."""

import pytest
from compiling import output_of

pytest.importorskip("triton")

SCRIPT = """
import triton
from aot_cases import cases_of
from aot_launches import recorded_launches
from triton.backends.compiler import GPUTarget

import c2v_engine.kernels.qk_norm_rope
from c2v_engine.kernels._ops import TRITON_FORMS

case = next(c for c in cases_of("qk_norm_rope_") if c.label.endswith("Mistral-7B, bfloat16"))
with recorded_launches(90) as launches:
    TRITON_FORMS["qk_norm_rope_"](*case.arguments)
(launch,) = launches
target = GPUTarget("cuda", 90, 32)
compiled = triton.compile(launch.source, target=target, options=launch.options.__dict__)
print(sum("mul" in line for line in compiled.asm["ptx"].splitlines()) > 0)
print(sum("fma" in line for line in compiled.asm["ptx"].splitlines()))
"""


def test_no_product_of_the_rotation_shares_its_rounding_with_a_sum(tmp_path):
    multiplies, fused = output_of(SCRIPT, tmp_path / "script.py").split()
    assert (multiplies, fused) == ("True", "0")
