"""No figure of the pages is stale, and none was typed by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import figures

    return figures


@pytest.fixture
def pages(figures):
    return figures.find_pages()


@pytest.fixture
def run(figures, monkeypatch, capsys):
    """Runs the command over pages; gives the exit code and what it printed."""

    def of(pages, *arguments):
        monkeypatch.setattr(figures, "find_pages", lambda: pages)
        monkeypatch.setattr(sys, "argv", ["figures.py", *arguments])
        code = figures.main()
        return code, "".join(capsys.readouterr())

    return of


def test_every_figure_of_the_pages_is_what_its_result_file_says(pages, run):
    assert {"README.md", "docs/benchmarks.md", "docs/kernels.md"} < set(pages)
    assert run(pages, "--check") == (0, "every figure is what its result file says\n")


def test_a_changed_figure_is_stale_and_shown(figures, pages, run):
    mark = "<!--f run_tests h100 passed-->"
    readme = pages["README.md"]
    assert f"{mark}3,229<" in readme
    changed = {**pages, "README.md": readme.replace(f"{mark}3,229<", f"{mark}3,230<")}
    code, printed = run(changed, "--check")
    assert code == 1
    assert re.fullmatch(r"README\.md:\d+: run_tests h100 passed\n- 3,230\n\+ 3,229\n", printed), (
        printed
    )
    assert figures.stale(changed)[0] == {"README.md": readme}


def test_a_changed_cell_of_a_table_is_stale_and_its_line_shown(figures, pages, run):
    page = pages["docs/corpora.md"]
    changed = {**pages, "docs/corpora.md": page.replace("| 82,300 machine", "| 72,300 machine")}
    code, printed = run(changed, "--check")
    assert code == 1
    name, old, new = printed.splitlines()
    assert name.endswith(": costs")
    assert old.endswith("| 72,300 machine hours |")
    assert new == old.replace("72,300", "82,300").replace("-", "+", 1)
    assert figures.stale(changed)[0] == {"docs/corpora.md": page}


@pytest.mark.parametrize(
    "typed",
    [
        "It is 3.7 times as fast.",
        "It is 3.7\ntimes as fast.",
        "It runs at 1.5x.",
        "It is 2 x as fast.",
        "It is twice as fast as before.",
        "It is three times faster.",
        "It does 562 texts/s.",
        "It does 30,165 tokens per second.",
        "It takes 40k rows a second.",
        "A query takes 74 ms.",
        "A launch takes 5 µs.",
        "It took 14.6 seconds.",
        "That is 783 TFLOP/s.",
        "A copy of 2,438 GB/s.",
        "It holds 701 MiB.",
        "It is 17 MB.",
        "It costs 12% more.",
        "It costs 12 percent more.",
        "It adds 0.8 points.",
        "The latency is p99 12.",
        "Its cosine is 0.9997.",
        "A Recall@10 of 0.55.",
        "nDCG@10 0.365 there.",
        "3,229 passed.",
        "1.25 of the copy.",
        "| model | texts/s |\n|---|---|\n| a | 512 |\n",
        "| Recall@10 | question |\n|---|---|\n| a | 0.589 |\n",
        "```\ntime       14.6 s\n```\n",
    ],
)
def test_a_figure_that_is_typed_by_hand_is_found(pages, run, typed):
    readme = pages["README.md"].replace("\n## More\n", f"\n{typed}\n\n## More\n", 1)
    assert readme != pages["README.md"]
    code, printed = run({**pages, "README.md": readme}, "--check")
    assert code == 1
    assert "is typed by hand" in printed


@pytest.mark.parametrize(
    "text",
    [
        "Floors: `2 x parameters x tokens`; a product of 1536 x 1536, 16,384 rows of 128 tokens.",
        "Recall@10, nDCG@10 and p50, p99 are computed; int8, float32, sm_90, H100, BM25, AVX-512.",
        "Python 3.10 to 3.13, torch 2.11, at most 1e-5 apart, 9.4 M parameters, 512 dimensions.",
        "32 requests wait; 429 beyond that.",
        "```sh\nsleep 60 s  # 3.7 times as fast\n```\n",
        "It does <!--f texts_per_s h100 mistral-7b/128-->333 texts/s<!--/f-->.",
        "| option | default |\n|---|---|\n| `--max-texts` | 2,048 |\n",
    ],
)
def test_sizes_names_and_marked_figures_are_passed(figures, text):
    from figures_registry.typed import find_figures

    assert find_figures(text) == []


def test_an_allowance_that_allows_nothing_fails(figures):
    from figures_registry.typed import Allowed, typed_figures, unused

    pages = {"a.md": "At most 60\nseconds. Then 16 threads, 16 threads. And 5 ms."}

    def lines(*phrases):
        allowed = [Allowed("a.md", phrase, "a setting") for phrase in phrases]
        return typed_figures(pages, allowed), unused(pages, allowed)

    assert lines("At most 60 seconds", "And 5 ms") == ([], [])
    [typed], nothing = lines("And 5 ms")
    assert ("a.md:1: '60 seconds' is typed" in typed, nothing) == (True, [])
    for phrase, words in (
        ("At most 70 seconds", "stands 0 times"),
        ("16 threads", "stands 2 times"),
        ("Then 16 threads, 16 threads", "holds no figure"),
    ):
        [line] = lines("At most 60 seconds", "And 5 ms", phrase)[1]
        assert words in line
    assert unused({}, [Allowed("gone.md", "5 ms", "")]) != []


def test_every_allowance_has_a_reason(figures):
    from figures_registry.typed import read_allowed

    assert all(one.reason for one in read_allowed())


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("a <!--f no_such_figure-->1<!--/f-->", "is no figure"),
        ("a <!--f mini_pairs-->1", "opens or closes nothing"),
        ("a 1<!--/f-->", "opens or closes nothing"),
        ("a\n<!--f mini_pairs-->1<!--/f--> b", "first in its line"),
        ("- <!--f mini_pairs-->1<!--/f--> b", "first in its line"),
        ("<!-- figures: no_such_table -->\n<!-- /figures -->\n", "is no table"),
        ("<!-- figures: costs -->\n", "opens or closes nothing"),
    ],
)
def test_a_mark_that_can_not_be_filled_in_is_an_error(figures, page, words):
    with pytest.raises(figures.FigureError, match=rf"^a\.md: .*{words}"):
        figures.stale({"a.md": page})


def test_marks_are_filled_in_where_they_stand(figures):
    page = (
        "- of <!--f mini_pairs-->?<!--/f--> pairs, <!--f mini_pairs-->?<!--/f-->\n\n"
        "  <!-- figures: mini_kinds -->\n  <!-- /figures -->\n\n"
        "```\n<!--f no_such_figure-->1<!--/f-->\n```\n"
    )
    [(name, new)] = figures.stale({"a.md": page})[0].items()
    assert name == "a.md"
    assert new.startswith("- of <!--f mini_pairs-->185,714<!--/f--> pairs, <!--f mini_pairs-->185")
    assert "  <!-- figures: mini_kinds -->\n\n  | Recall@10 |" in new
    assert new.endswith("|\n\n  <!-- /figures -->\n\n```\n<!--f no_such_figure-->1<!--/f-->\n```\n")
    assert figures.stale({"a.md": new})[0] == {}
    wrapped = "a <!--f machine_of cpu-->AMD EPYC, 2 cores,\ntorch 2.13.0, commit 66f829f<!--/f-->"
    assert figures.stale({"a.md": wrapped}) == ({}, [])


def test_a_block_may_hold_fenced_code(figures, monkeypatch):
    from figures_registry.registry import TABLES
    from figures_registry.typed import find_figures

    monkeypatch.setitem(TABLES, "shown", lambda: "```\n562 texts/s\n```")
    page = "<!-- figures: shown -->\n\n```\n561 texts/s\n```\n\n<!-- /figures -->\n"
    assert figures.stale({"a.md": page})[0] == {"a.md": page.replace("561", "562")}
    assert find_figures(page) == []


def test_every_table_stands_in_a_page(pages):
    from figures_registry.registry import TABLES

    used = re.findall(r"<!-- figures: (\w+) -->", "".join(pages.values()))
    assert set(used) == TABLES.keys()


def test_the_default_model_has_the_card_of_its_example(pages):
    card = pages["examples/c2v_mini/card.md"]
    assert pages["c2v_engine/default_model/README.md"] == card


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_damaged_result_file_is_named_in_one_line(text, said, tmp_path, figures):
    from figures_registry import results

    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(LookupError, match=f"broken.json {said}"):
        results.read_path(path)
