"""``c2v eval``: how well a model retrieves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import (
    BackendOption,
    DeviceOption,
    DevicesOption,
    DtypeOption,
    ModelOption,
    QuietOption,
    TruncateOption,
    load_model,
)
from c2v_engine.cli.output import print_facts, print_table

if TYPE_CHECKING:
    from c2v_engine import Causal2Vec
    from c2v_engine.evaluation.beir import RetrievalData
    from c2v_engine.evaluation.retrieval import RetrievalReport, SystemResult
    from c2v_engine.jobs.output import AtomicFile


@app.command("eval")
def evaluate(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="BEIR layout: corpus.jsonl, queries.jsonl, qrels/."),
    ],
    model: ModelOption = None,
    split: Annotated[str, typer.Option(help="Of the qrels.")] = "test",
    query_prompt_name: Annotated[
        str | None, typer.Option(help="Of the queries; else 'query' where the model has it.")
    ] = None,
    document_prompt_name: Annotated[
        str | None, typer.Option(help="Of the passages; else 'document', 'passage' or 'corpus'.")
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="BM25 beside the model.")] = True,
    top_k: Annotated[int, typer.Option(min=100, help="Passages kept for a query.")] = 100,
    ignore_identical_ids: Annotated[
        bool, typer.Option(help="Take a passage with the query's own id out, as BEIR does.")
    ] = False,
    truncate_dim: TruncateOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    devices: DevicesOption = None,
    attention: BackendOption = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="FILE", help="Write the model's TREC run.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Measure retrieval: nDCG@10, Recall@10 and @100, MRR@10."""
    from c2v_engine.jobs.interrupts import stop_signals

    outputs = _Outputs()
    with stop_signals(outputs.interrupt), outputs:
        from c2v_engine.evaluation.beir import read_beir
        from c2v_engine.evaluation.rankings import check_run_ids, write_run
        from c2v_engine.evaluation.retrieval import EvaluationOptions, evaluate_retrieval

        outputs.open((json_file, run_file), overwrite=overwrite)
        options = EvaluationOptions(
            query_prompt_name=query_prompt_name,
            document_prompt_name=document_prompt_name,
            truncate_dim=truncate_dim,
            top_k=top_k,
            bm25=bm25,
            ignore_identical_ids=ignore_identical_ids,
            show_progress=not quiet and sys.stderr.isatty(),
        )
        data = read_beir(directory, split)
        if run_file is not None:
            check_run_ids(run_file, (*data.queries, *data.corpus))
        if not ignore_identical_ids:
            _note_identical_ids(directory, data)
        with load_model(model, device, dtype, attention, devices) as engine:
            watch = _progress(engine, len(data.queries) + len(data.corpus), quiet)
            report = evaluate_retrieval(engine, data, options, watch=watch)
        if not quiet:
            _print_report(report)

        def write_figures(file: IO[bytes]) -> None:
            text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, default=str)
            file.write(f"{text}\n".encode())

        if json_file is not None:
            outputs.write(json_file, write_figures)
        if run_file is not None:
            outputs.write(
                run_file,
                lambda file: write_run(report.model.ranking, file, tag=report.model.name),
            )


class _Outputs:
    """Files that are opened before anything is computed, and appear whole or not at all."""

    def __init__(self) -> None:
        self._files: dict[Path, AtomicFile] = {}

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.abandon()

    def open(self, paths: tuple[Path | None, ...], *, overwrite: bool) -> None:
        """Open those that are asked for.

        Raises:
            OutputError: one can not be written, or is named twice.
        """
        from c2v_engine.errors import OutputError
        from c2v_engine.jobs.output import AtomicFile

        for path in paths:
            if path is None:
                continue
            file = AtomicFile(path, overwrite=overwrite)
            if any(file.path == other.path for other in self._files.values()):
                file.abandon()
                raise OutputError(f"{path}: is named for two outputs")
            self._files[path] = file

    def write(self, path: Path, write: Callable[[IO[bytes]], None]) -> None:
        """Write one and put it in its place.

        Raises:
            OutputError: it can not be written.
        """
        target = self._files[path]
        try:
            write(target.file)
        except OSError as error:
            raise target.failure(error) from error
        target.commit()

    def interrupt(self) -> str:
        """Drop what is unfinished, just before the process ends; say what there is."""
        written = [str(path) for path, file in list(self._files.items()) if not file.give_up()]
        return f"interrupted: {', '.join(written) or 'nothing'} was written"


def _note_identical_ids(directory: Path, data: RetrievalData) -> None:
    # A title may stand before the passage's text.
    shared = sum(
        query in data.corpus and data.corpus[query].endswith(text.strip())
        for query, text in data.queries.items()
    )
    if shared:
        many = f"{shared:,} queries have ids and texts of passages"
        ids = "1 query has the id and the text of a passage" if shared == 1 else many
        note = f"{ids}; --ignore-identical-ids keeps a query from finding itself"
        print(f"note: {directory}: {note}", file=sys.stderr)


def _progress(engine: Causal2Vec, total: int, quiet: bool) -> AbstractContextManager[None]:
    """Show the texts that are done while the engine embeds."""
    from c2v_engine.jobs.progress import Snapshot, choose_progress, ticking

    start = time.monotonic()

    def now() -> Snapshot:
        stats, seconds = engine.stats, time.monotonic() - start
        return Snapshot(stats.texts, stats.tokens, seconds, min(1.0, stats.texts / total))

    return ticking(choose_progress(quiet=quiet), now)


def _print_report(report: RetrievalReport) -> None:
    model = report.model.setting["model"]
    left_out = f" ({report.left_out:,} more have no relevant passage)" if report.left_out else ""
    facts = {
        "data": f"{report.data}, split {report.split}",
        "passages": f"{report.passages:,}",
        "queries": f"{report.queries:,}{left_out}",
        "model": f"{model['model']}, {model['dtype']} on {model['device']}",
    }
    if report.options.truncate_dim is not None:
        facts["truncated"] = f"to {report.options.truncate_dim:,} dimensions"
    print_facts(facts)
    print()
    rows = [["", "nDCG@10", "Recall@10", "Recall@100", "MRR@10"]]
    for system in report.systems:
        scores = system.scores
        figures = (
            scores.ndcg_at_10,
            scores.recall_at_10,
            scores.recall_at_100,
            scores.mrr_at_10,
        )
        rows.append([_label(system), *map(_figure, figures)])
    print_table(rows, text_columns=1)
    if report.model.kinds:
        print()
        print_table(_kind_rows(report), text_columns=2)


def _kind_rows(report: RetrievalReport) -> list[list[str]]:
    rows = [["kind", "", "queries", "nDCG@10", "Recall@10"]]
    for kind in report.model.kinds:
        for system in report.systems:
            scores = system.kinds[kind]
            first = system is report.model
            rows.append(
                [
                    kind if first else "",
                    _label(system),
                    f"{scores.queries:,}" if first else "",
                    _figure(scores.ndcg_at_10),
                    _figure(scores.recall_at_10),
                ]
            )
    return rows


def _label(system: SystemResult) -> str:
    """A model's folder may be named by a long path."""
    return Path(system.name).name or system.name


def _figure(value: float) -> str:
    return f"{value:.4f}"
