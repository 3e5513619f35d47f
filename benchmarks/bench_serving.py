"""The server under load, against ``Causal2Vec.encode`` on the same texts in the same minutes.

    python benchmarks/bench_serving.py --json benchmarks/results/serving-cpu.json    # 7 minutes
    python benchmarks/bench_serving.py --seconds 5 --repeats 1                       # to try it

``c2v serve`` runs as a process; requests go over kept connections to /v1/embeddings, base64. Half
of them are single queries, half hold 8 to 32 docstrings of the standard library. Measured are:
one query at a time on an idle server; the server kept full by a fixed number of requests; and loads
at random moments (a Poisson process) of 1, 2 and 4 times what the offline engine embeds of them.
After each of these the offline engine embeds the very texts that were answered. The client shares
the machine's processors, and says how much of them it took. Vectors are compared before anything is
timed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import Parser  # noqa: E402
from processes import end_on_signals  # noqa: E402
from serving_benchmark import report  # noqa: E402
from serving_benchmark.client import (  # noqa: E402
    Client,
    Load,
    closed_loop,
    one_by_one,
    open_loop,
)
from serving_benchmark.mix import Request, docstrings, make_requests  # noqa: E402
from serving_benchmark.offline import OfflineEngine  # noqa: E402
from serving_benchmark.server import HOST, ServerError, ServerProcess  # noqa: E402

from c2v_engine.bench.machine.facts import git_commit, processor_name  # noqa: E402

LEAST_COSINE = 0.999
_WARM_UP_SECONDS = 5.0
_MEMORY_SAMPLES = 50  # that are kept
_MOST_OFFLINE_SECONDS = 15.0
_MOST_ALONE_SECONDS = 10.0


class LoadTest:
    """A server, the offline engine, and what is asked of both.

    Args:
        server: ready.
        offline: likewise.
        requests: any number of them.
        arguments: of the command line.
    """

    def __init__(
        self,
        server: ServerProcess,
        offline: OfflineEngine,
        requests: list[Request],
        arguments: argparse.Namespace,
    ) -> None:
        self._server = server
        self._offline = offline
        self._requests = requests
        self._seconds: float = arguments.seconds
        self._connections: int = arguments.connections
        self._random = Random(arguments.seed)
        self._texts_per_request = statistics.mean(len(request.texts) for request in requests)

    def now(self) -> float:
        """Seconds of the server's life at its last sample of memory."""
        return self._server.memory[-1][0] if self._server.memory else 0.0

    def compare(self) -> float:
        """The smallest cosine of the server's vectors and the offline engine's.

        Exits where they are not the same vectors.
        """
        least = 1.0
        for request in self._requests[:4]:
            reply = asyncio.run(self._ask(request))
            if reply.status != 200:
                sys.exit(f"error: the server answers {reply.status}: {reply.body[:500]!r}")
            rows = [base64.b64decode(row["embedding"]) for row in json.loads(reply.body)["data"]]
            found = np.array([np.frombuffer(row, "<f4") for row in rows])
            expected = np.array(self._offline.embed(request.kind, request.texts))
            least = min(least, float(cosines(found, expected).min()))
        if not least >= LEAST_COSINE:
            sys.exit(f"error: the server's vectors are others than encode's: cosine {least:.6f}")
        return least

    def alone(self) -> dict[str, Any]:
        """Queries one at a time."""

        async def run() -> dict[str, Any]:
            client = Client(HOST, self._server.port)
            queries = [request for request in self._requests if request.kind == "query"]
            await one_by_one(client, queries, 0.1 * min(self._seconds, _MOST_ALONE_SECONDS))
            outcomes = await one_by_one(client, queries, min(self._seconds, _MOST_ALONE_SECONDS))
            client.close()
            return report.describe_overhead(outcomes)

        return asyncio.run(run())

    def offline(self, numbers: list[int] | None = None) -> dict[str, float]:
        """The offline engine's rates, at all requests or at those of these numbers."""
        return self._offline.measure(min(self._seconds, _MOST_OFFLINE_SECONDS), numbers)

    def full(self, seconds: float | None = None) -> dict[str, Any]:
        """The server with always the same number of requests."""
        return self._under(None, seconds)

    def offered(self, texts_per_second: float) -> dict[str, Any]:
        """The server with so many texts offered a second, at random moments."""
        return self._under(texts_per_second / self._texts_per_request)

    def _under(self, rate: float | None, seconds: float | None = None) -> dict[str, Any]:
        seconds = seconds or self._seconds

        async def run() -> tuple[Load, float]:
            client = Client(HOST, self._server.port)
            computed = asyncio.create_task(self._computed(client, seconds))
            if rate is None:
                load = await closed_loop(
                    client, self._requests, self._connections, seconds, self._random
                )
            else:
                load = await open_loop(client, self._requests, rate, seconds, self._random)
            tokens = await computed
            client.close()
            return load, tokens

        before = self._server.processor_seconds()
        load, computed = asyncio.run(run())
        spent = self._server.processor_seconds() - before
        last = max((outcome.ended for outcome in load.outcomes), default=load.began + load.seconds)
        row = report.describe_load(load)
        row["computed_tokens_per_second"] = computed
        return {**row, "server_processors": spent / max(last - load.began, load.seconds)}

    async def _computed(self, client: Client, seconds: float) -> float:
        """Tokens a second that the server computed while requests were sent, but for the ramp.

        Answers alone do not tell: when a load ends, much is computed whose request is not whole.
        """
        ramp = report.ramp_seconds(seconds)
        await asyncio.sleep(ramp)
        first = await self._status(client)
        await asyncio.sleep(max(0.0, seconds - ramp - 0.1))
        second = await self._status(client)
        return (second[1] - first[1]) / (second[0] - first[0])

    async def _status(self, client: Client) -> tuple[float, int]:
        """The moment, and the tokens that the server has computed."""
        reply = await client.ask(f"GET /status HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        return time.perf_counter(), json.loads(reply.body)["done"]["tokens"]

    async def _ask(self, request: Request) -> Any:
        client = Client(HOST, self._server.port)
        reply = await client.ask(request.payload)
        client.close()
        return reply


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of rows, ``[n]``."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: np.ndarray = (first * second).sum(axis=1) / norms
    return found


def run(test: LoadTest, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Measure everything into the result, and print it."""
    result["least_cosine"] = test.compare()
    test.full(min(arguments.seconds, _WARM_UP_SECONDS))
    alone = result["alone"] = test.alone()
    overhead, latency = alone["overhead_ms"], alone["latency_ms"]
    said = f"{overhead['p50']:.2f} ms outside tokenise and compute" if overhead else "no timings"
    print(f"one query alone: p50 {latency['p50']:.2f} ms, {said}", flush=True)

    capacity = result["offline"] = test.offline()
    for _ in range(arguments.repeats):
        row = test.full()
        result["saturated"].append(compared(row, test))
        report.print_load(f"{arguments.connections} requests at once", row)
    ratios = [row["ratio"] for row in result["saturated"]]
    if ratios:
        result["median_saturated_ratio"] = statistics.median(ratios)
        print(f"the server kept full, of offline: {statistics.median(ratios):.1%} (median)")
    result["filled_at"] = test.now()
    for factor in arguments.loads:
        row = test.offered(factor * capacity["texts_per_second"])
        result["offered"].append({"load": factor, **compared(row, test)})
        report.print_load(f"{factor:g}x", row)


def compared(row: dict[str, Any], test: LoadTest) -> dict[str, Any]:
    """The row beside the offline engine at the very requests that were answered.

    Under more load than there is capacity the server answers more of the small requests, and short
    texts give fewer tokens a second, offline as well.
    """
    offline = test.offline(row.pop("answered"))
    row["offline"] = offline
    row["ratio"] = row["computed_tokens_per_second"] / offline["tokens_per_second"]
    return row


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--loads", type=float, nargs="*", default=[1, 2, 4], help="of capacity")
    parser.add_argument("--repeats", type=int, default=2, help="of the server kept full")
    parser.add_argument("--connections", type=int, default=32, help="that keep it full")
    parser.add_argument("--requests", type=int, default=1000, help="different ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a checkpoint's folder; the default model if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--commit", help="of a copy without its .git")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.connections < 1 or arguments.requests < 4:
        parser.error("--seconds must be over 0, --connections at least 1, --requests at least 4")
    if arguments.model is not None:
        arguments.model = str(Path(arguments.model).resolve())
    return arguments


def main() -> None:
    """Start both, measure, print, and write the result file."""
    arguments = parse_arguments()
    end_on_signals()
    result: dict[str, Any] = {
        "commit": arguments.commit or git_commit(),
        "cpu": processor_name(),
        "threads": os.cpu_count(),
        "model": arguments.model or "default",
        "device": arguments.device,
        "seconds": arguments.seconds,
        "connections": arguments.connections,
        "requests": arguments.requests,
        "saturated": [],
        "offered": [],
    }
    texts = docstrings(arguments.requests)
    options = [*([arguments.model] if arguments.model else []), "--device", arguments.device]
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(options, Path(folder) / "server.log")
        try:
            server.wait_until_ready()
            name = server.get("/v1/models")[1]["data"][0]["id"]
            host = f"{HOST}:{server.port}"
            requests = make_requests(texts, arguments.requests, name, host, arguments.seed)
            asked = [(request.kind, request.texts) for request in requests]
            offline = OfflineEngine(arguments.model, arguments.device, asked)
            try:
                test = LoadTest(server, offline, requests, arguments)
                ready = test.now()
                run(test, result, arguments)
            finally:
                offline.close()
        except ServerError as error:
            sys.exit(f"error: {error}")
        finally:
            status = server.stop()
    memory = report.describe_memory(server.memory, result["filled_at"])
    memory["ready_mib"] = report.describe_memory(server.memory, ready)["first_mib"]
    result["memory"] = memory
    result["memory_mib"] = server.memory[:: 1 + len(server.memory) // _MEMORY_SAMPLES]
    result["exit_status"] = status
    print(
        f"memory of the server: {memory['ready_mib']:,.0f} MiB when ready, "
        f"{memory['first_mib']:,.0f} once it had been full, {memory['last_mib']:,.0f} at the end, "
        f"{memory['most_mib']:,.0f} at most ({memory['mib_per_minute']:+.2f} a minute); "
        f"it ended with status {status}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
