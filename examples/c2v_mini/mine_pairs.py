"""Mine pairs of query and passage from the docstrings and documents of Python packages.

Writes ``pairs.jsonl`` to train on, ``heldout/`` and ``dev/`` to measure on (BEIR layout, of other
packages), and ``provenance.json``. Packages are read, never imported; the same inputs and seed
give the same bytes.

Usage: python examples/c2v_mini/mine_pairs.py OUT --cache DIR [--packages FILE] [--seed N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import sysconfig
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import queries
from heldout import MIX, Leaks, write_beir
from packages import (
    GROUPS,
    Pin,
    Source,
    download,
    find_wheel,
    read_pins,
    read_standard_library,
    read_wheel,
)
from pairs import KINDS, Pair, PairMaker, Passage, Repetition, passages

from c2v_engine.errors import InputError

PACKAGE_LIMIT = 3500  # pairs or passages of one package
LIBRARY_LIMIT = 9000  # pairs of the standard library, many packages in one
QUERIES = {"held-out": 2500, "dev": 300}
CORPUS = {"held-out": 20_000, "dev": 1500}
FOLDERS = {"held-out": "heldout", "dev": "dev"}


@dataclass
class Record:
    """What one package gave."""

    package: str
    version: str
    license: str
    group: str
    sha256: str
    counts: Counter[str] = field(default_factory=Counter)


class Miner:
    """Reads sources one by one and keeps what they give."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.records: dict[str, Record] = {}
        self.refused: dict[str, str] = {}
        self.repetition = Repetition()
        self.maker = PairMaker(seed)
        self.pairs: list[Pair] = []
        self.apart: dict[str, list[Passage]] = {"held-out": [], "dev": []}

    def add(self, source: Source) -> Record:
        """Note a source."""
        pin = source.pin
        record = Record(pin.name, pin.version, source.license, pin.group, source.sha256)
        self.records[pin.name] = record
        return record

    def hold_out(self, source: Source) -> None:
        """Keep a source's passages apart from training."""
        record = self.add(source)
        # Its own Repetition: what training repeats of it is the leak check's business.
        found = passages(source, Repetition(), PACKAGE_LIMIT, self.seed)
        self.apart[source.pin.group] += found
        print(f"{record.package} {record.version}: {len(found):,} passages held out", flush=True)

    def train_on(self, source: Source, watches: list[Leaks]) -> None:
        """Make pairs of a source, and note what they share with the passages held out."""
        record = self.add(source)
        limit = LIBRARY_LIMIT if source.pin.name == "python" else PACKAGE_LIMIT
        made: list[Pair] = []
        for passage in passages(source, self.repetition, limit, self.seed):
            if len(made) >= limit:
                break
            found = self.maker.pairs(passage)
            if found:
                made += found
                for watch in watches:
                    watch.read(passage)
        record.counts.update(pair.kind for pair in made)
        self.pairs += made
        print(f"{record.package} {record.version}: {len(made):,} pairs", flush=True)


def sources(pins: list[Pin], cache: Path, miner: Miner) -> dict[str, Path]:
    """Wheels by package, fetched where the cache lacks them; failures are noted, not fatal."""
    failed = download(pins, cache)
    found = {}
    for pin in pins:
        if path := find_wheel(pin, cache):
            found[pin.name] = path
        else:
            miner.refused[pin.name] = failed.get(pin.name, "pip gave no wheel of this version")
            print(f"{pin.name}: skipped, {miner.refused[pin.name]}", file=sys.stderr)
    return found


def mine(pins: list[Pin], wheels: dict[str, Path], library: Source | None, miner: Miner) -> None:
    """Read all packages: those held out first, so that training is watched for their texts."""
    for pin in sorted(pins, key=lambda pin: (pin.group == "training", pin.name)):
        if pin.name not in wheels or pin.group == "training":
            continue
        _read(pin, wheels[pin.name], miner, [])
    watches = [Leaks.of(miner.apart[group]) for group in FOLDERS]
    if library is not None:
        miner.train_on(library, watches)
    for pin in pins:
        if pin.name in wheels and pin.group == "training":
            _read(pin, wheels[pin.name], miner, watches)
    for group, watch in zip(FOLDERS, watches, strict=True):
        before = miner.apart[group]
        miner.apart[group] = [passage for passage in before if not watch.holds(passage)]
        print(f"{group}: {len(before) - len(miner.apart[group]):,} passages stand in training")
    apart = Leaks.of(miner.apart["dev"])
    for passage in miner.apart["held-out"]:
        apart.read(passage)
    miner.apart["dev"] = [passage for passage in miner.apart["dev"] if not apart.holds(passage)]


def _read(pin: Pin, wheel: Path, miner: Miner, watches: list[Leaks]) -> None:
    try:
        source = read_wheel(pin, wheel)
    except InputError as error:
        miner.refused[pin.name] = str(error)
        print(f"refused: {error}", file=sys.stderr)
        return
    if pin.group == "training":
        miner.train_on(source, watches)
    else:
        miner.hold_out(source)


def write(out: Path, miner: Miner) -> None:
    """Write pairs, both retrieval sets and the provenance."""
    out.mkdir(parents=True, exist_ok=True)
    order = sorted(
        miner.pairs, key=lambda p: (queries.chance(miner.seed, p.query, p.positive), p.query)
    )
    with (out / "pairs.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for pair in order:
            file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")
    for group, folder in FOLDERS.items():
        counts = write_beir(
            out / folder, miner.apart[group], QUERIES[group], CORPUS[group], miner.seed
        )
        for package, tally in counts.items():
            miner.records[package].counts.update(tally)
    files = [path for path in sorted(out.rglob("*")) if path.suffix in (".jsonl", ".tsv")]
    provenance = {
        "seed": miner.seed,
        "python": platform.python_version(),
        "query_mix": MIX,
        "packages": [
            {**asdict(record), "counts": dict(sorted(record.counts.items()))}
            for _, record in sorted(miner.records.items())
        ],
        "refused": dict(sorted(miner.refused.items())),
        "files": {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        },
    }
    text = json.dumps(provenance, indent=1, ensure_ascii=False) + "\n"
    (out / "provenance.json").write_text(text, encoding="utf-8")


def table(miner: Miner) -> str:
    """The closing table: packages, and pairs or queries by kind, of each group."""
    columns = ("packages", *KINDS, "passages")
    rows = [f"{'group':<10}" + "".join(f"{name:>10}" for name in columns)]
    for group in GROUPS:
        records = [record for record in miner.records.values() if record.group == group]
        total: Counter[str] = sum((record.counts for record in records), Counter())
        numbers = [len(records), *(total[name] for name in columns[1:])]
        rows.append(f"{group:<10}" + "".join(f"{number:>10,}" for number in numbers))
    return "\n".join(rows)


def main() -> None:
    """Read the command line, mine, write, and print the closing table."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--cache", type=Path, required=True, help="folder of wheels")
    parser.add_argument("--packages", type=Path, default=here / "packages.txt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-stdlib", action="store_true", help="leave the standard library out")
    arguments = parser.parse_args()
    miner = Miner(arguments.seed)
    try:
        pins = read_pins(arguments.packages)
    except (InputError, OSError) as error:
        sys.exit(f"mine_pairs: {error}")
    wheels = sources(pins, arguments.cache, miner)
    library = None
    if not arguments.no_stdlib:
        root = Path(sysconfig.get_paths()["stdlib"])
        library = read_standard_library(root, platform.python_version())
    mine(pins, wheels, library, miner)
    write(arguments.out, miner)
    print(table(miner))


if __name__ == "__main__":
    main()
