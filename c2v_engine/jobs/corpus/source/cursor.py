"""The lines of an input file, from any place on, many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.readers.source import MAX_LINE_BYTES, UTF8_BOM, ByteSource, Line, SourceError

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LineBlock:
    r"""Consecutive lines of a file.

    Attributes:
        number: of lines before them.
        offset: of their first byte in the decompressed file; a byte-order mark stands before it.
        data: their bytes, without the last ``\n``.
        ended: whether there is a last ``\n``; False only at the end of a file.
    """

    number: int
    offset: int
    data: bytes
    ended: bool

    def __len__(self) -> int:
        return len(self.ends) + 1

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """Where all lines but the last end, in ``data``."""
        return _ends_of(self.data)

    def offset_of(self, line: int) -> int:
        """Where one of them begins in the decompressed file; lines are counted from 0."""
        if line == 0:
            return self.offset
        return self.offset + int(self.ends[line - 1]) + 1

    def after(self, line: int) -> LineBlock:
        """Those from one on, counted from 0."""
        offset = self.offset_of(line)
        return LineBlock(self.number + line, offset, self.data[offset - self.offset :], self.ended)

    def lines(self) -> Iterator[Line]:
        """Give them one by one."""
        offset = self.offset
        *ended, last = self.data.split(b"\n")
        for number, data in enumerate(ended, self.number + 1):
            yield Line(number, offset, data, True)
            offset += len(data) + 1
        yield Line(self.number + len(ended) + 1, offset, last, self.ended)


class LineCursor:
    r"""Gives lines, ended by ``\n`` alone, and carries on where it stands.

    Args:
        file: the file.

    Attributes:
        name: the file's.
        number: of lines before the next one.
        offset: of the next line's first byte in the decompressed file.

    Raises:
        InputError: the file can not be opened.
    """

    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._file = file
        self.number = self.offset = 0
        self._buffer = b""
        self._ends = _ends_of(b"")
        self._place = self._next = 0  # of what comes next in the buffer and among its line ends
        self._source = self._begin()

    def take(self, limit: int) -> LineBlock | None:
        """Give the next lines: as many as wanted, or fewer, but one at least; None at the end.

        Args:
            limit: how many at most.

        Raises:
            InputError: the file is broken from there on, or has a line that is too long.
        """
        if self._next >= len(self._ends) and not self._fill():
            return self._tail()
        last = min(self._next + limit, len(self._ends)) - 1
        start, end = self._place, int(self._ends[last])
        block = LineBlock(self.number, self.offset, self._buffer[start:end], True)
        self.number += last + 1 - self._next
        self.offset += end + 1 - start
        self._next, self._place = last + 1, end + 1
        return block

    def seek(self, offset: int, number: int) -> None:
        """Go to a line: on from here where that is possible, else from the file's beginning.

        Args:
            offset: of its first byte in the decompressed file.
            number: of lines before it.

        Raises:
            InputError: the file is broken before that place.
        """
        if number == self.number:
            return
        if offset < self.offset:
            self._source.close()
            self._source = self._begin()
        ahead = offset - self.offset - (len(self._buffer) - self._place)
        if ahead < 0:
            self._place += offset - self.offset
            self._next = int(np.searchsorted(self._ends, self._place))
        else:
            self._source.skip(ahead)
            self._hold(b"")
        self.offset, self.number = offset, number

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _begin(self) -> ByteSource:
        self.number = self.offset = 0
        self._hold(b"")
        return ByteSource(self._file.name, self._file.compression, self._file.open())

    def _hold(self, data: bytes) -> None:
        self._buffer, self._ends = data, _ends_of(data)
        self._place = self._next = 0

    def _fill(self) -> bool:
        """Read on until there is the end of a line; False where the file ends before."""
        parts = [self._buffer[self._place :]]
        held = len(parts[0])
        while held <= MAX_LINE_BYTES:
            try:
                part = self._source.read(_CHUNK_BYTES)
            except SourceError as error:
                place = f"{self.name}, from line {self.number + 1} on"
                raise InputError(f"{place}: {error.reason}") from error
            parts.append(part)
            held += len(part)
            start = self.offset == 0 and held < len(UTF8_BOM)
            if not part or (b"\n" in part and not start):
                break
        self._hold(b"".join(parts))
        if held > MAX_LINE_BYTES and not len(self._ends):
            raise InputError(
                f"{self.name}, line {self.number + 1}: longer than {MAX_LINE_BYTES} bytes"
            )
        if self.offset == 0 and self._buffer.startswith(UTF8_BOM):
            self.offset = self._place = len(UTF8_BOM)
        return bool(len(self._ends))

    def _tail(self) -> LineBlock | None:
        data = self._buffer[self._place :]
        if not data:
            return None
        block = LineBlock(self.number, self.offset, data, False)
        self.number += 1
        self.offset += len(data)
        self._hold(b"")
        return block


def _ends_of(data: bytes) -> NDArray[np.intp]:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
