"""What a run of ``c2v bench`` measures: models, workloads, dtypes, providers, made into cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from c2v_engine.bench.case import Case
from c2v_engine.bench.measure import BOUNDS
from c2v_engine.bench.models.source import ModelSource
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.providers.registry import OPENERS
from c2v_engine.bench.workloads import INSTRUCTION, QUERIES, Lengths
from c2v_engine.errors import ConfigError

__all__ = ["DTYPES", "WORKLOADS", "Plan", "check_dtypes", "make_cases"]

WORKLOADS = {
    "32": Lengths(32),
    "128": Lengths(128),
    "512": Lengths(512),
    "passages": Lengths(label="passages"),
    "queries": QUERIES,
}
"""By name: so many rows each, passages of log-normal length, short queries with an instruction."""
DTYPES = ("bfloat16", "float16", "float32")
"""That everybody computes in; ``int8``, ``float8`` and ``q8_0`` are single providers' own."""
FILE = "file"
LEAST_TOKENS, MOST_TOKENS = 256, 2**19
NEED_A_URL = ("tei",)
SERVERS = ("tei", "infinity")
PROFILED = ("128", "passages")
"""The workloads of whose first the engine's stages are shown."""
# What a call is reckoned with before anything has run: whatever this is wrong by, calls take longer
# or less time than they were meant to, and no figure is other.
EXPECTED_OF_GEMM = 0.5
CALLS_BESIDE_REPETITIONS = 2  # the check, and the round that is not timed
SLOWER_THAN_THE_ENGINE = 2.5
MOST_PARAMETERS_TOGETHER = 50_000_000


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        workloads: names in ``WORKLOADS``; ``FILE`` for ``texts``.
        dtypes: of all providers but those that name their own.
        providers: kinds in ``registry.OPENERS``, or ``KIND:DTYPE``, as in ``llama.cpp:q8_0``;
            without ``engine``, which always takes part.
        repetitions: of every provider, after one that is not timed.
        seconds: for all cases together, about.
        texts: of the workload ``file``.
        source: where these come from, for the case's name.
        urls: of providers that are servers, by kind.
        tokens: rows of the decoder in a call; None for as many as the time allows.
    """

    workloads: tuple[str, ...]
    dtypes: tuple[str, ...]
    providers: tuple[str, ...]
    repetitions: int = 3
    seconds: float = 80.0
    texts: tuple[str, ...] = ()
    source: str = "file"
    urls: tuple[tuple[str, str], ...] = ()
    tokens: int | None = None

    def check(self) -> None:
        """Whether all of it is known.

        Raises:
            ConfigError: a dtype, workload or provider that is not, with those that are; texts or
                an address that are missing, or an address that nobody uses.
        """
        check_dtypes(self.dtypes)
        kinds = [provider.partition(":")[0] for provider in self.providers]
        own = [provider.partition(":")[2] for provider in self.providers if ":" in provider]
        asked = (
            ("workload", self.workloads, (*WORKLOADS, FILE)),
            ("provider", kinds, tuple(OPENERS)),
            ("the dtype of a provider", own, tuple(BOUNDS)),
            ("--url names a provider that", [kind for kind, _ in self.urls], SERVERS),
        )
        for what, given, known in asked:
            for name in given:
                if name not in known:
                    raise ConfigError(f"{what} is {name!r}, expected one of {', '.join(known)}")
        if FILE in self.workloads and not self.texts:
            raise ConfigError(f"workload is {FILE!r}, but no file is given: --texts names one")
        for kind, _ in self.urls:
            if kind not in kinds:
                raise ConfigError(f"--url is of {kind}, which is no provider: --provider {kind}")
        for kind in NEED_A_URL:
            if kind in kinds and kind not in dict(self.urls):
                raise ConfigError(
                    f"{kind} is a server: give its address by --url {kind}=http://..."
                )

    def specs(self, dtype: str) -> tuple[Spec, ...]:
        """The providers of a case: our engine first, others' vectors are compared with its."""
        specs = [Spec("engine", dtype)]
        for provider in self.providers:
            kind, _, own = provider.partition(":")
            # A dtype of its own belongs to the cases of one dtype alone, or it would run in each.
            if own and dtype != self.beside(own):
                continue
            specs.append(Spec(kind, own or dtype, url=dict(self.urls).get(kind)))
        return tuple(dict.fromkeys(specs))

    def beside(self, own: str) -> str:
        """The dtype whose cases a provider of another dtype takes part in."""
        return own if own in self.dtypes else self.dtypes[0]


def check_dtypes(dtypes: Iterable[str]) -> None:
    """Whether everybody can compute in these.

    Raises:
        ConfigError: one that is not in ``DTYPES``.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")


def make_cases(
    plan: Plan, sources: Mapping[str, ModelSource], gemm_tflops: Mapping[str, float]
) -> list[Case]:
    """The cases of a plan that was checked, model by model.

    Args:
        plan: what is asked for.
        sources: the models, by the names that cases give them.
        gemm_tflops: of the machine, by dtype: how much work fits in the time.
    """
    groups = [(name, dtype) for name in sources for dtype in plan.dtypes]
    expected = sum(expected_calls(plan, dtype) for _, dtype in groups) * len(plan.workloads)
    seconds = plan.seconds / max(expected, 1)
    profiled = next((name for name in PROFILED if name in plan.workloads), None)
    cases = []
    for name, source in sources.items():
        parameters = sum(source.multiplied_parameters(part) for part in ("decoder", "encoder"))
        for workload, dtype in in_order(plan, parameters):
            rate = EXPECTED_OF_GEMM * gemm_tflops[dtype] * 1e12 / (2.0 * parameters)
            tokens = plan.tokens or int(min(max(seconds * rate, LEAST_TOKENS), MOST_TOKENS))
            stages = workload == profiled
            cases.append(make_case(plan, name, source, workload, tokens, dtype, stages))
    return cases


def in_order(plan: Plan, parameters: int) -> list[tuple[str, str]]:
    """Workloads and dtypes of a model, in the order in which they are measured.

    A small model is measured in all dtypes before the next workload, so that a run that is cut has
    something of each; of a large one only those of one dtype are in memory at a time.
    """
    if parameters <= MOST_PARAMETERS_TOGETHER:
        return [(workload, dtype) for workload in plan.workloads for dtype in plan.dtypes]
    return [(workload, dtype) for dtype in plan.dtypes for workload in plan.workloads]


def expected_calls(plan: Plan, dtype: str) -> float:
    """How many calls of the engine a case is expected to last."""
    of_specs = sum(
        1.0 if spec.kind in ("engine", "device") else SLOWER_THAN_THE_ENGINE
        for spec in plan.specs(dtype)
    )
    return of_specs * (plan.repetitions + CALLS_BESIDE_REPETITIONS)


def make_case(
    plan: Plan,
    name: str,
    source: ModelSource,
    workload: str,
    tokens: int,
    dtype: str,
    stages: bool,
) -> Case:
    """One case."""
    lengths = WORKLOADS["passages" if workload == FILE else workload]
    texts = plan.texts if workload == FILE else ()
    prompt = INSTRUCTION if workload == "queries" and source.description.config.reads_prompt else ""
    return Case(
        name,
        lengths,
        tokens,
        plan.specs(dtype),
        what=dtype,
        prompt=prompt,
        texts=texts,
        source=plan.source,
        stages=stages,
    )
