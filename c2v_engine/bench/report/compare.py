"""What moved between two result files, each held against the ceilings of its own machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from c2v_engine.bench.report.read import Entry, Results, dtype_of

__all__ = ["Comparison", "Moved", "compare"]

LEAST_CHANGE = 0.05
"""A change that is smaller is none: as much lies between two runs of the same code."""
FACTS = ("cpu", "gpu", "threads", "torch", "python", "device", "commit")


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
        noise: by how much of 1 the repetitions of both files together vary.
    """

    case: str
    provider: str
    old_s: float
    new_s: float
    change: float
    normalised: bool
    noise: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, or ``same`` where it is within the noise or under 5%."""
        bound = 1 + max(self.noise, LEAST_CHANGE)
        if self.change > bound:
            return "faster"
        return "slower" if self.change < 1 / bound else "same"

    def line(self) -> str:
        """As a line."""
        return (
            f"{self.verdict:<8}{self.case:<36}{self.provider:<32}{self.change:>7.3f}"
            f"  +-{self.noise:<7.3f}{self.old_s:>10.3f} s{self.new_s:>10.3f} s"
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
        order = {"slower": 0, "faster": 1, "same": 2}
        moved = sorted(self.moved, key=lambda each: (order[each.verdict], each.change))
        head = (
            f"{'':<8}{'case':<36}{'provider':<32}{'change':>7}  {'noise':<9}{'old':>12}{'new':>12}"
        )
        lines = [*self.differences, *([head] if moved else []), *(each.line() for each in moved)]
        lines += [f"only in the old file: {name}" for name in self.only_old]
        lines += [f"only in the new file: {name}" for name in self.only_new]
        counts = {name: sum(each.verdict == name for each in moved) for name in order}
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
    """What was timed, by case and provider, or by case and method."""
    return {
        (str(entry["case"]), str(entry.get("method") or entry["provider"])): entry
        for entry in results.timed
    }


def compare_entries(
    name: tuple[str, str], old: tuple[Results, Entry], new: tuple[Results, Entry]
) -> Moved:
    """One of both files."""
    (before, was), (after, now) = old, new
    parts = before.of_gemm(was), after.of_gemm(now)
    normalised = None not in parts and dtype_of(was) == dtype_of(now)
    speed = float(now["tflops"]) / float(was["tflops"])
    change = parts[1] / parts[0] if normalised and parts[0] and parts[1] else speed
    return Moved(
        *name,
        old_s=float(was["median_s"]),
        new_s=float(now["median_s"]) * float(was["operations"]) / float(now["operations"]),
        change=change,
        normalised=normalised,
        noise=noise_of(was) + noise_of(now),
    )


def noise_of(entry: Entry) -> float:
    """Half the range of the repetitions, as a part of their median."""
    seconds = entry["seconds"]
    return float((max(seconds) - min(seconds)) / 2 / entry["median_s"])
