"""Which leading rows all texts of a call have in common, so that they are computed once.

Under a causal mask a row depends on nothing that stands after it: the rows of an instruction that
stands first are the same for every text. Only the prompt and the template decide how many there
are, never the texts of a batch, so that a text's embedding does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from c2v_engine.model.template import BOS, EOS, Template
from c2v_engine.runtime.packing import PackingRules
from c2v_engine.runtime.tokenization import TokenizedText

# Fewer rows save less than it costs to put their keys and values before those of every text.
_FEWEST_ROWS = 8
# How texts may begin: a tokenizer may join the prompt's last characters with any of these.
_BEGINNINGS = (
    "",
    "a",
    "The",
    " a",
    "  ",
    "1",
    ".",
    "\n",
    "\n\n",
    "é",
    "的",
    "'",
    "s",
    '"',
    "-",
    "_",
)


@dataclass(frozen=True)
class SharedPrompt:
    """Leading rows that texts of a call have in common.

    Attributes:
        token_ids: of the rows; none where nothing is shared.
        rules: of the checkpoint.
    """

    token_ids: tuple[int, ...]
    rules: PackingRules

    def begins(self, text: TokenizedText) -> bool:
        """Whether a text begins with these rows, and has some of its own behind them."""
        rows = len(self.token_ids)
        return (
            0 < rows <= self.rules.first_own_row(text)
            and rows < len(text.token_ids)
            and tuple(text.token_ids[:rows].tolist()) == self.token_ids
        )


def find_shared_prompt(
    template: Template,
    rules: PackingRules,
    prompt: str,
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    single_ids: Callable[[str], int],
) -> SharedPrompt:
    """The leading rows that a template and a prompt give to (nearly) every text.

    Args:
        template: the checkpoint's.
        rules: likewise.
        prompt: of the call.
        tokenize: strings to the decoder's token ids, without special ones.
        single_ids: the id of ``<bos>`` or ``<eos>``.
    """
    rows: list[int] = []
    for entry in template.entries:
        if entry.format is None:
            if entry.kind not in (BOS, EOS):
                break  # a contextual token is each text's own
            rows.append(single_ids(entry.kind))
            continue
        before = _before_text(entry.format.pieces, prompt)
        if "text" not in entry.format.fields:
            rows += tokenize([before])[0]
            continue
        rows += _common_prefix(tokenize([before + beginning for beginning in _BEGINNINGS]))
        break
    return SharedPrompt(tuple(rows) if len(rows) >= _FEWEST_ROWS else (), rules)


def _before_text(pieces: Sequence[tuple[str, str]], prompt: str) -> str:
    parts = []
    for kind, literal in pieces:
        if kind == "text":
            break
        parts.append(prompt if kind == "prompt" else literal)
    return "".join(parts)


def _common_prefix(sequences: list[list[int]]) -> list[int]:
    same = takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return [ids[0] for ids in same]
