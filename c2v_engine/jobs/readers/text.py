"""``.txt``: a line a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import Record
from c2v_engine.jobs.readers.source import ByteSource, SourceReader


class TextReader(SourceReader):
    r"""Every line is a text, an empty line an empty text.

    Only ``\n`` and ``\r\n`` end a line: the other characters that Unicode calls line ends are text.

    Raises:
        InputError: a column is asked for, or the file can not be opened.
    """

    def __init__(
        self, path: Path, compression: str | None, column: str | None, id_column: str | None
    ) -> None:
        for option, name in (("--column", column), ("--id-column", id_column)):
            if name is not None:
                raise InputError(
                    f"{path}: a .txt file has no columns, {option} {name} can not be found in it: "
                    f"leave {option} out, or give .jsonl, .csv or .parquet"
                )
        self.path = path
        self.id_type = pa.int64()
        self._source = ByteSource(path, compression)

    def __iter__(self) -> Iterator[Record]:
        decode = self._source.decode
        for line in self._source.lines():
            text = decode(line)
            if line.ended and text.endswith("\r"):
                text = text[:-1]
            yield Record(text, line.number - 1, line.number)
