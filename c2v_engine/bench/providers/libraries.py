"""Other people's libraries, where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from c2v_engine.bench.machine.trouble import one_line
from c2v_engine.bench.providers.base import UnusableError

__all__ = ["library"]


def library(name: str, extra: str | None = None) -> Any:
    """A module of a library that is no requirement.

    Args:
        name: of the module.
        extra: of the package, that installs it; None where none does.

    Raises:
        UnusableError: it is not installed, or does not work here.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise UnusableError(f"{name} needs {error.name}, which is not installed") from None
        how = f": pip install 'c2v-engine[{extra}]'" if extra else ""
        raise UnusableError(f"{name} is not installed{how}") from None
    except Exception as error:  # a binary that does not fit, an old interpreter: of many kinds
        raise UnusableError(f"{name} can not be imported: {one_line(error)}") from None
