"""Tables of the engine benchmark, for README.md and docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from figures_registry import engine
from figures_registry.engine import (
    cosine,
    of_product,
    one_text_ms,
    peak,
    ratios,
    texts_per_s,
    times,
    tokens_per_s,
)
from figures_registry.formats import markdown_table
from figures_registry.registry import table
from figures_registry.results import RESULTS, commit, facts, read_path, setting

LARGE, MIDDLE, SMALL, BASE = "mistral-7b", "s-llama-1.3b", "qwen2.5-0.5b", "llama-130m"
LOG_NORMAL = "log-normal/peers"


@table
def speed_cpu() -> str:
    """README's table of a CPU."""
    prompt, mixed = f"{SMALL}/18/prompt 32", f"{SMALL}/log-normal/deterministic"
    base = f"{BASE}/{LOG_NORMAL}"
    padded = ratios("cpu", base, "engine", "padded")
    slower = [ratio - 1 for ratio in ratios("cpu", mixed, "engine", "deterministic")]
    rows = [
        (
            "decoder of 0.5 B (Qwen2.5's shape), 128 tokens",
            f"{tokens_per_s('cpu', f'{SMALL}/128')} tokens/s, "
            f"{of_product('cpu', f'{SMALL}/128', digits='0')} of the matrix product's peak",
        ),
        (
            'the same with `dtype="int8"`',
            f"{times('cpu', f'{SMALL}/128', 'int8', 'engine', '1')} times as fast, cosine "
            f"{cosine('cpu', f'{SMALL}/128', 'int8')} to bfloat16",
        ),
        (
            "decoder of 130 M, log-normal lengths (median 64), against padded transformers",
            f"{times('cpu', base, 'engine', 'padded', '1')} times as fast "
            f"({min(padded):.1f} to {max(padded):.1f})",
        ),
        (
            "0.5 B, a prompt of 32 tokens before queries of 16, computed once",
            f"{times('cpu', prompt, 'engine', 'unshared', '1')} times as fast as in every text",
        ),
        (
            "0.5 B, log-normal lengths, `deterministic=True`",
            f"{sorted(slower)[len(slower) // 2]:.0%} more time "
            f"({min(slower):.0%} to {max(slower):.0%})",
        ),
        ("0.5 B, one query of 16 tokens", f"{one_text_ms('cpu', SMALL)} ms"),
    ]
    return markdown_table(("", ""), rows)


@table
def speed_gpu() -> str:
    """README's table of a GPU."""
    run, at_128 = "h100", f"{LARGE}/128"

    def against(model: str) -> str:
        case = f"{model}/{LOG_NORMAL}"
        return (
            f"{texts_per_s(run, case)} texts/s, "
            f"{times(run, case, 'engine', 'padded', '1')} times padded transformers, "
            f"{times(run, case, 'engine', 'packed', '1')} times packed ones"
        )

    rows = [
        (
            "Mistral-7B's shape, 128 tokens, bfloat16",
            f"{texts_per_s(run, at_128)} texts/s, {of_product(run, at_128, digits='0')} of a "
            f"matrix product's {peak(run)} TFLOP/s",
        ),
        (
            'the same with `dtype="float8"`',
            f"{times(run, at_128, 'float8', 'engine')} times as fast, cosine "
            f"{cosine(run, at_128, 'float8')} to bfloat16",
        ),
        ("Mistral-7B, log-normal lengths (median 64)", against(LARGE)),
        ("Qwen2.5-0.5B, log-normal lengths", against(SMALL)),
        (
            "one text of 16 tokens",
            f"Mistral-7B {one_text_ms(run, LARGE)} ms, Qwen2.5-0.5B {one_text_ms(run, SMALL)} ms",
        ),
    ]
    return markdown_table(("", ""), rows)


@table
def speed_h100() -> str:
    """Every case of the second run on an H100, and what was wanted."""
    head = ("case", "texts/s", "tokens/s", "of the product", "goal")
    return markdown_table(head, _h100_rows("h100"))


@table
def result_files() -> str:
    """Every result file or folder of a run: its machine, commit and date, where it says them."""
    rows = [_file_row(path, path.name) for path in sorted(RESULTS.glob("*.json"))]
    for path in sorted((*RESULTS.glob("*/gpu.json"), *RESULTS.glob("*/results.json"))):
        rows.append(_file_row(path, f"{path.parent.name}/"))
    return markdown_table(("file", "measured on", "commit", "begun"), rows)


def _file_row(path: Path, name: str) -> tuple[str, ...]:
    content = facts(read_path(path))
    # A run on a GPU has a copy of its commit, in which git sees other files; ``c2v bench`` has not.
    dirty = ("kind" in content and content.get("dirty")) or str(content.get("commit")).endswith(
        "-dirty"
    )
    return (
        f"[{name}](../benchmarks/results/{name})",
        setting(content),
        f"{commit(content)} and changes to it" if dirty else commit(content),
        str(content.get("started", ""))[:10],
    )


def _h100_rows(run: str) -> Iterator[tuple[str, ...]]:
    large, small = f"{LARGE}/128", f"{SMALL}/128"
    yield _row(run, "Mistral-7B, 128 tokens", large, goal="80%")
    yield _row(run, "the same, model alone", large, "device")
    gained = times(run, large, "float8", "engine")
    mean, least = (cosine(run, large, "float8", which) for which in ("mean", "min"))
    yield (
        "the same, `float8`",
        texts_per_s(run, large, "float8"),
        tokens_per_s(run, large, "float8"),
        f"{gained}x bfloat16, cosine {mean} (least {least})",
        "1.6x, 0.998 (0.99)",
    )
    yield _peers(run, "Mistral-7B, log-normal", LARGE)
    length = engine.entry(run, small)["decoder_tokens"] / engine.entry(run, small)["texts"]
    yield _row(run, f"Qwen2.5-0.5B, {length:.0f} tokens", small, goal="50%")
    yield _row(run, "the same, model alone", small, "device")
    yield _peers(run, "Qwen2.5-0.5B, log-normal", SMALL)


def _row(
    run: str, name: str, case: str, provider: str = "engine", goal: str = ""
) -> tuple[str, ...]:
    return (
        name,
        texts_per_s(run, case, provider),
        tokens_per_s(run, case, provider),
        of_product(run, case, provider),
        goal,
    )


def _peers(run: str, name: str, model: str) -> tuple[str, ...]:
    case = f"{model}/{LOG_NORMAL}"
    padded, packed = (times(run, case, "engine", other) for other in ("padded", "packed"))
    name, texts, tokens, part, _ = _row(run, name, case)
    return name, texts, tokens, f"{part}; {padded}x padded, {packed}x packed", "3x, 1.3x"
