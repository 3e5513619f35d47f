"""Each floor of the house imports only from the floors below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "c2v_engine"

# From the top down. Modules of one floor may import each other only within their own package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("training",),
    ("integrations",),
    ("serving", "jobs", "evaluation", "bench", "doctor"),
    ("opener",),
    ("engine", "reference"),
    ("runtime",),
    ("model",),
    ("kernels", "similarity"),
    ("_C",),
)
EVERYWHERE = ("errors", "_version")
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name; ``kernels`` is installed into it."""
    found = {}
    for folder, prefix in ((ROOT / PACKAGE, ""), (ROOT / "kernels", "kernels.")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if prefix == "" and parts[0] == "kernels":
                continue  # the same files, by a link
            found[prefix + ".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = module_files()


def imports_of(name: str, tree: ast.AST) -> set[str]:
    """What a module imports, anywhere in it, as dotted names."""
    package = f"{PACKAGE}.{name}".split(".")[:-1]
    if MODULES.get(name, Path()).name == "__init__.py":
        package = f"{PACKAGE}.{name}".split(".")
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return found


def own_imports(name: str) -> set[str]:
    """The parts of our own package that a module imports: ``model``, ``errors``, ..."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    own = {found for found in imports_of(name, tree) if found.split(".")[0] == PACKAGE}
    parts = set()
    for dotted in own:
        part = dotted.removeprefix(PACKAGE).split(".")[1:2]
        # ``from c2v_engine import Causal2Vec`` is the engine by its public name.
        parts.update("engine" if name == "Causal2Vec" else name for name in part)
    return parts


def test_every_module_stands_on_a_floor():
    tops = {name.split(".")[0] for name in MODULES} - {"__init__"}
    assert tops >= {"cli", "jobs", "engine", "runtime", "model", "kernels", "errors"}
    assert tops <= {*FLOOR_OF, *EVERYWHERE}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_from_below(name):
    top = name.split(".")[0]
    imported = own_imports(name)
    if name == "__init__":  # gives the engine its public name, on demand
        assert imported <= {"_version", "engine"}
        return
    if top in EVERYWHERE:
        assert imported <= set(EVERYWHERE)
        return
    allowed = {top, *EVERYWHERE}
    allowed |= {below for below, floor in FLOOR_OF.items() if floor > FLOOR_OF[top]}
    assert imported <= allowed, f"{name} imports {sorted(imported - allowed)}"


def test_jobs_do_not_need_the_engine():
    """They take any engine, so that their tests need no model."""
    jobs = [name for name in MODULES if name.split(".")[0] == "jobs"]
    assert jobs
    for name in jobs:
        assert own_imports(name) <= {"jobs", *EVERYWHERE}


def test_the_reference_shares_no_arithmetic_with_the_engine():
    """It checks the engine, so it may read the config and the template and nothing else of it."""
    tree = ast.parse(MODULES["reference"].read_text(encoding="utf-8"))
    own = {found for found in imports_of("reference", tree) if found.startswith(PACKAGE)}
    allowed = {f"{PACKAGE}.{part}" for part in ("errors", "model.config", "model.template")}
    assert {found.rpartition(".")[0] for found in own} <= allowed


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import c2v_engine.engine", {"c2v_engine.engine"}),
        ("from c2v_engine.engine import x", {"c2v_engine.engine.x"}),
        ("def f():\n    from c2v_engine import engine", {"c2v_engine.engine"}),
        ("from . import pipeline", {"c2v_engine.runtime.pipeline"}),
        ("from ..engine import x", {"c2v_engine.engine.x"}),
        ("if TYPE_CHECKING:\n    import c2v_engine.cli as c", {"c2v_engine.cli"}),
    ],
)
def test_imports_are_found_in_every_form(source, expected):
    assert imports_of("runtime.hub", ast.parse(source)) == expected
