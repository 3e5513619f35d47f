"""How much work embedding a few fixed texts is, in counts that no clock or neighbour changes.

Operators that torch dispatches, operations of the matrix products, bytes that are allocated,
Python functions that are called: a change that adds work to a batch or to a text adds to these,
on a machine as busy as can be. What they cost is for benchmarks to say.

Everything runs in one thread: tokenising too, which otherwise waits, or is waited for, as it comes.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from c2v_engine.bench.machine.instructions import EventCounter, UncountedError
from c2v_engine.bench.measure import useful_operations
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.source import StoredCheckpoint
from c2v_engine.bench.models.written import write_checkpoint
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.providers.engine import Engine
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import INSTRUCTION, Workload
from c2v_engine.engine import default_model_path
from c2v_engine.kernels._extension import load_extension
from c2v_engine.runtime import pipeline

__all__ = ["WORK", "Work", "count_work", "count_workload", "describe_counting", "open_subjects"]

CPU = torch.device("cpu")
SUBJECTS = {
    "default": None,
    "tiny-mistral causal2vec": ("tiny-mistral", "causal2vec"),
    "tiny-qwen2 last-token": ("tiny-qwen2", "last-token"),
}
"""The models by name: the default one, and shapes with a method."""
# No library's list and no generator's numbers, which other releases have otherwise.
SENTENCE = (
    "the engine embeds a text by its own rows and reads it once with an encoder whose pooled "
    "states give the decoder one vector before the first word of a long or a short sentence"
)
LENGTHS = (1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 16, 19, 23, 26, 30, 33, 37, 41, 46, 52)
"""Words of the texts."""
QUERY_WORDS = (2, 4, 5, 6, 7, 8, 10, 12)
BATCH_ROWS = 160


@dataclass(frozen=True)
class Work:
    """Texts that are embedded in a call.

    Attributes:
        lengths: of the texts, in words.
        prompt: of all of them.
        batch_tokens: most rows of a batch, None for as many as suit the device.
    """

    lengths: tuple[int, ...]
    prompt: str = ""
    batch_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts, no two of them alike."""
        words = SENTENCE.split()
        return [
            " ".join(words[(7 * row + 5 * place) % len(words)] for place in range(length))
            for row, length in enumerate(self.lengths)
        ]


WORK = {
    "one text": Work((16,)),
    "one batch": Work(LENGTHS),
    "batches": Work(LENGTHS, batch_tokens=BATCH_ROWS),
    "queries": Work(QUERY_WORDS, INSTRUCTION),
}
"""By name: what a request is, a full batch, a corpus' many, queries with an instruction."""


def describe_counting() -> dict[str, Any]:
    """What counts depend on beside the sources: releases, and what kernels the machine has."""
    return {
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "extension": load_extension().available,
        **{name: version(name) for name in ("transformers", "tokenizers", "numpy")},
    }


@contextmanager
def open_subjects() -> Iterator[dict[str, Session]]:
    """The models that are counted, by name; those that are made lie in a folder until the end."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, made in SUBJECTS.items():
            directory = default_model_path()
            if made is not None:
                directory = write_checkpoint(Path(folder, name), MODELS[made[0]], made[1])
            sessions[name] = Session(StoredCheckpoint(directory, CPU, name))
        yield sessions


def count_work() -> dict[str, dict[str, Any]]:
    """The counts of every model and call, by ``MODEL/CALL``; see ``count_workload``."""
    with open_subjects() as sessions:
        return {
            f"{model}/{name}": count_workload(session, work)
            for model, session in sessions.items()
            for name, work in WORK.items()
        }


def count_workload(session: Session, work: Work) -> dict[str, Any]:
    """Counts one call of ``encode`` in float32, after two that let everything settle.

    Args:
        session: of the model.
        work: what is embedded.

    Returns:
        Of what was asked: ``texts``, ``decoder_rows``, ``encoder_tokens``, ``useful_flop``. Of
        what was done: ``batches``; ``operators`` that torch dispatched, and by name; ``copies``
        between devices; ``gemm_flop`` of matrix products, attention's aside as in
        ``useful_flop``; ``allocated_bytes`` of all tensors and ``peak_bytes`` of those alive
        together; ``python_calls`` of this package's functions, by module, and ``library_calls``
        of Python's and other packages'; ``instructions`` of the thread, or None and
        ``instructions_note``, why.
    """
    provider = session.provider(Spec("engine", "float32"))
    assert isinstance(provider, Engine), provider
    engine, texts = provider.engine, work.texts
    tokenized = session.tokenizer(texts, work.prompt)
    workload = Workload(texts, work.prompt, None, tokenized)
    call = partial(
        engine.encode,
        texts,
        prompt=work.prompt or None,
        batch_tokens=work.batch_tokens,
        show_progress_bar=False,
    )
    with in_one_thread():
        call()
        before = engine.stats.batches
        call()
        batches = engine.stats.batches - before
        operators = OperatorCounter()
        with operators:
            call()
        gemm_flop = count_gemm_flop(call)
        allocated, peak = count_bytes(call)
        calls = count_calls(call)
        instructions, note = count_instructions(call)
    own = {name: count for name, count in calls.items() if name != LIBRARIES}
    return {
        "texts": len(texts),
        "decoder_rows": workload.decoder_tokens,
        "encoder_tokens": workload.encoder_tokens,
        "useful_flop": int(useful_operations(session, workload)),
        "batches": batches,
        "operators": operators.counts.total(),
        "operators_by_name": in_order(operators.counts),
        "copies": operators.copies,
        "gemm_flop": gemm_flop,
        "allocated_bytes": allocated,
        "peak_bytes": peak,
        "python_calls": sum(own.values()),
        "python_calls_by_module": in_order(own),
        "library_calls": calls[LIBRARIES],
        "instructions": instructions,
        "instructions_note": note,
    }


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, in the order of the names."""
    return {name: counts[name] for name in sorted(counts)}


