"""``c2v search`` and ``c2v index``: questions to what ``c2v encode`` wrote."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2v_engine.cli.app import app, fail
from c2v_engine.cli.options import (
    BackendOption,
    ColumnOption,
    DeviceOption,
    DtypeOption,
    Precision,
    PromptNameOption,
    QuietOption,
    load_model,
)
from c2v_engine.cli.output import print_facts, size_text
from c2v_engine.errors import CheckpointError

if TYPE_CHECKING:
    from c2v_engine.jobs.questions import Hit

StoredPrecision = Annotated[
    Precision | None, typer.Option(help="Of int8 or uint8 rows in .npy: levels or packed bits.")
]


@app.command()
def search(
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help=".parquet, .npy or .usearch, as encoded.")
    ],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="Texts; - reads lines of stdin.")
    ],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Rows a question.")] = 10,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Else the one that made the index.")
    ] = None,
    prompt_name: PromptNameOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt, instead of a named one.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="The file that was embedded, to show its texts.")
    ] = None,
    column: ColumnOption = None,
    id_column: Annotated[
        str | None, typer.Option(help="Ids in --texts; else as it was embedded.")
    ] = None,
    precision: StoredPrecision = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Of packed bits in .npy: as they were embedded.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Though another model made the index.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a question.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    attention: BackendOption = "auto",
) -> None:
    """Find the rows nearest to questions, by cosine."""
    from c2v_engine.jobs.interrupts import stop_signals

    with stop_signals(lambda: "interrupted"):
        from c2v_engine.jobs.questions import ask, check_model
        from c2v_engine.jobs.search import EmbeddingIndex

        chosen = precision.value if precision else None
        opened = EmbeddingIndex.open(index, chosen, truncate_dim)
        asked = _read_questions(questions)
        try:
            engine = load_model(model or _maker(opened.about), device, dtype, attention)
        except CheckpointError as error:
            if model is not None:
                raise
            fail(f"{index}: the model that made it can not be opened: {error}: give --model")
        if not force:
            check_model(opened, engine)
        hits = ask(opened, engine, asked, top_k, prompt_name=prompt_name, prompt=prompt)
        if texts is not None:
            hits = _with_texts(hits, texts, column, id_column or opened.about.get("id_column"))
    for number, (question, found) in enumerate(zip(asked, hits, strict=True)):
        if as_json:
            rows = [asdict(hit) for hit in found]
            print(json.dumps({"question": question, "hits": rows}, ensure_ascii=False))
        else:
            print(("\n" if number else "") + question)
            _print_hits(found)


@app.command(name="index")
def build_index(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help=".parquet or .npy from c2v encode.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".usearch.")],
    connectivity: Annotated[int, typer.Option(min=2, help="Neighbours of a node.")] = 16,
    precision: StoredPrecision = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an output that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Build an approximate index over millions of embeddings (needs usearch)."""
    from c2v_engine.jobs.interrupts import stop_signals

    job: IndexJob | None = None

    def on_stop() -> str:
        return f"interrupted: {output} was not written" if job is None else job.interrupt()

    with stop_signals(on_stop):
        from c2v_engine.jobs.approximate import IndexJob

        chosen = precision.value if precision else None
        job = IndexJob(source, output, precision=chosen, overwrite=overwrite)
        with job:
            rows, size = job.run(connectivity, None if quiet else _show_progress)
    if not quiet:
        print_facts({"rows": f"{rows:,}", "output": f"{output} ({size_text(size)})"})


def _maker(about: dict[str, object]) -> str | None:
    """The model that made an index, as it was named then; None for the one in the package."""
    name = about.get("model")
    return None if name in (None, "default") else str(name)


def _read_questions(arguments: Sequence[str]) -> list[str]:
    questions: list[str] = []
    for argument in arguments:
        if argument == "-":
            questions += [line.rstrip("\r\n") for line in sys.stdin]
        else:
            questions.append(argument)
    for number, question in enumerate(questions, 1):
        if not question.strip():
            fail(f"question {number} is empty, expected a text")
    if not questions:
        fail("no questions: standard input is empty")
    return questions


def _with_texts(
    hits: list[list[Hit]], source: Path, column: str | None, id_column: str | None
) -> list[list[Hit]]:
    from c2v_engine.jobs.questions import find_texts

    wanted = {hit.row: hit.id for found in hits for hit in found}
    texts = find_texts(source, wanted, column=column, id_column=id_column)
    return [[replace(hit, text=texts[hit.row]) for hit in found] for found in hits]


def _print_hits(hits: Sequence[Hit]) -> None:
    """Print a line a row: rank, score, id, and the beginning of the text, cut to the terminal."""
    columns = shutil.get_terminal_size((100, 24)).columns
    longest = max((len(str(hit.id)) for hit in hits), default=0)
    shown = any(hit.text is not None for hit in hits)
    width = min(longest, max(12, columns * 2 // 5)) if shown else longest
    for hit in hits:
        # The end of an id tells more than its beginning: of a path, a URL, a qualified name.
        key = _cut(str(hit.id)[::-1], width)[::-1]
        line = f"{hit.rank:>3}  {hit.score:6.3f}  {key:<{width}}"
        if hit.text is not None:
            first = next(filter(str.strip, hit.text.splitlines()), "")
            line += "  " + _cut(" ".join(first.split()), max(10, columns - len(line) - 2))
        print(line.rstrip())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _show_progress(done: int, rows: int) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < rows else "\r\x1b[K"
        print(f"{done:,} of {rows:,} rows", end=end, file=sys.stderr, flush=True)
