"""What ``make aot`` compiles is what the engine launches, but for what is listed here."""

import json
from pathlib import Path

import pytest
from compiling import run_compiler

pytest.importorskip("triton")

BFLOAT16 = "around float8 the engine computes in bfloat16"
ENCODER = "encoders are not computed in float8"
PRODUCT_ADDS_IT = "for callers whose product leaves its bias out; the engine's products add theirs"
ALL_ROWS = "the engine's encoder attends from every row, in its last layer too"
HEADS = "stands for models with heads of this size, of which only the heads are compiled"

NOT_LAUNCHED = {
    ("add_layer_norm_fp8", ""): ENCODER,
    ("add_layer_norm_fp8", "with x's bias"): ENCODER,
    ("add_rms_norm_fp8", "float32"): BFLOAT16,
    ("add_rms_norm_fp8", "float16"): BFLOAT16,
    ("silu_and_mul_fp8", "float32"): BFLOAT16,
    ("silu_and_mul_fp8", "float16"): BFLOAT16,
    ("quantize_rows_fp8", "float32"): BFLOAT16,
    ("quantize_rows_fp8", "float16"): BFLOAT16,
    ("add_layer_norm", "with x's bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "gelu and bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "gelu_tanh and bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "relu and bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "silu and bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "tanh and bias"): PRODUCT_ADDS_IT,
    ("bias_act_", "identity and bias"): PRODUCT_ADDS_IT,
    ("qk_norm_rope_", "with bias"): PRODUCT_ADDS_IT,
    ("qk_norm_rope_", "queries with bias"): PRODUCT_ADDS_IT,
    ("qk_norm_rope_", "keys with bias"): PRODUCT_ADDS_IT,
    ("packed_attention", "1 rows", "BERT-base"): ALL_ROWS,
    ("packed_attention", "2 rows", "BERT-base"): ALL_ROWS,
}
"""Variants or dtypes of an op, all models' or one's, compiled ahead and not launched, and why."""

OTHER_HEADS = {"heads of 80": HEADS, "heads of 96": HEADS, "heads of 256": HEADS}
"""Models of which nothing is launched, and why."""


@pytest.fixture(scope="module")
def launches():
    result = run_compiler(Path(__file__).with_name("engine_launches.py"))
    # The forward runs on tensors without values: one that asked the device for a value would fail.
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def names_of(case):
    """What a case may be listed by."""
    op, variant, dtype = case["op"], case["variant"], case["label"].rpartition(", ")[2]
    return (op, variant), (op, variant, case["model"]), (op, dtype)


def test_the_engine_launches_nothing_that_is_not_compiled_ahead(launches):
    assert launches["unknown"] == {}


def test_the_engine_launches_every_compilation_that_is_not_listed_and_none_that_is(launches):
    cases = launches["cases"]
    listed = {
        case["label"]
        for case in cases
        if case["model"] in OTHER_HEADS or any(name in NOT_LAUNCHED for name in names_of(case))
    }
    assert {case["label"] for case in cases if not case["launched"]} == listed


def test_everything_that_is_listed_is_a_case(launches):
    known = {name for case in launches["cases"] for name in names_of(case)}
    assert NOT_LAUNCHED.keys() <= known
    assert OTHER_HEADS.keys() <= {case["model"] for case in launches["cases"]}
