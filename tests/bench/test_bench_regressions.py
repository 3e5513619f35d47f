"""What has become worse: what is judged, what is shown, and the command that says so."""

import copy
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import check_regressions  # noqa: E402

from c2v_engine.bench.counts import count_workload  # noqa: E402
from c2v_engine.bench.ratios import Ratio, ratios_of  # noqa: E402
from c2v_engine.bench.regressions import (  # noqa: E402
    COUNT_RULES,
    compare_counts,
    compare_ratios,
    table,
)
from c2v_engine.kernels._extension import load_extension  # noqa: E402
from c2v_engine.model.causal2vec import PackedCausal2Vec  # noqa: E402

FACTS = {"torch": "2.13.0", "python": "3.11", "cpu": "one", "threads": 2, "commit": "abc"}
COUNTS = {
    "decoder_rows": 100,
    "batches": 2,
    "operators": 20,
    "operators_by_name": {"aten::mul.Tensor": 12, "aten::add.Tensor": 8},
    "gemm_flop": 1000,
    "allocated_bytes": 10000,
    "peak_bytes": 500,
    "python_calls": 1000,
    "python_calls_by_module": {"runtime.packing": 600, "model.decoder": 400},
    "library_calls": 300,
    "instructions": None,
}


def counts_with(facts=None, **changed):
    return {"facts": {**FACTS, **(facts or {})}, "cases": {"tiny": {**COUNTS, **changed}}}


def moved_of(old, new):
    (found,) = compare_counts(old, new)
    return found


def test_nothing_moved_is_nothing_to_show():
    assert compare_counts(counts_with(), counts_with()) == []
    assert table([]) == []


def test_one_operator_more_is_worse_and_named():
    found = moved_of(
        counts_with(),
        counts_with(
            operators=21, operators_by_name={"aten::mul.Tensor": 13, "aten::add.Tensor": 8}
        ),
    )
    assert (found.verdict, found.old, found.new) == ("worse", 20, 21)
    assert found.parts == (("aten::mul.Tensor", 12, 13),)
    _, line, part = table([found])
    assert line.startswith("tiny: operators")
    assert "+5.0%" in line
    assert "worse" in line
    assert part.split() == ["aten::mul.Tensor", "12", "13"]


@pytest.mark.parametrize(
    ("count", "value", "verdict"),
    [
        ("operators", 19, "better"),
        ("gemm_flop", 1001, "worse"),
        ("batches", 3, "worse"),
        ("allocated_bytes", 10090, "moved"),
        ("allocated_bytes", 10110, "worse"),
        ("python_calls", 1025, "moved"),
        ("python_calls", 1040, "worse"),
        ("python_calls", 960, "better"),
        ("decoder_rows", 101, "worse"),
    ],
)
def test_a_count_is_judged_by_what_it_is_allowed(count, value, verdict):
    assert moved_of(counts_with(), counts_with(**{count: value})).verdict == verdict


@pytest.mark.parametrize(
    ("count", "fact", "judged"),
    [
        ("operators", "torch", False),
        ("operators", "cpu", True),
        ("gemm_flop", "torch", True),
        ("allocated_bytes", "vectors", False),
        ("python_calls", "torch", True),
        ("python_calls", "extension", False),
        ("library_calls", "python", False),
    ],
)
def test_a_count_is_judged_where_what_it_depends_on_is_the_same(count, fact, judged):
    found = moved_of(counts_with(), counts_with({fact: "other"}, **{count: 10**6}))
    assert found.verdict == ("worse" if judged else "not judged")
    assert judged or found.reason == f"{fact} was {FACTS.get(fact)}, is other"


def test_a_case_that_is_not_counted_any_more_is_worse_and_a_new_one_is_not():
    two = {"facts": FACTS, "cases": {"tiny": COUNTS, "other": COUNTS}}
    assert moved_of(two, counts_with()).verdict == "worse"
    assert moved_of(counts_with(), two).verdict == "not judged"


def test_a_count_that_one_side_lacks_is_not_compared():
    assert compare_counts(counts_with(), counts_with(instructions=7)) == []


def ratio(*each):
    return Ratio.of(each).as_json()


def ratios_with(found, **facts):
    return {"facts": {**FACTS, **facts}, "cases": {"a over b": found}}


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (ratio(2, 2, 2), ratio(1.81, 1.81), "moved"),
        (ratio(2, 2, 2), ratio(1.79, 1.79), "worse"),
        (ratio(2, 2, 2), ratio(2.21, 2.21), "better"),
        (ratio(1.9, 2, 2.1), ratio(1.72, 1.72), "moved"),  # 10% and the 5% that turns differ
        (ratio(1.9, 2, 2.1), ratio(1.68, 1.68), "worse"),
        (ratio(2), {"reason": "padded is wrong"}, "worse"),
        ({"reason": "no instructions"}, ratio(2), "not judged"),
    ],
)
def test_a_ratio_is_judged_by_the_spread_of_both_runs(old, new, verdict):
    (found,) = compare_ratios(ratios_with(old), ratios_with(new))
    assert found.verdict == verdict


def test_a_ratio_of_another_processor_is_shown_and_not_judged():
    (found,) = compare_ratios(ratios_with(ratio(2, 2)), ratios_with(ratio(1, 1), cpu="two"))
    assert (found.verdict, found.reason) == ("not judged", "cpu was one, is two")


