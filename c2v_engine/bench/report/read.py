"""A result file, and what its entries come to."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from c2v_engine.bench.report.fields import check_content
from c2v_engine.errors import InputError

__all__ = ["Entry", "Ratio", "Results", "read_results"]

Entry = dict[str, Any]
OURS = "engine"
DTYPES = ("bfloat16", "float16", "float32")
"""That cases are named for."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long one provider takes as another.

    Attributes:
        median: of the repetitions' ratios.
        least: of them.
        most: of them.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Entry, theirs: Entry) -> Ratio:
        """Of two entries of one case: repetitions were in turns, so each has its pair."""
        pairs = zip(ours["seconds"], theirs["seconds"], strict=False)
        found = [slow / fast for fast, slow in pairs]
        return cls(statistics.median(found), min(found), max(found))


class Results:
    """What a result file holds, of ``c2v bench`` or of ``bench_engine.py``.

    Args:
        content: of the file.
        where: it lies, for errors.

    Raises:
        InputError: it is not a result of the kind, or a field is missing.
    """

    def __init__(self, content: dict[str, Any], where: str = "the result") -> None:
        check_content(content, where)
        self.content = content

    @property
    def methods(self) -> bool:
        """Whether methods were measured, not providers."""
        return bool(self.content.get("kind") == "methods")

    @cached_property
    def entries(self) -> list[Entry]:
        """All of them."""
        return [dict(entry) for entry in self.content["results"]]

    @cached_property
    def timed(self) -> list[Entry]:
        """Those that were timed."""
        return [entry for entry in self.entries if entry["status"] == "ok"]

    @cached_property
    def cases(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(str(entry["case"]) for entry in self.entries))

    def of_case(self, case: str) -> list[Entry]:
        """The entries of a case, in order."""
        return [entry for entry in self.entries if entry["case"] == case]

    def find(self, case: str, provider: str) -> Entry | None:
        """An entry that was timed, or None."""
        for entry in self.timed:
            if (entry["case"], entry["provider"]) == (case, provider):
                return entry
        return None

    def engine_of(self, entry: Entry) -> Entry | None:
        """The engine's entry of the same case and dtype, or its first of the case."""
        ours = [e for e in self.timed if e["case"] == entry["case"] and kind_of(e) == OURS]
        same = [e for e in ours if dtype_of(e) == dtype_of(entry)]
        return next(iter((*same, *ours)), None)

    @cached_property
    def ratios(self) -> list[tuple[Entry, Ratio]]:
        """Every peer that was timed beside the engine, and how many times as fast the engine is."""
        return [
            (entry, Ratio.of(ours, entry))
            for entry in self.timed
            for ours in (self.engine_of(entry),)
            if ours is not None and kind_of(entry) not in (OURS, "device") and not self.methods
        ]

    def gemm_tflops(self, dtype: str) -> float | None:
        """Of a matrix product in a dtype: the better of before and after; None: not measured."""
        return max(self.gemm_tflops_at(dtype), default=None)

    @property
    def ceiling_dtypes(self) -> list[str]:
        """The dtypes in which matrix products were measured."""
        ceilings = self.content["ceilings"]
        peaks = ceilings["gemm_tflops"]
        return list(peaks) if isinstance(peaks, dict) else [str(ceilings.get("dtype", ""))]

    def drift(self, dtype: str) -> float:
        """By how much of the better ceiling in a dtype the other is less (steady: 0)."""
        found = self.gemm_tflops_at(dtype)
        return 1 - min(found) / max(found) if found else 0.0

    @property
    def copy_gb_per_s(self) -> float | None:
        """Of a copy, the better of before and after."""
        return max((float(c["copy_gb_per_s"]) for c in self._ceilings), default=None)

    def of_gemm(self, entry: Entry) -> float | None:
        """Useful operations as a fraction of the matrix product's in the entry's dtype."""
        peak = self.gemm_tflops(dtype_of(entry))
        return None if not peak else float(entry["tflops"]) / peak

    def headline(self) -> list[str]:
        """What was measured, where and when, as short lines."""
        content = self.content
        processor = content.get("gpu") or content.get("cpu") or "an unnamed processor"
        threads = content.get("threads")
        commit = str(content.get("commit") or "")[:7] or "no commit"
        if content.get("dirty"):
            commit += " and changes to it"
        version = content.get("version")
        lines = [
            f"{processor}, {threads} threads" if threads else str(processor),
            f"c2v-engine {version}, {commit}" if version else commit,
            f"torch {content.get('torch')}, Python {content.get('python')}",
        ]
        if content.get("started"):
            lines.append(str(content["started"]))
        return lines

    def gemm_tflops_at(self, dtype: str) -> list[float]:
        """Of a matrix product in a dtype, before and after, as far as it was measured."""
        found = []
        for ceilings in self._ceilings:
            peak = ceilings["gemm_tflops"]
            if isinstance(peak, dict):
                found += [float(peak[dtype])] if dtype in peak else []
            elif ceilings.get("dtype", dtype) == dtype:
                found.append(float(peak))
        return found

    @cached_property
    def _ceilings(self) -> list[dict[str, Any]]:
        keys = ("ceilings", "ceilings_at_end")
        return [self.content[key] for key in keys if self.content.get(key)]


def kind_of(entry: Entry) -> str:
    """Of its provider: ``engine``, ``padded``, ..."""
    return str(entry.get("provider", "")).partition(" ")[0]


def dtype_of(entry: Entry) -> str:
    """Of its provider."""
    return str(entry.get("provider", "")).split(" ")[1] if " " in entry.get("provider", "") else ""


def label_of(entry: Entry) -> str:
    """Of a provider, with its dtype where that is not the case's."""
    name = str(entry["provider"])
    return name.replace(f" {case_dtype(entry)}", "") if case_is_named(entry) else name


def model_of(entry: Entry) -> str:
    """Of its case."""
    return str(entry.get("model") or str(entry["case"]).split("/")[0])


def workload_of(entry: Entry) -> str:
    """Of its case: what stands between the model and the dtype."""
    parts = str(entry["case"]).split("/")[1:]
    return "/".join(part for part in parts if part != case_dtype(entry)) or str(entry["case"])


def case_is_named(entry: Entry) -> bool:
    """Whether a case is named for a dtype."""
    return str(entry["case"]).split("/")[-1] in DTYPES


def case_dtype(entry: Entry) -> str:
    """The dtype that a case is named for, or the provider's."""
    return str(entry["case"]).split("/")[-1] if case_is_named(entry) else dtype_of(entry)


def read_results(path: Path) -> Results:
    """Read a result file.

    Raises:
        InputError: it is missing, is not JSON, or is not a result of a benchmark of models.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    return Results(content, str(path))
