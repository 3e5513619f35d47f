"""``c2v serve``: answer for a model over HTTP."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import BackendOption, DeviceOption, DtypeOption


class LogFormat(str, Enum):
    """How requests are logged."""

    TEXT = "text"
    JSON = "json"


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder or Hub name; else the shipped model.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8080,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    attention: BackendOption = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits in any batch.")
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What clients call the model; repeat it for others. Else its own."),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens computed together.")
    ] = None,
    queue_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that wait; else 32 batches.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 60.0,
    truncate: Annotated[
        bool, typer.Option(help="Shorten long texts where a request does not say; else refuse.")
    ] = False,
    max_texts: Annotated[int, typer.Option(min=1, help="Most texts of a request.")] = 2048,
    max_characters: Annotated[
        int, typer.Option(min=1, help="Of a text, however little of it the model reads.")
    ] = 200_000,
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, max=4096, help="Most MiB of a request's body.")
    ] = 16.0,
    tokenizer_threads: Annotated[
        int, typer.Option(min=1, help="Requests tokenised side by side.")
    ] = 2,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Keys, one a line; also C2V_API_KEYS, separated by commas."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may ask; repeat it.")
    ] = None,
    grace: Annotated[
        float,
        typer.Option(min=1, max=86400, help="Seconds to finish what was accepted, after a signal."),
    ] = 30.0,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of the log, on standard error.")
    ] = LogFormat.TEXT,
    otel: Annotated[
        bool, typer.Option("--otel", help="Trace by OpenTelemetry, set by OTEL_* variables.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log no requests.")] = False,
) -> None:
    """Serve a model over HTTP: the APIs of OpenAI and of text-embeddings-inference."""
    from c2v_engine.opener import EngineSpec
    from c2v_engine.serving.server import ServerOptions, read_keys
    from c2v_engine.serving.server import serve as run
    from c2v_engine.serving.service import ServiceOptions

    keys = read_keys(api_key_file)
    options = ServerOptions(
        host=host,
        port=port,
        grace=grace,
        log_format=None if quiet else log_format.value,
        tracing=otel,
        names=tuple(name or ()),
        service=ServiceOptions(batch_tokens, queue_tokens, timeout, truncate, tokenizer_threads),
    )
    http = {
        "api_keys": keys,
        "cors_origins": tuple(cors_origin or ()),
        "max_texts": max_texts,
        "max_characters": max_characters,
        "max_body_bytes": round(max_body_mb * 2**20),
    }
    spec = EngineSpec(model, device, dtype, attention, deterministic)
    try:
        code = run(spec, http, options)
    except KeyboardInterrupt:  # while the model was loaded
        raise typer.Exit(130) from None
    raise typer.Exit(code)
