"""Names that pages use, joined with the functions that make what stands there.

A **figure** is a word or a phrase within a line. Its function takes the words that follow the name
in the mark, ``key=value`` among them as keywords, all of them strings:

    @figure
    def texts_per_s(run: str, case: str, provider: str = "engine") -> str:

A **table** is a block of Markdown without arguments:

    @table
    def peers_cpu() -> str:
        result = read("peers-cpu.json")
        rows = [(row["name"], rounded(row["texts_per_second"])) for row in result["results"]]
        return markdown_table(("stack", "texts/s"), rows)

To add one: write the function in the module of its subject (or in a new one, named in
``__init__.py``), put ``<!-- figures: peers_cpu -->`` and ``<!-- /figures -->`` into a page, each on
a line of its own, and run ``make figures``. ``read`` (``results``) finds result files, ``formats``
writes numbers, ``results.setting`` says of a file which machine and commit it is of.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from typing import TypeVar

FIGURES: dict[str, Callable[..., str]] = {}
TABLES: dict[str, Callable[[], str]] = {}

Maker = TypeVar("Maker", bound=Callable[..., str])


class FigureError(ValueError):
    """A mark that can not be filled in: what it says, and why."""


def figure(maker: Maker) -> Maker:
    """Register a function that makes figures, under its own name."""
    return _register(FIGURES, maker)


def table(maker: Maker) -> Maker:
    """Register a function that makes a block, under its own name."""
    return _register(TABLES, maker)


def make_figure(call: str) -> str:
    """What a mark stands for.

    Args:
        call: a figure's name and its arguments, as in a shell.

    Raises:
        FigureError: there is no such figure, or its result is not there.
    """
    try:
        name, *words = shlex.split(call)
    except ValueError as error:
        raise FigureError(f"{call!r} has no name, or an open quote") from error
    if name not in FIGURES:
        raise FigureError(f"{name!r} is no figure; there are {', '.join(sorted(FIGURES))}")
    named = dict(word.split("=", 1) for word in words if "=" in word)
    return _made(call, FIGURES[name], [word for word in words if "=" not in word], named)


def make_table(name: str) -> str:
    """A block's text, without empty lines around it.

    Args:
        name: of the table.

    Raises:
        FigureError: there is no such table, or its result is not there.
    """
    if name not in TABLES:
        raise FigureError(f"{name!r} is no table; there are {', '.join(sorted(TABLES))}")
    return _made(name, TABLES[name], [], {}).strip("\n")


def _register(known: dict[str, Callable[..., str]], maker: Maker) -> Maker:
    if maker.__name__ in known:
        raise ValueError(f"{maker.__name__} is registered twice")
    known[maker.__name__] = maker
    return maker


def _made(call: str, maker: Callable[..., str], words: list[str], named: dict[str, str]) -> str:
    try:
        inspect.signature(maker).bind(*words, **named)
    except TypeError as error:
        raise FigureError(f"{call!r}: {error}") from error
    try:
        return maker(*words, **named)
    except (LookupError, OSError) as error:
        raise FigureError(f"{call!r}: {type(error).__name__}: {error}") from error
