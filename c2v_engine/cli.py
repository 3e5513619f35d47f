"""The command line, ``c2v``: commands only, parse, call, print.

Everything heavy is imported inside the commands, so that ``c2v --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2v_engine._version import __version__
from c2v_engine.errors import C2VError

if TYPE_CHECKING:
    from c2v_engine import Causal2Vec
    from c2v_engine.jobs.encode import EncodeJob, EncodeReport

app = typer.Typer(
    name="c2v",
    help="Causal2Vec text embeddings.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help loads in half the time
)


class Precision(str, Enum):
    """What the embeddings are written in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder or Hub name; else the default.")
]
ColumnOption = Annotated[
    str | None, typer.Option(help="Column with the texts; else 'text' (a .txt file has none).")
]
PromptNameOption = Annotated[str | None, typer.Option(help="A prompt named in the model.")]
DtypeOption = Annotated[
    str,
    typer.Option(help="auto, float32, bfloat16, float16; float8 on a GPU, int8 on a CPU."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DevicesOption = Annotated[
    str | None, typer.Option(help="Several, a process each: GPU numbers or names, as in 0,1,2.")
]
BackendOption = Annotated[str, typer.Option(help="Attention backend; see c2v doctor.")]
BatchTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Most tokens computed together.")
]
TruncateOption = Annotated[
    int | None, typer.Option(min=1, help="Dimensions to keep, the leading ones of each half.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but problems.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``c2v`` and exit: 0 done, 2 a mistake of the user's (one line says which)."""
    try:
        code = app(
            args=None if argv is None else list(argv), prog_name="c2v", standalone_mode=False
        )
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except C2VError as error:
        _fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason)
    except Exception as error:
        # Wrong usage, as the parser that typer brings with it says it.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()} (see c2v --help)")


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"c2v {__version__}")
        raise typer.Exit


@app.callback()
def _c2v(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Causal2Vec text embeddings."""


@app.command()
def encode(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help=".txt, .jsonl, .csv, .parquet; also .gz, .zst.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npy or .parquet.")],
    model: ModelOption = None,
    column: ColumnOption = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column with the ids; else the row number, from 0.")
    ] = None,
    prompt_name: PromptNameOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt, instead of a named one.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the output.")] = Precision.FLOAT32,
    truncate_dim: TruncateOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    devices: DevicesOption = None,
    attention: BackendOption = "auto",
    batch_tokens: BatchTokensOption = None,
    deterministic: Annotated[
        bool, typer.Option(help="The same bits for a text, whatever is embedded beside it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an output that exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Embed a file of texts into a .npy or .parquet file."""
    from c2v_engine.jobs.interrupts import stop_signals

    job: EncodeJob | None = None

    def on_stop() -> str:
        if job is not None:
            return job.interrupt()
        return f"interrupted: nothing was written to {output} (0 texts done)"

    with stop_signals(on_stop):
        from c2v_engine.jobs.encode import EncodeJob, EncodeOptions
        from c2v_engine.jobs.progress import choose_progress

        options = EncodeOptions(prompt_name, prompt, precision.value, truncate_dim, batch_tokens)
        job = EncodeJob(
            source,
            output,
            column=column,
            id_column=id_column,
            overwrite=overwrite,
            options=options,
        )
        with job:
            engine = _load(model, device, dtype, attention, devices, deterministic)
            report = job.run(engine, choose_progress(quiet=quiet))
    if report.duplicates:
        rows = "1 row repeats" if report.duplicates == 1 else f"{report.duplicates:,} rows repeat"
        note = f"{rows} an id that an earlier row has"
        print(f"note: {source}: {note} (column {id_column!r})", file=sys.stderr)
    if not quiet:
        _print_report(report)


@app.command()
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Texts like those that will be embedded.")
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="The model's folder.")],
    column: ColumnOption = None,
    prompt_name: PromptNameOption = None,
    truncate_dim: TruncateOption = None,
    max_texts: Annotated[int, typer.Option(min=1, help="Read at most so many texts.")] = 100_000,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    attention: BackendOption = "auto",
) -> None:
    """Store the ranges that int8 and uint8 output needs."""
    from c2v_engine.jobs.calibrate import calibrate_file
    from c2v_engine.jobs.interrupts import stop_signals

    with stop_signals(lambda: f"interrupted: nothing was written to {model}"):
        if not (model / "config.json").is_file():
            _fail(f"{model}: not a model folder: ranges are stored in it")
        engine = _load(str(model), device, dtype, attention)
        texts, ranges = calibrate_file(
            engine,
            source,
            column=column,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_texts=max_texts,
        )
    engine.save_ranges(model)
    print(f"ranges of {len(ranges[0]):,} dimensions from {texts:,} texts stored in {model}")


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model is: sizes, template, pooling, prompts."""
    facts = _load(model, "cpu", "auto", "auto").info()
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
        return
    _print_facts(_flatten(facts))


@app.command()
def create(
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model's folder.")],
    decoder: Annotated[str, typer.Option(help="Folder of the decoder's transformers checkpoint.")],
    encoder: Annotated[str | None, typer.Option(help="Folder of the encoder's.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="An entry of the decoder's sequence; repeat it.")
    ] = None,
    pooling: Annotated[
        list[str] | None, typer.Option(help="A template entry, or its index; repeat it.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="causal or bidirectional.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Of the decoder.")] = None,
    encoder_text: Annotated[
        str | None, typer.Option(help="What the encoder reads, over {prompt} and {text}.")
    ] = None,
    encoder_pooling: Annotated[str | None, typer.Option(help="mean or cls.")] = None,
    overflow: Annotated[
        str | None, typer.Option(help="Texts longer than the encoder reads: truncate or windows.")
    ] = None,
    projector_hidden_size: Annotated[
        int | None, typer.Option(min=1, help="Else the decoder's width.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT LoRA adapter of the decoder.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="A named prompt; repeat it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the projector's first weights.")] = None,
) -> None:
    """Assemble an untrained model from checkpoints."""
    choices: dict[str, Any] = {
        "encoder": encoder,
        "template": template or None,
        "pooling": [int(p) if p.removeprefix("-").isdecimal() else p for p in pooling or []]
        or None,
        "attention": attention,
        "max_length": max_length,
        "encoder_options": {
            name: value
            for name, value in (
                ("text", encoder_text),
                ("pooling", encoder_pooling),
                ("overflow", overflow),
            )
            if value is not None
        }
        or None,
        "adapter": adapter,
        "projector_hidden_size": projector_hidden_size,
        "prompts": dict(map(_named_prompt, prompt or [])) or None,
        "seed": seed,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    from c2v_engine import Causal2Vec

    Causal2Vec.create(decoder=decoder, output=output, **given)
    print(f"created {output} (untrained: only its projector's weights are new)")


@app.command()
def doctor() -> None:
    """Say what this machine has and what will be used."""
    from c2v_engine.doctor import report

    rows = report()
    width = max((len(name) for _, name, _, _ in rows), default=0)
    last = None
    for section, name, value, note in rows:
        if section != last:
            print(section if last is None else f"\n{section}")
            last = section
        print(f"  {name:<{width}}  {value}" + (f"  ({note})" if note else ""))


def _load(
    model: str | None,
    device: str,
    dtype: str,
    attention: str,
    devices: str | None = None,
    deterministic: bool = False,
) -> Causal2Vec:
    from c2v_engine import Causal2Vec

    options: dict[str, Any] = {}
    if devices is not None:
        names = [name.strip() for name in devices.split(",")]
        options["devices"] = [int(name) if name.isdecimal() else name for name in names]
    if deterministic:
        options["deterministic"] = True
    return Causal2Vec.from_pretrained(
        model, device=device, dtype=dtype, attention=attention, **options
    )


def _named_prompt(argument: str) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--prompt {argument!r} is not NAME=TEXT")
    return name, text


def _print_report(report: EncodeReport) -> None:
    speed = f"{report.texts_per_second:,.0f} texts/s, {report.tokens_per_second:,.0f} tokens/s"
    facts = {
        "rows": f"{report.rows:,}",
        "dimension": f"{report.dimension:,} ({report.precision})",
        "model": report.model,
        "time": f"{report.seconds:,.1f} s",
        "speed": speed,
        "output": f"{report.output} ({_size(report.size)})",
    }
    _print_facts(facts)


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        elif isinstance(value, (dict, list, tuple, str)):
            flat[prefix + name] = json.dumps(value, ensure_ascii=False, default=str)
        else:
            flat[prefix + name] = value
    return flat


def _size(size: int) -> str:
    if size < 10_000:
        return f"{size:,} bytes"
    if size < 1e7:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e6:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.1f} GB"
