"""What is measured, in the order of what matters: the goals first, one model after the other."""

from __future__ import annotations

from c2v_engine.bench.case import Case
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.synthetic import INSTRUCTION_FIRST
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.workloads import Lengths

__all__ = ["cpu_cases", "full_cases", "small_cases"]

LOG_NORMAL = Lengths()
PROMPT_TOKENS, QUERY_TOKENS, ONE_TEXT_ROWS = 32, 16, 16


def at_128(model: str, tokens: int, dtype: str, *others: Spec) -> Case:
    specs = (Spec("engine", dtype), Spec("device", dtype), *others)
    return Case(model, Lengths(128), tokens, specs)


def where_time_goes(model: str, tokens: int, dtype: str) -> Case:
    return Case(model, Lengths(128), tokens, (Spec("engine", dtype),), "stages", stages=True)


def against_peers(model: str, tokens: int, dtype: str) -> Case:
    kinds = ("engine", "padded", "packed")
    specs = tuple(Spec(kind, dtype) for kind in kinds)
    return Case(model, LOG_NORMAL, tokens, specs, "peers")


def one_text(model: str, calls: int, dtype: str) -> Case:
    specs = (Spec("engine", dtype), Spec("engine", dtype, cuda_graphs=False))
    rows = Lengths(ONE_TEXT_ROWS)
    return Case(model, rows, calls * ONE_TEXT_ROWS, specs, "one text", texts_per_call=1)


def shared_prompt(model: str, tokens: int, dtype: str) -> Case:
    specs = (Spec("engine", dtype), Spec("engine", dtype, share_prompts=False))
    return Case(
        model,
        Lengths(QUERY_TOKENS + 2),
        tokens,
        specs,
        f"prompt {PROMPT_TOKENS}",
        INSTRUCTION_FIRST,
        PROMPT_TOKENS,
    )


def one_engine(model: str, rows: int, tokens: int, dtype: str) -> Case:
    return Case(model, Lengths(rows), tokens, (Spec("engine", dtype),))


def deterministic(model: str, tokens: int, dtype: str) -> Case:
    specs = (Spec("engine", dtype), Spec("engine", dtype, deterministic=True))
    return Case(model, LOG_NORMAL, tokens, specs, "deterministic")


def full_cases(dtype: str) -> list[Case]:
    """Of the sizes in use. A call has the tokens that take a second or two at the goals' speed.

    Profiles come after what is timed for a goal: a profiler that was there once may slow launches.
    """
    large, middle, small = "mistral-7b", "s-llama-1.3b", "qwen2.5-0.5b"
    float8 = (Spec("engine", "float8"),) if dtype == "bfloat16" else ()
    return [
        at_128(large, 2**16, dtype, *float8),
        against_peers(large, 3 * 2**14, dtype),
        one_text(large, 32, dtype),
        at_128(small, 2**19, dtype),
        against_peers(small, 2**18, dtype),
        one_text(small, 64, dtype),
        at_128(middle, 2**18, dtype),
        against_peers(middle, 2**17, dtype),
        shared_prompt(large, 2**15, dtype),
        where_time_goes(small, 2**17, dtype),
        where_time_goes(large, 2**15, dtype),
        deterministic(small, 2**18, dtype),
        one_engine(small, 32, 2**18, dtype),
        one_engine(small, 512, 2**18, dtype),
        where_time_goes(middle, 2**16, dtype),
        deterministic(middle, 2**17, dtype),
        one_engine(middle, 32, 2**17, dtype),
        one_engine(middle, 512, 2**17, dtype),
        one_engine(large, 32, 2**15, dtype),
        one_engine(large, 512, 2**16, dtype),
    ]


def cpu_cases(dtype: str) -> list[Case]:
    """For a few cores: sizes that people try there, a call of some seconds."""
    small, base = "qwen2.5-0.5b", "llama-130m"
    eight_bits = (Spec("engine", "int8"),) if dtype == "bfloat16" else ()
    return [
        at_128(small, 2**12, dtype, *eight_bits),
        against_peers(base, 2**13, dtype),
        deterministic(small, 2**11, dtype),
        one_text(small, 8, dtype),
        shared_prompt(small, 2**10, dtype),
        where_time_goes(small, 2**11, dtype),
    ]


def small_cases(dtype: str) -> list[Case]:
    """The same kinds of cases on tiny models, to try the benchmark on any machine."""
    first, second = "tiny-mistral", "tiny-qwen2"
    eight_bits = [Spec("engine", name) for name in ("float8", "int8") if dtype == "bfloat16"]
    return [
        at_128(first, 2**10, dtype, *eight_bits),
        where_time_goes(first, 2**10, dtype),
        against_peers(first, 2**11, dtype),
        one_text(first, 4, dtype),
        against_peers(second, 2**11, dtype),
        shared_prompt(first, 2**9, dtype),
        deterministic(second, 2**10, dtype),
    ]


for _case in (*full_cases("bfloat16"), *cpu_cases("bfloat16"), *small_cases("bfloat16")):
    assert _case.model in MODELS, _case.model
