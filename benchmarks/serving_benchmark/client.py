"""A client that takes little of the machine: bytes over kept connections, nothing decoded."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from serving_benchmark.mix import Request

__all__ = ["Client", "Load", "Outcome", "Reply", "closed_loop", "one_by_one", "open_loop"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TIMINGS = re.compile(rb"\r\nserver-timing: *([^\r]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_TOKENS = re.compile(rb'"total_tokens": *(\d+)')
_NULL = re.compile(rb'"embedding": *(?:null|"")')
_TAIL = 200
_BUFFER = 2**20
# Beyond the time in which a server answers whatever it took.
_MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP; 0 where the connection broke, 1 where a 200 holds an empty embedding.
        tokens: that the server counted.
        stages: seconds by the names of its ``Server-Timing``; empty where it sends none.
        body: as it came.
    """

    status: int
    tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """A request and what came of it; times as ``perf_counter`` gives them.

    Attributes:
        kind: of the request.
        texts: in it.
        due: when it was to be sent.
        sent: when it was.
        ended: when the last byte of the answer was there.
        reply: without its body.
        number: of the request.
    """

    kind: str
    texts: int
    due: float
    sent: float
    ended: float
    reply: Reply
    number: int = 0


@dataclass(frozen=True)
class Load:
    """What a load came to.

    Attributes:
        began: when the first request was due.
        seconds: for which requests were sent.
        outcomes: in the order in which they ended.
        client_seconds: of the processor, that the client took in them.
    """

    began: float
    seconds: float
    outcomes: list[Outcome]
    client_seconds: float


class Client:
    """Sends requests over connections that are kept, as many as are needed at once."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: Request, due: float | None = None) -> Outcome:
        """Send a request, wait for the answer, and forget its body."""
        sent = time.perf_counter()
        reply = await self.ask(request.payload)
        ended = time.perf_counter()
        if reply.status == 200 and _NULL.search(reply.body):
            reply = Reply(1)
        reply = Reply(reply.status, reply.tokens, reply.stages)
        due = sent if due is None else due
        return Outcome(request.kind, len(request.texts), due, sent, ended, reply, request.number)

    async def ask(self, payload: bytes) -> Reply:
        """Send bytes, once, and wait for the answer."""
        writer = None
        try:
            reader, writer = self._kept() or await asyncio.open_connection(
                *self._address, limit=_BUFFER
            )
            return await asyncio.wait_for(self._exchange(reader, writer, payload), _MOST_SECONDS)
        except (OSError, EOFError, asyncio.TimeoutError):
            if writer is not None:
                writer.close()
            return Reply(0)

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop()[1].close()

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes
    ) -> Reply:
        writer.write(payload)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if _CLOSE.search(head):
            writer.close()
        else:
            self._idle.append((reader, writer))
        tokens = _TOKENS.search(body[-_TAIL:])
        timings = _TIMINGS.search(head)
        return Reply(
            int(head[9:12]),
            int(tokens[1]) if tokens else 0,
            parse_timings(timings[1].decode()) if timings else {},
            body,
        )


def parse_timings(header: str) -> dict[str, float]:
    """Seconds by name, of ``name;dur=milliseconds, ...``."""
    stages = {}
    for entry in header.split(","):
        name, _, rest = entry.strip().partition(";")
        duration = re.search(r"dur=([0-9.]+)", rest)
        if duration:
            stages[name] = float(duration[1]) / 1000
    return stages


async def open_loop(
    client: Client, requests: Sequence[Request], rate: float, seconds: float, random: Random
) -> Load:
    """Send requests at random moments, however long the answers take.

    Args:
        client: sends them.
        requests: any of which may be next.
        rate: requests a second, with gaps of exponential length.
        seconds: for which they are sent; all answers are waited for.
        random: chooses moments and requests.
    """
    outcomes: list[Outcome] = []
    tasks: set[asyncio.Task[None]] = set()

    async def send(request: Request, due: float) -> None:
        outcomes.append(await client.send(request, due))

    began = due = time.perf_counter()
    busy = time.process_time()
    while (due := due + random.expovariate(rate)) < began + seconds:
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(send(random.choice(requests), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
    busy = time.process_time() - busy
    await asyncio.gather(*tasks)
    return Load(began, seconds, outcomes, busy)


async def closed_loop(
    client: Client, requests: Sequence[Request], connections: int, seconds: float, random: Random
) -> Load:
    """Keep so many requests under way.

    Args:
        client: sends them.
        requests: any of which may be next.
        connections: requests at once.
        seconds: for which new ones are sent.
        random: chooses requests.
    """
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    busy = time.process_time()

    async def work() -> None:
        while time.perf_counter() < began + seconds:
            outcome = await client.send(random.choice(requests))
            outcomes.append(outcome)
            if outcome.reply.status != 200:
                await asyncio.sleep(0.05)  # or refusals would be all that it does

    await asyncio.gather(*(work() for _ in range(connections)))
    return Load(began, seconds, outcomes, time.process_time() - busy)


async def one_by_one(client: Client, requests: Sequence[Request], seconds: float) -> list[Outcome]:
    """Send requests in turn, each after the answer to the last."""
    outcomes: list[Outcome] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not outcomes:
        outcomes.append(await client.send(requests[len(outcomes) % len(requests)]))
    return outcomes
