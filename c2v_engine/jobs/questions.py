"""From questions in words to the nearest rows, their ids and their texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError, TextError
from c2v_engine.jobs.decoding import RANGED
from c2v_engine.jobs.maker import check_maker
from c2v_engine.jobs.readers import open_reader
from c2v_engine.jobs.search import EmbeddingIndex, ExactIndex


class Questioner(Protocol):
    """What a search needs of ``Causal2Vec``."""

    @property
    def ranges(self) -> NDArray[Any] | None:
        """Float32 [2, dimensions] by which int8 and uint8 are quantised."""

    def info(self) -> dict[str, Any]:
        """Say what the model is: its name, fingerprint and prompts."""

    def output_dimension(self, truncate_dim: int | None, precision: Any) -> int:
        """Give the number of dimensions."""

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Give embeddings in blocks, in order."""


@dataclass(frozen=True)
class Hit:
    """One row that was found.

    Attributes:
        rank: from 1.
        score: cosine similarity.
        row: number in the index, from 0.
        id: of the row.
        text: of the row, None where no file of texts was given.
    """

    rank: int
    score: float
    row: int
    id: str | int
    text: str | None = None


def check_model(index: EmbeddingIndex, model: Questioner) -> None:
    """Check that the questions are embedded by the model that made the index.

    Raises:
        InputError: another one made it. An index that does not say which is taken as it is.
    """
    check_maker(index.path, index.about, model.info())


def ask(
    index: EmbeddingIndex,
    model: Questioner,
    questions: Sequence[str],
    k: int,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    first: int = 0,
) -> list[list[Hit]]:
    """Find the nearest rows of every question.

    Args:
        index: where to search.
        model: embeds the questions, and lends its ranges to an index that has none.
        questions: the texts.
        k: rows for each.
        prompt_name: of the model's prompts; ``query`` where it has that and nothing is given.
        prompt: a prompt given as it is.
        first: how many questions came before these, for messages.

    Raises:
        InputError: model and index do not fit, a question can not be embedded, or the index is
            damaged.
    """
    if prompt_name is None and prompt is None and "query" in model.info().get("prompts", {}):
        prompt_name = "query"
    if isinstance(index, ExactIndex) and index.precision in RANGED and index.ranges is None:
        index.ranges = model.ranges
    truncate_dim = index.truncate_dim(model.output_dimension(None, "float32"))
    index.check_dimension(model.output_dimension(truncate_dim, "float32"))
    try:
        blocks = model.encode_stream(
            questions, prompt_name=prompt_name, prompt=prompt, truncate_dim=truncate_dim
        )
        vectors = np.concatenate(list(blocks))
    except TextError as error:
        raise InputError(f"question {first + error.row + 1}: {error.reason}") from error
    nearest = index.search(vectors, k)
    found = [int(row) for row in nearest.rows.reshape(-1) if row >= 0]
    ids = dict(zip(found, index.ids(found), strict=True))
    return [
        [
            Hit(rank, float(score), int(row), ids[int(row)])
            for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
            if row >= 0
        ]
        for scores, rows in zip(nearest.scores, nearest.rows, strict=True)
    ]


def check_texts(
    source: str | os.PathLike[str], *, column: str | None = None, id_column: str | None = None
) -> None:
    """Check, by its first row, that texts can be found in a file; the options are ``find_texts``'.

    Raises:
        InputError: the file or its first row can not be read, or it is no file that can be read
            again.
    """
    if os.path.exists(source) and not (os.path.isfile(source) or os.path.isdir(source)):
        raise InputError(f"{source}: not a regular file, which can be read several times")
    with open_reader(source, column, id_column) as reader:
        next(iter(reader), None)


def find_texts(
    source: str | os.PathLike[str],
    wanted: dict[int, str | int],
    *,
    column: str | None = None,
    id_column: str | None = None,
) -> dict[int, str]:
    """Find the texts of some rows in the file that was embedded, or in one with the same ids.

    The file is streamed, and no further than needed.

    Args:
        source: the file of texts, see ``open_reader``.
        wanted: the ids of the rows by their numbers.
        column: the column with the texts.
        id_column: the column with the ids. Without one, the file must be in the index's order.

    Returns:
        The texts by row number.

    Raises:
        InputError: the file can not be read, or lacks a row.
    """
    found: dict[int, str] = {}
    elsewhere: dict[str, str] = {}
    ids = set(map(str, wanted.values()))
    if not wanted:
        return found
    with open_reader(source, column, id_column) as reader:
        for row, record in enumerate(reader):
            key = str(record.id)
            # Ids may repeat: the row with the same number wins, then the first with the id.
            if row in wanted and (id_column is None or str(wanted[row]) == key):
                found[row] = record.text
                if len(found) == len(wanted):
                    break
            elif id_column is not None and key in ids:
                elsewhere.setdefault(key, record.text)
    for row in wanted.keys() - found.keys():
        text = elsewhere.get(str(wanted[row]))
        if text is None:
            by_id = f"row with the id {wanted[row]!r}"
            sought = f"row {row + 1}" if id_column is None else by_id
            raise InputError(f"{source}: has no {sought}: it is not the file that was embedded")
        found[row] = text
    return found