class InTurn(Executor):
    """In place of the threads that tokenise: does what is submitted at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it; the future has what came of it."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Has a call do the same every time: all of it in one thread, and no garbage collected."""
    threads, collected = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        with patch.object(pipeline, "ThreadPoolExecutor", InTurn):
            yield
    finally:
        torch.set_num_threads(threads)
        if collected:
            gc.enable()


class OperatorCounter(TorchDispatchMode):
    """Counts what torch dispatches in this thread.

    Attributes:
        counts: by the operator's name, with its overload's.
        copies: operators that take tensors of one device and give another's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count one."""
        result = func(*args, **(kwargs or {}))
        self.counts[func.name()] += 1
        given = {each.device.type for each in args if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor):
            self.copies += len(given | {result.device.type}) > 1
        return result


def linear_flop(x: tuple[int, ...], *others: Any, out_shape: tuple[int, ...], **more: Any) -> int:
    """Of a linear layer, by the shapes of its rows and of its result."""
    return 2 * prod(x) * out_shape[-1]


def count_gemm_flop(call: Callable[[], Any]) -> int:
    """Multiplications and additions of the matrix products of a call, attention's aside."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    own = {} if onednn is None else {onednn: linear_flop}
    products = {onednn, torch.ops.aten.mm, torch.ops.aten.addmm}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        call()
    found = counter.get_flop_counts().get("Global", {})
    return int(sum(flop for operator, flop in found.items() if operator in products))


def count_bytes(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that torch allocates in a call, all together and at most at one time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda change: change["Ev Idx"])
    alive = most = total = 0
    for change in changes:
        alive += change["Bytes"]
        most = max(most, alive)
        total += max(0, change["Bytes"])
    return total, most


LIBRARIES = ""
PACKAGE = Path(pipeline.__file__).resolve().parents[1]
# A checkout has the kernels beside the package.
OWN_FOLDERS = {"": PACKAGE, "kernels.": PACKAGE.parent / "kernels"}
# Which are functions up to Python 3.11 only.
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}


def module_of(code: CodeType) -> str | None:
    """The module of this package that a function is of, or ``LIBRARIES``; None: not counted."""
    path = Path(code.co_filename)
    if code.co_name in COMPREHENSIONS or path == Path(__file__):
        return None
    for prefix, folder in OWN_FOLDERS.items():
        if path.is_relative_to(folder):
            return prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
    return LIBRARIES


def count_calls(call: Callable[[], Any]) -> Counter[str]:
    """Python functions that a call enters, generators again each time, by their modules."""
    codes: Counter[CodeType] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            codes[frame.f_code] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    found: Counter[str] = Counter()
    for code, count in codes.items():
        module = module_of(code)
        if module is not None:
            found[module] += count
    return found


def count_instructions(call: Callable[[], Any]) -> tuple[int | None, str]:
    """Instructions that this thread retires in a call; or None, and why they are not counted."""
    try:
        counter = EventCounter()
    except UncountedError as error:
        return None, str(error)
    try:
        with counter:
            call()
        return counter.count, ""
    finally:
        counter.close()
