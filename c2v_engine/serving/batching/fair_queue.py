"""What waits to be computed, in an order that is fair to small requests and large ones.

The fair sojourn protocol (E. J. Friedman and S. G. Henderson, "Fairness and efficiency in web
server protocols", SIGMETRICS 2003). Think of a server that divides itself evenly among all requests
it has: in virtual time, which passes by one when each of them has had one more token, a request
ends at ``virtual time of its arrival + its tokens``. Requests are computed one after the other in
the order of these ends, so that none is done later than by that even division, and most are done
earlier. Of one size they go in the order of their arrival; a small one overtakes the rest of a
large one; and no number of small ones holds a large one up for ever, for virtual time passes it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from c2v_engine.serving.batching.ticket import QueuedText, Ticket

_Entry = tuple[float, int, QueuedText]
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


class _VirtualClock:
    """Virtual time, as tokens that every request of an evenly divided server has had."""

    def __init__(self) -> None:
        self._now = 0.0
        # Of the requests that such a server still has, of which some are done already.
        self._ends: dict[int, float] = {}
        self._next: list[tuple[float, int]] = []

    def end_of(self, ticket: Ticket, tokens: int) -> float:
        """When a request ends there, of which so many tokens come now."""
        if ticket.pushed_tokens == 0:
            ticket.virtual_begin = self._now
        ticket.pushed_tokens += tokens
        # What of it is not tokenised yet counts by the estimate.
        end = ticket.virtual_begin + ticket.pushed_tokens + ticket.reserved
        before = self._ends.get(ticket.number, end)
        self._set(ticket.number, end)
        return max(end, before)  # its texts keep their order, where the estimate was too high

    def advance(self, tokens: float) -> None:
        """So many tokens were taken to be computed."""
        while tokens > 0 and self._ends:
            end, number = self._next[0]
            if self._ends.get(number) != end:  # forgotten, or it ends later by now
                heapq.heappop(self._next)
                continue
            needed = (end - self._now) * len(self._ends)
            if needed > tokens:
                self._now += tokens / len(self._ends)
                return
            tokens -= max(needed, 0.0)
            self._now = max(self._now, end)
            heapq.heappop(self._next)
            del self._ends[number]

    def settle(self, ticket: Ticket) -> None:
        """A request is over, all of it that came was taken, and no more will come."""
        if ticket.number in self._ends:
            self._set(ticket.number, ticket.virtual_begin + ticket.pushed_tokens)

    def _set(self, number: int, end: float) -> None:
        if self._ends.get(number) != end:
            self._ends[number] = end
            heapq.heappush(self._next, (end, number))

    def forget(self, ticket: Ticket) -> None:
        """A request was given up."""
        self._ends.pop(ticket.number, None)
        if not self._ends:
            self._next.clear()


class FairQueue:
    """Texts that wait; not safe for several threads by itself.

    Attributes:
        tokens: that wait.
        texts: likewise.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.texts = 0
        self._clock = _VirtualClock()
        self._order = count()
        self._waiting: dict[BatchKind, list[_Entry]] = {}

    def push(self, texts: Sequence[QueuedText], *, ahead: bool = False) -> None:
        """Let texts of one request wait.

        Args:
            texts: at least one.
            ahead: whether they go before all others.
        """
        ticket = texts[0].ticket
        tokens = sum(text.ready.tokens for text in texts)
        end = -math.inf if ahead else self._clock.end_of(ticket, tokens)
        for text in texts:
            heap = self._waiting.setdefault(BatchKind.of(text), [])
            heapq.heappush(heap, (end, next(self._order), text))
        ticket.waiting_tokens += tokens
        ticket.waiting_texts += len(texts)
        self.texts += len(texts)
        self.tokens += tokens

    def take(self, batch_tokens: int) -> list[QueuedText]:
        """The texts of the next batch: the first one, and what fits beside it.

        Args:
            batch_tokens: most of them, but for a single text.

        Returns:
            Texts of one kind, in their order; empty where nothing waits.
        """
        kind = self._first_kind()
        if kind is None:
            return []
        heap = self._waiting[kind]
        taken: list[QueuedText] = []
        passed: list[_Entry] = []
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
        self._clock.advance(sum(text.ready.tokens for text in taken))
        return taken

    def drop(self, ticket: Ticket) -> None:
        """Let go of a request, which is over: what waits of it is passed by when it is met."""
        if not ticket.waiting_texts:
            self._clock.settle(ticket)
            return
        self.tokens -= ticket.waiting_tokens
        self.texts -= ticket.waiting_texts
        ticket.waiting_tokens = ticket.waiting_texts = 0
        self._clock.forget(ticket)

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
        """The kind of the first text that somebody still waits for."""
        first: tuple[tuple[float, int], BatchKind] | None = None
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
