"""What embedding methods cost on one decoder: its rows and the time for a text, over lengths.

Every method is a checkpoint of the same decoder weights, computed by the same engine. What the
published comparison claims (arXiv 2507.23386: sequences shorter by up to 85%, inference faster by
up to 82% than the best methods) is measured here, with the encoder's time in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from c2v_engine.bench.case import Case
from c2v_engine.bench.command import open_record
from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.machine.ceilings import measure_ceilings_by_dtype
from c2v_engine.bench.measure import (
    BOUNDS,
    TOO_ALIKE,
    can_tell,
    describe,
    figures,
    judge,
    noted,
    time_call,
)
from c2v_engine.bench.models.shapes import ModelShape, shape_named
from c2v_engine.bench.models.source import StoredCheckpoint
from c2v_engine.bench.models.written import write_checkpoint
from c2v_engine.bench.plan import check_dtypes
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.record import Record
from c2v_engine.bench.run import note_model
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import INSTRUCTION, SINGLE_ROWS, Lengths, Workload, make_workload
from c2v_engine.errors import ConfigError
from c2v_engine.model.methods import EXAMPLES_PROMPT, IN_CONTEXT, METHODS, method_named

__all__ = ["LENGTHS", "MethodsPlan", "run_methods"]

KIND = "methods"
LENGTHS = (16, 32, 64, 128, 256, 512)
LEAST_TEXTS = 2
CHECKED_TEXTS = 2
MAX_LENGTH = 2048
EXACT = "float32"
# Of each in-context example: about what a question and the passage that answers it have.
EXAMPLES, QUERY_TOKENS, RESPONSE_TOKENS = 3, 12, 64


@dataclass(frozen=True)
class MethodsPlan:
    """What is asked for.

    Attributes:
        shapes: of the models, by name.
        lengths: tokens of the texts.
        methods: names in ``METHODS``; all where there are none.
        dtype: of the computation.
        repetitions: of every method, after one that is not timed.
        tokens: of the texts of a call; at least ``LEAST_TEXTS`` texts.
    """

    shapes: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    methods: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    repetitions: int = 3
    tokens: int = 1024


@dataclass(frozen=True)
class Entrant:
    """A method that is measured.

    Attributes:
        label: in results.
        method: its name.
        share_prompts: whether the engine computes a leading prompt once for all texts.
    """

    label: str
    method: str
    share_prompts: bool = False


@dataclass(frozen=True)
class Opened:
    """A method's model, and its engine.

    Attributes:
        entrant: the method.
        session: of its model.
        spec: of the engine.
        prompt: of all texts.
        agreement: of the engine's vectors with the plain reference's, as entries have it.
    """

    entrant: Entrant
    session: Session
    spec: Spec
    prompt: str
    agreement: dict[str, Any]


def entrants(methods: Sequence[str]) -> list[Entrant]:
    """Those of some methods; one with examples comes twice, with and without sharing them."""
    found = []
    for method in methods or METHODS:
        method_named(method)
        found.append(Entrant(method, method))
        if method == IN_CONTEXT:
            found.append(Entrant(f"{method} shared", method, share_prompts=True))
    return found


def run_methods(
    plan: MethodsPlan,
    device: torch.device,
    folder: Path,
    models: Path,
    *,
    tiny: bool = False,
    say: Callable[[str], None] = lambda line: None,
    arguments: Sequence[str] = (),
) -> Record:
    """Measure every method at every length, methods in turns.

    Args:
        plan: what is asked for.
        device: where.
        folder: gets the result file.
        models: gets the checkpoints, which are of real size.
        tiny: measure no real ceilings, to try the harness.
        say: called with a line that tells what was found.
        arguments: of the command that asked for it, for who wants to repeat it.

    Raises:
        ConfigError: a method, shape, dtype or length that can not be.
        InputError: the result file can not be written.
    """
    check_dtypes([plan.dtype])
    found = entrants(plan.methods)
    shapes = [shape_named(name) for name in plan.shapes]
    for length in plan.lengths:
        if length > MAX_LENGTH // 4:
            raise ConfigError(f"length is {length}, expected at most {MAX_LENGTH // 4} tokens")
    settings = {
        "device": device.type,
        "dtypes": [plan.dtype],
        "lengths": list(plan.lengths),
        "repetitions_asked": plan.repetitions,
        "examples": {"count": EXAMPLES, "query": QUERY_TOKENS, "response": RESPONSE_TOKENS},
        "arguments": list(arguments),
    }
    record = open_record(folder, KIND, settings)
    dtypes = [getattr(torch, plan.dtype)]
    record.put("ceilings", measure_ceilings_by_dtype(device, dtypes, tiny=tiny))
    corpus = Corpus()
    for shape in shapes:
        opened = [open_method(each, shape, models, plan, device, corpus) for each in found]
        for each in opened:
            note_model(record, f"{shape.name} {each.entrant.label}", each.session.source)
        for length in plan.lengths:
            entries = measure_length(opened, shape.name, length, plan, corpus)
            record.extend("results", entries)
            for entry in entries:
                say(line(entry))
        del opened
    record.put("ceilings_at_end", measure_ceilings_by_dtype(device, dtypes, tiny=tiny))
    return record


def open_method(
    entrant: Entrant,
    shape: ModelShape,
    models: Path,
    plan: MethodsPlan,
    device: torch.device,
    corpus: Corpus,
) -> Opened:
    """Write a method's checkpoint, once, open it, and hold it against the plain reference."""
    directory = models / f"{shape.name} {entrant.method}"
    options: dict[str, Any] = {}
    if entrant.method == IN_CONTEXT:
        options["examples"] = draw_examples(corpus)
    if not directory.exists():
        write_checkpoint(directory, shape, entrant.method, max_length=MAX_LENGTH, **options)
    session = Session(StoredCheckpoint(directory, device, shape.name))
    prompts = session.description.config.prompts
    prompt = prompts.get(EXAMPLES_PROMPT, "") if entrant.method == IN_CONTEXT else ""
    spec = Spec("engine", plan.dtype, share_prompts=entrant.share_prompts)
    agreement: dict[str, Any] = {}
    noted(agreement, partial(check, agreement, session, spec, prompt, plan.lengths, corpus))
    session.keep([spec])
    return Opened(entrant, session, spec, prompt, agreement)


