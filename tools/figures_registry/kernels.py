"""Figures of single kernels on a GPU, and of the stages of a pass."""

from __future__ import annotations

import statistics

from figures_registry import engine
from figures_registry.formats import joined, markdown_table
from figures_registry.registry import figure, table
from figures_registry.results import H100, H100_FIRST, Content, read

FOLDERS = {"h100": H100, "h100-first": H100_FIRST}
PASS_SHAPES = {
    "add_rms_norm": ("mistral-7b", "qwen2.5-0.5b"),
    "add_rms_norm_fp8": ("mistral-7b", "qwen2.5-0.5b"),
    "add_layer_norm": ("bert-base",),
    "add_layer_norm_fp8": ("bert-base",),
    "qk_norm_rope_": ("mistral-7b", "qwen2.5-0.5b"),
}
LENGTHS = (16, 32, 64, 96, 128, 256, 512)
BACKENDS = ("packed_triton", "sdpa", "torch_varlen")
HEADS = {
    "mistral-7b": "**Mistral-7B**, 32 heads of 128, 8 of keys, causal",
    "s-llama-1.3b": "**S-LLaMA-1.3B**, 16 of 128, causal",
    "qwen2.5-0.5b": "**Qwen2.5-0.5B**, 14 of 64, 2 of keys, causal",
    "bert-base": "**BERT-base**, 12 of 64, bidirectional",
}
LAYERS = {"mistral-7b": 32, "qwen2.5-0.5b": 24}
ENCODER_LAYERS = 12
ROWS = 16384  # of a kernel's call


@figure
def passes(op: str, run: str = "h100-first") -> str:
    """A fused pass: ours, ``torch.compile`` and eager, in microseconds, and the bytes' rate."""
    shapes = PASS_SHAPES[op]
    ours, compiled, eager = (
        joined(_pass(run, op, shape, provider)["median_ms"] * 1e3 for shape in shapes)
        for provider in ("ours", "compile", "eager")
    )
    rates = joined(_pass(run, op, shape)["gb_per_s"] / 1e3 for shape in shapes)
    parts = joined(_pass(run, op, shape)["fraction_of_copy"] for shape in shapes)
    others = f"`torch.compile` {compiled} us, eager {eager}"
    return f"{ours} us, {rates} TB/s, {parts} of the copy; {others}"


@figure
def kernel_cases(run: str) -> str:
    """Of how many cases of the kernel benchmark a run has times."""
    return str(len({found["case"] for found in _kernels(run)["results"]}))


@figure
def kernel_cases_planned(run: str) -> str:
    """How many cases the kernel benchmark of a run would have had."""
    left = len(_kernels(run)["cut"]["not_measured"])
    return str(left + len({found["case"] for found in _kernels(run)["results"]}))


@figure
def kernel_repeats_within() -> str:
    """By how much our passes of the second run differ from the first's, at most, in percent."""
    first = {found["case"]: found["median_ms"] for found in _ours("h100-first")}
    return (
        f"{max(abs(found['median_ms'] / first[found['case']] - 1) for found in _ours('h100')):.1%}"
    )


@figure
def kernel_copy_range() -> str:
    """The GB/s that both runs copied."""
    contents = [
        read(f"{folder}/{name}.json")
        for folder in FOLDERS.values()
        for name in ("kernels", "attention")
    ]
    rates = [content["ceilings"]["copy_gb_per_s"] for content in contents]
    return f"{min(rates):,.0f} to {max(rates):,.0f}"


@figure
def attention_us(model: str, length: str, backend: str) -> str:
    """A layer's attention over 16,384 rows of one length, in microseconds."""
    return f"{_attention(model, int(length), backend) * 1e3:,.0f}"


