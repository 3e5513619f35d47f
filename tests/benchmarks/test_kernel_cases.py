"""The cases: every op has one, and the bytes that it is said to move are those of its tensors."""

import dataclasses

import pytest
import torch
from kernel_benchmark.catalogue import attention_cases, full_cases, missing_ops, small_cases

from c2v_engine.kernels._ops import TRITON_FORMS

# Arguments of which only some rows are read, and the argument that says how many.
GATHERED = {
    "word_embeddings": "token_ids",
    "embed_tokens": "token_ids",
    "hidden_states": "rows",
}
NOT_COUNTED = ("row_bounds",)  # made of cu_seqlens, once for all layers
SMALL = small_cases(torch.bfloat16)


def ids(cases):
    return [case.name for case in cases]


def moved_by_tensors(case):
    """Bytes of every tensor that a call reads, and of every one that it writes."""
    arguments = case.op.own(case.arguments(torch.device("cpu"), 0))
    moved = -untouched(case)
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) or name in NOT_COUNTED:
            continue
        rows = len(value)
        if name in GATHERED:
            which = arguments[GATHERED[name]]
            rows = int((which >= 0).sum())
        moved += rows * value[0].nbytes
    returned = case.op.launcher(**arguments)
    results = [returned] if isinstance(returned, torch.Tensor) else list(returned or ())
    return moved + sum(
        tensor.nbytes for tensor in [*results, *(arguments[name] for name in case.op.written)]
    )


def untouched(case):
    """Bytes of the values, which a rotation without a bias neither reads nor writes."""
    if case.op.name != "qk_norm_rope_" or case.op.variant == "bias":
        return 0
    sizes = case.sizes
    return 2 * sizes["tokens"] * sizes["kv_heads"] * sizes["head_dim"] * case.dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ids(SMALL))
def test_moved_bytes_are_those_of_the_tensors(name, dtype):
    case = next(case for case in small_cases(dtype) if case.name == name)
    assert case.moved_bytes == moved_by_tensors(case)


def test_the_rotation_without_a_bias_leaves_the_values_alone(small):
    arguments = small("qk_norm_rope_").arguments(torch.device("cpu"), 0)
    sizes = small("qk_norm_rope_").sizes
    values = arguments["qkv"][:, (sizes["heads"] + sizes["kv_heads"]) * sizes["head_dim"] :]
    before = values.clone()
    small("qk_norm_rope_").op.launcher(**arguments)
    assert values.numel() > 0
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("add_layer_norm", "x_bias"),
        ("add_layer_norm_fp8", "x_bias"),
        ("bias_act_", "bias"),
        ("qk_norm_rope_", "bias"),
    ],
)
def test_what_the_engine_launches_has_no_bias_and_alone_a_goal(op, name):
    for cases in (SMALL, full_cases()):
        found = [case for case in cases if case.op.name == op]
        biased = {case.name for case in found if case.op.variant == "bias"}
        assert biased
        assert len(biased) < len(found)
        for case in found:
            assert not (case.goal and case.name in biased)
            if cases is SMALL:
                given = case.arguments(torch.device("cpu"), 0).get(name)
                assert (given is not None) == (case.name in biased)


def test_every_op_with_a_kernel_has_a_case_at_real_and_at_tiny_sizes():
    ops = {*TRITON_FORMS, "dual_token_pool"}
    assert missing_ops([*full_cases(), *attention_cases()], ops) == set()
    assert missing_ops(SMALL, ops) == set()


def test_an_op_without_a_case_is_found():
    assert missing_ops(SMALL, {*TRITON_FORMS, "made_up"}) == {"made_up"}


@pytest.mark.parametrize("cases", [SMALL, [*full_cases(), *attention_cases()]])
def test_no_two_cases_have_one_name(cases):
    assert len(set(ids(cases))) == len(cases)


def test_cases_with_a_goal_come_first():
    goals = [case.goal for case in full_cases() if not case.op.variant]
    assert goals == sorted(goals, reverse=True)
    assert any(goals)
    assert any(case.goal for case in attention_cases())


def test_the_sizes_of_real_models_are_there():
    names = ids([*full_cases(), *attention_cases()])
    for tokens in (1024, 4096, 16384):
        assert f"add_rms_norm-mistral-7b-tokens{tokens}" in names
        assert f"silu_and_mul-qwen2.5-0.5b-tokens{tokens}" in names
        assert f"add_layer_norm-bert-base-tokens{tokens}" in names
    lengths = {case.sizes["length"] for case in attention_cases()}
    assert lengths == {16, 32, 64, 96, 128, 256, 512}
    pool = next(case for case in full_cases() if case.op.name == "dual_token_pool")
    assert (pool.sizes["texts"], 2 * pool.sizes["hidden"]) == (4096, 8192)


def test_causal_attention_counts_the_keys_that_are_seen(small):
    case = small("packed_attention")
    length, texts = case.sizes["length"], case.sizes["tokens"] // case.sizes["length"]
    pairs = texts * sum(row + 1 for row in range(length))
    assert case.operations == 4 * case.sizes["heads"] * case.sizes["head_dim"] * pairs
    full = dataclasses.replace(case, sizes={**case.sizes, "causal": 0})
    assert full.operations == 4 * case.sizes["heads"] * case.sizes["head_dim"] * texts * length**2


def test_arguments_differ_with_the_seed_and_are_no_zeros(small):
    for case in SMALL:
        first, same, other = (case.arguments(torch.device("cpu"), seed) for seed in (0, 0, 1))
        tensors = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
        assert all(torch.equal(first[name], same[name]) for name in tensors)
        drawn = [name for name in tensors if not torch.equal(first[name], other[name])]
        assert drawn
        assert all(first[name].count_nonzero() > 0.9 * first[name].numel() for name in drawn)
