"""What a search gives: for every query the best passages and their scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

from c2v_engine.errors import InputError

# Passage ids and scores by query id, the best first.
Ranking = dict[str, list[tuple[str, float]]]


def cut_ranking(ranking: Ranking, depth: int, *, ignore_identical_ids: bool) -> Ranking:
    """Keep the best passages of every query.

    Args:
        ranking: one passage deeper than ``depth``, if identical ids are ignored.
        depth: passages to keep.
        ignore_identical_ids: whether a passage with the query's own id is taken out first.
    """
    return {
        query: [hit for hit in hits if not (ignore_identical_ids and hit[0] == query)][:depth]
        for query, hits in ranking.items()
    }


def check_run_ids(path: Path, ids: Iterable[str]) -> None:
    """Check that a TREC run can hold some ids.

    Args:
        path: where the run will be, for messages.
        ids: of queries and passages.

    Raises:
        InputError: one has white space in it.
    """
    for key in ids:
        if len(key.split()) != 1:
            raise InputError(f"{path}: a TREC run can not hold the id {key!r}: it has spaces")


def write_run(ranking: Ranking, file: IO[bytes], tag: str) -> None:
    """Write a TREC run: ``query-id Q0 corpus-id rank score tag``, ranks from 1.

    Args:
        ranking: with ids that ``check_run_ids`` takes.
        file: takes UTF-8.
        tag: the system's name; its spaces become ``_``.

    Raises:
        OSError: the file can not be written.
    """
    tag = "_".join(tag.split())
    for query, hits in ranking.items():
        for rank, (passage, score) in enumerate(hits, start=1):
            file.write(f"{query} Q0 {passage} {rank} {score:.9g} {tag}\n".encode())
