"""What a result file must hold, checked at the door."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from c2v_engine.errors import InputError

__all__ = ["check_content"]

LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Rule:
    """What a field must be.

    Attributes:
        expected: in words, for the error.
        holds: whether a value is such.
        needed: whether the field must be there.
    """

    expected: str
    holds: Callable[[Any], bool]
    needed: bool = True

    def optional(self) -> Rule:
        """The same for a field that need not be there."""
        return replace(self, needed=False)

    def or_null(self) -> Rule:
        """The same for a field that may be null."""
        return replace(
            self,
            expected=f"{self.expected}, or null",
            holds=lambda value: value is None or self.holds(value),
        )


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float is near
        return False


def is_amount(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return is_number(value) and value > 0


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether it is a list of such, none or more."""
    return isinstance(value, list) and all(map(holds, value))


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_peak(value: Any) -> bool:
    """Whether it is a rate, or one of every dtype."""
    return is_amount(value) or (
        is_object(value) and all(map(is_text, value)) and all(map(is_amount, value.values()))
    )


AMOUNT = Rule("a number above 0", is_amount)
COUNT = Rule("a number, 0 or more", lambda value: is_number(value) and value >= 0)
NUMBER = Rule("a number", is_number)
TEXT = Rule("a string", is_text)
TIMES = Rule("a list of seconds above 0", lambda value: bool(value) and is_list(value, is_amount))
NUMBERS = Rule("a list of numbers", lambda value: is_list(value, is_number))
OBJECT = Rule("an object", is_object)
OBJECTS = Rule("a list of objects", lambda value: is_list(value, is_object))
TEXTS = Rule("a list of strings", lambda value: is_list(value, is_text))
KIND = Rule("'bench' or 'methods'", lambda value: value in ("bench", "methods"))
PEAK = Rule("a number above 0, or one for each dtype", is_peak)

CONTENT = {
    "results": OBJECTS,
    "ceilings": OBJECT,
    "ceilings_at_end": OBJECT.or_null().optional(),
    "models": OBJECT.optional(),
    "cut": OBJECT.or_null().optional(),
    "kind": KIND.optional(),
    "dtypes": TEXTS.optional(),
    "arguments": TEXTS.optional(),
}
CEILINGS = {"copy_gb_per_s": AMOUNT, "gemm_tflops": PEAK, "dtype": TEXT.optional()}
CUT = {"not_measured": TEXTS}
MODEL = {"weight_bytes": COUNT.optional()}
ENTRY = {
    "case": TEXT,
    "status": TEXT,
    "provider": TEXT.optional(),
    "model": TEXT.optional(),
    "method": TEXT.optional(),
    "reason": TEXT.optional(),
}
TIMED = {
    **ENTRY,
    "provider": TEXT,
    "texts": AMOUNT,
    "decoder_tokens": AMOUNT,
    "encoder_tokens": COUNT,
    "operations": AMOUNT,
    "seconds": TIMES,
    "median_s": AMOUNT,
    "texts_per_s": AMOUNT,
    "tokens_per_s": AMOUNT,
    "tflops": AMOUNT,
    "calls": AMOUNT.optional(),
    "computed_tokens": AMOUNT.optional(),
    "cpu_seconds": NUMBERS.optional(),
    "cosine_min": NUMBER.optional(),
    "host_added_bytes": NUMBER.or_null().optional(),
    "device_added_bytes": NUMBER.or_null().optional(),
    "stages": OBJECT.or_null().optional(),
}
OF_METHODS = {"model": TEXT, "method": TEXT}
TIMED_METHOD = {**TIMED, **OF_METHODS, "text_tokens": AMOUNT}
PROFILE = {
    "texts": AMOUNT,
    "decoder_tokens": AMOUNT,
    "wall_s": AMOUNT,
    "device_s": AMOUNT.or_null(),
    "stages": OBJECTS,
}
STAGE = {
    "name": TEXT,
    "count": COUNT,
    "host_s": NUMBER,
    "device_s": NUMBER.or_null(),
    "operations": COUNT.or_null(),
}


def check_content(content: Any, where: str) -> None:
    """Whether a file's content is a result.

    Raises:
        InputError: with the first thing that is not as it must be.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: is not a result file: expected a JSON object")
    missing = [key for key, rule in CONTENT.items() if rule.needed and key not in content]
    if missing:
        raise InputError(f"{where}: is not a result of c2v bench: it has no {missing[0]!r}")
    check(content, CONTENT, f"{where}: ")
    for key in ("ceilings", "ceilings_at_end"):
        if content.get(key) is not None:
            check(content[key], CEILINGS, f"{where}: {key}.")
    if content.get("cut") is not None:
        check(content["cut"], CUT, f"{where}: cut.")
    for name, model in content.get("models", {}).items():
        check({name: model}, {name: OBJECT}, f"{where}: models.")
        check(model, MODEL, f"{where}: models.{name}.")
    methods = content.get("kind") == "methods"
    for number, entry in enumerate(content["results"]):
        check_entry(entry, f"{where}: results[{number}].", methods=methods)


def check_entry(entry: Mapping[str, Any], place: str, *, methods: bool) -> None:
    """Whether an entry is one, with its profile."""
    if entry.get("status") != "ok":
        check(entry, {**ENTRY, **OF_METHODS} if methods else ENTRY, place)
        return
    check(entry, TIMED_METHOD if methods else TIMED, place)
    if entry.get("stages") is None:
        return
    check(entry["stages"], PROFILE, f"{place}stages.")
    on_device = entry["stages"].get("device_s") is not None
    rules = {**STAGE, "device_s": NUMBER} if on_device else STAGE
    for number, stage in enumerate(entry["stages"]["stages"]):
        check(stage, rules, f"{place}stages.stages[{number}].")


def check(found: Mapping[str, Any], rules: Mapping[str, Rule], place: str) -> None:
    """Whether an object's fields are what they must be."""
    for key, rule in rules.items():
        if key not in found:
            if rule.needed:
                raise InputError(f"{place.removesuffix('.')} has no {key!r}")
        elif not rule.holds(found[key]):
            shown = repr(found[key])
            shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
            raise InputError(f"{place}{key} is {shown}, expected {rule.expected}")
