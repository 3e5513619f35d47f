"""Figures as a person reads them."""

from __future__ import annotations

from itertools import pairwise

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number_text(value: float) -> str:
    """All digits of a whole number, some of any other: ``1,234,567``, ``12.5``, ``0.04``."""
    if value == int(value) or abs(value) >= 100:
        return f"{round(value):,}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def short_number(value: float) -> str:
    """Few characters, for an axis: ``950``, ``1.2k``, ``15M``."""
    for power, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g}{suffix}"
    return f"{value:.3g}"


def duration_text(seconds: float) -> str:
    """Two units at most: ``0.42 s``, ``12.3 s``, ``3 min 20 s``, ``6 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for (size, name), (smaller, small_name) in pairwise(_UNITS):
        if whole >= size:
            most, rest = divmod(whole, size)
            rest //= smaller
            return f"{most:,} {name} {rest} {small_name}" if rest else f"{most:,} {name}"
    return f"{whole} s"


def size_text(size: float) -> str:
    """A number of bytes."""
    for power, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= power:
            return f"{size / power:,.3g} {name}" if size < 1e15 else f"{size / power:,.0f} {name}"
    return f"{size:,.0f} bytes"


def share_text(share: float) -> str:
    """A share in per cent; what is not all is never rounded to all, nor something to nothing."""
    if 0 < share < 0.0005:
        return "under 0.1%"
    if 0.9995 < share < 1:
        return "over 99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"
