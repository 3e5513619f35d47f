"""``c2v bench``: how fast a model runs here, against the machine and against other libraries."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import ColumnOption, DeviceOption
from c2v_engine.jobs.interrupts import unwind_when_terminated

if TYPE_CHECKING:
    import torch

    from c2v_engine.bench.models.source import ModelSource
    from c2v_engine.bench.record import Record

FOLDER = Path("c2v-bench")
T = TypeVar("T")
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder of results and pictures; else c2v-bench/TIME."),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(help="A model of random weights, such as llama-130m or qwen2.5-0.5b; repeat it."),
]

bench_app = typer.Typer(
    name="bench",
    help="Measure how fast a model runs here, against other libraries and other methods.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(bench_app)


@bench_app.callback()
def bench(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Folder or Hub name; repeat it. Else the default."),
    ] = None,
    shape: ShapeOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of models of random weights: causal2vec, last-token, ...; repeat it."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="32, 128, 512 (rows), passages, queries; repeat it. Else all."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Embed the texts of this file too: .txt, .jsonl, ...")
    ] = None,
    column: ColumnOption = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="bfloat16, float16, float32; repeat it.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Who runs beside the engine, as KIND or KIND:DTYPE; repeat it."),
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(metavar="KIND=URL", help="Of tei or infinity.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Of everybody, in turns.")] = 3,
    seconds: Annotated[
        float,
        typer.Option(min=1.0, max=1e6, help="For all of it, about; what does not fit is named."),
    ] = 70.0,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Rows in a call; else what the time allows.")
    ] = None,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure; without options the default model against what is installed, in two minutes."""
    if context.invoked_subcommand is not None:
        refuse_options_before(context)
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells that it starts
    from c2v_engine.bench.command import run_plan
    from c2v_engine.bench.plan import WORKLOADS, Plan
    from c2v_engine.bench.providers.registry import default_providers
    from c2v_engine.bench.report.tables import entry_line
    from c2v_engine.model.device import resolve_device

    where = resolve_device(device)
    if column is not None and texts is None:
        raise typer.BadParameter("--column is of the file of --texts, and none is given")
    read = () if texts is None else read_texts(texts, column)
    plan = Plan(
        workloads=once((*(workload or WORKLOADS), *(() if texts is None else ("file",)))),
        dtypes=once(dtype or default_dtypes(where)),
        providers=once(default_providers(where) if provider is None else provider),
        repetitions=repetitions,
        seconds=seconds,
        texts=read,
        source="file" if texts is None else texts.name,
        urls=tuple(map(named_url, url or [])),
        tokens=tokens,
    )
    plan.check()
    folder = output_folder(output)
    with unwind_when_terminated(), ExitStack() as stack:
        sources = open_sources(model or [], shape or [], method or [], where, stack)
        record = run_plan(
            plan,
            sources,
            where,
            folder,
            show=lambda entry: print(entry_line(entry), flush=True),
            say=lambda line: print(line, flush=True),
            arguments=given_arguments(context),
        )
    finish(record, folder)


@bench_app.command()
def methods(
    context: typer.Context,
    shape: ShapeOption = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of a text; repeat it. Else 16 to 512.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="causal2vec, last-token, echo, ...; else all.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Of every method, in turns.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the texts of a call.")] = 1024,
    output: OutputOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure what embedding methods cost on the same decoder: rows and time for a text."""
    from c2v_engine.bench.methods import LENGTHS, MethodsPlan, run_methods
    from c2v_engine.model.device import resolve_device

    where = resolve_device(device)
    plan = MethodsPlan(
        shapes=once(shape or ["llama-130m"]),
        lengths=once(length or LENGTHS),
        methods=once(method or ()),
        dtype=dtype or default_dtypes(where)[0],
        repetitions=repetitions,
        tokens=tokens,
    )
    folder = output_folder(output)
    with unwind_when_terminated(), tempfile.TemporaryDirectory() as temporary:
        record = run_methods(
            plan,
            where,
            folder,
            Path(temporary),
            say=lambda line: print(line, flush=True),
            arguments=given_arguments(context),
        )
    finish(record, folder)


@bench_app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A result file, or a folder that has one.")],
    output: OutputOption = None,
) -> None:
    """Make the page and the pictures of a result file."""
    from c2v_engine.bench.report import read_results, summary_lines, write_report

    file = result_file(results)
    found = read_results(file)
    print("\n".join(summary_lines(found)))
    print_paths(write_report(found, output or file.parent))


@bench_app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A result file, or a folder that has one.")],
    new: Annotated[Path, typer.Argument(help="Likewise.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what moved between two result files, each measured against its own machine's ceilings."""
    from c2v_engine.bench.report import compare as compare_results
    from c2v_engine.bench.report import read_results

    moved = compare_results(read_results(result_file(old)), read_results(result_file(new)))
    if as_json:
        print(json.dumps(moved.as_dict(), indent=2))
        return
    print("\n".join(moved.lines()))


