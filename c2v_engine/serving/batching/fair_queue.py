"""What waits to be computed, in an order that is fair to small requests and large ones.

Self-clocked fair queueing (S. J. Golestani, "A self-clocked fair queueing scheme for broadband
applications", INFOCOM 1994), with requests as flows and tokens as their lengths. A text's tag is
``max(virtual time, tag of the request's text before it) + tokens``, where virtual time is the
largest tag that was taken; the smallest tag is taken first. So requests of one size are served in
the order of their arrival, a small request overtakes the rest of a large one, and no number of
small ones holds a large one up for ever: tags of what comes later are later.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from c2v_engine.serving.batching.ticket import QueuedText, Ticket

# Texts that may be passed over for smaller ones that still fit in a batch.
_PASSED_OVER = 32


class BatchKind(NamedTuple):
    """What the texts of one batch have in common."""

    prompt: tuple[int, ...]
    keep: int
    normalize: bool
    precision: str

    @classmethod
    def of(cls, text: QueuedText) -> BatchKind:
        """The kind of batch that a text belongs in."""
        output = text.ticket.output
        return cls(text.ready.prompt, output.keep, output.normalize, output.precision)


class FairQueue:
    """Texts that wait; not safe for several threads by itself.

    Attributes:
        tokens: that wait.
        texts: likewise.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.texts = 0
        self._virtual_time = 0
        self._order = count()
        self._waiting: dict[BatchKind, list[tuple[int, int, QueuedText]]] = {}

    def push(self, texts: Sequence[QueuedText], *, ahead: bool = False) -> None:
        """Let texts of one request wait.

        Args:
            texts: at least one.
            ahead: whether they go before all others.
        """
        ticket = texts[0].ticket
        for text in texts:
            tokens = text.ready.tokens
            if not ahead:
                ticket.last_tag = max(self._virtual_time, ticket.last_tag) + tokens
            text.tag = ticket.last_tag
            heap = self._waiting.setdefault(BatchKind.of(text), [])
            heapq.heappush(heap, (text.tag, next(self._order), text))
            ticket.waiting_tokens += tokens
        ticket.waiting_texts += len(texts)
        self.texts += len(texts)
        self.tokens += sum(text.ready.tokens for text in texts)

    def take(self, batch_tokens: int) -> list[QueuedText]:
        """The texts of the next batch: the first one, and what fits beside it.

        Args:
            batch_tokens: most of them, but for a single text.

        Returns:
            Texts of one kind, in the order of their tags; empty where nothing waits.
        """
        kind = self._first_kind()
        if kind is None:
            return []
        heap = self._waiting[kind]
        taken: list[QueuedText] = []
        passed: list[tuple[int, int, QueuedText]] = []
        rows = encoder_tokens = 0
        while heap and len(passed) < _PASSED_OVER and max(rows, encoder_tokens) < batch_tokens:
            entry = heapq.heappop(heap)
            text = entry[2]
            if text.ticket.over:
                continue
            more = rows + text.ready.rows, encoder_tokens + text.ready.text.encoder_tokens
            if taken and max(more) > batch_tokens:
                passed.append(entry)
                continue
            rows, encoder_tokens = more
            taken.append(text)
            self._leave(text)
        for entry in passed:
            heapq.heappush(heap, entry)
        if not heap:
            del self._waiting[kind]
        if taken:
            self._virtual_time = max(self._virtual_time, taken[-1].tag)
        return taken

    def drop(self, ticket: Ticket) -> None:
        """Let go of a request, which is over: what waits of it is passed by when it is met."""
        self.tokens -= ticket.waiting_tokens
        self.texts -= ticket.waiting_texts
        ticket.waiting_tokens = ticket.waiting_texts = 0

    def tickets(self) -> list[Ticket]:
        """The requests that have texts waiting."""
        found = {
            text.ticket: None
            for heap in self._waiting.values()
            for _, _, text in heap
            if not text.ticket.over
        }
        return list(found)

    def _first_kind(self) -> BatchKind | None:
        """The kind of the text with the smallest tag that somebody still waits for."""
        first: tuple[tuple[int, int], BatchKind] | None = None
        for kind in list(self._waiting):
            heap = self._waiting[kind]
            while heap and heap[0][2].ticket.over:
                heapq.heappop(heap)
            if not heap:
                del self._waiting[kind]
            elif first is None or heap[0][:2] < first[0]:
                first = heap[0][:2], kind
        return None if first is None else first[1]

    def _leave(self, text: QueuedText) -> None:
        tokens, ticket = text.ready.tokens, text.ticket
        self.tokens -= tokens
        self.texts -= 1
        ticket.waiting_tokens -= tokens
        ticket.waiting_texts -= 1
