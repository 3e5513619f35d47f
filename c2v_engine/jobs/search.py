"""Search in what ``c2v encode`` wrote: the nearest rows by cosine, for vectors or for questions."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError
from c2v_engine.jobs.decoding import PACKED, RANGED, decoder_of, resolve_precision, unit_rows
from c2v_engine.jobs.topk import TopK
from c2v_engine.jobs.vectors import VectorFile, open_vectors
from c2v_engine.jobs.writers import unpack_ranges

APPROXIMATE = ".usearch"
# float32 values of an index that are held together, and questions that share a pass over it.
_BLOCK_VALUES = 4 * 1024 * 1024
_MOST_BLOCK_ROWS = 16 * 1024
_QUESTIONS = 512


@dataclass(frozen=True)
class Nearest:
    """The nearest rows of some vectors, best first; of equal scores the lowest row first.

    Attributes:
        scores: float32 [vectors, k], cosine similarities. k is the number of rows where there are
            fewer than were asked for.
        rows: int64 [vectors, k], row numbers of the index, from 0; -1 where an approximate search
            found fewer than k.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class EmbeddingIndex(ABC):
    """Embeddings on disk that can be searched.

    ``EmbeddingIndex.open`` chooses between exact search over the output of ``c2v encode`` and the
    approximate one over the output of ``c2v index``. Nothing is copied into memory at once.

    Attributes:
        path: the file.
        rows: how many embeddings it holds.
        about: what made them: ``model``, ``fingerprint``, ``precision``, ``truncate_dim``, ...;
            empty where the file says nothing (.npy).
        ranges: float32 [2, dimensions] by which int8 and uint8 are read, None where they are not
            known; may be set.
    """

    path: Path
    rows: int
    about: dict[str, Any]
    ranges: NDArray[Any] | None = None

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        precision: str | None = None,
        truncate_dim: int | None = None,
    ) -> EmbeddingIndex:
        """Open an index.

        Args:
            path: a file or a folder from ``c2v encode``, a file from ``c2v merge``, or ``.usearch``
                from ``c2v index``.
            precision: of the embeddings, where the file does not say it (int8 and uint8 in .npy).
            truncate_dim: dimensions of the embeddings, where the file does not say it: packed bits
                in .npy may fill their last byte or not.

        Raises:
            InputError: it is missing or damaged, can not be searched, or says otherwise.
            BackendError: ``.usearch`` is given, and usearch is not installed.
        """
        path = Path(path)
        if path.suffix.lower() == APPROXIMATE:
            from c2v_engine.jobs.approximate import ApproximateIndex

            given = {"--precision": precision, "--truncate-dim": truncate_dim}
            for option, value in given.items():
                if value is not None:
                    raise InputError(f"{path}: says what it holds itself: leave {option} out")
            return ApproximateIndex(path)
        return ExactIndex(open_vectors(path), precision, truncate_dim)

    @abstractmethod
    def check_dimension(self, dimension: int) -> None:
        """Check that vectors of a dimension can be compared.

        Raises:
            InputError: the index holds embeddings of another.
        """

    @abstractmethod
    def truncate_dim(self, dimension: int) -> int | None:
        """What a model of this whole dimension cuts its questions to; None where it keeps all.

        Raises:
            InputError: packed bits that may be of several dimensions.
        """

    def search(self, vectors: NDArray[Any], k: int = 10) -> Nearest:
        """Find the nearest rows.

        Args:
            vectors: float [vectors, dimension] or [dimension]; scaled to unit length here.
            k: how many for each.

        Raises:
            InputError: a wrong shape or k, values that are not finite, or a damaged index.
        """
        questions = np.asarray(vectors)
        questions = questions[None] if questions.ndim == 1 else questions
        if questions.ndim != 2 or questions.dtype.kind != "f":
            raise InputError(
                f"vectors are {questions.dtype} of shape {list(questions.shape)}, expected floats "
                "[vectors, dimension]"
            )
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k is {k!r}, expected a whole number of at least 1")
        self.check_dimension(questions.shape[1])
        units, bad = unit_rows(questions.astype(np.float32))
        if bad is not None:
            raise InputError(f"vector {bad} holds values that are not finite")
        parts = [
            self._nearest(units[first : first + _QUESTIONS], min(int(k), self.rows))
            for first in range(0, max(1, len(units)), _QUESTIONS)
        ]
        scores, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Nearest(scores, rows)

    @abstractmethod
    def _nearest(
        self, units: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search with unit vectors [vectors, dimension]; k is at most ``rows``."""

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str | int]:
        """Give the ids of rows; row numbers where ids were not kept.

        Raises:
            InputError: there is no such row, or the file with the ids is gone or has changed.
        """
        numbers = [int(row) for row in rows]
        for number in numbers:
            if not 0 <= number < self.rows:
                raise InputError(f"{self.path}: has no row {number}, expected 0 to {self.rows - 1}")
        return self._ids(numbers)

    @abstractmethod
    def _ids(self, rows: list[int]) -> list[str | int]:
        """Give the ids of rows that there are."""


class ExactIndex(EmbeddingIndex):
    """Every row is compared, a block at a time.

    Args:
        vectors: the file.
        precision: as ``EmbeddingIndex.open`` takes it.
        truncate_dim: likewise.

    Raises:
        InputError: the file says otherwise, or its columns do.
    """

    def __init__(
        self,
        vectors: VectorFile,
        precision: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.path = vectors.path
        self.rows = vectors.rows
        self.about = vectors.about
        self._vectors = vectors
        self.precision = resolve_precision(
            str(self.path), vectors.dtype, self.about.get("precision"), precision
        )
        self.ranges = self._stored_ranges()
        self._truncate_dim = self._check_truncate_dim(truncate_dim)

    def _check_truncate_dim(self, given: int | None) -> int | None:
        stored: int | None = self.about.get("truncate_dim")
        if given is None:
            return stored
        if self.about and given != stored:
            states = "all dimensions" if stored is None else f"truncate_dim {stored}"
            raise InputError(f"{self.path}: states {states}, not {given}: leave --truncate-dim out")
        if self._columns(given) != self._vectors.columns:
            raise InputError(
                f"{self.path}: truncate_dim {given} is asked for, which takes "
                f"{self._columns(given)}{self._unit}, but it holds {self._vectors.columns}"
            )
        return given

    def _columns(self, dimension: int) -> int:
        return -(-dimension // 8) if self.packed else dimension

    @property
    def _unit(self) -> str:
        return " bytes of packed bits" if self.packed else " dimensions"

    def _stored_ranges(self) -> NDArray[Any] | None:
        text = self.about.get("ranges")
        if self.precision not in RANGED or text is None:
            return None
        try:
            return unpack_ranges(text)
        except (TypeError, ValueError):
            raise InputError(f"{self.path}: its stored ranges are not readable") from None

    @property
    def packed(self) -> bool:
        """Whether eight dimensions share a byte."""
        return self.precision in PACKED

    def check_dimension(self, dimension: int) -> None:
        """Check that vectors of a dimension can be compared; see ``EmbeddingIndex``."""
        fits = self._truncate_dim in (None, dimension)
        if not fits or self._columns(dimension) != self._vectors.columns:
            held = f"{self._vectors.columns}{self._unit}"
            if self.packed and self._truncate_dim is not None:
                held = f"{self._truncate_dim} dimensions"
            raise InputError(
                f"{self.path}: holds embeddings of {held}, the question's vector has {dimension} "
                "dimensions: it is of another model or truncate_dim"
            )

    def truncate_dim(self, dimension: int) -> int | None:
        """What a model cuts its questions to; see ``EmbeddingIndex``."""
        if self.about or self._truncate_dim is not None:
            return self._truncate_dim
        columns = self._vectors.columns
        if self.packed and columns != self._columns(dimension):
            raise InputError(
                f"{self.path}: holds {columns}{self._unit}, the model has {dimension} dimensions: "
                f"pass --truncate-dim, of {8 * columns - 7} to {8 * columns} that which it was "
                "embedded with"
            )
        return columns if columns < dimension and not self.packed else None

    def unit_blocks(self, dimension: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Give the rows as unit vectors, float32 [rows, dimension], with the first one's number.

        Raises:
            InputError: ranges are missing or do not fit, or a row is not finite.
        """
        self._check_ranges(dimension)
        decode = decoder_of(self.precision, dimension, self.ranges)
        size = max(1, min(_MOST_BLOCK_ROWS, _BLOCK_VALUES // dimension))
        for first, block in self._vectors.blocks(size):
            units, bad = unit_rows(decode(block))
            if bad is not None:
                place = f"{self.path}, row {first + bad + 1}"
                raise InputError(f"{place}: the embedding holds values that are not finite")
            yield first, units

    def _check_ranges(self, dimension: int) -> None:
        if self.precision not in RANGED:
            return
        if self.ranges is None:
            raise InputError(
                f"{self.path}: {self.precision} embeddings are read by their ranges, and neither "
                "the file nor the model has them: store them with c2v calibrate"
            )
        if np.shape(self.ranges) != (2, dimension):
            raise InputError(
                f"{self.path}: the ranges have shape {list(np.shape(self.ranges))}, expected "
                f"[2, {dimension}]"
            )

    def _nearest(
        self, units: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        best = TopK(len(units), k)
        for first, rows in self.unit_blocks(units.shape[1]):
            best.update(units @ rows.T, first)
        return best.result()

    def _ids(self, rows: list[int]) -> list[str | int]:
        return self._vectors.ids(rows)
