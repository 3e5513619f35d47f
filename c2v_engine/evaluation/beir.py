"""Reading a retrieval data set in the BEIR layout.

A directory with ``corpus.jsonl`` (``_id``, ``text``, ``title`` if there is one), ``queries.jsonl``
(``_id``, ``text``, ``metadata`` if there is some) and ``qrels/<split>.tsv`` (``query-id``,
``corpus-id``, ``score`` under a header), each also ``.gz``. Whatever is wrong in it is an error
with file and line: a row that is passed over changes the figures without a word.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from c2v_engine.errors import InputError

QRELS_HEADER = ("query-id", "corpus-id", "score")
NO_KIND = "(none)"


@dataclass(frozen=True)
class RetrievalData:
    """Queries, passages, and which passages are relevant to which query.

    Attributes:
        name: of the data set.
        split: which of its qrels.
        queries: text by id, of the queries with a relevant passage.
        corpus: text by id, of all passages: title and text, joined by a space.
        relevant: ids of the relevant passages by query id; relevance is yes or no.
        kinds: ``metadata.kind`` by query id; empty where no query has one.
        left_out: queries of the split whose scores are all 0 or less.
    """

    name: str
    split: str
    queries: dict[str, str]
    corpus: dict[str, str]
    relevant: dict[str, set[str]]
    kinds: dict[str, str]
    left_out: int = 0

    def of_kind(self, kind: str) -> RetrievalData:
        """The same corpus with the queries of one kind."""
        chosen = [key for key in self.queries if self.kinds.get(key, NO_KIND) == kind]
        return replace(
            self,
            queries={key: self.queries[key] for key in chosen},
            relevant={key: self.relevant[key] for key in chosen},
        )

    def kind_names(self) -> list[str]:
        """The kinds of queries in order; empty where no query has one."""
        return sorted({self.kinds.get(key, NO_KIND) for key in self.queries} if self.kinds else ())


@dataclass(frozen=True)
class _Row:
    """A line of a file, for messages."""

    path: Path
    number: int
    text: str

    def error(self, reason: str) -> InputError:
        return InputError(f"{self.path}, line {self.number}: {reason}")


def read_beir(directory: str | Path, split: str = "test") -> RetrievalData:
    """Read a data set.

    The files are read line by line; the texts of the corpus are held, its JSON is not.

    Args:
        directory: holds the three files.
        split: whose qrels; the name of a file in ``qrels``.

    Raises:
        InputError: a file is missing or can not be read, or a line is not as it must be: the
            message names both.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    corpus_path = _find(directory, "corpus.jsonl")
    queries_path = _find(directory, "queries.jsonl")
    qrels_path = _find_qrels(directory, split)
    queries, kinds = _read_queries(queries_path)
    corpus = _read_corpus(corpus_path)
    relevant, judged = _read_qrels(qrels_path, queries, corpus)
    if not relevant:
        raise InputError(f"{qrels_path}: no row has a score above 0, so no query can be evaluated")
    return RetrievalData(
        name=directory.resolve().name,
        split=split,
        queries={key: text for key, text in queries.items() if key in relevant},
        corpus=corpus,
        relevant=relevant,
        kinds={key: kind for key, kind in kinds.items() if key in relevant},
        left_out=judged - len(relevant),
    )


def _find(directory: Path, name: str) -> Path:
    found = [path for path in (directory / name, directory / f"{name}.gz") if path.is_file()]
    if not found:
        raise InputError(f"{directory / name}: no such file, nor {name}.gz")
    if len(found) == 2:
        raise InputError(f"{directory / name}: there is {name}.gz too, expected one of them")
    return found[0]


def _find_qrels(directory: Path, split: str) -> Path:
    folder = directory / "qrels"
    try:
        return _find(folder, f"{split}.tsv")
    except InputError as error:
        names = {path.name.removesuffix(".gz") for path in folder.glob("*.tsv*")}
        if not names or f"{split}.tsv" in names:
            raise
        known = ", ".join(sorted(name.removesuffix(".tsv") for name in names))
        raise InputError(f"{folder}: has no split {split!r}, expected one of: {known}") from error