def check(
    entry: dict[str, Any],
    session: Session,
    spec: Spec,
    prompt: str,
    lengths: Sequence[int],
    corpus: Corpus,
) -> None:
    """Holds the engine's vectors of texts of all lengths against the plain reference's.

    A few words behind the same examples have vectors so alike that the bound of 16 bits would hold
    for another text's: then those in float32 are compared too, in which it does not.
    """
    generator = np.random.default_rng(1)
    texts = [corpus.draw(length, generator) for length in lengths for _ in range(CHECKED_TEXTS)]
    workload = Workload(texts, prompt, None, session.tokenizer(texts, prompt))
    expected = session.provider(Spec("padded", spec.dtype)).embed(workload)
    judge(entry, session.provider(spec).embed(workload), expected, BOUNDS[spec.dtype])
    if "status" in entry or can_tell(expected, BOUNDS[spec.dtype]):
        return
    if spec.dtype == EXACT:
        entry.update(status="failed", reason=TOO_ALIKE)
        return
    session.keep([spec])
    exact: dict[str, Any] = {}
    check(exact, session, replace(spec, dtype=EXACT), prompt, lengths, corpus)
    if "status" in exact:
        entry.update(status=exact["status"], reason=f"in {EXACT}: {exact['reason']}")
    else:
        entry["cosine_mean_float32"] = exact["cosine_mean"]


def draw_examples(corpus: Corpus) -> list[tuple[str, str, str]]:
    """Instruction, query and response of the examples, always the same ones."""
    generator = np.random.default_rng(0)
    instruction = INSTRUCTION.partition(": ")[2].partition("\n")[0]
    return [
        (instruction, corpus.draw(QUERY_TOKENS, generator), corpus.draw(RESPONSE_TOKENS, generator))
        for _ in range(EXAMPLES)
    ]


def measure_length(
    opened: Sequence[Opened], model: str, length: int, plan: MethodsPlan, corpus: Corpus
) -> list[dict[str, Any]]:
    """An entry for every method, over the same texts."""
    tokens = max(plan.tokens, LEAST_TEXTS * length)
    rows = Lengths(length + SINGLE_ROWS)
    entries, calls = [], []
    for each in opened:
        case = Case(model, rows, tokens, (each.spec,), "methods")
        workload = make_workload(corpus, each.session.tokenizer, rows, tokens, prompt=each.prompt)
        entry = describe(case, each.spec, each.session, workload)
        shared = shared_rows(each, workload)
        # An entry's own useful operations: a prompt that is computed once is not every text's here.
        parameters = each.session.source.multiplied_parameters("decoder")
        entry.update(
            operations=entry["operations"] - 2.0 * parameters * shared,
            case=f"{model}/{length} tokens/methods",
            method=each.entrant.label,
            text_tokens=length,
            computed_tokens=workload.decoder_tokens - shared,
            **each.agreement,
        )
        entries.append(entry)
        if "status" not in entry:
            calls.append((entry, each.session.provider(each.spec).prepare(workload)))
    for entry, call in calls:
        noted(entry, call)  # once that is not timed
    for _ in range(plan.repetitions):
        for entry, call in calls:
            if "status" not in entry:
                noted(entry, partial(time_call, entry, call, opened[0].session.device))
    for entry, _ in calls:
        if "status" not in entry:
            entry.update(status="ok", **figures(entry))
    return entries


def shared_rows(each: Opened, workload: Workload) -> int:
    """Rows of a leading prompt that is not computed with every text."""
    if not each.entrant.share_prompts:
        return 0
    return sum(int(text.bounds[1]) for text in workload.tokenized)


def line(entry: dict[str, Any]) -> str:
    """One entry in one line."""
    head = f"{entry['case']:<34}{entry['method']:<20}"
    if entry["status"] != "ok":
        return f"{head} {entry['status']}: {entry['reason']}"
    rows = entry["computed_tokens"] / entry["texts"]
    return f"{head}{rows:>8.1f} rows{1e3 * entry['median_s'] / entry['texts']:>10.2f} ms a text"
