"""Docstrings of Python source, read by ``ast``; no package is imported."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from cleaning import clean, split_summary
from documents import Section, sections

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_DOCUMENTED, ast.If, ast.Try, ast.With)
_ADDERS = {"add_docstr", "add_newdoc", "_add_docstr", "add_doc"}  # of compiled functions


@dataclass(frozen=True)
class Docstring:
    """One documented symbol.

    Attributes:
        symbol: dotted name, module first.
        form: ``module``, ``class`` or ``function``.
        text: the whole docstring, cleaned.
        summary: its first sentence.
        body: the rest.
    """

    symbol: str
    form: str
    text: str
    summary: str
    body: str


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """Names, forms and raw docstrings of a node and of everything defined in it."""
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node, clean=False)
        form = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
        if text:
            yield name, form, text
        if form == "function":
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, _SCOPES):
            yield from _walk(child, name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added(child.value, name)


def _added(call: ast.Call, module: str) -> Iterator[tuple[str, str, str]]:
    """What ``add_docstr(torch.abs, "...")`` or ``add_newdoc("numpy", "dot", "...")`` documents."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    function = call.func.id if isinstance(call.func, ast.Name) else function
    if function not in _ADDERS or len(call.args) < 2:
        return
    texts = [
        node.value
        for argument in call.args[1:]
        for node in ast.walk(argument)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    target = call.args[0]
    if isinstance(target, ast.Constant) and isinstance(target.value, str):
        name = target.value if "." in target.value or not texts else module.split(".")[0]
        name = f"{name}.{texts[0]}" if len(texts) > 1 else f"{name}.{target.value}"
    else:
        name = ast.unparse(target)
    if texts and "\n" in (longest := max(texts, key=len)):
        yield name, "function", longest


def parse(source: bytes) -> ast.Module | None:
    """The syntax tree, or None where the source does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def docstrings(module: str, tree: ast.Module) -> Iterator[Docstring]:
    """Docstrings of one module."""
    for symbol, form, raw in _walk(tree, module):
        parts = symbol.removesuffix(".__init__").split(".")
        if len(raw) < 25 or (parts[-1].startswith("__") and form == "function"):
            continue
        text = clean(raw[:12_000])
        if not text:
            continue
        summary, body = split_summary(text)
        yield Docstring(".".join(parts), form, text, summary, body)


def titled_sections(package: str, module: str, tree: ast.Module) -> Iterator[Section]:
    """Sections under headings in the docstrings of modules and classes."""
    for symbol, form, raw in _walk(tree, module):
        if form != "function" and len(raw) > 400:
            yield from sections(package, f"{symbol}.rst", inspect.cleandoc(raw))
