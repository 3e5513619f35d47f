"""Result files as they are read, printed and compared, against numbers worked out by hand."""

import copy
import json
from pathlib import Path

import pytest
from made_results import content, entry, method

from c2v_engine.bench.report.compare import compare
from c2v_engine.bench.report.read import Ratio, Results, read_results
from c2v_engine.bench.report.tables import entry_line, method_rows, peer_table, summary_lines
from c2v_engine.errors import InputError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ENGINES = sorted(str(path.relative_to(RESULTS)) for path in RESULTS.glob("h100-*/engine.json"))


def test_a_fraction_is_of_the_better_product_of_the_provider_s_dtype():
    results = Results(content(entry(), entry("padded float32", (4.0,)), entry("engine int8")))
    ours, padded, eight = results.timed
    assert results.of_gemm(ours) == pytest.approx(0.5 / 1.0)
    assert results.of_gemm(padded) == pytest.approx(0.25 / 0.2)
    assert results.of_gemm(eight) is None
    assert results.copy_gb_per_s == 25.0


def test_one_product_of_an_older_file_is_of_its_dtype_alone():
    older = content(entry(), entry("engine float32"))
    older["ceilings"] = {"copy_gb_per_s": 1.0, "gemm_tflops": 2.0, "dtype": "bfloat16"}
    del older["ceilings_at_end"]
    first, second = Results(older).timed
    assert Results(older).of_gemm(first) == pytest.approx(0.25)
    assert Results(older).of_gemm(second) is None


def test_a_ratio_is_of_repetitions_that_were_side_by_side():
    ratio = Ratio.of(entry(seconds=(1.0, 2.0, 4.0)), entry("padded bfloat16", (3.0, 2.0, 8.0)))
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 1.0, 3.0)


def test_every_provider_is_a_line_and_one_that_did_not_run_says_why():
    missing = {
        "case": "m/128",
        "model": "m",
        "provider": "vllm bfloat16",
        "status": "unusable",
        "reason": "wants a GPU",
    }
    lines = summary_lines(
        Results(content(entry(), entry("padded bfloat16", (6.0, 3.0, 12.0)), missing))
    )
    text = "\n".join(lines)
    assert "Some CPU, 2 threads" in text
    assert "abcdef0" in text
    assert "multiplies bfloat16 matrices at 1.0 TFLOP/s" in text
    assert "multiplies float32 matrices at 200 GFLOP/s" in text
    assert any("vllm bfloat16" in line and "unusable: wants a GPU" in line for line in lines)
    (padded,) = [line for line in lines if line.startswith("  padded")]
    assert "3.00 times as fast (3.00 to 3.00)" in padded
    (ours,) = [line for line in lines if line.startswith("  engine")]
    assert "50.0%" in ours
    assert "times as fast" not in ours


def test_what_was_cut_and_changes_to_the_commit_are_said():
    cut = {"after_s": 3.0, "not_measured": ["m/512", "m/512"]}
    lines = summary_lines(Results(content(entry(), cut=cut, dirty=True)))
    assert lines[-1] == "no time was left for: m/512 (--seconds gives more)"
    assert "abcdef0 and changes to it" in "\n".join(lines)


def test_an_entry_is_a_line_as_it_comes():
    assert "5.0 texts/s" in entry_line(entry())
    failed = {"case": "m/128", "provider": "x", "status": "failed", "reason": "why"}
    assert entry_line(failed).endswith("failed: why")


def test_methods_are_measured_by_the_dearest_and_by_the_plainest():
    results = Results(
        content(
            method("causal2vec", 16, 18, 3.0),
            method("last-token", 16, 17, 2.0),
            method("in-context", 16, 340, 20.0),
            method("causal2vec", 32, 34, 5.0),
            kind="methods",
        )
    )
    ours, plain, dear, alone = method_rows(results, "m")
    assert ours["rows"] == 18
    assert ours["ms"] == pytest.approx(3.0)
    assert ours["ms_of_dearest"] == pytest.approx(0.15)
    assert ours["ms_of_plainest"] == pytest.approx(1.5)
    assert ours["rows_of_dearest"] == pytest.approx(18 / 340)
    assert plain["ms_of_plainest"] == 1
    assert dear["ms_of_dearest"] == 1
    assert (alone["ms_of_dearest"], alone["ms_of_plainest"]) == (1, None)
    text = "\n".join(summary_lines(results))
    assert "m, texts of 16 tokens" in text
    assert "in-context" in text


