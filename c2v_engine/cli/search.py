"""``c2v search`` and ``c2v index``: questions to what ``c2v encode`` wrote."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from c2v_engine.jobs.search import EmbeddingIndex

# Questions that are embedded, searched with and answered together.
BLOCK_QUESTIONS = 8192
# What moves a terminal's cursor or colours it: the control characters of ASCII and of Latin-1.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")

StoredPrecision = Annotated[
    Precision | None, typer.Option(help="Of int8 or uint8 rows in .npy: levels or packed bits.")
]


@app.command()
def search(
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="What c2v encode, merge or index wrote.")
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

    if prompt is not None and prompt_name is not None:
        fail("--prompt and --prompt-name are given, expected one of them")
    for option, value in {"--column": column, "--id-column": id_column}.items():
        if texts is None and value is not None:
            fail(f"{option} is of the file that --texts names: give that too")
    with stop_signals(lambda: "interrupted"):
        from c2v_engine.jobs.questions import ask, check_model, check_texts
        from c2v_engine.jobs.search import EmbeddingIndex

        chosen = precision.value if precision else None
        opened = EmbeddingIndex.open(index, chosen, truncate_dim)
        id_column = id_column or opened.about.get("id_column")
        if texts is not None:
            check_texts(texts, column=column, id_column=id_column)
        blocks = _question_blocks(questions)
        block = next(blocks, None)
        if block is None:
            fail("no questions: standard input is empty")
        name = model or opened.about.get("model")
        try:
            if not force:
                _check_folder(opened, name)
            engine = load_model(name, device, dtype, attention)
        except CheckpointError as error:
            if model is not None:
                raise
            fail(f"{index}: the model that made it can not be opened: {error}: give --model")
        if not force:
            check_model(opened, engine)
        done = 0
        while block is not None:
            hits = ask(
                opened, engine, block, top_k, prompt_name=prompt_name, prompt=prompt, first=done
            )
            if texts is not None:
                hits = _with_texts(hits, texts, column, id_column)
            for number, (question, found) in enumerate(zip(block, hits, strict=True), done):
                _print_answer(number, question, found, as_json=as_json)
            sys.stdout.flush()
            done += len(block)
            block = next(blocks, None)


@app.command(name="index")
def build_index(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="What c2v encode or merge wrote.")
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


def _check_folder(index: EmbeddingIndex, name: str | None) -> None:
    """Check a model that lies here by its files, before seconds go into loading it."""
    from c2v_engine.engine import default_model_path
    from c2v_engine.jobs.maker import PACKAGED, check_maker
    from c2v_engine.model.config import Causal2VecConfig
    from c2v_engine.model.fingerprint import checkpoint_fingerprint

    folder = default_model_path() if name is None else Path(name)
    if index.about.get("fingerprint") is None or not folder.is_dir():
        return
    about: dict[str, Any] = {
        "model": PACKAGED if name is None else name,
        "directory": str(folder),
        "fingerprint": checkpoint_fingerprint(folder, Causal2VecConfig.load(folder)),
    }
    check_maker(index.path, index.about, about)


def _question_blocks(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The questions, read as they are needed."""

    def questions() -> Iterator[str]:
        for argument in arguments:
            if argument == "-":
                yield from (line.rstrip("\r\n") for line in sys.stdin)
            else:
                yield argument

    numbered = enumerate(questions(), 1)
    while part := list(islice(numbered, BLOCK_QUESTIONS)):
        for number, question in part:
            if not question.strip():
                fail(f"question {number} is empty, expected a text")
        yield [question for _, question in part]


def _with_texts(
    hits: list[list[Hit]], source: Path, column: str | None, id_column: str | None
) -> list[list[Hit]]:
    from c2v_engine.jobs.questions import find_texts

    wanted = {hit.row: hit.id for found in hits for hit in found}
    texts = find_texts(source, wanted, column=column, id_column=id_column)
    return [[replace(hit, text=texts[hit.row]) for hit in found] for found in hits]


def _print_answer(number: int, question: str, hits: Sequence[Hit], *, as_json: bool) -> None:
    if as_json:
        rows = [asdict(hit) for hit in hits]
        print(json.dumps({"question": question, "hits": rows}, ensure_ascii=False))
    else:
        lines = "\n".join(map(_plain, question.split("\n")))
        print(("\n" if number else "") + lines)
        _print_hits(hits)


def _plain(text: str) -> str:
    return text.translate(_CONTROLS)


def _print_hits(hits: Sequence[Hit]) -> None:
    """Print a line a row: rank, score, id, and the beginning of the text, cut to the terminal."""
    columns = shutil.get_terminal_size((100, 24)).columns
    keys = [_plain(str(hit.id)) for hit in hits]
    longest = max(map(len, keys), default=0)
    shown = any(hit.text is not None for hit in hits)
    width = min(longest, max(12, columns * 2 // 5)) if shown else longest
    for hit, whole in zip(hits, keys, strict=True):
        # The end of an id tells more than its beginning: of a path, a URL, a qualified name.
        key = _cut(whole[::-1], width)[::-1]
        line = f"{hit.rank:>3}  {hit.score:6.3f}  {key:<{width}}"
        if hit.text is not None:
            first = next(filter(str.strip, hit.text.splitlines()), "")
            line += "  " + _cut(_plain(" ".join(first.split())), max(10, columns - len(line) - 2))
        print(line.rstrip())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _show_progress(done: int, rows: int) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < rows else "\r\x1b[K"
        print(f"{done:,} of {rows:,} rows", end=end, file=sys.stderr, flush=True)
