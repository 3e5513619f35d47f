"""Measuring a case: what is checked, what is timed, and what an entry holds."""

import dataclasses
import math

import pytest
import torch
from kernel_benchmark import providers
from kernel_benchmark.agreement import check_provider, expected_outputs
from kernel_benchmark.case import Provider
from kernel_benchmark.catalogue import small_cases
from kernel_benchmark.measure import draw_sets, figures, measure_case
from kernel_benchmark.providers import all_providers, form_of

from c2v_engine.bench.machine.ceilings import measure_ceilings
from c2v_engine.bench.machine.clock import HostTimer, make_timer
from c2v_engine.kernels._ops import OLDEST_CAPABILITIES
from c2v_engine.model.attention.select import BACKENDS

CPU = torch.device("cpu")
SMALL = small_cases(torch.bfloat16)
FIELDS = {
    "op",
    "case",
    "provider",
    "shape",
    "dtype",
    "bytes",
    "device",
    "status",
    "error",
    "bound",
    "timing",
    "calls",
    "sets",
    "ms",
    "median_ms",
    "spread_ms",
    "least_ms",
    "most_ms",
    "gb_per_s",
    "fraction_of_copy",
}


def with_launcher(case, launcher):
    return dataclasses.replace(case, op=dataclasses.replace(case.op, launcher=launcher))


def by_provider(entries):
    return {entry["provider"]: entry for entry in entries}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_op_agrees_and_is_timed(case, settings):
    entries = by_provider(measure_case(case, settings))
    for provider in ("ours", "eager"):
        entry = entries[provider]
        assert entry["status"] == "ok", entry.get("reason")
        assert entry.keys() >= FIELDS | set(case.sizes)
        assert len(entry["ms"]) == settings.repetitions
        assert all(time > 0 for time in entry["ms"])
        assert entry["error"] <= entry["bound"]
    assert entries["ours"]["form"] in ("csrc", "pytorch")


@pytest.mark.usefixtures("quick")
def test_float32_is_held_to_the_bound_of_float32(settings):
    for case in small_cases(torch.float32):
        for entry in measure_case(case, settings):
            if entry["status"] != "unusable":
                assert entry["status"] == "ok", entry
                assert entry["bound"] == (6e-2 if case.op.float8 else 1e-5)


@pytest.mark.usefixtures("quick")
def test_each_attention_backend_has_an_entry_as_the_table_of_backends_reads_it(small, settings):
    entries = by_provider(measure_case(small("packed_attention"), settings))
    assert set(BACKENDS) < set(entries)
    for name in BACKENDS:
        entry = entries[name]
        assert (entry["op"], entry["backend"]) == ("attention", name)
        assert entry["mask"] == "causal"
        assert {"head_dim", "heads", "kv_heads", "length", "dtype"} <= entry.keys()
        if entry["status"] == "ok":
            assert entry["tflops"] > 0
            assert len(entry["ms"]) == settings.repetitions
        else:
            assert entry["reason"]
    assert entries["sdpa"]["status"] == "ok"


def spoil_a_row(rows):
    rows[5] *= 1.5
    return rows


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows * 1.05,
        lambda rows: spoil_a_row(rows.clone()),
        lambda rows: rows.clone().index_fill_(0, torch.tensor([7]), torch.nan),
        lambda rows: rows.clone().index_fill_(0, torch.tensor([7]), torch.inf),
        lambda rows: rows[:-1],
        lambda rows: (rows, rows),
        torch.empty_like,
    ],
    ids=["all rows", "one row", "nan", "infinity", "shape", "number", "nothing written"],
)
def test_a_wrong_provider_is_reported_and_not_timed(wrong, small, settings):
    case = small("silu_and_mul")
    launcher = case.op.launcher
    entries = by_provider(
        measure_case(with_launcher(case, lambda gate_up: wrong(launcher(gate_up))), settings)
    )
    assert entries["ours"]["status"] == "wrong"
    assert entries["ours"]["reason"]
    assert "ms" not in entries["ours"]
    assert entries["eager"]["status"] == "ok"


