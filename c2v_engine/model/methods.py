"""Embedding methods by name: the template, pooling and mask that a new checkpoint is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from c2v_engine.errors import ConfigError
from c2v_engine.model.config import AttentionMode, Causal2VecConfig
from c2v_engine.model.template import CONTEXT, EOS, SUMMARY, Template

IN_CONTEXT = "in-context"
# The prompt that examples are stored as.
EXAMPLES_PROMPT = "query"

Example = tuple[str, str, str]
"""Instruction, query and response."""


@dataclass(frozen=True)
class Method:
    """A way to make a decoder embed texts.

    Attributes:
        paper: where it comes from.
        template: the decoder's sequence.
        pooling: of the template's entries.
        attention: the mask.
        summary_tokens: rows of ``<summary>``, where a call names no other number.
    """

    paper: str
    template: tuple[str, ...]
    pooling: tuple[str | int, ...]
    attention: AttentionMode = "causal"
    summary_tokens: int = 0


METHODS = {
    "causal2vec": Method(
        "arXiv 2507.23386", (CONTEXT, "{prompt}{text}", EOS), pooling=(CONTEXT, EOS)
    ),
    "last-token": Method("arXiv 2401.00368", ("{prompt}{text}", EOS), pooling=(EOS,)),
    "echo": Method("arXiv 2402.15449", ("{prompt}{text}", "{text}", EOS), pooling=(1,)),
    # The prompt apart, so that its rows are the same for every text.
    IN_CONTEXT: Method("arXiv 2409.15700", ("{prompt}", "{text}\n<response>", EOS), pooling=(EOS,)),
    "bidirectional-mean": Method(
        "arXiv 2404.05961", ("{prompt}", "{text}"), pooling=("{text}",), attention="bidirectional"
    ),
    "summary-tokens": Method(
        "arXiv 2506.04344", ("{prompt}{text}", SUMMARY), pooling=(SUMMARY,), summary_tokens=4
    ),
}
DEFAULT_METHOD = "causal2vec"


def method_named(name: str) -> Method:
    """A method by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"method is {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]


def method_of(config: Causal2VecConfig) -> str | None:
    """The name of the method whose template, pooling and mask a config has; None for its own."""
    template = config.parsed_template
    found = (config.template, template.pooled, config.attention)
    for name, method in METHODS.items():
        tokens = config.summary_tokens if method.summary_tokens else 0
        if SUMMARY in method.template and not tokens:
            continue
        pooled = Template(method.template, method.pooling, tokens).pooled
        if found == (method.template, pooled, method.attention):
            return name
    return None


def in_context_prompt(examples: Iterable[Sequence[str]], instruction: str | None = None) -> str:
    """The prompt by which a query is embedded after examples, as bge-en-icl renders it.

    The line ``<response>`` behind the query is part of the method's template.

    Args:
        examples: instruction, query and response of each; may be none.
        instruction: of the texts to come; None for that of the examples, where it is one and the
            same.

    Raises:
        ConfigError: an example is not three texts, or it is not clear which instruction is meant.
    """
    rendered = []
    instructions: dict[str, None] = {}
    for number, example in enumerate(examples):
        if (
            isinstance(example, str)
            or len(example) != 3
            or not all(isinstance(part, str) for part in example)
        ):
            raise ConfigError(
                f"examples[{number}] is {example!r}, expected instruction, query and response"
            )
        told, query, response = example
        instructions[told] = None
        rendered.append(f"{_asked(told)}{query}\n<response>{response}\n\n")
    if instruction is None:
        if len(instructions) != 1:
            raise ConfigError(
                f"examples have {len(instructions)} different instructions: give instruction, the "
                "one of the texts that will be embedded"
            )
        (instruction,) = instructions
    return "".join(rendered) + _asked(instruction)


def _asked(instruction: str) -> str:
    return f"<instruct>{instruction}\n<query>"
