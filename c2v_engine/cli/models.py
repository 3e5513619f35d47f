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
    method: Annotated[
        str | None,
        typer.Option(
            help="What the decoder reads and what is pooled: causal2vec (the default), "
            "last-token, echo, in-context, bidirectional-mean or summary-tokens."
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="An entry of the decoder's sequence; repeat it.")
    ] = None,
    pooling: Annotated[
        list[str] | None, typer.Option(help="A template entry, or its index; repeat it.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="causal or bidirectional.")] = None,
    summary_tokens: Annotated[
        int | None, typer.Option(min=0, help="Rows of <summary> in the template.")
    ] = None,
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
    examples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Of in-context: instruction, query and response a line; the prompt query.",
        ),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Of the queries after the examples; else the examples'.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first weights of new parts.")] = None,
) -> None:
    """Assemble an untrained model from checkpoints."""
    choices: dict[str, Any] = {
        "encoder": encoder,
        "method": method,
        "template": template or None,
        "pooling": [int(p) if p.removeprefix("-").isdecimal() else p for p in pooling or []]
        or None,
        "attention": attention,
        "summary_tokens": summary_tokens,
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
        "examples": None if examples is None else _read_examples(examples),
        "instruction": instruction,
        "seed": seed,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    from c2v_engine import Causal2Vec

    Causal2Vec.create(decoder=decoder, output=output, **given)
    print(f"created {output} (untrained: {_new_weights(output)})")


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


def _new_weights(model: Path) -> str:
    from c2v_engine.model.config import Causal2VecConfig

    config = Causal2VecConfig.load(model)
    new = ["its projector's weights"] if config.projector is not None else []
    new += ["its summary tokens"] if config.summary_tokens else []
    return f"only {' and '.join(new)} are new" if new else "none of its weights are new"


def _read_examples(path: Path) -> list[tuple[str, ...]]:
    from c2v_engine.errors import InputError

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: can not be read: {error}") from None
    names = ("instruction", "query", "response")
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            examples.append(tuple(found[name] for name in names))
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(found[n], str) for n in names):
            raise InputError(
                f"{path}, line {number}: expected a JSON object with the texts {', '.join(names)}"
            )
    if not examples:
        raise InputError(f"{path}: holds no example, expected one a line")
    return examples


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
