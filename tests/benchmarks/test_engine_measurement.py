"""The engine benchmark's measuring: agreement before time, turns, budget, and the stages."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from bench_engine import sources
from engine_benchmark.cases import full_cases, small_cases
from engine_benchmark.report import GOALS, line
from engine_sessions import open_session
from torch._C._autograd import DeviceType

from c2v_engine.bench import measure, run
from c2v_engine.bench.budget import Budget
from c2v_engine.bench.case import Case
from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.measure import BOUNDS, can_tell, compare, measure_case
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.synthetic import INSTRUCTION_FIRST, SyntheticCheckpoint
from c2v_engine.bench.providers import registry
from c2v_engine.bench.providers.base import Provider, Spec
from c2v_engine.bench.providers.engine import Engine
from c2v_engine.bench.record import Record
from c2v_engine.bench.run import run_cases, specs_to_come
from c2v_engine.bench.stages import OTHER, profile_stages, stage_operations, stage_table, sum_events
from c2v_engine.bench.workloads import Lengths, make_workload

CPU = torch.device("cpu")
ENGINE, PADDED = Spec("engine", "float32"), Spec("padded", "float32")


@pytest.fixture(scope="module")
def corpus():
    return Corpus()


@pytest.fixture
def session(tmp_path):
    return open_session(tmp_path / "model")


def case(*specs, **options):
    return Case("tiny-mistral", Lengths(), 400, specs, **options)


class Stub(Provider):
    """Does as it is told."""

    def __init__(self, embed, call=lambda: None):
        self._embed, self._call = embed, call

    def prepare(self, workload):
        return self._call

    def embed(self, workload):
        return self._embed(workload)


def by_name(entries):
    return {entry["provider"]: entry for entry in entries}


def test_providers_that_agree_are_timed_in_turns(session, corpus):
    entries = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 2)
    for entry in entries:
        assert entry["status"] == "ok"
        assert entry["cosine_min"] > 0.9999
        assert len(entry["seconds"]) == 2
        assert entry["texts_per_s"] == pytest.approx(entry["texts"] / entry["median_s"])
        assert entry["operations"] > 0
        assert entry["host_peak_bytes"] > 2**20
        assert entry["case"] in line(entry)
    ours, padded = entries
    assert (ours["provider"], padded["provider"]) == ("engine float32", "padded float32")
    assert ours["operations"] == padded["operations"]


def test_the_memory_of_a_client_is_not_given_as_its_servers(session, corpus):
    served = Stub(session.provider(ENGINE).embed)
    served.elsewhere = True
    session._providers[PADDED] = served
    ours, other = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 1)
    assert other["status"] == "ok"
    assert "host_peak_bytes" in ours
    assert not [field for field in other if field.endswith("_bytes")]


def test_the_order_of_timed_calls_is_a_b_a_b(session, corpus):
    calls, vectors = [], torch.eye(64, 8)
    other = Spec("padded", "float32", cuda_graphs=False)
    for spec in (PADDED, other):
        session._providers[spec] = Stub(
            lambda workload: vectors[: len(workload.texts)],
            lambda spec=spec: calls.append(spec),
        )
    measure_case(case(PADDED, other), session, corpus, Budget(None), 2)
    assert calls == [PADDED, other] * 3  # the first of each is not timed


def test_a_provider_with_a_broken_weight_is_wrong_and_not_timed(session, corpus):
    session.provider(PADDED)
    weight = session._stock["float32"].decoder.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight.neg_()
    ours, padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 2)
    assert ours["status"] == "ok"
    assert padded["status"] == "wrong"
    assert "cosines to the first provider" in padded["reason"]
    assert "seconds" not in padded


def test_vectors_that_are_not_finite_are_wrong(session, corpus):
    session._providers[PADDED] = Stub(lambda w: torch.full((len(w.texts), 128), float("nan")))
    padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 1)[1]
    assert padded["status"] == "wrong"
    assert "nan" in padded["reason"]


def test_a_reference_whose_vectors_are_all_alike_tells_nothing(session, corpus):
    alike = torch.ones(64, 8) + 1e-3 * torch.randn(64, 8)
    for spec in (ENGINE, PADDED):
        session._providers[spec] = Stub(lambda workload: alike[: len(workload.texts)])
    ours, padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 1)
    assert ours["status"] == "failed"
    assert "too alike" in ours["reason"]
    assert padded["status"] == "failed"
    assert "nothing to compare" in padded["reason"]


def test_a_looser_bound_that_other_texts_would_hold_tells_nothing(session, corpus):
    # Cosines of different texts near 0.995: under the bound of 16 bits, over the least of int8.
    alike = torch.ones(64, 256) + 0.07 * torch.randn(64, 256, generator=torch.manual_seed(0))
    first, eight_bits = Spec("engine", "bfloat16"), Spec("engine", "int8")
    for spec in (first, eight_bits):
        session._providers[spec] = Stub(lambda workload: alike[: len(workload.texts)])
    ours, other = measure_case(case(first, eight_bits), session, corpus, Budget(None), 1)
    assert ours["status"] == "ok"
    assert other["status"] == "failed"
    assert "too alike" in other["reason"]
    assert "seconds" not in other


def test_a_provider_that_settles_on_something_wrong_is_not_timed(session, corpus):
    right = session.provider(ENGINE)

    class Settling(Stub):
        settles = True

        def prepare(self, workload):
            self._embed = lambda workload: -right.embed(workload)
            return self._call

    session._providers[PADDED] = Settling(right.embed)
    ours, padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 1)
    assert ours["status"] == "ok"
    assert padded["status"] == "wrong"
    assert "seconds" not in padded


def test_every_entry_of_a_case_without_a_reference_says_so(session, corpus):
    def fails(workload):
        raise RuntimeError("of no use")

    session._providers[ENGINE] = Stub(fails)
    ours, padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 1)
    assert (ours["status"], ours["reason"]) == ("failed", "RuntimeError: of no use")
    assert padded["status"] == "failed"
    assert "nothing to compare" in padded["reason"]


def test_a_provider_that_fails_while_it_is_timed_leaves_the_others(session, corpus):
    calls = []

    def fails_the_second_time():
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError("no room")

    vectors = session.provider(ENGINE)
    session._providers[PADDED] = Stub(vectors.embed, fails_the_second_time)
    ours, padded = measure_case(case(ENGINE, PADDED), session, corpus, Budget(None), 2)
    assert len(ours["seconds"]) == 2
    assert (padded["status"], padded["reason"]) == ("failed", "MemoryError: no room")


def test_what_can_not_be_had_says_why(session, corpus, monkeypatch):
    from c2v_engine.errors import BackendError

    def refuse(spec):
        raise BackendError("needs another GPU")

    float8 = Spec("engine", "float8")
    opening = registry.OPENERS["engine"]
    monkeypatch.setitem(
        registry.OPENERS,
        "engine",
        lambda session, spec: refuse(spec) if spec == float8 else opening(session, spec),
    )
    packed = Spec("packed", "float32")
    entries = measure_case(case(ENGINE, packed, float8), session, corpus, Budget(None), 1)
    found = by_name(entries)
    assert found["engine float32"]["status"] == "ok"
    assert found["packed float32"]["status"] == "unusable"
    assert "no attention kernel" in found["packed float32"]["reason"]
    assert found["engine float8"]["status"] == "unusable"
    assert found["engine float8"]["reason"] == "needs another GPU"


def test_float8_may_differ_more_than_bfloat16():
    expected = torch.eye(3)
    near = compare(expected + 0.05 * torch.eye(3).roll(1, 0), expected)
    assert near.mean() < BOUNDS["bfloat16"].mean
    assert near.mean() > BOUNDS["float8"].mean
    assert can_tell(expected, BOUNDS["float32"])
    assert not can_tell(torch.ones(3, 3), BOUNDS["float8"])


def test_one_text_a_call_is_timed_by_the_call(session, corpus):
    one = Case("tiny-mistral", Lengths(16), 48, (ENGINE,), "one text", texts_per_call=1)
    (entry,) = measure_case(one, session, corpus, Budget(None), 1)
    assert entry["calls"] == entry["texts"] == 3
    assert entry["call_s"] == pytest.approx(entry["median_s"] / 3)


def test_no_repetition_begins_when_the_budget_is_over(session, corpus):
    budget = Budget(1e-9)
    time.sleep(0.01)
    (entry,) = measure_case(case(ENGINE), session, corpus, budget, 5)
    assert len(entry["seconds"]) == 1
    assert entry["status"] == "ok"


def test_cases_that_there_was_no_time_for_are_named(tmp_path):
    record, budget = Record(tmp_path / "e.json"), Budget(1e-9)
    time.sleep(0.01)
    cases = small_cases("float32")
    run_cases(cases, CPU, record, budget, sources(tmp_path, CPU), 1)
    content = json.loads(record.path.read_text())
    assert content["cut"]["not_measured"] == [case.name for case in cases]
    assert "results" not in content


def test_a_case_that_can_not_begin_is_noted_and_the_next_runs(tmp_path):
    opening = sources(tmp_path, CPU)

    def open_source(case):
        if case.model == "tiny-qwen2":
            raise OSError("no space left")
        return opening(case)

    record = Record(tmp_path / "e.json")
    first = Case("tiny-qwen2", Lengths(), 300, (ENGINE,))
    run_cases([first, case(ENGINE)], CPU, record, Budget(None), open_source, 1)
    found = [(entry["case"], entry["status"]) for entry in record.content["results"]]
    assert found == [("tiny-qwen2/log-normal", "failed"), ("tiny-mistral/log-normal", "ok")]
    assert record.content["running"] is None
    parameters = record.content["models"]["tiny-mistral"]
    assert parameters["weight_bytes"] == 2 * sum(parameters["parameters"].values())


def test_a_device_that_is_lost_ends_the_run_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "device_answers", lambda device: False)
    record = Record(tmp_path / "e.json")
    run_cases(
        [case(ENGINE), case(ENGINE, what="b")], CPU, record, Budget(None), sources(tmp_path, CPU), 1
    )
    assert record.content["lost"] == "in tiny-mistral/log-normal"
    assert record.content["cut"]["not_measured"] == ["tiny-mistral/log-normal/b"]


class Closing(Provider):
    """The engine, and says when it is closed."""

    def __init__(self, opened, closed, error=None):
        self._opened, self._closed, self._error = opened, closed, error

    def prepare(self, workload):
        return self._opened.prepare(workload)

    def embed(self, workload):
        return self._opened.embed(workload)

    def close(self):
        self._closed.append(self)
        if self._error:
            raise self._error


@pytest.fixture
def closed(monkeypatch):
    """The providers that were closed, of a kind that is the engine."""
    found = []
    opener = registry.OPENERS["engine"]
    monkeypatch.setitem(
        registry.OPENERS, "padded", lambda *given: Closing(opener(*given), found, OSError("busy"))
    )
    monkeypatch.setitem(registry.OPENERS, "compiled", lambda *given: Closing(opener(*given), found))
    return found


CLOSING = (ENGINE, PADDED, Spec("compiled", "float32"))


def test_providers_are_closed_where_a_run_is_cut(tmp_path, closed):
    cases = [case(*CLOSING), case(*CLOSING, what="b")]
    budget = SimpleNamespace(spent=0.0, over=False)

    def show(entry):
        budget.over = True

    record = Record(tmp_path / "e.json")
    run_cases(cases, CPU, record, budget, sources(tmp_path, CPU), 1, show)
    assert record.content["cut"]["not_measured"] == ["tiny-mistral/log-normal/b"]
    assert len(closed) == 2
    assert record.content["not_closed"] == ["OSError: busy"]
    assert [entry["status"] for entry in record.content["results"]] == ["ok"] * 3


def test_providers_are_closed_where_a_run_is_stopped(tmp_path, closed):
    def show(entry):
        raise KeyboardInterrupt

    record = Record(tmp_path / "e.json")
    with pytest.raises(KeyboardInterrupt):
        run_cases([case(*CLOSING)], CPU, record, Budget(None), sources(tmp_path, CPU), 1, show)
    assert len(closed) == 2


def test_providers_of_the_same_session_are_kept_for_the_next_cases():
    first, second = case(ENGINE, PADDED), case(ENGINE)
    other = case(PADDED, template=INSTRUCTION_FIRST)
    assert specs_to_come([second, other], first) == {ENGINE}
    assert specs_to_come([other, second], first) == set()


def test_the_goals_come_first_and_every_case_has_its_name():
    cases = full_cases("bfloat16")
    assert len({case.name for case in cases}) == len(cases)
    assert cases[0].name == "mistral-7b/128"
    assert [spec.name for spec in cases[0].specs] == [
        "engine bfloat16",
        "device bfloat16",
        "engine float8",
    ]
    assert all(case.specs[0] == Spec("engine") for case in cases)


def test_nothing_that_a_launch_more_would_slow_is_timed_after_a_profile():
    cases = full_cases("bfloat16")
    first = min(number for number, case in enumerate(cases) if case.stages)
    assert {case.model for case in cases if case.stages} == {case.model for case in cases}
    assert not [case.name for case in cases[first:] if case.texts_per_call or case.prompt_tokens]


def test_every_result_that_a_goal_needs_is_measured():
    asked = {(case.name, spec.name) for case in full_cases("bfloat16") for spec in case.specs}
    missing = {"results": [], "ceilings": {"gemm_tflops": 1.0, "copy_gb_per_s": 1.0}}
    for goal in GOALS:
        said = goal.line(missing)
        needed = said.split("no result of ")[1].split(", ")
        assert tuple(needed) in asked, said


def test_the_stages_of_a_pass_are_told_and_add_up(session, corpus):
    workload = make_workload(corpus, session.tokenizer, Lengths(), 800)
    provider = session.provider(ENGINE)
    tokenizer = provider.engine._runner._tokenizer
    found = profile_stages(provider, session, workload)
    assert provider.engine._runner._tokenizer is tokenizer
    stages = {stage["name"]: stage for stage in found["stages"]}
    decoder = {"norm", "qkv", "rope", "attention", "output", "gate_up", "activation", "down"}
    named = {f"decoder.{part}" for part in decoder} | {"embed", "projector", "pool", "encoder.qkv"}
    assert named <= stages.keys()
    layers = MODELS["tiny-mistral"].decoder.num_layers
    assert stages["decoder.down"]["count"] == layers
    assert all(stage["host_s"] > 0 for name, stage in stages.items() if name != OTHER)
    inside = sum(stage["host_s"] for name, stage in stages.items() if name != "tokenise")
    assert inside == pytest.approx(found["wall_s"])
    # What belongs to no stage is a rest, not an overlap.
    assert stages[OTHER]["host_s"] > 0
    assert stages["decoder.gate_up"]["operations"] > 0
    seconds = [stage["host_s"] for stage in found["stages"]]
    assert seconds == sorted(seconds, reverse=True)
    lines = stage_table(found, gemm_tflops=0.1)
    assert len(lines) == 2 + len(stages)
    assert any(text.startswith("decoder.gate_up") and text.endswith("%") for text in lines)


def event(name, us, device=DeviceType.CPU, annotation=False, launched=0.0):
    return SimpleNamespace(
        name=name,
        device_type=device,
        is_user_annotation=annotation,
        time_range=SimpleNamespace(elapsed_us=lambda: us),
        device_time_total=launched,
    )


def test_work_on_the_device_goes_to_the_stage_that_launched_it():
    on_device = DeviceType.CUDA
    events = [
        event("c2v::decoder.norm", 10.0, annotation=True, launched=300.0),
        event("c2v::add_rms_norm", 8.0, launched=300.0),  # an op of ours, no stage
        event("c2v::decoder.norm", 30.0, annotation=True, launched=100.0),
        event("c2v::pool", 5.0, annotation=True, launched=50.0),
        event("somebody else's", 5.0, annotation=True, launched=50.0),
        event("add_rms_norm_kernel", 400.0, on_device),
        event("pool_kernel", 50.0, on_device),
        event("Memcpy HtoD", 150.0, on_device),
        event("c2v::decoder.norm", 900.0, on_device, annotation=True),  # the span of its kernels
    ]
    stages, device_s = sum_events(events, 1e-3, cuda=True)
    found = {stage["name"]: stage for stage in stages}
    assert device_s == pytest.approx(600e-6)
    assert found["decoder.norm"]["count"] == 2
    assert found["decoder.norm"]["device_s"] == pytest.approx(400e-6)
    assert found["decoder.norm"]["host_s"] == pytest.approx(40e-6)
    assert found["pool"]["device_s"] == pytest.approx(50e-6)
    assert found[OTHER]["device_s"] == pytest.approx(150e-6)
    assert set(found) == {"decoder.norm", "pool", OTHER}


def test_the_products_of_all_stages_are_nearly_the_useful_operations(tmp_path):
    workload = SimpleNamespace(decoder_tokens=128 * 100, encoder_tokens=130 * 100, texts=[""] * 100)
    decoder, encoder = 6_979_588_096, 85_054_464
    useful = 2 * (decoder * workload.decoder_tokens + encoder * workload.encoder_tokens)
    source = SyntheticCheckpoint.write(tmp_path / "model", MODELS["mistral-7b"], CPU)
    total = sum(stage_operations(source.description, workload).values())
    # Less only the queries, output and MLP of the last of 32 layers.
    assert 1 - 1 / 32 < total / useful < 1


def test_a_profile_that_fails_takes_no_result_with_it(session, corpus, monkeypatch):
    def fails(*given):
        raise RuntimeError("no profiler")

    monkeypatch.setattr(measure, "profile_stages", fails)
    (entry,) = measure_case(case(ENGINE, stages=True), session, corpus, Budget(None), 1)
    assert entry["status"] == "ok"
    assert entry["stages_note"] == "RuntimeError: no profiler"


def test_the_engine_is_asked_for_whole_texts(session, corpus):
    workload = make_workload(corpus, session.tokenizer, Lengths(), 500)
    provider = session.provider(ENGINE)
    assert isinstance(provider, Engine)
    provider.prepare(workload)()
    stats = provider.engine.stats
    assert stats.texts == len(workload.texts)
    assert stats.tokens == workload.decoder_tokens
    assert stats.encoder_tokens == workload.encoder_tokens