def test_what_ours_forgets_to_write_is_nan_and_not_what_was_there_before(small):
    case = small("silu_and_mul")
    arguments = case.arguments(CPU, 0)
    expected = expected_outputs(case, arguments)
    fresh, filled = [], []

    def call(given):
        fresh.append(bool(torch.empty(64).isnan().all()))
        filled.append(torch.are_deterministic_algorithms_enabled())
        return case.op.launcher(**given)

    for form in ("triton", None):
        assert check_provider(case, Provider("any", call, form), arguments, expected).passed
    assert fresh[0]
    assert filled == [True, False]


@pytest.mark.usefixtures("quick")
def test_a_wrong_result_in_place_is_found(small, settings):
    case = small("add_rms_norm")

    def forgets_to_add(residual, x, weight, *, eps):
        return case.op.launcher(residual + x, None, weight, eps=eps)

    entries = by_provider(measure_case(with_launcher(case, forgets_to_add), settings))
    assert entries["ours"]["status"] == "wrong"


@pytest.mark.usefixtures("quick")
def test_a_provider_that_raises_is_reported_and_the_others_are_timed(small, settings):
    def raises(**arguments):
        raise ValueError("no\nsuch kernel")

    entries = by_provider(measure_case(with_launcher(small("silu_and_mul"), raises), settings))
    assert entries["ours"]["status"] == "failed"
    assert entries["ours"]["reason"] == "ValueError: no such kernel"
    assert entries["eager"]["status"] == "ok"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_arguments_that_are_no_data_any_more_after_the_timing_are_reported(value, small, settings):
    case = small("bias_act_")
    calls = []

    def right_at_first(x, bias, *, activation):
        calls.append(1)
        case.op.launcher(x, bias, activation=activation)
        if len(calls) > 2:
            x.fill_(value)

    # All write to the same arguments, so the last of them would hide what the first has done.
    alone = dataclasses.replace(settings, excluded={"eager": "not wanted here"})
    entries = by_provider(measure_case(with_launcher(case, right_at_first), alone))
    assert entries["ours"]["status"] == "wrong"
    assert "after the timing x " in entries["ours"]["reason"]


def test_a_check_changes_no_argument(small):
    case = small("add_rms_norm")
    arguments = case.arguments(CPU, 0)
    before = {name: value.clone() for name, value in arguments.items() if name != "eps"}
    expected = expected_outputs(case, arguments)
    provider = Provider("ours", lambda given: case.op.launcher(**given), form="csrc")
    assert check_provider(case, provider, arguments, expected).passed
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_compiled_reference_is_a_provider(small, settings):
    case = small("silu_and_mul")
    # What torch.compile traces is tried here; generating code for it would take long.
    entries = by_provider(measure_case(case, dataclasses.replace(settings, compiler="eager")))
    assert entries["compile"]["status"] == "ok"
    names = [each.name for each in all_providers(case, case.arguments(CPU, 0), compiler=None)]
    assert "compile" not in names


PLAIN = ("embed_layer_norm", "prefix_concat", "segment_pool")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", PLAIN)
def test_pytorch_is_timed_with_the_plain_form_of_what_guards_ids(name, small, settings):
    case = small(name)
    calls = []

    def counted(**arguments):
        calls.append("baseline")
        return case.op.baseline(**arguments)

    def reference(**arguments):
        calls.append("reference")
        return case.op.reference(**arguments)

    op = dataclasses.replace(case.op, baseline=counted, reference=reference)
    entries = by_provider(measure_case(dataclasses.replace(case, op=op), settings))
    assert entries["eager"]["status"] == "ok"
    assert calls.count("reference") == 1  # for what is right
    assert calls.count("baseline") > 2
    entries = by_provider(measure_case(case, dataclasses.replace(settings, compiler="eager")))
    assert entries["compile"]["status"] == "ok", entries["compile"].get("reason")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", PLAIN)
def test_a_wrong_plain_form_is_reported_and_not_timed(name, small, settings):
    case = small(name)
    op = dataclasses.replace(case.op, baseline=lambda **given: case.op.baseline(**given) * 1.05)
    entries = by_provider(measure_case(dataclasses.replace(case, op=op), settings))
    assert entries["eager"]["status"] == "wrong"
    assert "ms" not in entries["eager"]
    assert entries["ours"]["status"] == "ok"


