"""Gather the docstrings of Python's standard library: real texts of every length, everywhere.

Usage: python examples/stdlib_docstrings.py OUTPUT.jsonl
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of a module and everything in it."""
    if isinstance(tree, DOCUMENTED) and (text := ast.get_docstring(tree)):
        yield name, text
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, DOCUMENTED):
            yield from docstrings(child, f"{name}.{child.name}")


def standard_library() -> Iterator[tuple[str, str]]:
    """Docstrings of all modules, in the order of their paths; nothing is imported."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if {"site-packages", "test", "tests", "lib2to3", "idle_test"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        yield from docstrings(tree, ".".join(parts).removesuffix(".__init__"))


def main() -> None:
    """Write one JSON object a docstring: id and text."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    output = Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with output.open("w", encoding="utf-8") as file:
        for name, text in standard_library():
            count += 1
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    print(f"{count:,} docstrings in {output}")


if __name__ == "__main__":
    main()
