"""Fills in every measured figure of the pages from the result files, or says which are stale.

    python tools/figures.py            # write the pages; make figures
    python tools/figures.py --check    # write nothing; exit code 1 if something would change

A page marks a figure with a name, and a function of ``tools/figures_registry`` makes it from a
result file: ``figures_registry/marks.py`` has the notation, ``figures_registry/registry.py`` says
how to add one. Both ways it also looks for figures that somebody typed by hand
(``figures_registry/typed.py``); those of settings, sizes and bounds are listed in
``figures_registry/allowed.yaml`` with the reason.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import figures_registry  # noqa: F401  registers the functions
from figures_registry.marks import updated
from figures_registry.registry import FigureError
from figures_registry.results import ROOT
from figures_registry.typed import read_allowed, typed_figures, unused

PAGES = (
    "README.md",
    "docs/*.md",
    "c2v_engine/default_model/README.md",
    "examples/*/*.md",
)


def find_pages(root: Path = ROOT) -> dict[str, str]:
    """The text of every page, by its path below the root.

    Args:
        root: of the project.
    """
    paths = sorted(path for pattern in PAGES for path in root.glob(pattern))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def stale(pages: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The pages that change, with their new text, and what changes in them.

    Args:
        pages: by their names.

    Raises:
        FigureError: a mark that can not be filled in.
    """
    changed, lines = {}, []
    for name, page in pages.items():
        try:
            new, changes = updated(page)
        except FigureError as error:
            raise FigureError(f"{name}: {error}") from error
        if new != page:
            changed[name] = new
        lines += [line for change in changes for line in change.lines(name)]
    return changed, lines


def main() -> int:
    """Fill the pages in, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    pages = find_pages()
    try:
        changed, lines = stale(pages)
    except FigureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, text in () if check else changed.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    allowed = read_allowed()
    pages = {**pages, **changed}
    wrong = [*typed_figures(pages, allowed), *unused(pages, allowed)]
    print("\n".join([*lines, *wrong]) or "every figure is what its result file says")
    return 1 if wrong or (check and changed) else 0


if __name__ == "__main__":
    sys.exit(main())
