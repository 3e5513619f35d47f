"""Requests and texts for the tests of batching, without an engine."""

import asyncio

import numpy as np

from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import ReadyText
from c2v_engine.runtime.tokenization import TokenizedText
from c2v_engine.serving.batching.ticket import QueuedText, Ticket

LOOP = asyncio.new_event_loop()


def ready(tokens: int, prompt: tuple[int, ...] = ()) -> ReadyText:
    """A text of so many rows."""
    ids = np.zeros(tokens, dtype=np.int32)
    return ReadyText(TokenizedText(ids, (0, tokens), ()), prompt, tokens)


def request(*tokens: int, loop=LOOP, keep: int = 4, prompt=()) -> tuple[Ticket, list[QueuedText]]:
    """A request with texts of these many rows."""
    ticket = Ticket(loop, len(tokens), OutputFormat(keep), 0)
    return ticket, [QueuedText(ticket, i, ready(n, prompt)) for i, n in enumerate(tokens)]
