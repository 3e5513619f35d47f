"""The ``c2v`` application: its name, its version, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from c2v_engine._version import __version__
from c2v_engine.errors import C2VError

app = typer.Typer(
    name="c2v",
    help="Causal2Vec text embeddings.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help loads in half the time
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``c2v`` and exit: 0 done, 2 a mistake of the user's (one line says which)."""
    try:
        code = app(
            args=None if argv is None else list(argv), prog_name="c2v", standalone_mode=False
        )
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except C2VError as error:
        fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        fail(f"{error.filename}: {reason}" if error.filename else reason)
    except Exception as error:
        # Wrong usage, as the parser that typer brings with it says it.
        if not hasattr(error, "format_message"):
            raise
        fail(f"{error.format_message()} (see c2v --help)")


def fail(message: str) -> NoReturn:
    """Print a user's mistake in one line and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"c2v {__version__}")
        raise typer.Exit


@app.callback()
def _c2v(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Causal2Vec text embeddings."""
