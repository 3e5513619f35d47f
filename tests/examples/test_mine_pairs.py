"""The miner of training pairs: what it extracts, cleans and refuses, on tiny wheels made here."""

import ast
import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from c2v_engine.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "c2v_mini"
sys.path.insert(0, str(FOLDER))

import packages as miner_packages  # noqa: E402
import queries  # noqa: E402
from cleaning import clean, shorten, split_summary  # noqa: E402
from docstrings import docstrings  # noqa: E402
from documents import sections  # noqa: E402
from pairs import PairMaker, Repetition, passages  # noqa: E402

TRAINING = '''
"""Tools that read and write tables of harbour tides for small boats and their crews."""

def parse_tide(text, zone):
    """Parse a table of tides from text.

    Every line holds a time and a height in metres, parted by blanks; lines that start with
    a hash are comments, and an empty table is an error.

    Parameters
    ----------
    text : str
        The table, with one tide a line.
    """

class TideTable:
    """A table of tides sorted by time.

    The table keeps its rows in memory, finds the next high water by bisection and never
    changes the rows that it was given.
    """

    def nextHighWater(self, moment):
        """Return the first high water after a moment given in seconds.

        Searches by bisection, so that a year of tides needs nine comparisons; raises an
        error where the moment stands beyond the last row of the table.
        """

def old():
    """Deprecated: use parse_tide, which reads the very same tables and is kept up to date."""
'''
README = """
# tides

Tides reads tables of tides, finds the next high water and draws the curve of a day.

## Choosing a time zone

Every table is read in the zone of its harbour unless another one is named in the call; daylight
saving is applied after reading, so that rows keep their order even in the nights of change.

## License

MIT, with no warranty of any kind, as is usual for software that nobody is paid for writing.
"""
HELD = '''
def fold_paper(sheet, crease):
    """Fold a sheet of paper along a crease.

    The crease is given by its two end points on the border of the sheet; both halves keep their
    colours, and folding a folded sheet once more doubles the number of its layers again.
    """

def stolen(text):
    """Read a stolen table of tides.

    Every line holds a time and a height in metres, parted by blanks; lines that start with
    a hash are comments, and an empty table is an error.
    """
'''


def make_wheel(folder, name, source, license="MIT", readme=""):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        # A date of its own, or the bytes of the wheel would depend on when it was made.
        archive.writestr(zipfile.ZipInfo(f"{name}/__init__.py"), source)
        archive.writestr(
            zipfile.ZipInfo(f"{name}-1.0.dist-info/METADATA"),
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {license}\n"
            f"Description-Content-Type: text/markdown\n\n{readme}",
        )
    return path


def read(tmp_path, source=TRAINING, readme=README):
    pin = miner_packages.Pin("tides", "1.0", "training")
    return miner_packages.read_wheel(pin, make_wheel(tmp_path, "tides", source, readme=readme))


def found(source, symbol):
    tree = ast.parse(source)
    return next(doc for doc in docstrings("tides", tree) if doc.symbol == symbol)


def mine(tmp_path, out):
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    make_wheel(cache, "tides", TRAINING, readme=README)
    make_wheel(cache, "origami", HELD)
    make_wheel(cache, "closed", TRAINING, license="GPL-3.0-only")
    listed = tmp_path / "packages.txt"
    listed.write_text("[training]\ntides==1.0\nclosed==1.0\n[held-out]\norigami==1.0\n")
    command = [sys.executable, str(FOLDER / "mine_pairs.py"), str(out), "--cache", str(cache)]
    command += ["--packages", str(listed), "--no-stdlib"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_summary_asks_for_the_rest_of_its_docstring():
    doc = found(TRAINING, "tides.parse_tide")
    assert doc.summary == "Parse a table of tides from text."
    assert doc.body.startswith("Every line holds a time")
    assert "Parse a table" not in doc.body


def test_a_symbol_is_asked_for_in_words_or_dotted():
    doc = found(TRAINING, "tides.TideTable.nextHighWater")
    asked = {queries.symbol_query(doc, seed) for seed in range(60)}
    assert "tides Tide Table next High Water" in asked
    assert "tides tide table next high water" in asked
    assert "tides.TideTable.nextHighWater" in asked


def test_a_verb_first_summary_becomes_a_question_or_keywords():
    doc = found(TRAINING, "tides.parse_tide")
    asked = {queries.question_query(doc, "tides", seed) for seed in range(200)}
    assert any(query.startswith("how to parse a table of tides from text") for query in asked)
    assert any(query.startswith("parse table tides text") for query in asked)


def test_returning_is_asked_for_as_getting():
    doc = found(TRAINING, "tides.TideTable.nextHighWater")
    asked = {queries.question_query(doc, "tides", seed) for seed in range(200)}
    assert "how to get the first high water after a moment given in seconds" in asked


def test_telling_titles_give_sections_and_empty_ones_do_not():
    titles = [section.title for section in sections("tides", "README.md", README)]
    assert titles == ["what is tides", "Choosing a time zone"]


def test_every_kind_is_made_and_deprecated_stubs_are_not(tmp_path):
    source = read(tmp_path)
    made = Counter()
    for seed in range(20):
        maker = PairMaker(seed)
        for passage in passages(source, Repetition(), 100, seed):
            for pair in maker.pairs(passage):
                made[pair.kind] += 1
                assert "Deprecated" not in pair.positive
                assert pair.kind != "summary" or pair.query not in pair.positive
    assert set(made) == {"summary", "symbol", "section", "question"}


def test_a_text_read_before_is_no_passage_again(tmp_path):
    repetition = Repetition()
    source = read(tmp_path)
    assert passages(source, repetition, 100, 0)
    assert not passages(source, repetition, 100, 0)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("See :func:`~a.b` and ``c``.", "See a.b and c."),
        ("Read `the guide <https://x.org>`_ *now*.", "Read the guide now."),
        ("Fast.\n\n.. versionadded:: 2.0\n   For tides.\n\nTrue.", "Fast.\n\nTrue."),
        (".. note:: Mind the gap.", "Mind the gap."),
        ("Use [the guide](https://x.org).", "Use the guide."),
        ("Calls __init__ and __new__ first.", "Calls __init__ and __new__ first."),
    ],
)
def test_markup_goes_and_what_it_says_stays(raw, text):
    assert clean(raw) == text


