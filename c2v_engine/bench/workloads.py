"""What is embedded: distinct texts, a prompt, how many of them a call gets, and the work in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from c2v_engine.bench.corpus import Corpus
from c2v_engine.runtime.tokenization import CheckpointTokenizer, TokenizedText

__all__ = ["Lengths", "Workload", "make_workload"]

# The contextual token and EOS of the decoder; the encoder has two special tokens likewise.
SINGLE_ROWS = 2
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Lengths:
    """How long texts are, in rows of the decoder's sequence.

    Attributes:
        rows: of every text, the contextual token and EOS counted; None for log-normal lengths.
        spread: of the logarithm of log-normal lengths.
        median: of log-normal lengths.
        shortest: likewise.
        longest: likewise.
        label: of log-normal lengths.
    """

    rows: int | None = None
    spread: float = 0.8
    median: int = 64
    shortest: int = 8
    longest: int = 512
    label: str = "log-normal"

    @property
    def name(self) -> str:
        """In results."""
        return self.label if self.rows is None else str(self.rows)

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Tokens of texts alone, int ``[count]``."""
        if self.rows is not None:
            return np.full(count, self.rows - SINGLE_ROWS)
        drawn = np.exp(generator.normal(np.log(self.median), self.spread, count)).round()
        lengths: np.ndarray = drawn.clip(self.shortest, self.longest).astype(int) - SINGLE_ROWS
        return lengths


QUERIES = Lengths(spread=0.4, median=10, shortest=4, longest=32, label="queries")
"""What people ask: some words."""
INSTRUCTION = "Instruct: Given a question, retrieve the passages that answer it\nQuery: "
"""Of queries."""


@dataclass(frozen=True)
class Workload:
    """Texts and how they are given.

    Attributes:
        texts: no two of them alike, for the engine computes equal texts once.
        prompt: of all of them.
        texts_per_call: None for all in one call.
        tokenized: the texts, as the engine's tokenizers have them.
    """

    texts: list[str]
    prompt: str = ""
    texts_per_call: int | None = None
    tokenized: list[TokenizedText] = field(default_factory=list, repr=False)

    @property
    def decoder_tokens(self) -> int:
        """Rows of the decoder's sequences, prompts among them."""
        return sum(len(text.token_ids) for text in self.tokenized)

    @property
    def encoder_tokens(self) -> int:
        """Tokens that the encoder reads."""
        return sum(text.encoder_tokens for text in self.tokenized)

    def calls(self) -> Iterator[list[str]]:
        """The texts of each call."""
        step = self.texts_per_call or len(self.texts)
        for begin in range(0, len(self.texts), step):
            yield self.texts[begin : begin + step]

    def some(self, count: int) -> Workload:
        """At most so many of its texts, of all lengths."""
        order = sorted(range(len(self.texts)), key=lambda row: len(self.texts[row]))
        chosen = [
            order[i] for i in np.linspace(0, len(order) - 1, min(count, len(order)), dtype=int)
        ]
        return self.of(chosen)

    def of(self, rows: Sequence[int]) -> Workload:
        """Of these texts, in this order."""
        return Workload(
            [self.texts[row] for row in rows],
            self.prompt,
            self.texts_per_call,
            [self.tokenized[row] for row in rows],
        )


def make_workload(
    corpus: Corpus,
    tokenizer: CheckpointTokenizer,
    lengths: Lengths,
    tokens: int,
    prompt_tokens: int = 0,
    texts_per_call: int | None = None,
    seed: int = 0,
    prompt: str = "",
    texts: Sequence[str] = (),
) -> Workload:
    """Draw texts until they have so many tokens together.

    Args:
        corpus: that they are runs of.
        tokenizer: of the checkpoint; counts what is computed.
        lengths: of the texts.
        tokens: rows of the decoder for all of them, about.
        prompt_tokens: of a prompt, 0 for none.
        texts_per_call: None for all in one call.
        seed: of the draw.
        prompt: of all texts, in place of one that is drawn.
        texts: in place of texts that are drawn: these, all of them.
    """
    generator = np.random.default_rng(seed)
    prompt = corpus.draw(prompt_tokens, generator) if prompt_tokens else prompt
    distinct: dict[str, None] = dict.fromkeys(texts)
    rows = tokens if texts else 0
    draws = 0
    while rows < tokens:
        length = int(lengths.draw(1, generator)[0])
        text = corpus.draw(length, generator)
        draws += 1
        assert draws < MOST_DRAWS * (1 + len(distinct)), "too few texts of that length"
        if text in distinct:
            continue
        distinct[text] = None
        rows += length + SINGLE_ROWS + prompt_tokens
    drawn = list(distinct)
    return Workload(drawn, prompt, texts_per_call, tokenizer(drawn, prompt))
