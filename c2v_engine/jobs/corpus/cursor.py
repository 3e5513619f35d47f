"""The lines of an input file, from any place on."""

from __future__ import annotations

from collections.abc import Iterator

from c2v_engine.jobs.corpus.inputs import InputFile
from c2v_engine.jobs.readers.source import ByteSource, Line


class LineCursor:
    """Gives lines one by one, and knows where the next one begins.

    Args:
        file: the file.

    Attributes:
        name: the file's.
        offset: of the next line's first byte in the decompressed file.
        number: of lines before it.
        source: the file's bytes.

    Raises:
        InputError: the file can not be opened.
    """

    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._file = file
        self.source = ByteSource(file.name, file.compression, file.open())
        self._lines: Iterator[Line] | None = None
        self.offset = self.number = 0

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        if self._lines is None:
            self._lines = self.source.lines(self.number, self.offset)
        line = next(self._lines)
        self.number = line.number
        self.offset = line.offset + len(line.data) + line.ended
        return line

    def seek(self, offset: int, number: int) -> None:
        """Go to a line: by its place in a plain file, by reading up to it in a compressed one.

        Args:
            offset: of its first byte in the decompressed file.
            number: of lines before it.

        Raises:
            InputError: the file is broken or too short.
        """
        if self._file.compression is not None and self._lines is not None:
            while self.offset < offset:  # on from here, rather than from the beginning
                if next(self, None) is None:
                    return
        if offset == self.offset:
            return
        if self._lines is not None or self.offset:
            self.close()
            self.source = ByteSource(self._file.name, self._file.compression, self._file.open())
            self._lines = None
        self.source.skip(offset)
        self.offset, self.number = offset, number

    def close(self) -> None:
        """Close the file."""
        self.source.close()