def test_wrapped_lines_join_and_code_keeps_its_lines():
    raw = "A first line that is long enough to wrap\nonto a second. Use::\n\n    a = 1\n    b = 2"
    joined = "A first line that is long enough to wrap onto a second. Use:"
    assert clean(raw) == f"{joined}\n\na = 1\nb = 2"


def test_doctests_beyond_the_first_few_are_dropped():
    raw = "Add.\n\n" + "\n\n".join(f">>> add({i}, {i}, carry=False)\n{2 * i}" for i in range(50))
    assert ">>> add(0, 0" in clean(raw)
    assert len(clean(raw)) < 500


def test_a_summary_ends_at_its_sentence_not_at_an_abbreviation():
    summary, body = split_summary("Open a file, e.g. A log, for reading. It must exist.")
    assert summary == "Open a file, e.g. A log, for reading."
    assert body == "It must exist."


def test_a_long_text_is_cut_at_the_end_of_a_sentence_or_word():
    text = "word " * 100
    assert len(shorten(text, 122)) <= 122
    assert shorten(text, 122).endswith("word")


@pytest.mark.parametrize(
    ("license", "allowed"),
    [
        ("MIT", True),
        ("BSD License", True),
        ("Apache License, Version 2.0", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND LGPL-2.1-only", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
        ("none stated", False),
    ],
)
def test_only_permissive_licences_are_allowed(license, allowed):
    assert miner_packages.is_allowed(license) is allowed


def test_a_package_of_another_licence_is_refused_by_name(tmp_path):
    path = make_wheel(tmp_path, "closed", TRAINING, license="GPL-3.0-only")
    with pytest.raises(InputError, match=r"closed: licence 'GPL-3\.0-only'"):
        miner_packages.read_wheel(miner_packages.Pin("closed", "1.0", "training"), path)


@pytest.mark.parametrize("line", ["tides", "[other]", "tides==1.0\ntides==2.0"])
def test_a_list_that_can_not_be_read_names_its_line(tmp_path, line):
    listed = tmp_path / "packages.txt"
    listed.write_text(f"[training]\n{line}\n")
    with pytest.raises(InputError, match=r"packages\.txt:[23]: "):
        miner_packages.read_pins(listed)


def test_one_run_holds_out_refuses_and_repeats_itself_byte_by_byte(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = mine(tmp_path, first)
    assert "refused: closed: licence 'GPL-3.0-only'" in done.stderr
    mine(tmp_path, second)
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert Path("pairs.jsonl") in names
    assert [(second / n).read_bytes() for n in names] == [(first / n).read_bytes() for n in names]

    assert {pair["package"] for pair in rows(first / "pairs.jsonl")} == {"tides"}
    corpus = rows(first / "heldout" / "corpus.jsonl")
    texts = [row["text"] for row in corpus]
    assert any("crease is given" in text for text in texts)
    assert not any("Every line holds a time" in text for text in texts)  # it stands in training

    passage_of = {row["_id"]: row["text"] for row in corpus}
    asked = {row["_id"]: row for row in rows(first / "heldout" / "queries.jsonl")}
    judged = (first / "heldout" / "qrels" / "test.tsv").read_text().splitlines()
    assert judged[0] == "query-id\tcorpus-id\tscore"
    assert len(judged) == 1 + len(asked)
    for line in judged[1:]:
        query, passage, score = line.split("\t")
        assert asked[query]["text"].lower() not in passage_of[passage].lower()
        assert asked[query]["metadata"]["package"] == "origami"
        assert score == "1"

    provenance = json.loads((first / "provenance.json").read_text())
    assert "GPL-3.0-only" in provenance["refused"]["closed"]
    data = (first / "pairs.jsonl").read_bytes()
    assert provenance["files"]["pairs.jsonl"] == hashlib.sha256(data).hexdigest()
