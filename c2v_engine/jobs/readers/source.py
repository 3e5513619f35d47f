"""The bytes of a file, plain or compressed, in chunks and in numbered lines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import Reader, RowError, one_line

CHUNK_BYTES = 64 * 1024
SKIP_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 256 * 1024 * 1024
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    r"""One line of a file.

    ``data`` is without the ``\n``. ``offset`` is the position of its first byte in the
    (decompressed) file, ``ended`` is False where the file ends without ``\n``.
    """

    number: int
    offset: int
    data: bytes
    ended: bool


class SourceError(InputError):
    """A file that can not be read on.

    Attributes:
        reason: why not.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class ByteSource:
    """A file opened for reading from its beginning to its end, once.

    Args:
        path: the file.
        compression: ``"gzip"``, ``"zstd"``, ``"bz2"``, ``"lz4"`` or None.
        file: the file, where it is open already; it is closed with the source.

    Raises:
        InputError: the file can not be opened.
    """

    def __init__(
        self, path: Path | str, compression: str | None, file: IO[bytes] | None = None
    ) -> None:
        self.path = path
        self.compression = compression
        self._size: int | None = None
        if file is None:
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
            except OSError as error:
                raise InputError(f"{path}: can not be opened: {error.strerror}") from error
            status = os.fstat(file.fileno())
            self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._raw: Any = file
        self._stream: Any = self._raw
        self._consumed = self._done = 0
        if compression is not None:
            import pyarrow as pa

            self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), compression)

    def close(self) -> None:
        """Close the file."""
        if not self._raw.closed:
            self._stream.close()
            self._raw.close()

    def fraction(self) -> float | None:
        """Give the part of the file's own (compressed) bytes that has been read."""
        if self._size is None:
            return None
        return min(1.0, self._consumed / self._size) if self._size else 1.0

    def read(self, size: int) -> bytes:
        """Give the next decompressed bytes, so many at most; none at the end.

        Raises:
            SourceError: the read failed, or the compressed data are broken or cut short.
        """
        try:
            chunk: bytes = self._stream.read(size)
        except Exception as error:  # each file system has errors of its own
            message = getattr(error, "strerror", None)
            if message is not None or self.compression is None:
                reason = f"can not be read: {message or one_line(error)}"
            else:
                reason = f"broken or truncated {self.compression} data: {one_line(error)}"
            raise SourceError(self.path, f"{reason} (after {self._done} bytes of text)") from error
        self._done += len(chunk)
        self._consumed = self._raw.tell() if self._size is not None else self._done
        return chunk

    def chunks(self) -> Iterator[bytes]:
        """Give the decompressed bytes.

        Raises:
            SourceError: as ``read``.
        """
        while chunk := self.read(CHUNK_BYTES):
            yield chunk

    def skip(self, size: int) -> None:
        """Pass over bytes of text: at once in a plain file, by reading them in a compressed one.

        Raises:
            SourceError: as ``read``.
        """
        if self.compression is None:
            self._raw.seek(size, os.SEEK_CUR)
            self._done += size
            return
        while size > 0 and (chunk := self.read(min(size, SKIP_BYTES))):
            size -= len(chunk)

    def lines(self) -> Iterator[Line]:
        r"""Give the lines, ended by ``\n`` alone; a byte-order mark is taken off the first.

        Raises:
            InputError: as ``chunks``, or a line is longer than ``MAX_LINE_BYTES``.
        """
        number = offset = held = 0
        parts: list[bytes] = []
        for chunk in self.chunks():
            first, *rest = chunk.split(b"\n")
            parts.append(first)
            held += len(first)
            if held > MAX_LINE_BYTES:
                raise InputError(
                    f"{self.path}, line {number + 1}: longer than {MAX_LINE_BYTES} bytes"
                )
            if not rest:
                continue
            rest.insert(0, b"".join(parts))
            parts = [rest.pop()]
            held = len(parts[0])
            for data in rest:
                number += 1
                yield _line(number, offset, data, True)
                offset += len(data) + 1
        tail = b"".join(parts)
        if tail and tail != UTF8_BOM:
            yield _line(number + 1, offset, tail, False)

    def decode(self, line: Line) -> str:
        """Decode a line's bytes.

        Raises:
            RowError: they are not valid UTF-8. The message names line and byte.
        """
        return decode_line(self.path, line)


def decode_line(path: Path | str, line: Line) -> str:
    """Decode a line's bytes; as ``ByteSource.decode``."""
    try:
        return line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line.data[error.start]
        place = f"byte {line.offset + error.start} of the file, 0x{byte:02x}"
        hint = ""
        if line.number == 1 and line.data.startswith(UTF16_BOMS):
            hint = "; the file looks like UTF-16, convert it to UTF-8"
        reason = f"not valid UTF-8 ({place}){hint}"
        raise RowError(f"{path}, line {line.number}", reason) from error


class SourceReader(Reader):
    """A reader of a file that is read as one stream of bytes from beginning to end."""

    _source: ByteSource

    def fraction(self) -> float | None:
        """Give the part of the file's own bytes that has been read."""
        return self._source.fraction()

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def _line(number: int, offset: int, data: bytes, ended: bool) -> Line:
    if number == 1 and data.startswith(UTF8_BOM):
        return Line(number, offset + len(UTF8_BOM), data[len(UTF8_BOM) :], ended)
    return Line(number, offset, data, ended)
