"""What has become worse: counts and ratios of this run against those that were stored.

A count is judged where what it depends on is the same there and here, a ratio on the same
processor. What is not judged is shown with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "COUNT_RULES",
    "Moved",
    "Rule",
    "check_stored",
    "compare_counts",
    "compare_ratios",
    "table",
]

Verdict = Literal["worse", "better", "moved", "not judged"]
Measured = Mapping[str, Any]
"""``facts`` of the machine and the releases, and ``cases`` by name."""


@dataclass(frozen=True)
class Rule:
    """How a count is judged; more of it is worse.

    Attributes:
        needs: facts that have to be the same.
        allowed: the fraction by which it may grow.
        detail: the field with the count's parts, by name.
        why: the reason of what it needs and is allowed.
    """

    needs: tuple[str, ...] = ()
    allowed: float = 0.0
    detail: str = ""
    why: str = ""


KERNELS = ("machine", "extension")
RELEASES = ("python", "torch", "transformers", "tokenizers", "numpy")
COUNT_RULES = {
    "decoder_rows": Rule(why="the texts, the tokenizers and the templates are fixed"),
    "encoder_tokens": Rule(why="likewise"),
    "batches": Rule(why="likewise, and so is how many rows a batch has"),
    "operators": Rule(
        (*KERNELS, "torch"),
        detail="operators_by_name",
        why="exact; another release of torch may take an operator apart in another way",
    ),
    "copies": Rule((*KERNELS, "torch"), why="exact, likewise"),
    "gemm_flop": Rule(why="exact; follows from the shapes of rows and weights alone"),
    "allocated_bytes": Rule(
        (*KERNELS, "torch", "vectors"),
        0.01,
        why="kernels may have scratch memory by what the processor can do",
    ),
    "peak_bytes": Rule((*KERNELS, "torch", "vectors"), 0.01, why="likewise"),
    "python_calls": Rule(
        (*KERNELS, "python"),
        0.03,
        "python_calls_by_module",
        why="a function may be taken apart; one more for every text or operator is more than this",
    ),
    "library_calls": Rule((*KERNELS, *RELEASES), 0.05, why="libraries call themselves"),
    "instructions": Rule(
        (*KERNELS, *RELEASES, "cpu", "vectors"), 0.03, why="alignment and page faults"
    ),
}
"""By the count's name in ``counts.count_workload``."""
RATIO_NEEDS = ("cpu", "threads", "extension")
RATIO_ALLOWED = 0.1
"""Beside the spread of both runs."""


@dataclass(frozen=True)
class Moved:
    """A figure that is not what was stored.

    Attributes:
        name: of the case and the figure.
        verdict: ``moved`` where it is worse or better by no more than is allowed.
        old: what was stored; None for nothing.
        new: what was found; None for nothing.
        allowed: the fraction by which it may become worse.
        reason: more about it.
        parts: what moved of it, by name: what was stored, what was found.
    """

    name: str
    verdict: Verdict
    old: float | None
    new: float | None
    allowed: float = 0.0
    reason: str = ""
    parts: tuple[tuple[str, int, int], ...] = ()

    @property
    def change(self) -> float | None:
        """As a fraction of what was stored."""
        if self.old is None or self.new is None or not self.old:
            return None
        return self.new / self.old - 1


RATIO = ("median", "low", "high")


def check_stored(kind: str, stored: Any) -> None:
    """Whether stored counts or ratios are such that they can be compared.

    Args:
        kind: ``counts`` or ``ratios``.
        stored: facts and cases.

    Raises:
        ValueError: with the first thing that is not as it must be.
    """
    if not isinstance(stored, Mapping) or not all(
        isinstance(stored.get(name), Mapping) for name in ("facts", "cases")
    ):
        raise ValueError(f"{kind} have no facts and cases")
    if not isinstance(stored["facts"].get("commit"), str):
        raise ValueError(f"the facts of {kind} name no commit")
    for name, case in stored["cases"].items():
        if not isinstance(case, Mapping):
            raise ValueError(f"{kind} of {name!r} are no object")
        if kind == "counts":
            wrong = wrong_count(case)
        else:
            wrong = next((each for each in RATIO if not is_positive(case.get(each))), "")
            wrong = "" if isinstance(case.get("reason"), str) else wrong
        if wrong:
            raise ValueError(f"{wrong} of {name!r} is not what {kind} have")


def wrong_count(case: Measured) -> str:
    """The first field of a case of counts that can not be compared; empty where all can."""
    for count, rule in COUNT_RULES.items():
        value = case.get(count)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            return count
        if value is not None and rule.detail and not isinstance(case.get(rule.detail), Mapping):
            return rule.detail
    return ""


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def compare_counts(old: Measured, new: Measured) -> list[Moved]:
    """The counts that moved."""
    moved = list(compared_names(old, new, ""))
    for name in [name for name in new["cases"] if name in old["cases"]]:
        there, here = old["cases"][name], new["cases"][name]
        for count, rule in COUNT_RULES.items():
            if there.get(count) is None or here.get(count) is None or there[count] == here[count]:
                continue
            moved.append(judge_count(f"{name}: {count}", count, there, here, old, new, rule))
    return moved


