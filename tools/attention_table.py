"""Turns results of the kernel benchmark into the table by which ``attention="auto"`` chooses.

    python tools/attention_table.py benchmarks/results/RESULT.json

For every dtype, head size, group of query heads and mask that the result measured on its GPU, the
backends are ranked by their median at each length. A rank holds for batches whose mean length is up
to half way to the next length measured; beyond the longest length nothing is said. What the table
held for the same GPU and shapes is replaced; all else in it stays.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from c2v_engine.bench.machine.facts import digest_sources  # noqa: E402
from c2v_engine.model.attention.measured import TABLE, Measurement, read_table  # noqa: E402

Key = tuple[str, str, int, int, str]


def key_of(entry: Measurement) -> Key:
    """What an entry of the table is about, but for the length."""
    return (entry.gpu, entry.dtype, entry.head_dim, entry.group, entry.mask)


def medians(results: list[dict[str, Any]]) -> dict[tuple[str, int, int, str], Any]:
    """Milliseconds by dtype, head size, group and mask, then by length, then by backend."""
    found: dict[tuple[str, int, int, str], Any] = defaultdict(lambda: defaultdict(dict))
    for entry in results:
        # An entry without times is of a backend that could not serve or gave a wrong result.
        if entry.get("op") != "attention" or entry.get("status", "ok") != "ok":
            continue
        group = entry["heads"] // entry["kv_heads"]
        shape = (entry["dtype"], entry["head_dim"], group, entry["mask"])
        found[shape][entry["length"]][entry["backend"]] = statistics.median(entry["ms"])
    return found


def check_sources(content: dict[str, Any], name: str) -> None:
    """Refuses a result that nobody could measure again.

    Raises:
        ValueError: it was not measured from the sources of a commit.
    """
    commit = content.get("commit")
    known = commit not in (None, "", "unknown")
    # A copy of a checkout may look changed to git where no source is.
    if not known or (
        content.get("dirty") and digest_of(str(commit)) != content.get("sources_sha256")
    ):
        raise ValueError(
            f"{name} was measured from files that are no commit's; commit, then measure"
        )


def digest_of(commit: str) -> str:
    """The digest of a commit's sources, as a result file has it; empty where it is not here."""
    command = ["git", "-C", str(ROOT), "archive", "--format=zip", commit]
    found = subprocess.run(command, capture_output=True, check=False)
    if found.returncode != 0:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(found.stdout)) as archive:
            archive.extractall(folder)
        return digest_sources(Path(folder))


def measurements(content: dict[str, Any], name: str) -> list[Measurement]:
    """What a result file says.

    Args:
        content: of the file.
        name: under which the table refers to it.

    Raises:
        ValueError: it is not of a GPU.
    """
    if not content.get("gpu") or not content.get("compute_capability"):
        raise ValueError(f"{name} was not measured on a GPU")
    capability = ".".join(map(str, content["compute_capability"]))
    entries = []
    for (dtype, head_dim, group, mask), by_length in medians(content["results"]).items():
        lengths = sorted(by_length)
        ends = [(a + b) // 2 for a, b in pairwise(lengths)] + lengths[-1:]
        for length, end in zip(lengths, ends, strict=True):
            times = by_length[length]
            entries.append(
                Measurement(
                    gpu=content["gpu"],
                    capability=capability,
                    dtype=dtype,
                    head_dim=head_dim,
                    group=group,
                    mask=mask,
                    mean_length_up_to=end,
                    backends=tuple(sorted(times, key=times.__getitem__)),
                    result=name,
                    commit=content["commit"],
                )
            )
    return entries


def merged(old: list[Measurement], new: list[Measurement]) -> list[Measurement]:
    """The table with new measurements in the place of old ones of the same GPU and shapes."""
    replaced = {key_of(entry) for entry in new}
    kept = [entry for entry in old if key_of(entry) not in replaced]
    return sorted([*kept, *new], key=lambda entry: (*key_of(entry), entry.mean_length_up_to))


def write_table(path: Path, entries: list[Measurement]) -> None:
    """One entry a line, so that a change shows as the lines that it changes."""
    lines = ",\n".join(f"  {json.dumps(asdict(entry))}" for entry in entries)
    path.write_text(f'{{"entries": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Read a result, write the table, print what it now says of the result's GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path, help="a result file of the kernel benchmark")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    path: Path = arguments.result.resolve()
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_sources(content, name)
        new = measurements(content, name)
    except ValueError as error:
        sys.exit(str(error))
    old = list(read_table(arguments.table)) if arguments.table.is_file() else []
    write_table(arguments.table, merged(old, new))
    for entry in new:
        shape = f"{entry.dtype} D={entry.head_dim} group={entry.group} {entry.mask}"
        print(f"{shape}, up to {entry.mean_length_up_to}: {', '.join(entry.backends)}")


if __name__ == "__main__":
    main()
