"""The command line, ``c2v``: commands only, parse, call, print.

A file holds the commands of one subject and registers them with ``app`` when it is imported.
Everything heavy is imported inside the commands, so that ``c2v --help`` answers at once.
"""

from c2v_engine.cli import (
    bench,
    convert,
    corpora,
    encoding,
    evaluation,
    export,
    mining,
    models,
    search,
    serve,
    training,
)
from c2v_engine.cli.app import app, main

__all__ = [
    "app",
    "bench",
    "convert",
    "corpora",
    "encoding",
    "evaluation",
    "export",
    "main",
    "mining",
    "models",
    "search",
    "serve",
    "training",
]
