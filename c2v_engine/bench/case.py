"""A case: texts and whoever embeds them in turns."""

from __future__ import annotations

from dataclasses import dataclass

from c2v_engine.bench.models.synthetic import TEMPLATE
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.workloads import Lengths

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A workload and the providers that embed it in turns.

    Attributes:
        model: its name among the shapes.
        lengths: of the texts.
        tokens: rows of the decoder that a timed call computes, about.
        specs: the providers; the others' vectors are compared with the first one's.
        what: more of its name.
        template: of the decoder's sequence.
        prompt_tokens: of a prompt that is drawn.
        prompt: of the texts, in place of one that is drawn.
        texts: in place of texts that are drawn, from ``source``.
        source: what gave the texts, for the case's name.
        texts_per_call: None for all in one call.
        stages: whether a profile of the first provider is taken too.
    """

    model: str
    lengths: Lengths
    tokens: int
    specs: tuple[Spec, ...]
    what: str = ""
    template: tuple[str, ...] = TEMPLATE
    prompt_tokens: int = 0
    prompt: str = ""
    texts: tuple[str, ...] = ()
    source: str = ""
    texts_per_call: int | None = None
    stages: bool = False

    @property
    def name(self) -> str:
        """In results."""
        lengths = self.source if self.texts else self.lengths.name
        return "/".join(filter(None, (self.model, lengths, self.what)))

    @property
    def session(self) -> tuple[str, tuple[str, ...]]:
        """Cases in which this is the same share their providers."""
        return self.model, self.template
