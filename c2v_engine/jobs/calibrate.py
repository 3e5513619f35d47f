"""The calibrate job: the ranges for int8 and uint8 output, from one file of texts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

from c2v_engine.errors import TextError
from c2v_engine.jobs.feed import TextFeed
from c2v_engine.jobs.readers import open_reader


class Calibrator(Protocol):
    """What the job needs of ``Causal2Vec``."""

    def calibrate(
        self,
        texts: Iterable[str],
        *,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
    ) -> Any:
        """Compute the ranges [2, dimension] and keep them on the model."""


def calibrate_file(
    model: Calibrator,
    source: str | os.PathLike[str],
    *,
    column: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    max_texts: int | None = None,
) -> tuple[int, Any]:
    """Compute the range of every dimension over a file's first texts.

    Args:
        model: the engine; it keeps the ranges.
        source: the file of texts, see ``open_reader``.
        column: the column with the texts.
        prompt_name: the prompt the texts will be embedded with.
        truncate_dim: the dimension they will be embedded to.
        max_texts: read at most so many; None reads all.

    Returns:
        How many texts were read, and the ranges [2, dimension].

    Raises:
        InputError: the source, or one of its rows, can not be used.
    """
    with open_reader(source, column) as reader:
        feed = TextFeed(reader, limit=max_texts)
        try:
            ranges = model.calibrate(
                feed.texts(), truncate_dim=truncate_dim, prompt_name=prompt_name
            )
        except TextError as error:
            raise feed.place_error(error) from error
        return feed.pulled, ranges
