"""Units: the texts of a window that one worker embeds at a time, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

import torch

from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.stats import EncodeStats

# A smaller unit costs more to send and start than its work is worth to another worker.
_LEAST_CHARACTERS = 4096


@dataclass(eq=False)
class Call:
    """What the units of one call share.

    Attributes:
        prompt: of all texts.
        batch_tokens: most rows of a batch, None for as many as suit the device.
        output: the format of the embeddings.
        outcomes: of its units, in the order in which they came.
        abandoned: whether nobody waits for them any more.
    """

    prompt: str
    batch_tokens: int | None
    output: OutputFormat
    outcomes: SimpleQueue[Outcome] = field(default_factory=SimpleQueue)
    abandoned: bool = False


@dataclass(eq=False)
class Unit:
    """Texts that one worker embeds.

    Attributes:
        call: that they are of.
        texts: distinct ones.
        cost: about how long they take, in any measure that all units share.
    """

    call: Call
    texts: list[str]
    cost: int


class Outcome(NamedTuple):
    """What became of a unit.

    Attributes:
        unit: None where the workers are gone, and the whole call has failed.
        embeddings: ``[texts, columns]``, None where it failed.
        stats: what was computed for it.
        error: why it failed; of a ``TextError`` the row is one of the unit's texts.
    """

    unit: Unit | None
    embeddings: torch.Tensor | None
    stats: EncodeStats
    error: Exception | None


def cut_by_cost(costs: Sequence[int], workers: int, batch: int) -> list[slice]:
    """Cut texts into units for workers that take the next when they have done one.

    Each unit is half of what would be every worker's share of what is left, so that few are sent
    and yet all workers end at about the same time; but never less than a batch, as long as that
    leaves no worker without any, or than is worth sending.

    Args:
        costs: of texts, in characters.
        workers: how many.
        batch: cost of a full batch.
    """
    left = sum(costs)
    least = max(_LEAST_CHARACTERS, min(batch, left // workers))
    units: list[slice] = []
    begin = 0
    while begin < len(costs):
        goal = max(least, left // (2 * workers))
        if left - goal < least // 2:
            goal = left
        end, taken = begin, 0
        while taken < goal:
            taken += costs[end]
            end += 1
        units.append(slice(begin, end))
        begin, left = end, left - taken
    return units
