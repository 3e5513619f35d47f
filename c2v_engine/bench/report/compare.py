"""What moved between two result files, each held against the ceilings of its own machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from c2v_engine.bench.report.read import Entry, Results, dtype_of

__all__ = ["Comparison", "Moved", "compare"]

VERDICTS = ("slower", "faster", "same", "unjudged")
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
        noise: by how much of 1 the repetitions of both files together vary, and their ceilings
            from one end of a run to the other.
    """

    case: str
    provider: str
    old_s: float
    new_s: float
    change: float
    normalised: bool
    judged: bool
    noise: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, ``same`` (within the noise, or under 5%) or ``unjudged``."""
        if not self.judged:
            return "unjudged"
        bound = 1 + max(self.noise, LEAST_CHANGE)
        if self.change > bound:
            return "faster"
        return "slower" if self.change < 1 / bound else "same"

    def line(self, case: int = 0, provider: int = 0) -> str:
        """As a line, names as wide as these."""
        return (
            f"{self.verdict:<10}{self.case:<{case}}  {self.provider:<{provider}}"
            f"{self.change:>9.3f}  +-{self.noise:<7.3f}{self.old_s:>10.3f} s{self.new_s:>10.3f} s"
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
            f"{'change':>9}  {'noise':<9}{'old':>12}{'new':>12}"
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
    differences = tuple(
        f"{fact}: {old.content.get(fact)} -> {new.content.get(fact)}"
        for fact in FACTS
        if old.content.get(fact) != new.content.get(fact)
    )
    before, after = by_name(old), by_name(new)
    moved = tuple(
        compare_entries(name, (old, entry), (new, after[name]))
        for name, entry in before.items()
        if name in after
    )
    return Comparison(
        differences,
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
    parts = before.of_gemm(was), after.of_gemm(now)
    normalised = None not in parts
    same_machine = all(before.content.get(f) == after.content.get(f) for f in MACHINE)
    drift = (before.drift(dtype_of(was)) + after.drift(dtype_of(now))) / 2 if normalised else 0.0
    speed = float(now["tflops"]) / float(was["tflops"])
    change = parts[1] / parts[0] if parts[0] and parts[1] else speed
    return Moved(
        *name,
        old_s=float(was["median_s"]),
        new_s=float(now["median_s"]) * float(was["operations"]) / float(now["operations"]),
        change=change,
        normalised=normalised,
        judged=normalised or same_machine,
        noise=noise_of(was) + noise_of(now) + drift,
    )


def noise_of(entry: Entry) -> float:
    """Half the range of the repetitions, as a part of their median."""
    seconds = entry["seconds"]
    return float((max(seconds) - min(seconds)) / 2 / entry["median_s"])
