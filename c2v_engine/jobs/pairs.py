"""Training pairs on disk: read again and again, and copied with a ``negative`` beside each."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.readers import Reader, split_name
from c2v_engine.jobs.readers.columnar import ParquetReader
from c2v_engine.jobs.readers.jsonl import JsonLinesReader

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
FORMATS = (".jsonl", ".parquet")
_GROUP_ROWS = 64 * 1024
_GROUP_BYTES = 32 * 1024 * 1024

# Gives the negatives of a row, by its number from 0.
Negatives = Callable[[int], Sequence[str]]


class Pair(NamedTuple):
    """One row's texts, and its line (from 1; None in Parquet)."""

    query: str
    positive: str
    line: int | None


class PairFile(ABC):
    """A file with the string columns ``query`` and ``positive``, and any others.

    Args:
        path: the file.
        replace: a ``negative`` column that exists is left out, instead of refused.

    Attributes:
        has_negatives: whether a row read so far had one.
    """

    has_negatives = False

    def __init__(self, path: Path, compression: str | None, replace: bool) -> None:
        self.path = path
        self._compression = compression
        self._replace = replace

    @abstractmethod
    def pairs(self) -> Iterator[Pair]:
        """Give the rows in order.

        Raises:
            InputError: a row can not be used. The message names file, row and reason.
        """

    @abstractmethod
    def open(self, column: str = QUERY) -> Reader:
        """Open the file anew."""

    @abstractmethod
    def copy(self, target: AtomicFile, negatives: Negatives) -> int:
        """Write every row once for each of its negatives, with all its columns.

        Returns:
            How many rows were read.

        Raises:
            OSError: the system refuses, for example on a full disk.
        """

    def bad_row(self, row: int, line: int | None, reason: str) -> InputError:
        """Make the error that names file, row (from 1) and reason."""
        with self.open() as reader:
            return reader.bad_row(row, line, reason)

    def _check(self, reader: Reader, number: int, pair: Pair) -> Pair:
        for column, text in ((QUERY, pair.query), (POSITIVE, pair.positive)):
            if not text.strip():
                reason = f"column {column!r} is empty, expected a text"
                raise reader.bad_row(number, pair.line, reason)
        return pair

    def _refused(self) -> str:
        return f"has a column {NEGATIVE!r} already; --overwrite-negatives replaces it"


class JsonLinesPairs(PairFile):
    """``.jsonl``. What stands in a row is copied byte for byte."""

    def open(self, column: str = QUERY) -> JsonLinesReader:
        """Open the file anew."""
        return JsonLinesReader(self.path, self._compression, column, None)

    def pairs(self) -> Iterator[Pair]:
        """Give the rows in order; see ``PairFile``."""
        with self.open() as reader:
            assert isinstance(reader, JsonLinesReader)
            for line, row in reader.objects():
                number = line.number
                if NEGATIVE in row:
                    self.has_negatives = True
                    if not self._replace:
                        raise reader.bad_row(number, number, self._refused())
                texts = [reader.text(line, row, column) for column in (QUERY, POSITIVE)]
                yield self._check(reader, number, Pair(texts[0], texts[1], number))

    def copy(self, target: AtomicFile, negatives: Negatives) -> int:
        """Write every row once for each of its negatives; see ``PairFile``."""
        count = 0
        with self.open() as reader:
            assert isinstance(reader, JsonLinesReader)
            for number, (line, row) in enumerate(reader.objects()):
                count += 1
                chosen = negatives(number)
                if not chosen:
                    continue
                start = line.data.strip()[:-1].rstrip()
                if row.pop(NEGATIVE, self) is not self:
                    start = _as_json(row)[:-1]
                for text in chosen:
                    value = json.dumps(text, ensure_ascii=False).encode()
                    target.file.write(start + b', "negative": ' + value + b"}\n")
        return count


