"""The result file: where, with what, and every result as it comes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Record", "RecordError"]

# What may be otherwise when a run is resumed: when it began, and files that nothing is measured of.
VARYING = ("started", "dirty")
# Lists of a result file, and what a run needs of each of their entries.
LISTS = {
    "results": {"case", "status"},
    "crashes": {"case", "provider", "reason"},
    "interrupted": {"case", "provider"},
    "earlier_ceilings": set[str](),
}


class RecordError(ValueError):
    """A result file that can not be written, or that a run can not go on with."""


class Record:
    """A JSON file that is whole at any moment: every change replaces it.

    Args:
        path: of the file; its folder is made.
        resume: whether to go on with what it holds.

    Raises:
        RecordError: the file can not be written; or, to be resumed, holds no results.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        # Of this process: two runs into one folder do not take the other's away.
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial") if path.name else path
        self._try_place()
        if resume and path.is_file():
            self.content = read_results(path)

    def describe(self, facts: dict[str, Any]) -> None:
        """Puts what is measured, where and how at the head of a new file.

        Raises:
            RecordError: the file is resumed, and what it holds was measured of something else.
        """
        if not self.content:
            self.content.update(facts)
            return
        other = [
            f"{key} is {self.content.get(key)!r} there and {facts[key]!r} here"
            for key in facts.keys() - set(VARYING)
            if key not in self.content or self.content[key] != facts[key]
        ]
        if other:
            found = "; ".join(sorted(other))
            raise RecordError(f"{self.path} can not be resumed, results would mix: {found}")

    def put(self, key: str, value: Any) -> None:
        """Sets one field."""
        self.content[key] = value
        self._write()

    def extend(self, key: str, values: list[Any]) -> None:
        """Appends to a field that is a list."""
        self.content.setdefault(key, []).extend(values)
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.content, indent=1, allow_nan=True) + "\n"
        try:
            self._partial.write_text(text, encoding="utf-8")
            os.replace(self._partial, self.path)
        except BaseException as error:
            self._partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = str(self.path)  # that of a full disk names no file
            raise

    def _try_place(self) -> None:
        try:
            if self.path.exists() and not self.path.is_file():
                raise RecordError(f"{self.path} can not be written: it is there and is no file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
            self._partial.unlink()
        except OSError as error:
            raise RecordError(f"{self.path} can not be written: {error.strerror}") from error


def read_results(path: Path) -> dict[str, Any]:
    """What a result file holds.

    Raises:
        RecordError: it can not be read, or is no result file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"{path} can not be resumed, it is no JSON file: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise RecordError(f"{path} can not be resumed, it is no JSON object, or an empty one")
    running = content.get("running")
    found = {name: content.get(name, []) for name in LISTS}
    found["running"] = [running] if running else []
    for name, entries in found.items():
        needs = LISTS.get(name, LISTS["interrupted"])
        if not isinstance(entries, list) or any(
            not isinstance(entry, dict) or not needs <= entry.keys() for entry in entries
        ):
            wanted = ", ".join(sorted(needs)) or "anything"
            raise RecordError(
                f"{path} can not be resumed, {name} is not made of objects of {wanted}"
            )
    return content