def given_arguments(context: typer.Context) -> list[str]:
    """The options that were given, as words of a command that measures the same again."""
    words = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name == "output" or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name or ""]
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [parameter.opts[0], re.sub(r"//[^/@]*@", "//", str(each))]  # no passwords
    return words


def refuse_options_before(context: typer.Context) -> None:
    """Say that options before a subcommand, which has its own, would do nothing."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"{parameter.opts[0]} stands before {context.invoked_subcommand!r}, which has "
                f"options of its own: put it behind (see c2v bench {context.invoked_subcommand} "
                "--help)"
            )


def default_dtypes(device: torch.device) -> tuple[str, ...]:
    """What people compute in on a device."""
    if device.type == "cuda":
        return ("bfloat16",)
    from c2v_engine.model.device import cpu_has_bfloat16

    return ("bfloat16", "float32") if cpu_has_bfloat16() else ("float32",)


def open_sources(
    models: Sequence[str],
    shapes: Sequence[str],
    methods: Sequence[str],
    device: torch.device,
    stack: ExitStack,
) -> dict[str, ModelSource]:
    """The models that are measured, by name; those of random weights lie in temporary folders."""
    from c2v_engine.bench.models.shapes import shape_named
    from c2v_engine.bench.models.source import StoredCheckpoint
    from c2v_engine.bench.models.written import write_checkpoint
    from c2v_engine.engine import checkpoint_directory, default_model_path
    from c2v_engine.errors import ConfigError

    if methods and not shapes:
        raise ConfigError("--method is of models of random weights: name a --shape too")
    found: dict[str, ModelSource] = {}
    for name in models or ([] if shapes else ["default"]):
        directory = default_model_path() if name == "default" else checkpoint_directory(name)
        # Of the folder that "." or ".." is.
        short = "c2v-mini" if name == "default" else Path(os.path.abspath(name)).name
        found[unique(short, found)] = StoredCheckpoint(directory, device, short)
    for shape in once(shapes):
        for method in once(methods) or ("causal2vec",):
            name = unique(f"{shape} {method}" if len(once(methods)) > 1 else shape, found)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            directory = write_checkpoint(folder / "model", shape_named(shape), method)
            found[name] = StoredCheckpoint(directory, device, name)
    return found


def unique(name: str, taken: dict[str, Any]) -> str:
    """The name, or with a number behind it where that is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def read_texts(path: Path, column: str | None) -> tuple[str, ...]:
    """The texts of a file."""
    from c2v_engine.errors import InputError
    from c2v_engine.jobs.readers import open_reader

    with open_reader(path, column) as reader:
        texts = tuple(record.text for record in reader)
    if not texts:
        raise InputError(f"{path}: holds no text")
    return texts


def named_url(argument: str) -> tuple[str, str]:
    """KIND and URL of ``KIND=URL``."""
    kind, equals, url = argument.partition("=")
    if not equals or not kind or not url:
        raise typer.BadParameter(f"--url {argument!r} is not KIND=URL")
    return kind, url


def once(given: Iterable[T]) -> tuple[T, ...]:
    """Each of them once: what is asked for twice is measured once."""
    return tuple(dict.fromkeys(given))


def output_folder(output: Path | None) -> Path:
    """Where results go; a file in its place is found before anything is written or measured."""
    from c2v_engine.errors import InputError

    folder = output or new_folder()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder for the results")
    return folder


def new_folder() -> Path:
    """A folder named for the moment."""
    return FOLDER / time.strftime("%Y-%m-%dT%H-%M-%S")


def result_file(path: Path) -> Path:
    """The file, or that of a folder."""
    from c2v_engine.bench.command import RESULTS

    return path / RESULTS if path.is_dir() else path


def finish(record: Record, folder: Path) -> None:
    """Print what was found, and make the page and its pictures."""
    from c2v_engine.bench.measure import troubles
    from c2v_engine.bench.report import Results, summary_lines, write_report

    results = Results(record.content)
    print("\n".join(("", *summary_lines(results))), flush=True)
    print(f"results  {record.path}")
    print_paths(write_report(results, folder))
    wrong = troubles(record.content)
    for line in wrong:
        print(f"wrong  {line}")
    if wrong:
        raise typer.Exit(1)


def print_paths(paths: Sequence[Path]) -> None:
    """Where the page and the pictures are, the main picture last."""
    for path in paths:
        kind = "page" if path.suffix == ".html" else "picture"
        print(f"{kind:<8} {path}")
    if find_spec("matplotlib") is None:
        from c2v_engine.bench.report.page import NO_PICTURES

        print(NO_PICTURES)
