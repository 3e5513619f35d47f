"""The manifest's lines: a record each, with a digest over it and over the line before.

A line that does not fit its digest is not believed. The lines after it are: their digests say that
they are as they were written, and the shards that they name are checked before anything builds on
them. To drop them with it would throw away work that is whole. The link to the line before only
shows that lines are missing or were moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.records import Reject, ShardFile, UnitDone

BEGINNING = "0" * 64
_DIGEST = b',"digest":"'
_END = b'"}\n'
_TAIL = len(_DIGEST) + 64 + len(_END)


class Line(NamedTuple):
    """A line as it stands in the file.

    Attributes:
        number: counted from 1.
        offset: of its first byte.
        record: what it says; None where it is not to be believed.
        digest: its own, as it says.
        problem: what is wrong with it or with its link to the line before; None for nothing.
        torn: whether the file ends in its middle.
    """

    number: int
    offset: int
    record: UnitDone | None
    digest: str
    problem: str | None
    torn: bool


def make_line(record: UnitDone, previous: str) -> tuple[bytes, str]:
    """Make the line of a record, and its digest for the next one's."""
    values = asdict(record)
    values["rejects"] = [[one.row, one.id, one.place, one.reason] for one in record.rejects]
    values["previous"] = previous
    # Lone surrogates of bad texts are kept as escapes.
    payload = json.dumps(values, separators=(",", ":")).encode("ascii")[:-1]
    digest = hashlib.sha256(payload).hexdigest()
    return payload + _DIGEST + digest.encode("ascii") + _END, digest


def read_lines(path: Path) -> Iterator[Line]:
    """Read a manifest; one that is missing has no lines.

    Raises:
        OutputError: the system can not read it.
    """
    try:
        with open(path, "rb") as file:
            yield from _lines(file)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: can not be read: {error.strerror}") from error


def _lines(file: IO[bytes]) -> Iterator[Line]:
    previous: str | None = BEGINNING  # None after a line that can not say its digest
    offset = 0
    for number, text in enumerate(file, start=1):
        values = None if not text.endswith(b"\n") else open_line(text)
        if values is None:
            torn = not text.endswith(b"\n")
            wrong = "is cut off" if torn else "does not fit its checksum"
            yield Line(number, offset, None, "", wrong, torn)
            previous = None
        else:
            found, record = values
            digest = text[-_TAIL:][len(_DIGEST) : -len(_END)].decode("ascii")
            broken = previous not in (None, found)
            problem = "does not follow the line before it" if broken else None
            yield Line(number, offset, record, digest, problem, False)
            previous = digest
        offset += len(text)


def open_line(text: bytes) -> tuple[str, UnitDone] | None:
    """Read a line: the digest of the one before, and the record; None if it is not believed."""
    payload, tail = text[:-_TAIL], text[-_TAIL:]
    digest = hashlib.sha256(payload).hexdigest().encode("ascii")
    if tail != _DIGEST + digest + _END:
        return None
    try:
        return _record(json.loads(payload + b"}"))
    except (ValueError, KeyError, TypeError):
        return None


def _record(values: dict[str, Any]) -> tuple[str, UnitDone]:
    previous = values.pop("previous")
    values["files"] = tuple(ShardFile(**file) for file in values["files"])
    values["rejects"] = tuple(Reject(*reject) for reject in values["rejects"])
    return previous, UnitDone(**values)