@figure
def attention_lost_ms(case: str, length: str, provider: str = "engine") -> str:
    """What the slower kernel cost a case, in all of the decoder's layers but the last."""
    model = case.partition("/")[0]
    slow, fast = (
        _attention(model, int(length), name) for name in ("torch_varlen", "packed_triton")
    )
    rows = engine.entry("h100", case, provider)["decoder_tokens"]
    return f"{(slow - fast) * rows / ROWS * (LAYERS[model] - 1):.0f}"


@figure
def layers_leave_ms(run: str, small: str, large: str, of_copy: str = "") -> str:
    """What one text leaves for reading weights, if a layer costs what one of a small model does.

    With ``of_copy=yes`` the reading's time as a fraction of that.
    """
    a_layer = engine.one_text(run, small)["call_s"] - engine.reading_s(run, small)
    a_layer /= LAYERS[small] + ENCODER_LAYERS
    left = engine.one_text(run, large)["call_s"] - a_layer * (LAYERS[large] + ENCODER_LAYERS)
    return f"{engine.reading_s(run, large) / left:.0%}" if of_copy else f"{left * 1e3:.1f}"


@table
def attention() -> str:
    """Every backend at every length."""
    rows = []
    for model, words in HEADS.items():
        for backend in BACKENDS:
            name = f"{words}: `{backend}`" if backend == BACKENDS[0] else f"`{backend}`"
            rows.append([name, *(attention_us(model, str(length), backend) for length in LENGTHS)])
    return markdown_table(("length", *map(str, LENGTHS)), rows)


@figure
def pass_ms() -> str:
    """Milliseconds at work of the profiled pass of Mistral-7B."""
    return f"{_stages()['device_s'] * 1e3:.0f}"


@figure
def pass_share(*stages: str, digits: str = "1") -> str:
    """Stages' share of that pass, in percent."""
    found = sum(stage["device_s"] for stage in _stages()["stages"] if stage["name"] in stages)
    return f"{found / _stages()['device_s']:.{digits}%}"


@figure
def pass_rate(stage: str) -> str:
    """TB/s of the decoder's norms or activations in that pass, by the fewest bytes of each."""
    rows, layers = _stages()["decoder_tokens"], LAYERS["mistral-7b"]
    hidden, inner, element = 4096, 14336, 2
    # The first norm adds nothing; the last layer's second norm and activation have few rows.
    least = {
        "decoder.norm": (4 * (2 * layers - 2) + 2) * hidden,
        "decoder.activation": 3 * (layers - 1) * inner,
    }
    [found] = [one for one in _stages()["stages"] if one["name"] == stage]
    return f"{rows * least[stage] * element / found['device_s'] / 1e12:.1f}"


@figure
def pass_products() -> str:
    """The rates of the decoder's products in that pass, from least to most, of the product's."""
    peak = engine.peak_tflops("h100-first") * 1e12
    rates = [
        stage["operations"] / stage["device_s"] / peak
        for stage in _stages()["stages"]
        if stage["operations"] and stage["name"].startswith("decoder.")
    ]
    return f"{min(rates) * 100:.0f} to {max(rates):.0%}"


def _stages() -> Content:
    [found] = [entry for entry in read("h100-first")["results"] if entry.get("stages")]
    return dict(found["stages"])


def _kernels(run: str) -> Content:
    return read(f"{FOLDERS[run]}/kernels.json")


def _ours(run: str) -> list[Content]:
    return [found for found in _kernels(run)["results"] if found["provider"] == "ours"]


def _pass(run: str, op: str, shape: str, provider: str = "ours") -> Content:
    for found in _kernels(run)["results"]:
        if (found["op"], found["shape"], found["provider"]) == (op, shape, provider):
            return dict(found)
    raise LookupError(f"{run} has no {op} of {shape} by {provider}")


def _attention(model: str, length: int, backend: str) -> float:
    for found in read(f"{FOLDERS['h100']}/attention.json")["results"]:
        if (found["shape"], found["length"], found["backend"]) == (model, length, backend):
            return float(statistics.median(found["ms"]))
    raise LookupError(f"no attention of {model} at {length} by {backend}")