def test_a_faster_machine_does_not_look_like_a_faster_engine():
    old = content(entry(seconds=(2.0, 2.0, 2.0)))
    new = copy.deepcopy(old)
    new["results"][0].update(seconds=[1.0] * 3, median_s=1.0, tflops=1.0)
    for key in ("ceilings", "ceilings_at_end"):
        new[key]["gemm_tflops"] = {"bfloat16": 2.0}
    (moved,) = compare(Results(old), Results(new)).moved
    assert (moved.verdict, moved.change, moved.normalised) == ("same", pytest.approx(1.0), True)
    assert (moved.old_s, moved.new_s) == (2.0, 1.0)


def test_a_slower_engine_on_the_same_machine_is_slower_and_comes_first():
    steady = entry("padded bfloat16", (5.0, 5.0, 5.0))
    old = content(entry(seconds=(2.0, 2.0, 2.0)), steady)
    new = copy.deepcopy(old)
    new["results"][0].update(seconds=[3.0] * 3, median_s=3.0, tflops=1 / 3)
    comparison = compare(Results(old), Results(new))
    assert [each.verdict for each in comparison.moved] == ["slower", "same"]
    assert comparison.lines()[1].split()[:2] == ["slower", "m/128"]
    assert comparison.lines()[-1] == "1 slower, 0 faster, 1 same"


def test_a_change_within_the_noise_is_none():
    old = content(entry(seconds=(1.5, 2.0, 2.5)))
    new = copy.deepcopy(old)
    new["results"][0].update(seconds=[1.8, 2.3, 2.8], median_s=2.3, tflops=1 / 2.3)
    assert compare(Results(old), Results(new)).moved[0].verdict == "same"


def test_repetitions_that_overlap_are_no_change_however_far_the_medians_are():
    old = content(entry(seconds=(0.4, 2.0, 2.2)))
    new = copy.deepcopy(old)
    new["results"][0].update(seconds=[2.0, 9.0, 9.5], median_s=9.0, tflops=1 / 9)
    (moved,) = compare(Results(old), Results(new)).moved
    assert moved.verdict == "same"
    assert moved.change == pytest.approx(2 / 9)
    # The best new (2 s, at the lower ceiling, 0.8) over the worst old (2.2 s, at the better, 1).
    assert moved.most == pytest.approx(2.2 / 2.0 / 0.8)


def test_more_work_in_the_same_time_is_faster():
    old = content(entry(seconds=(2.0,)))
    new = copy.deepcopy(old)
    new["results"][0].update(operations=2e12, tflops=1.0)
    (moved,) = compare(Results(old), Results(new)).moved
    assert (moved.verdict, moved.new_s) == ("faster", 1.0)


def test_speeds_alone_of_two_machines_are_not_judged():
    old = content(entry("engine int8", (2.0,)))
    new = content(entry("engine int8", (4.0,)))
    assert [each.verdict for each in compare(Results(old), Results(new)).moved] == ["slower"]
    new["cpu"] = "Another"
    comparison = compare(Results(old), Results(new))
    assert [each.verdict for each in comparison.moved] == ["unjudged"]
    assert comparison.lines()[-1] == "0 slower, 0 faster, 0 same, 1 unjudged"


def test_a_ceiling_that_fell_within_a_run_is_noise_and_is_said():
    old = content(entry(seconds=(2.0,)))
    old["ceilings"]["gemm_tflops"]["bfloat16"] = 1.0  # as at the end
    new = copy.deepcopy(old)
    new["results"][0].update(seconds=[2.4], median_s=2.4, tflops=1 / 2.4)
    assert compare(Results(old), Results(new)).moved[0].verdict == "slower"
    assert not any("not steady" in line for line in summary_lines(Results(new)))
    new["ceilings_at_end"]["gemm_tflops"]["bfloat16"] = 0.5
    assert compare(Results(old), Results(new)).moved[0].verdict == "same"
    assert any(
        "but at 500 GFLOP/s at the other end" in line for line in summary_lines(Results(new))
    )


def test_a_method_is_compared_in_the_same_dtype_alone():
    old = content(method("echo", 16, 33, 3.0), kind="methods")
    new = copy.deepcopy(old)
    new["results"][0]["provider"] = "engine float32"
    comparison = compare(Results(old), Results(new))
    assert comparison.moved == ()
    assert comparison.only_new == ("m/16 tokens/methods, echo float32",)


def test_long_names_do_not_touch():
    long = entry("sentence-transformers bfloat16", case="a-model last-token/passages/bfloat16")
    results = Results(content({**entry(), "case": long["case"]}, long))
    (line,) = [each for each in compare(results, results).lines() if "sentence" in each]
    assert line.split()[1:5] == [
        "a-model",
        "last-token/passages/bfloat16",
        "sentence-transformers",
        "bfloat16",
    ]


