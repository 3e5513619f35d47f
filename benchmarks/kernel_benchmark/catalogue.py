"""All cases: each op at the sizes of real models, or tiny ones to try the harness anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from kernel_benchmark.attention_ops import (
    AFTER_PROMPT_ATTENTION,
    ATTENTION,
    POOLED_ROWS_ATTENTION,
)
from kernel_benchmark.case import Case, KernelOp, Sizes
from kernel_benchmark.gather_ops import GATHER_OPS
from kernel_benchmark.rowwise_ops import BIASED_OPS, ROWWISE_OPS

__all__ = ["attention_cases", "full_cases", "missing_ops", "small_cases"]


def shape(
    hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int, vocab: int, **has: int
) -> Sizes:
    return {
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab": vocab,
        "qk_norm": has.get("qk_norm", 0),
        "causal": has.get("causal", 1),
    }


SHAPES: Mapping[str, Sizes] = {
    "mistral-7b": shape(4096, 14336, 32, 8, 128, 32000),
    "s-llama-1.3b": shape(2048, 5504, 16, 16, 128, 32000),
    "qwen2.5-0.5b": shape(896, 4864, 14, 2, 64, 151936),
    "qwen3-0.6b": shape(1024, 3072, 16, 8, 128, 151936, qk_norm=1),
    "bert-base": shape(768, 3072, 12, 12, 64, 30522, causal=0),
    "tiny": shape(64, 96, 4, 2, 16, 512, qk_norm=1),
    "tiny-encoder": shape(64, 96, 4, 4, 16, 512, causal=0),
}
DECODERS = ("mistral-7b", "qwen2.5-0.5b")
ENCODERS = ("bert-base",)
ATTENDING = ("mistral-7b", "s-llama-1.3b", "qwen2.5-0.5b", "bert-base")
"""Of every model that the engine benchmark runs, so that its attention can be chosen."""
WITH_QKV_BIAS = ("qwen2.5-0.5b",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "add_rms_norm": ("hidden",),
    "add_rms_norm_fp8": ("hidden",),
    "add_layer_norm": ("hidden",),
    "add_layer_norm_fp8": ("hidden",),
    "qk_norm_rope_": ("heads", "kv_heads", "head_dim", "qk_norm"),
    "silu_and_mul": ("intermediate",),
    "silu_and_mul_fp8": ("intermediate",),
    "quantize_rows_fp8": ("hidden",),
    "bias_act_": ("intermediate",),
    "embed_layer_norm": ("hidden", "vocab"),
    "prefix_concat": ("hidden", "vocab"),
    "segment_pool": ("hidden",),
    "dual_token_pool": ("hidden",),
    "packed_attention": ("heads", "kv_heads", "head_dim", "causal"),
}
"""The sizes of a model that an op's case is made of."""

WITHOUT_TEXTS = tuple(op.name for op in ROWWISE_OPS if op.name != "qk_norm_rope_")
"""The ops to which it is all one how long the texts are."""

USED_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("add_rms_norm", "add_rms_norm_fp8", "prefix_concat"), DECODERS),
    **dict.fromkeys(("silu_and_mul", "silu_and_mul_fp8"), DECODERS),
    "quantize_rows_fp8": (*DECODERS, *ENCODERS),
    "qk_norm_rope_": (*DECODERS, "qwen3-0.6b"),
    **dict.fromkeys(("add_layer_norm", "add_layer_norm_fp8", "bias_act_"), ENCODERS),
    **dict.fromkeys(("embed_layer_norm", "segment_pool"), ENCODERS),
}
"""The models that an op is measured at."""

TOKENS = (16384, 4096, 1024)
LENGTH = 128
# In the order of what is missed most where there is no time for all.
ATTENTION_LENGTHS = (128, 32, 64, 256, 16, 512, 96)
GOAL_LENGTH = 128  # under it, short-sequence attention is to be the fastest
COMPILED_LENGTHS = (32, 128, 512)  # of attention written out, which no one would run
POOLED_TEXTS = 4096


def make_case(
    op: KernelOp,
    model: str,
    dtype: torch.dtype,
    batch: Mapping[str, int],
    *,
    goal: bool = False,
    compiled: bool = True,
) -> Case:
    """A case of an op at a model's sizes and a batch's."""
    sizes = {name: SHAPES[model][name] for name in NEEDS[op.name]}
    sizes.update(batch)
    if op.name in WITHOUT_TEXTS:
        del sizes["length"]
    return Case(op, model, sizes, dtype, goal, compiled)


def full_cases(dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """Every op but attention at the sizes of real models, those with a goal first."""
    cases = []
    for op in (*ROWWISE_OPS, *GATHER_OPS):
        if op.name == "dual_token_pool":
            batch = {"texts": POOLED_TEXTS, "length": 4}
            cases.append(make_case(op, "mistral-7b", dtype, batch, goal=True))
            continue
        for tokens in TOKENS:
            for model in USED_BY[op.name]:
                batch = {"tokens": tokens, "length": LENGTH}
                cases.append(make_case(op, model, dtype, batch, goal=tokens == max(TOKENS)))
    for op in BIASED_OPS:
        models = WITH_QKV_BIAS if op.name == "qk_norm_rope_" else USED_BY[op.name]
        batch = {"tokens": max(TOKENS), "length": LENGTH}
        cases += [make_case(op, model, dtype, batch) for model in models]
    return sorted(cases, key=lambda case: (not case.goal, -case.sizes.get("tokens", 0)))


def attention_cases(dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """Attention of 16k tokens in texts of one length; and its other forms."""
    tokens = max(TOKENS)
    cases = []
    for length in ATTENTION_LENGTHS:
        # The last text of 96 would be cut: as many whole texts as fit.
        batch = {"tokens": tokens // length * length, "length": length}
        for model in ATTENDING:
            chosen = {"goal": length < GOAL_LENGTH, "compiled": length in COMPILED_LENGTHS}
            cases.append(make_case(ATTENTION, model, dtype, batch, **chosen))
    batch = {"tokens": tokens, "length": LENGTH}
    for op in (POOLED_ROWS_ATTENTION, AFTER_PROMPT_ATTENTION):
        cases += [make_case(op, model, dtype, batch) for model in DECODERS]
    return cases


def small_cases(dtype: torch.dtype) -> list[Case]:
    """Every op once at sizes that take no time, to try ops and harness on any machine."""
    batch = {"tokens": 96, "length": 16}
    cases = []
    for op in (*ROWWISE_OPS, *GATHER_OPS, *BIASED_OPS):
        model = "tiny-encoder" if USED_BY.get(op.name) == ENCODERS else "tiny"
        sizes = {"texts": 7, "length": 4} if op.name == "dual_token_pool" else batch
        cases.append(make_case(op, model, dtype, sizes))
    for model in ("tiny", "tiny-encoder"):
        cases.append(make_case(ATTENTION, model, dtype, batch))
    for op in (POOLED_ROWS_ATTENTION, AFTER_PROMPT_ATTENTION):
        cases.append(make_case(op, "tiny", dtype, batch))
    return cases


def missing_ops(cases: Iterable[Case], ops: Iterable[str]) -> set[str]:
    """The ops that no case measures."""
    return set(ops) - {case.op.name for case in cases}
