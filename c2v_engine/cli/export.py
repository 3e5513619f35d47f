"""``c2v export``: what other stacks open a model by."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import DtypeOption, Precision, TruncateOption

export = typer.Typer(help="Write what other stacks open a model by.", no_args_is_help=True)
app.add_typer(export, name="export")


class Kind(str, Enum):
    """Where Triton runs a model."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@export.command()
def triton(
    model: Annotated[str, typer.Argument(help="Model folder or Hub name, or 'default'.")],
    output: Annotated[Path, typer.Argument(help="The model repository, new or not.")],
    name: Annotated[str | None, typer.Option(help="Of the model; else its folder's.")] = None,
    kind: Annotated[Kind, typer.Option(help="Of the server's devices.")] = Kind.AUTO,
    instances: Annotated[int, typer.Option(min=1, help="Copies of it on each device.")] = 1,
    dtype: DtypeOption = "auto",
    precision: Annotated[
        Precision, typer.Option(help="Of the embeddings; bfloat16 is refused.")
    ] = Precision.FLOAT32,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Else as the model says.")
    ] = None,
    truncate_dim: TruncateOption = None,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Most texts of a request, or computed together.")
    ] = 256,
    queue_delay: Annotated[
        int, typer.Option(min=0, help="Microseconds that a batch waits to be filled.")
    ] = 0,
    queue_size: Annotated[int, typer.Option(min=0, help="Most requests that wait; 0: any.")] = 1024,
    copy: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Copy the model, or name it by its path.")
    ] = True,
) -> None:
    """Write a model repository of NVIDIA Triton Inference Server."""
    from c2v_engine.integrations.triton_server import TritonOptions, export_triton

    options = TritonOptions(
        name,
        kind.value,
        instances,
        dtype,
        precision.value,
        normalize,
        truncate_dim,
        max_batch_size,
        queue_delay,
        queue_size,
        copy,
    )
    folder = export_triton(None if model == "default" else model, output, options)
    print(f"wrote {folder}; serve it with: tritonserver --model-repository={output.resolve()}")


@export.command("sentence-transformers")
def sentence_transformers(
    directory: Annotated[Path, typer.Argument(help="The model's folder.")],
) -> None:
    """Have a model's folder open as SentenceTransformer(folder, trust_remote_code=True)."""
    from c2v_engine.model.modules_json import export_sentence_transformers

    export_sentence_transformers(directory)
    print(f"{directory} opens with SentenceTransformer({str(directory)!r}, trust_remote_code=True)")