@pytest.mark.parametrize("activated", [1, 1000])
def test_the_activation_in_place_is_seen_and_can_be_repeated(activated, small):
    case = small("bias_act_")
    x = case.arguments(CPU, 0)["x"]
    first = x.clone()
    for _ in range(activated):
        case.op.launcher(x, None, activation="gelu")
    # Enough of it changes at first for the check to see, and enough of it stays in the end.
    assert (x.float() - first).norm() > 0.1 * first.float().norm()
    assert (x == 0).float().mean() < 0.45


def test_figures_are_rates_over_the_median(small, settings):
    case = small("packed_attention")
    found = figures(case, [1.0, 4.0, 2.0], settings.ceilings)
    assert (found["median_ms"], found["least_ms"], found["most_ms"]) == (2.0, 1.0, 4.0)
    assert math.isclose(found["gb_per_s"], case.moved_bytes / 2e-3 / 1e9)
    assert math.isclose(found["fraction_of_copy"], found["gb_per_s"] / 10.0)
    assert math.isclose(found["tflops"], case.operations / 2e-3 / 1e12)
    assert math.isclose(found["fraction_of_gemm"], found["tflops"] / 0.1)
    assert "tflops" not in figures(small("silu_and_mul"), [1.0], settings.ceilings)


def test_arguments_are_drawn_until_no_cache_holds_them(small, settings):
    case = small("prefix_concat")
    cache = dataclasses.replace(settings, cache_bytes=2 * case.moved_bytes)
    sets = draw_sets(case, cache)
    assert len(sets) == 6
    assert len({each["token_ids"].data_ptr() for each in sets}) == 6
    assert len({each["embed_tokens"].data_ptr() for each in sets}) == 1
    large = dataclasses.replace(settings, cache_bytes=case.moved_bytes // 4)
    assert len(draw_sets(case, large)) == 1


def test_a_timer_uses_all_sets_alike_and_goes_on_until_it_is_long_enough(small):
    case = small("silu_and_mul")
    sets = [case.arguments(CPU, seed) for seed in range(3)]
    used = []

    def call(arguments):
        used.append(id(arguments))
        return case.op.launcher(**arguments)

    timer = make_timer(call, sets)
    assert timer.calls % 3 == 0
    assert timer.calls > 3
    used.clear()
    assert timer.repetition() > 0
    assert [used.count(id(each)) for each in sets] == [timer.calls // 3] * 3


def test_results_of_as_many_calls_as_there_are_sets_are_alive():
    class Counted:
        most = 0
        living = 0

        def __init__(self):
            Counted.living += 1
            Counted.most = max(Counted.most, Counted.living)

        def __del__(self):
            Counted.living -= 1

    timer = HostTimer(lambda arguments: Counted(), [{}, {}, {}])
    timer.calls = 12
    timer.repetition()
    assert Counted.most == 4  # three, and the one that is just made


def test_ceilings_are_measured_on_this_machine():
    ceilings = measure_ceilings(CPU, torch.float32, tiny=True)
    assert ceilings.copy_gb_per_s > 0
    assert ceilings.gemm_tflops > 0
    fields = ceilings.as_json()
    assert len(fields["copy_ms"]) == len(fields["gemm_ms"]) > 3
    assert fields["work"] == {"copied": 2**20, "size": 64}


def test_the_form_that_serves_is_told():
    assert form_of("add_rms_norm_fp8", CPU) == "pytorch"
    assert form_of("dual_token_pool", CPU) in ("csrc", "pytorch")


def test_a_gpu_too_old_for_float8_runs_the_other_kernels(small, monkeypatch):
    pytest.importorskip("triton")
    older = (8, 0)
    monkeypatch.setattr(providers, "triton_serves", lambda device, oldest: older >= oldest)
    gpu = torch.device("cuda")
    assert OLDEST_CAPABILITIES["add_rms_norm"] == older
    assert form_of("add_rms_norm", gpu) == "triton"
    float8 = ("add_rms_norm_fp8", "add_layer_norm_fp8", "silu_and_mul_fp8", "quantize_rows_fp8")
    for name in float8:
        assert form_of(name, gpu) == "pytorch"
        unusable = providers.ours(small(name), gpu)
        assert unusable.name == "ours"
        assert "needs compute capability 8.9" in unusable.reason
