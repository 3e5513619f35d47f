"""What moved between two result files, each held against the ceilings of its own machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from c2v_engine.bench.report.read import Entry, Results, dtype_of

__all__ = ["Comparison", "Moved", "compare"]

VERDICTS = ("slower", "faster", "same", "unjudged")
TWO_MACHINES = (
    "two machines: faster and slower are of the part that is reached of each one's own ceiling"
)
LEAST_CHANGE = 0.05
"""A change that is smaller is none: as much lies between two runs of the same code."""
MACHINE = ("cpu", "gpu", "threads", "device")
FACTS = (*MACHINE, "kind", "torch", "python", "dtypes", "commit", "dirty")


@dataclass(frozen=True)
class Moved:
    """A provider at a case, in both files.

    Attributes:
        case: its name.
        provider: likewise.
        old_s: the median of the old file's repetitions.
        new_s: likewise, for the same work: scaled by the operations where these differ.
        change: of the fraction of the machine's ceiling that is reached, as a ratio: above 1 is
            faster. Of the speed alone where no ceiling of the dtype was measured.
        normalised: whether the ceilings are in it.
        judged: whether it can be: speeds alone of two machines say nothing of the engine.
        least: of the change, if the slowest new repetition is held against the fastest old one, and
            each against the ceiling of that end of its run which makes it least.
        most: likewise.
    """

    case: str
    provider: str
    old_s: float
    new_s: float
    change: float
    normalised: bool
    judged: bool
    least: float
    most: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, ``same`` (within what repetitions vary, or 5%), ``unjudged``."""
        if not self.judged:
            return "unjudged"
        if self.least > 1 and self.change > 1 + LEAST_CHANGE:
            return "faster"
        return "slower" if self.most < 1 and self.change < 1 - LEAST_CHANGE else "same"

    def line(self, case: int = 0, provider: int = 0) -> str:
        """As a line, names as wide as these."""
        return (
            f"{self.verdict:<10}{self.case:<{case}}  {self.provider:<{provider}}"
            f"{self.change:>9.3f}  {f'{self.least:.3f} to {self.most:.3f}':<16}"
            f"{self.old_s:>10.3f} s{self.new_s:>10.3f} s"
            f"{'' if self.normalised else '  (no ceiling of that dtype: speeds alone)'}"
        )


@dataclass(frozen=True)
class Comparison:
    """What is to be said of two files.

    Attributes:
        differences: of machine, releases and commit, as lines.
        moved: what both have timed.
        only_old: what the old file alone has timed, or the new one not any more.
        only_new: what the new one alone has.
    """

    differences: tuple[str, ...]
    moved: tuple[Moved, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    def lines(self) -> list[str]:
        """What differs, then what moved most, then what can not be compared."""
        moved = sorted(self.moved, key=lambda each: (VERDICTS.index(each.verdict), each.change))
        case = max((len(each.case) for each in moved), default=0)
        provider = max((len(each.provider) for each in moved), default=0)
        head = (
            f"{'':<10}{'case':<{case}}  {'provider':<{provider}}"
            f"{'change':>9}  {'least to most':<16}{'old':>12}{'new':>12}"
        )
        lines = [*self.differences, *([head] if moved else [])]
        lines += [each.line(case, provider) for each in moved]
        lines += [f"only in the old file: {name}" for name in self.only_old]
        lines += [f"only in the new file: {name}" for name in self.only_new]
        counts = {name: sum(each.verdict == name for each in moved) for name in VERDICTS}
        if not counts["unjudged"]:
            del counts["unjudged"]
        lines.append(", ".join(f"{count} {name}" for name, count in counts.items()))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        moved = [{**asdict(each), "verdict": each.verdict} for each in self.moved]
        return {**asdict(self), "moved": moved}


def compare(old: Results, new: Results) -> Comparison:
    """Compare two result files.

    A time is divided by how long a matrix product of the same dtype would take for the same useful
    operations on the same machine in the same run, so that another machine, or a busy one, does not
    look like another engine.

    Args:
        old: the earlier one.
        new: the later one.
    """
    differences = [
        f"{fact}: {old.content.get(fact)} -> {new.content.get(fact)}"
        for fact in FACTS
        if old.content.get(fact) != new.content.get(fact)
    ]
    if not same_machine(old, new):
        differences.append(TWO_MACHINES)
    before, after = by_name(old), by_name(new)
    moved = tuple(
        compare_entries(name, (old, entry), (new, after[name]))
        for name, entry in before.items()
        if name in after
    )
    return Comparison(
        tuple(differences),
        moved,
        tuple(", ".join(name) for name in before if name not in after),
        tuple(", ".join(name) for name in after if name not in before),
    )


def by_name(results: Results) -> dict[tuple[str, str], Entry]:
    """What was timed, by case and provider, or by case, method and dtype."""
    return {(str(entry["case"]), name_of(entry)): entry for entry in results.timed}


def name_of(entry: Entry) -> str:
    """Of a provider, or of a method with its dtype."""
    if "method" in entry:
        return f"{entry['method']} {dtype_of(entry)}"
    return str(entry["provider"])


def compare_entries(
    name: tuple[str, str], old: tuple[Results, Entry], new: tuple[Results, Entry]
) -> Moved:
    """One of both files."""
    (before, was), (after, now) = old, new
    peaks = before.gemm_tflops_at(dtype_of(was)), after.gemm_tflops_at(dtype_of(now))
    normalised = all(peaks)
    old_range, new_range = (
        reached(entry, peak if normalised else [1.0])
        for entry, peak in zip((was, now), peaks, strict=True)
    )
    return Moved(
        *name,
        old_s=float(was["median_s"]),
        new_s=float(now["median_s"]) * float(was["operations"]) / float(now["operations"]),
        change=new_range[1] / old_range[1],
        normalised=normalised,
        judged=normalised or same_machine(before, after),
        least=new_range[0] / old_range[2],
        most=new_range[2] / old_range[0],
    )


def reached(entry: Entry, peaks: Sequence[float]) -> tuple[float, float, float]:
    """The part of a ceiling that the repetitions reach: the least, the median's, the most."""
    median, seconds = float(entry["tflops"]) / max(peaks), entry["seconds"]
    slowest, fastest = (entry["median_s"] / extreme(seconds) for extreme in (max, min))
    return median * slowest, median, median * fastest * max(peaks) / min(peaks)


def same_machine(old: Results, new: Results) -> bool:
    """Whether both were measured on the same kind of processor, with as many threads."""
    return all(old.content.get(fact) == new.content.get(fact) for fact in MACHINE)