def judge_count(
    name: str, count: str, there: Measured, here: Measured, old: Measured, new: Measured, rule: Rule
) -> Moved:
    """One count that is another than was stored."""
    parts: list[tuple[str, int, int]] = []
    if rule.detail:
        was, is_now = there[rule.detail], here[rule.detail]
        pairs = [(part, was.get(part, 0), is_now.get(part, 0)) for part in {**was, **is_now}]
        parts = sorted((pair for pair in pairs if pair[1] != pair[2]), key=growth, reverse=True)
    differing = difference(old["facts"], new["facts"], rule.needs)
    verdict: Verdict = "moved"
    if differing:
        verdict = "not judged"
    elif here[count] > there[count] * (1 + rule.allowed):
        verdict = "worse"
    elif here[count] < there[count] * (1 - rule.allowed):
        verdict = "better"
    return Moved(
        name, verdict, there[count], here[count], rule.allowed, differing or rule.why, tuple(parts)
    )


def growth(part: tuple[str, int, int]) -> int:
    """By how much a part grew."""
    return part[2] - part[1]


def compare_ratios(old: Measured, new: Measured) -> list[Moved]:
    """The ratios, each of which moves in every run."""
    differing = difference(old["facts"], new["facts"], RATIO_NEEDS)
    # On another processor other dtypes are measured.
    moved = list(compared_names(old, new, differing))
    for name in [name for name in new["cases"] if name in old["cases"]]:
        there, here = old["cases"][name], new["cases"][name]
        # A provider that worked there is to work here; on another machine it need not.
        reason = here.get("reason") or there.get("reason")
        if reason:
            verdict: Verdict = "not judged" if differing or "reason" in there else "worse"
            moved.append(Moved(name, verdict, there.get("median"), here.get("median"), 0.0, reason))
            continue
        allowed = RATIO_ALLOWED + spread(there) + spread(here)
        verdict = "moved"
        if differing:
            verdict = "not judged"
        elif here["median"] < there["median"] * (1 - allowed):
            verdict = "worse"
        elif here["median"] > there["median"] * (1 + allowed):
            verdict = "better"
        reason = differing or f"turns {here['low']:.3g} to {here['high']:.3g}"
        moved.append(Moved(name, verdict, there["median"], here["median"], allowed, reason))
    return moved


def spread(ratio: Mapping[str, Any]) -> float:
    """Half of what lies between the least and the most of a ratio, as a fraction of its median."""
    return float((ratio["high"] - ratio["low"]) / 2 / ratio["median"])


def compared_names(old: Measured, new: Measured, differing: str) -> Iterator[Moved]:
    """Cases that only one of the two has; one that is not there any more is worse, if judged."""
    for name in old["cases"]:
        if name not in new["cases"]:
            verdict: Verdict = "not judged" if differing else "worse"
            yield Moved(name, verdict, None, None, reason="is stored and was not measured")
    for name in new["cases"]:
        if name not in old["cases"]:
            yield Moved(name, "not judged", None, None, reason="nothing is stored: --update")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first fact that is not the same; empty where all are."""
    for name in names:
        if old.get(name) != new.get(name):
            return f"{name} was {old.get(name)}, is {new.get(name)}"
    return ""


MOST_PARTS = 6


def table(moved: Sequence[Moved]) -> list[str]:
    """What moved as lines, the worst first; below a count the parts of it that moved most."""
    if not moved:
        return []
    order = {"worse": 0, "better": 1, "moved": 2, "not judged": 3}
    rows = sorted(moved, key=lambda each: order[each.verdict])
    width = max(len(each.name) for each in rows)
    lines = [f"{'':<{width}}{'old':>14}{'new':>14}{'change':>9}{'allowed':>9}"]
    for each in rows:
        change = "" if each.change is None else f"{each.change:+.1%}"
        line = f"{each.name:<{width}}{shown(each.old):>14}{shown(each.new):>14}{change:>9}"
        lines.append(f"{line}{each.allowed:>9.1%}  {each.verdict}  {each.reason}".rstrip())
        for name, was, is_now in each.parts[:MOST_PARTS]:
            lines.append(f"{'':<4}{name:<{width - 4}}{was:>14,}{is_now:>14,}")
        if len(each.parts) > MOST_PARTS:
            lines.append(f"{'':<4}and {len(each.parts) - MOST_PARTS} more")
    return lines


def shown(value: float | None) -> str:
    """A figure of the table."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