def test_rows_of_a_shared_prompt_are_not_computed_and_less_than_the_dearest_is_said():
    shared = {**method("in-context shared", 16, 340, 5.0), "computed_tokens": 170}
    dear, plain = method("in-context", 16, 340, 20.0), method("last-token", 16, 17, 2.0)
    results = Results(content(plain, dear, shared, kind="methods"))
    row = method_rows(results, "m")[2]
    assert (row["rows"], row["computed"]) == (340, 17)
    assert row["computed_of_dearest"] == pytest.approx(17 / 340)
    (line,) = [line for line in summary_lines(results) if line.startswith("  in-context shared")]
    assert " ".join(line.split()[2:]) == "340.0 17.0 -95.0% 1.00 x 5.00 -75.0% 2.50 x"


def test_peers_stand_by_workload():
    at = {"case": "m/128/bfloat16"}
    queries = {"case": "m/queries/bfloat16"}
    results = Results(
        content(
            entry(**at),
            entry("padded bfloat16", (6.0, 4.0, 8.0), **at),
            entry("device bfloat16", **at),
            entry(**queries),
            entry("llama.cpp q8_0", (1.0, 1.0, 1.0), **queries),
        )
    )
    workloads, rows = peer_table(results, "m", "bfloat16")
    assert workloads == ["128", "queries"]
    assert rows == [
        ("padded", "3.00 (2.00 to 4.00)", ""),
        ("llama.cpp q8_0", "", "0.50 (0.25 to 1.00)"),
    ]


def test_another_machine_and_what_only_one_file_has_are_said():
    old = content(entry(), entry("padded bfloat16"))
    new = content(entry(), entry("device bfloat16"), cpu="Another")
    lines = compare(Results(old), Results(new)).lines()
    assert lines[0] == "cpu: Some CPU -> Another"
    assert lines[1].startswith("two machines: faster and slower are of the part")
    assert "only in the old file: m/128, padded bfloat16" in lines
    assert "only in the new file: m/128, device bfloat16" in lines
    json.dumps(compare(Results(old), Results(new)).as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"results": []}', "it has no 'ceilings'"),
        ('{"results": 3, "ceilings": {}}', "results is 3, expected a list of objects"),
        ('{"results": [], "ceilings": {}}', "ceilings has no 'copy_gb_per_s'"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_what_is_wrong(text, said, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_results(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json: no such file"):
        read_results(tmp_path / "nothing.json")


@pytest.mark.parametrize("seconds", [[], [0.0], [float("nan")], ["1"], None])
def test_times_that_are_none_are_refused(seconds):
    with pytest.raises(
        InputError, match=r"results\[0\]\.seconds is .*, expected a list of seconds above 0"
    ):
        Results(content({**entry(), "seconds": seconds}))


def test_an_entry_without_a_field_is_named_by_its_number():
    broken = entry()
    del broken["tflops"]
    with pytest.raises(InputError, match=r"results\[1\] has no 'tflops'"):
        Results(content(entry(), broken))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            ("results", 0, "tflops"),
            "fast",
            r"results\[0\]\.tflops is 'fast', expected a number above",
        ),
        (("results", 0, "stages"), {}, r"results\[0\]\.stages has no 'texts'"),
        (("ceilings", "gemm_tflops"), {"bfloat16": 0}, r"gemm_tflops is .*, or one for each dtype"),
        (("ceilings_at_end",), [], "ceilings_at_end is .*, expected an object, or null"),
        (("cut",), {}, "cut has no 'not_measured'"),
        (("models",), {"m": 3}, "models.m is 3, expected an object"),
        (("kind",), "serving", "kind is 'serving', expected 'bench' or 'methods'"),
        (("kind",), "methods", r"results\[0\] has no 'method'"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named(place, value, said):
    found = content(entry())
    *folders, last = place
    holder = found
    for key in folders:
        holder = holder[key]
    holder[last] = value
    with pytest.raises(InputError, match=said) as raised:
        Results(found, "old.json")
    assert str(raised.value).startswith("old.json: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cpu-engine.json", *ENGINES])
def test_every_stored_result_is_read(name):
    results = read_results(RESULTS / name)
    assert results.timed
    assert len(summary_lines(results)) > len(results.timed)


def test_numbers_and_nesting_beyond_what_can_be_read_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        read_results(path)
    with pytest.raises(InputError, match=r"tflops is 1000.*expected a number above 0"):
        Results(content(entry(tflops=10**400)))
