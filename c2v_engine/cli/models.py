"""``c2v info``, ``c2v create`` and ``c2v doctor``: what a model and a machine are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from c2v_engine.cli.app import app
from c2v_engine.cli.options import load_model
from c2v_engine.cli.output import print_facts


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model is: sizes, template, pooling, prompts."""
    facts = load_model(model, "cpu", "auto", "auto").info()
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
        return
    print_facts(_flatten(facts))


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


def _named_prompt(argument: str) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--prompt {argument!r} is not NAME=TEXT")
    return name, text


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