class ParquetPairs(PairFile):
    """``.parquet``. Columns keep their types."""

    def __init__(self, path: Path, compression: str | None, replace: bool) -> None:
        super().__init__(path, compression, replace)
        with self.open() as reader:
            assert isinstance(reader, ParquetReader)
            names = reader.schema.names
            if len(set(names)) < len(names):
                raise InputError(f"{path}: several columns have the same name")
            self.has_negatives = NEGATIVE in names
        if self.has_negatives and not replace:
            raise InputError(f"{path}: {self._refused()}")

    def open(self, column: str = QUERY) -> ParquetReader:
        """Open the file anew."""
        return ParquetReader(self.path, self._compression, column, None)

    def pairs(self) -> Iterator[Pair]:
        """Give the rows in order; see ``PairFile``."""
        with self.open(QUERY) as queries, self.open(POSITIVE) as positives:
            rows = zip(queries, positives, strict=True)
            for number, (query, positive) in enumerate(rows, 1):
                yield self._check(queries, number, Pair(query.text, positive.text, None))

    def copy(self, target: AtomicFile, negatives: Negatives) -> int:
        """Write every row once for each of its negatives; see ``PairFile``."""
        with self.open() as reader:
            assert isinstance(reader, ParquetReader)
            kept = [name for name in reader.schema.names if name != NEGATIVE]
            fields = [reader.schema.field(name) for name in kept]
            added = pa.field(NEGATIVE, pa.string(), nullable=False)
            schema = pa.schema([*fields, added], metadata=reader.schema.metadata)
            writer = pq.ParquetWriter(target.file, schema, compression="zstd")
            try:
                rows = self._copy_batches(reader, kept, schema, writer, negatives)
                writer.close()
            finally:
                writer.is_open = False  # a writer that is collected would try to write a footer
        return rows

    def _copy_batches(
        self, reader: ParquetReader, kept: list[str], schema: Any, writer: Any, negatives: Negatives
    ) -> int:
        held: list[Any] = []
        done = 0
        for batch in reader.batches(kept):
            chosen = [negatives(done + index) for index in range(len(batch))]
            done += len(batch)
            repeats = [index for index, texts in enumerate(chosen) for _ in texts]
            texts = [text for row in chosen for text in row]
            if texts:
                columns = batch.take(pa.array(repeats)).columns
                arrays = [*columns, pa.array(texts, pa.string())]
                held.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            size = sum(batch.nbytes for batch in held)
            if size > _GROUP_BYTES or sum(map(len, held)) > _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(held, schema))
                held = []
        if held:
            writer.write_table(pa.Table.from_batches(held, schema))
        return done


def _as_json(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        return json.dumps(row).encode()


def open_pairs(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, replace: bool = False
) -> PairFile:
    """Open a file of training pairs that will be written to another of its format.

    Args:
        path: ``.jsonl`` or ``.parquet``, also ``.gz`` or ``.zst``. It is read several times.
        output: ``.jsonl`` for the former, ``.parquet`` for the latter.
        replace: a ``negative`` column that exists is left out, instead of refused.

    Raises:
        InputError: the file can not be used.
        OutputError: the output's name does not fit, or is the input.
    """
    path, output = Path(path), Path(output)
    if not path.is_file():
        kind = "not a regular file, which can be read several times" if path.exists() else ""
        raise InputError(f"{path}: {kind or 'no such file'}")
    extension, compression = split_name(path)
    if extension not in FORMATS:
        raise InputError(f"{path}: pairs are read from {' or '.join(FORMATS)}")
    if output.suffix.lower() != extension:
        raise OutputError(f"{output}: expected a name that ends in {extension}, as the input does")
    if output.exists() and os.path.samefile(path, output):
        raise OutputError(f"{output}: is the input itself")
    kind_of_pairs = JsonLinesPairs if extension == ".jsonl" else ParquetPairs
    return kind_of_pairs(path, compression, replace)
