"""What ``c2v bench`` makes of its options: cases, who takes part, and how much they embed."""

import pytest
import torch

from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
from c2v_engine.bench.plan import LEAST_TOKENS, MOST_TOKENS, WORKLOADS, Plan, make_cases
from c2v_engine.bench.providers.base import Spec
from c2v_engine.errors import ConfigError

GEMM = {"bfloat16": 0.4, "float32": 0.1}


@pytest.fixture
def sources(tmp_path):
    source = SyntheticCheckpoint.write(
        tmp_path / "model", MODELS["llama-130m"], torch.device("cpu")
    )
    return {"llama-130m": source}


def plan(**options):
    chosen = {"workloads": ("128",), "dtypes": ("bfloat16", "float32"), "providers": ("padded",)}
    return Plan(**{**chosen, **options})


def test_every_workload_is_measured_in_every_dtype_with_the_engine_first(sources):
    cases = make_cases(plan(workloads=tuple(WORKLOADS)), sources, GEMM)
    assert [(case.name, case.specs[0].dtype) for case in cases] == [
        (f"llama-130m/{name}/{dtype}", dtype) for dtype in GEMM for name in WORKLOADS
    ]
    assert all(
        case.specs == (Spec("engine", d), Spec("padded", d))
        for case in cases
        for d in [case.specs[0].dtype]
    )


def test_a_provider_with_a_dtype_of_its_own_takes_part_once():
    asked = plan(providers=("padded", "engine:int8", "llama.cpp:float32"))
    first, second = (asked.specs(dtype) for dtype in asked.dtypes)
    assert first == (
        Spec("engine", "bfloat16"),
        Spec("padded", "bfloat16"),
        Spec("engine", "int8"),
    )
    assert second == (
        Spec("engine", "float32"),
        Spec("padded", "float32"),
        Spec("llama.cpp", "float32"),
    )


def test_the_engine_asked_for_again_takes_part_once():
    assert plan(providers=("engine", "padded")).specs("float32") == (
        Spec("engine", "float32"),
        Spec("padded", "float32"),
    )


def test_servers_are_asked_at_their_addresses():
    asked = plan(providers=("tei",), urls=(("tei", "http://there:80"),))
    assert asked.specs("float32")[1].url == "http://there:80"


def test_the_work_of_a_call_follows_the_time_and_the_machine(sources):
    def tokens(dtype, **options):
        found = make_cases(plan(**options), sources, GEMM)
        return next(case.tokens for case in found if case.specs[0].dtype == dtype)

    slow = tokens("float32", seconds=400)
    assert tokens("bfloat16", seconds=400) == pytest.approx(4 * slow, 0.01)
    assert slow == pytest.approx(2 * tokens("float32", seconds=200), 0.01)
    assert tokens("float32", seconds=1) == LEAST_TOKENS
    assert tokens("float32", seconds=1e9) == MOST_TOKENS
    assert tokens("float32", tokens=777) == 777


def test_queries_have_an_instruction_and_a_file_has_its_own_texts(sources):
    asked = plan(workloads=("queries", "file"), texts=("a", "b"), source="notes.txt")
    queries, file, *_ = make_cases(asked, sources, GEMM)
    assert queries.prompt.startswith("Instruct: ")
    assert (file.texts, file.prompt, file.name) == (("a", "b"), "", "llama-130m/notes.txt/bfloat16")


def test_stages_are_shown_of_one_workload_in_every_dtype(sources):
    cases = make_cases(plan(workloads=("32", "128", "passages")), sources, GEMM)
    assert [case.name for case in cases if case.stages] == [
        "llama-130m/128/bfloat16",
        "llama-130m/128/float32",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workloads": ("129",)}, "workload is '129', expected one of 32, 128, 512, passages"),
        ({"dtypes": ("float8",)}, "dtype is 'float8', expected one of bfloat16"),
        ({"providers": ("padded", "x:int8")}, "provider is 'x', expected one of engine"),
        ({"providers": ("padded:int4",)}, "the dtype of a provider is 'int4', expected one of"),
        ({"urls": (("padded", "u"),)}, "--url names a provider that is 'padded', expected one of"),
        ({"providers": ("tei",)}, "tei is a server: give its address by --url tei=http"),
    ],
)
def test_what_is_not_known_is_said_with_what_is(options, said):
    with pytest.raises(ConfigError, match=said):
        plan(**options).check()


def test_a_small_model_is_measured_in_all_dtypes_before_the_next_workload(tmp_path):
    source = SyntheticCheckpoint.write(
        tmp_path / "small", MODELS["tiny-mistral"], torch.device("cpu")
    )
    cases = make_cases(plan(workloads=("32", "128")), {"tiny": source}, GEMM)
    assert [case.name for case in cases] == [
        f"tiny/{name}/{dtype}" for name in ("32", "128") for dtype in GEMM
    ]