def _read_queries(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    queries: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for row in _rows(path):
        fields = _fields(row)
        key = _new_id(row, fields, queries)
        text = _string(row, fields, "text")
        if not text.strip():
            raise row.error(f"query {key!r} is empty")
        queries[key] = text
        metadata = fields.get("metadata", {})
        if not isinstance(metadata, dict):
            raise row.error(f"field 'metadata' is {_name(metadata)}, expected an object")
        if "kind" in metadata:
            kinds[key] = _string(row, metadata, "kind")
    if not queries:
        raise InputError(f"{path}: there are no queries")
    return queries, kinds


def _read_corpus(path: Path) -> dict[str, str]:
    corpus: dict[str, str] = {}
    for row in _rows(path):
        fields = _fields(row)
        key = _new_id(row, fields, corpus)
        title = _string(row, fields, "title") if "title" in fields else ""
        corpus[key] = f"{title} {_string(row, fields, 'text')}".strip()
    if not corpus:
        raise InputError(f"{path}: there are no passages")
    return corpus


def _read_qrels(
    path: Path, queries: dict[str, str], corpus: dict[str, str]
) -> tuple[dict[str, set[str]], int]:
    """The relevant passages of every query that has one, and the number of queries named."""
    rows = _rows(path)
    header = next(rows, None)
    expected = "expected a header and rows of query-id, corpus-id and score, separated by tabs"
    if header is None:
        raise InputError(f"{path}: is empty, {expected}")
    if tuple(header.text.split("\t")) != QRELS_HEADER:
        raise header.error(f"the header is {header.text[:80]!r}, {expected}")
    relevant: dict[str, set[str]] = {}
    judged: dict[str, set[str]] = {}
    for row in rows:
        cells = row.text.split("\t")
        if len(cells) != 3:
            raise row.error(f"there are {len(cells)} fields, {expected}")
        query, passage, score = cells
        if query not in queries:
            raise row.error(f"query-id {query!r} is not in queries.jsonl")
        if passage not in corpus:
            raise row.error(f"corpus-id {passage!r} is not in corpus.jsonl")
        if passage in judged.setdefault(query, set()):
            raise row.error(f"query-id {query!r} with corpus-id {passage!r} is there twice")
        judged[query].add(passage)
        try:
            level = int(score)
        except ValueError:
            raise row.error(f"score is {score[:20]!r}, expected an integer") from None
        if level > 0:
            relevant.setdefault(query, set()).add(passage)
    return relevant, len(judged)


def _rows(path: Path) -> Iterator[_Row]:
    """The lines of a file without their ends; blank ones may only end it."""
    blank: _Row | None = None
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                row = _Row(path, number, _decode(path, number, data))
                if not row.text.strip():
                    blank = blank or row
                    continue
                if blank is not None:
                    raise blank.error("a blank line")
                yield row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: can not be read after line {number}: {reason}") from error


def _decode(path: Path, number: int, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not valid UTF-8 (byte {error.start} of the line)"
        ) from error
    return text.rstrip("\r\n")


def _fields(row: _Row) -> dict[str, Any]:
    try:
        fields = json.loads(row.text)
    except json.JSONDecodeError as error:
        raise row.error(f"broken JSON: {error.msg} (character {error.colno})") from error
    except (ValueError, RecursionError) as error:  # too many digits, nested too deeply
        raise row.error(f"broken JSON: {error}") from error
    if not isinstance(fields, dict):
        raise row.error(f"the line is {_name(fields)}, expected an object")
    return fields


def _new_id(row: _Row, fields: dict[str, Any], known: dict[str, str]) -> str:
    key = fields.get("_id")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    else:
        key = _string(row, fields, "_id")
    if not key:
        raise row.error("field '_id' is empty")
    if key in known:
        raise row.error(f"_id {key!r} is there twice")
    return key


def _string(row: _Row, fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise row.error(f"field {name!r} is missing, there are: {', '.join(fields) or 'none'}")
    value = fields[name]
    if not isinstance(value, str):
        raise row.error(f"field {name!r} is {_name(value)}, expected a string")
    if "\\u" in row.text:  # only an escape can give half a character
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise row.error(f"field {name!r} holds a lone surrogate, not valid text") from None
    return value


def _name(value: Any) -> str:
    """Name a value's JSON type, for a message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")
