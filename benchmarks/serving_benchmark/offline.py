"""``Causal2Vec.encode`` on the same texts, in a process of its own that waits to be asked.

Reads a command a line and writes an answer a line, both JSON: ``{"measure": seconds}`` and
``{"embed": [kind, [text, ...]]}``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import end_group

__all__ = ["OfflineEngine"]

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("query", "document")
_WARM_UP_TEXTS = 256


class OfflineEngine:
    """The engine without a server.

    Args:
        model: a folder or Hub name; None for the default model.
        device: that it computes on.
        requests: kinds and texts, as they are asked of the server.
    """

    def __init__(
        self, model: str | None, device: str, requests: Sequence[tuple[str, Sequence[str]]]
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving_benchmark.offline"],
            cwd=ROOT / "benchmarks",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._ask({"model": model, "device": device, "requests": list(requests)})

    def measure(self, seconds: float, numbers: Sequence[int] | None = None) -> dict[str, float]:
        """Texts and tokens a second, over about so many seconds.

        Args:
            seconds: about.
            numbers: of the requests whose texts are embedded, in this order and over again; None
                for all.
        """
        answer: dict[str, float] = self._ask({"measure": seconds, "numbers": numbers})
        return answer

    def embed(self, kind: str, texts: Sequence[str]) -> list[list[float]]:
        """The embeddings of texts."""
        answer: list[list[float]] = self._ask({"embed": [kind, list(texts)]})
        return answer

    def close(self) -> None:
        """End the process."""
        end_group(self._process)  # type: ignore[arg-type]  # of text, not bytes
        self._process.wait()

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit("error: the offline engine has ended")
        return json.loads(line)


def main() -> None:
    """Answer until the input ends."""
    sys.path.insert(0, str(ROOT))
    from c2v_engine import Causal2Vec

    start = json.loads(sys.stdin.readline())
    engine = Causal2Vec.from_pretrained(start["model"], device=start["device"])
    requests: list[tuple[str, list[str]]] = start["requests"]

    def encode(count: int, numbers: list[int]) -> tuple[int, float]:
        """Embed the first requests until so many texts; their number and the seconds."""
        texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
        taken = 0
        for number in numbers:
            if taken >= count:
                break
            kind, some = requests[number]
            texts[kind] += some
            taken += len(some)
        begin = time.perf_counter()
        engine.encode(texts["query"], prompt_name="query", show_progress_bar=False)
        engine.encode(texts["document"], prompt_name="document", show_progress_bar=False)
        return taken, time.perf_counter() - begin

    for _ in range(2):  # the second one is a first guess of the rate
        rate = _WARM_UP_TEXTS / encode(_WARM_UP_TEXTS, list(range(len(requests))))[1]
    print("{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "embed" in command:
            kind, texts = command["embed"]
            answer: Any = engine.encode(texts, prompt_name=kind, show_progress_bar=False).tolist()
        else:
            before, wanted, done, seconds = engine.stats.tokens, command["measure"], 0, 0.0
            numbers = command["numbers"] or list(range(len(requests)))
            while seconds < 0.7 * wanted:  # all texts may take less
                count, took = encode(max(_WARM_UP_TEXTS, int(rate * (wanted - seconds))), numbers)
                done, seconds = done + count, seconds + took
                rate = count / took
            tokens = engine.stats.tokens - before
            answer = {"texts_per_second": done / seconds, "tokens_per_second": tokens / seconds}
            answer |= {"texts": done, "seconds": seconds}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
