"""``c2v convert``: a checkpoint of another library's decoder embedding model."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from c2v_engine.cli.app import app, fail
from c2v_engine.cli.output import print_facts


class PoolingName(str, Enum):
    """How a model pools its last hidden states."""

    LAST_TOKEN = "last-token"
    MEAN = "mean"


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub name of the model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model's folder.")],
    pooling: Annotated[
        PoolingName | None, typer.Option(help="Of a folder of transformers alone.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="causal or bidirectional, where the config leaves a doubt.")
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option(help="L2-normalise embeddings; else as the source does.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens; else as the source says.")
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Compare this text with sentence-transformers' answer; repeat it."
        ),
    ] = None,
) -> None:
    """Make a model of a decoder embedding model in sentence-transformers' layout."""
    if check and pooling is not None:
        fail("--check compares with sentence-transformers' own answer, which --pooling has none of")
    choices: dict[str, Any] = {
        "pooling": None if pooling is None else pooling.value,
        "attention": attention,
        "normalize": normalize,
        "max_length": max_length,
    }
    from c2v_engine import Causal2Vec

    conversion = Causal2Vec.convert(source, output, **choices)
    print_facts({name: _shown(value) for name, value in conversion.facts().items()})
    for note in conversion.notes:
        print(f"note: {note}")
    if check:
        from c2v_engine.integrations.conversion_check import largest_differences

        for prompt_name, difference in largest_differences(source, output, check).items():
            prompt = "no prompt name" if prompt_name is None else f"prompt {prompt_name}"
            print(f"check: {prompt}: differs by {difference:.1e} at most")
    print(f"converted {source} to {output}")


def _shown(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, str)) else value
