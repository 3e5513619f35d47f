"""Retrieval sets in the BEIR layout, of packages that no training pair was made from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import queries
from cleaning import normalized
from docstrings import Docstring
from pairs import Passage, body_or_text, has_body, kinds_of, query_of

MIX = {"summary": 0.35, "question": 0.35, "symbol": 0.2, "section": 0.1}  # of the queries
LEAKED = 0.5  # share of a passage's 8-grams that stand in training at which it is dropped


@dataclass(frozen=True)
class Entry:
    """A passage of the corpus with its text, fixed once, and its query if it has one."""

    passage: Passage
    text: str
    kind: str
    query: str | None


@dataclass
class Leaks:
    """What training texts share with the passages that are to be held out."""

    grams: set[int]
    texts: set[str]
    found_grams: set[int]
    found_texts: set[str]

    @classmethod
    def of(cls, passages: list[Passage]) -> Leaks:
        """A watch for any text of these passages."""
        grams = set().union(*(passage.grams for passage in passages))
        return cls(grams, {normalized(p.text) for p in passages}, set(), set())

    def read(self, passage: Passage) -> None:
        """Note what a training passage shares with those that are held out."""
        self.found_grams |= self.grams & passage.grams
        if (text := normalized(passage.text)) in self.texts:
            self.found_texts.add(text)

    def holds(self, passage: Passage) -> bool:
        """Whether a passage, or most of it, stands in training."""
        shared = len(passage.grams & self.found_grams)
        return normalized(passage.text) in self.found_texts or (
            bool(passage.grams) and shared >= LEAKED * len(passage.grams)
        )


def _entry(passage: Passage, seed: int) -> Entry:
    """The passage as the corpus has it: without its summary, unless the symbol is asked for."""
    kind = kinds_of(passage, seed)[0]
    content = passage.content
    if isinstance(content, Docstring) and (
        not has_body(content) or query_of(passage, kind, seed) is None
    ):
        kind = "symbol"
    text = body_or_text(passage, kind)
    query = query_of(passage, kind, seed)
    if query and normalized(query) in normalized(text):
        query = None
    return Entry(passage, text, kind, query)


def _chosen(entries: list[Entry], count: int) -> list[Entry]:
    """Queried entries in the mix of kinds, taken from each package in turn.

    Where a kind has too few, summaries and questions make up the count.
    """
    asked = Counter(normalized(entry.query) for entry in entries if entry.query)
    chosen: list[Entry] = []
    spare: list[tuple[int, str, Entry]] = []
    for kind, share in MIX.items():
        turns: Counter[str] = Counter()
        ranked: list[tuple[int, str, Entry]] = []
        for entry in entries:
            if entry.kind == kind and entry.query and asked[normalized(entry.query)] == 1:
                turns[entry.passage.package] += 1
                ranked.append((turns[entry.passage.package], entry.passage.package, entry))
        ranked.sort(key=lambda item: item[:2])
        chosen += [entry for _, _, entry in ranked[: round(count * share)]]
        spare += ranked[round(count * share) :]
    spare.sort(key=lambda item: (item[2].kind == "symbol", item[:2]))
    return chosen + [entry for _, _, entry in spare[: count - len(chosen)]]


def write_beir(
    folder: Path, passages: list[Passage], count: int, limit: int, seed: int
) -> dict[str, Counter[str]]:
    """Write corpus, queries and judgements of these passages.

    Args:
        folder: where ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv`` go.
        passages: what to search, without leaks.
        count: number of queries, fewer where a kind is rare.
        limit: number of passages at most; those with a query stay.
        seed: of every choice.

    Returns:
        By package, the number of passages and of queries by kind.
    """
    unique: dict[str, Entry] = {}
    for passage in passages:
        entry = _entry(passage, seed)
        unique.setdefault(normalized(entry.text), entry)
    entries = list(unique.values())
    chosen = _chosen(entries, count)
    asked = {id(entry) for entry in chosen}
    rest = [entry for entry in entries if id(entry) not in asked]
    rest.sort(key=lambda e: (queries.chance(seed, "corpus", e.passage.key), e.passage.key))
    kept = chosen + rest[: max(0, limit - len(chosen))]
    kept.sort(key=lambda entry: (entry.passage.package, entry.passage.key))
    counts: dict[str, Counter[str]] = {}
    corpus: list[dict[str, object]] = []
    asking: list[dict[str, object]] = []
    judged = ["query-id\tcorpus-id\tscore"]
    for number, entry in enumerate(kept):
        package = entry.passage.package
        tally = counts.setdefault(package, Counter())
        tally["passages"] += 1
        corpus.append({"_id": f"p{number:05d}", "title": "", "text": entry.text})
        if id(entry) in asked:
            tally[entry.kind] += 1
            name = f"q{len(asking):05d}"
            metadata = {"kind": entry.kind, "package": package}
            asking.append({"_id": name, "text": entry.query, "metadata": metadata})
            judged.append(f"{name}\tp{number:05d}\t1")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", asking)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text("".join(lines), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    return counts
