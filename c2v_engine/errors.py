"""Errors that a user can cause, each a ``ValueError`` whose message is one clear line."""

from __future__ import annotations


class C2VError(Exception):
    """Base of every error that the engine raises on purpose."""


class ConfigError(C2VError, ValueError):
    """A checkpoint's ``config.json``, or an argument that overrides it, is not valid."""


class CheckpointError(C2VError, ValueError):
    """A checkpoint directory can not be loaded: files, weights or tokenizers do not fit."""


class UnsupportedError(CheckpointError):
    """An architecture, activation or rope type that the engine does not implement."""


class BackendError(C2VError, ValueError):
    """A device, dtype or attention backend that can not be used on this machine."""


class InputError(C2VError, ValueError):
    """Input that is not text, can not be read, or can not be embedded."""


class TextError(InputError):
    """One text that can not be embedded.

    Attributes:
        row: position of the text in the call's input, counted from 0.
        reason: what is wrong with it, without the row.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row = row
        self.reason = reason

    def __str__(self) -> str:
        return f"text {self.row}: {self.reason}"


class OutputError(C2VError, ValueError):
    """An output that can not be written."""


class MissingPackageError(C2VError, ImportError):
    """An optional package that is not installed.

    Attributes:
        package: its name.
        extra: the extra of c2v-engine that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'c2v-engine[{extra}]'")
        self.package = package
        self.extra = extra