def test_ratios_are_of_turns():
    entries = [
        {"case": "c", "provider": "engine bfloat16", "status": "ok", "seconds": [1, 2, 1]},
        {"case": "c", "provider": "padded bfloat16", "status": "ok", "seconds": [3, 5, 2]},
        {"case": "c", "provider": "engine int8", "status": "ok", "seconds": [0.5, 1, 0.25]},
        {"case": "c", "provider": "packed bfloat16", "status": "unusable", "reason": "no kernel"},
    ]
    entries[0]["operations"] = 30
    products = {"operations": 60, "status": "ok", "seconds": [1, 2, 1]}
    found = ratios_of(entries, products)
    assert found["c: engine bfloat16 over padded bfloat16"]["each"] == [3, 2.5, 2]
    assert found["c: engine bfloat16 over padded bfloat16"]["median"] == 2.5
    assert found["c: engine int8 over engine bfloat16"]["each"] == [2, 2, 4]
    assert found["c: engine bfloat16 over matrix products alone"]["each"] == [0.5] * 3
    assert "no kernel" in found["c: engine bfloat16 over packed bfloat16"]["reason"]


@pytest.fixture(scope="module")
def store():
    return json.loads(check_regressions.STORE.read_text(encoding="utf-8"))


def check(capsys, *arguments):
    """The exit status of the command, and what it printed."""
    status = 0
    try:
        check_regressions.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr()


def test_the_work_of_a_batch_is_no_more_than_what_is_stored(capsys):
    """Where this fails a change made the engine do more: the table says of what."""
    status, printed = check(capsys, "--counts-only")
    assert status == 0, printed.out
    if load_extension().available:
        assert "12 cases" in printed.out


@pytest.fixture
def default_alone(monkeypatch):
    """The command, with one call of the default model in place of all there is to count."""

    def count():
        with counts_module.open_subjects() as sessions:
            work = counts_module.WORK["one text"]
            return {"default/one text": count_workload(sessions["default"], work)}

    from c2v_engine.bench import counts as counts_module

    monkeypatch.setattr(counts_module, "SUBJECTS", {"default": None})
    monkeypatch.setattr(check_regressions, "count_work", count)


@pytest.mark.usefixtures("default_alone")
def test_a_batch_that_is_computed_twice_fails_with_a_line_that_says_so(
    tmp_path, capsys, monkeypatch
):
    path = tmp_path / "store.json"
    assert check(capsys, "--counts-only", "--update", "--store", path)[0] == 0
    assert check(capsys, "--counts-only", "--store", path)[0] == 0
    forward = PackedCausal2Vec.forward

    def twice(self, *arguments):
        forward(self, *arguments)
        return forward(self, *arguments)

    monkeypatch.setattr(PackedCausal2Vec, "forward", twice)
    status, printed = check(capsys, "--counts-only", "--store", path)
    assert status == 1
    (line,) = (line for line in printed.out.splitlines() if "text: gemm_flop" in line)
    assert line.startswith("default/one text: gemm_flop")
    assert "+100.0%" in line
    assert "worse" in line


@pytest.mark.usefixtures("default_alone")
def test_counts_alone_are_updated_and_the_ratios_stay(tmp_path, capsys, store):
    path = tmp_path / "store.json"
    ratios = ratios_with(ratio(2, 2))
    kept = {**copy.deepcopy(store), "ratios": ratios, "counts": counts_with()}
    path.write_text(json.dumps(kept))
    status, printed = check(capsys, "--counts-only", "--update", "--store", path)
    assert status == 0
    assert "tiny" in printed.out  # which is gone, and said before it is
    written = json.loads(path.read_text())
    assert written["ratios"] == ratios
    assert list(written["counts"]["cases"]) == ["default/one text"]
    assert {"commit", "torch", "cpu", "extension"} <= written["counts"]["facts"].keys()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"kind": "bench"}', '{"kind": "regressions"}'])
def test_a_store_that_is_none_is_refused_in_one_line(text, tmp_path, capsys):
    path = tmp_path / "store.json"
    if text is not None:
        path.write_text(text)
    status, printed = check(capsys, "--counts-only", "--store", path)
    assert (status, printed.out) == (2, "")
    assert printed.err.startswith(f"error: {path}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("counts", {}, "counts have no facts and cases"),
        ("counts", {"facts": {}, "cases": {}}, "facts of counts name no commit"),
        ("counts", {"facts": {"commit": "a"}, "cases": {"x": 1}}, "counts of 'x' are no object"),
        (
            "counts",
            {"facts": {"commit": "a"}, "cases": {"x": {"operators": 1}}},
            "operators_by_name of 'x'",
        ),
        ("ratios", {"facts": {"commit": "a"}, "cases": {"x": {"median": 1.0}}}, "low of 'x'"),
        ("ratios", [], "ratios have no facts and cases"),
    ],
)
def test_a_damaged_store_is_refused_before_anything_is_counted(
    part, value, said, tmp_path, capsys, store
):
    path = tmp_path / "store.json"
    path.write_text(json.dumps({**store, part: value}))
    status, printed = check(capsys, "--counts-only", "--store", path)
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert said in printed.err


def test_what_is_stored_has_all_that_is_judged(store):
    assert store["kind"] == "regressions"
    for case in store["counts"]["cases"].values():
        assert COUNT_RULES.keys() <= case.keys()
