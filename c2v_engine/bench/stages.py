"""Where the time of the engine goes: one profiled pass, summed by the stages that it names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from c2v_engine.bench.providers.base import Provider
from c2v_engine.bench.providers.engine import Engine
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import Workload
from c2v_engine.model.checkpoint import CheckpointDescription
from c2v_engine.runtime.pipeline import EmbeddingPipeline
from c2v_engine.runtime.tokenization import CheckpointTokenizer, TokenizedText

__all__ = ["OTHER", "profile_stages", "stage_operations", "stage_table"]

PREFIX = "c2v::"
OTHER = "(no stage)"
TOKENISE = "tokenise"


def profile_stages(provider: Provider, session: Session, workload: Workload) -> dict[str, Any]:
    """Profile one pass of the engine.

    Returns:
        ``wall_s`` of the pass; ``device_s``, how long the device was at work, all streams added
        (None on a CPU); and ``stages``: for each its name, how often it was entered, ``host_s``,
        ``device_s`` of the work launched in it, ``operations`` of its products (or None), most
        time first. Tokenising runs in threads beside the rest: its ``host_s`` are theirs.
    """
    assert isinstance(provider, Engine), provider
    call = provider.prepare(workload)
    pipeline = provider.engine._runner
    assert isinstance(pipeline, EmbeddingPipeline)
    cuda = session.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    timed = TimedTokenizer(pipeline._tokenizer)
    pipeline._tokenizer = timed  # type: ignore[assignment]
    try:
        with profile(activities=activities) as profiled:
            start = time.perf_counter()
            call()
            wall = time.perf_counter() - start
    finally:
        pipeline._tokenizer = timed.inner
    stages, device_s = sum_events(list(profiled.events() or []), wall, cuda=cuda)
    operations = stage_operations(session.description, workload)
    for stage in stages:
        stage["operations"] = operations.get(stage["name"])
    stages.append(
        {
            "name": TOKENISE,
            "count": timed.calls,
            "host_s": timed.seconds,
            "device_s": 0.0 if cuda else None,
            "operations": None,
        }
    )
    stages.sort(key=lambda stage: stage["device_s"] if cuda else stage["host_s"], reverse=True)
    return {
        "texts": len(workload.texts),
        "decoder_tokens": workload.decoder_tokens,
        "wall_s": wall,
        "device_s": device_s,
        "stages": stages,
    }


class TimedTokenizer:
    """A tokenizer that adds up the seconds spent in it, by all threads."""

    def __init__(self, inner: CheckpointTokenizer) -> None:
        self.inner = inner
        self.decoder = inner.decoder
        self.calls = 0
        self._each: list[float] = []

    @property
    def seconds(self) -> float:
        """Of all calls."""
        return sum(self._each)

    def __call__(self, texts: Sequence[str], prompt: str) -> list[TokenizedText]:
        """Tokenise."""
        start = time.perf_counter()
        found = self.inner(texts, prompt)
        self._each.append(time.perf_counter() - start)
        self.calls += 1
        return found


def sum_events(
    events: Sequence[Any], wall: float, *, cuda: bool
) -> tuple[list[dict[str, Any]], float | None]:
    """The stages of a profile, and the seconds of all work on the device.

    Stages do not hold one another, so that their times add up. What belongs to none is ``OTHER``.
    An op of ours is called ``c2v::`` too, but is no annotation of the user's.
    """
    found: dict[str, dict[str, Any]] = {}
    device_s = 0.0
    for event in events:
        if event.device_type != DeviceType.CPU:
            # On the device an annotation is the span of its kernels, which stand there too.
            device_s += 0.0 if event.is_user_annotation else event.time_range.elapsed_us() / 1e6
            continue
        if not event.is_user_annotation or not event.name.startswith(PREFIX):
            continue
        name = event.name.removeprefix(PREFIX)
        empty = {"name": name, "count": 0, "host_s": 0.0, "device_s": 0.0 if cuda else None}
        stage = found.setdefault(name, empty)
        stage["count"] += 1
        stage["host_s"] += event.time_range.elapsed_us() / 1e6
        if cuda:
            stage["device_s"] += event.device_time_total / 1e6
    stages = list(found.values())
    host_left = wall - sum(stage["host_s"] for stage in stages)
    device_left = device_s - sum(stage["device_s"] or 0.0 for stage in stages)
    stages.append(
        {"name": OTHER, "count": 1, "host_s": host_left, "device_s": device_left if cuda else None}
    )
    return stages, device_s if cuda else None


def stage_operations(description: CheckpointDescription, workload: Workload) -> dict[str, float]:
    """Operations of the matrix products in each stage.

    Where single rows are pooled, the last layer mixes these alone.
    """
    config, decoder = description.config, description.decoder_shape
    d, wide, kv = decoder.hidden_size, decoder.intermediate_size, 2 * decoder.key_size
    tokens, layers = workload.decoder_tokens, len(decoder.windows)
    entries = config.parsed_template.entries
    rows_alone = all(entries[index].format is None for index in config.parsed_template.pooled)
    last = config.segments * len(workload.texts) if rows_alone else tokens
    mixed = (layers - 1) * tokens + last
    products = {
        "decoder.qkv": layers * tokens * d * kv + mixed * d * decoder.query_size,
        "decoder.output": mixed * d * decoder.query_size,
        "decoder.gate_up": mixed * 2 * d * wide,
        "decoder.down": mixed * d * wide,
    }
    encoder, projector = description.encoder_config, config.projector
    if encoder is not None and projector is not None:
        k = encoder.hidden_size
        encoded = encoder.num_hidden_layers * workload.encoder_tokens
        products |= {
            "encoder.qkv": encoded * 3 * k * k,
            "encoder.output": encoded * k * k,
            "encoder.mlp": encoded * 2 * k * encoder.intermediate_size,
            "projector": len(workload.texts) * projector.hidden_size * (k + d),
        }
    return {name: 2.0 * count for name, count in products.items()}


def stage_table(found: dict[str, Any], gemm_tflops: float | None = None) -> list[str]:
    """The stages of a profile as lines.

    Args:
        found: what ``profile_stages`` gave.
        gemm_tflops: of the machine, for the fraction that a stage's products reach.
    """
    device = found["device_s"] is not None
    key, total = ("device_s", found["device_s"]) if device else ("host_s", found["wall_s"])
    head = f"{found['texts']} texts, {found['decoder_tokens']} rows: wall "
    head += f"{found['wall_s'] * 1e3:.1f} ms"
    head += f", device at work {total * 1e3:.1f} ms" if device else ""
    columns = f"{'stage':<20}{'entered':>8}{'ms':>10}{'share':>8}{'host ms':>10}"
    lines = [head, f"{columns}{'TFLOP/s':>9}{'of GEMM':>9}"]
    for stage in found["stages"]:
        seconds = stage[key]
        share = "beside" if stage["name"] == TOKENISE else f"{seconds / total:.1%}"
        line = (
            f"{stage['name']:<20}{stage['count']:>8}{seconds * 1e3:>10.2f}{share:>8}"
            f"{stage['host_s'] * 1e3:>10.2f}"
        )
        if stage["operations"] and seconds > 0:
            tflops = stage["operations"] / seconds / 1e12
            line += f"{tflops:>9.3g}"
            line += f"{tflops / gemm_tflops:>9.1%}" if gemm_tflops else ""
        lines.append(line)
    return lines
