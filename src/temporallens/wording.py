"""Numbers, shares, intervals and lists in words, and tables of them: one of each for the report, the pictures, the terminal and the
documents. What is not known is a dash everywhere."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

UNKNOWN = "–"
ONE_SEED = "one seed"
"""What rests on one seed is marked so: it has no interval and establishes nothing."""
ROUNDING = 1e-12
"""Shares below it are the last digit of a sum, not something found."""
SPACE = "\u00a0"
"""No line ends between a number and its unit."""


# Numbers


def known(value: Any) -> TypeGuard[float]:
    """Whether a value out of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def minus(written: str) -> str:
    """A written number with a real minus."""
    return written.replace("-", "−")


def fixed(value: float | None, digits: int) -> str:
    """A number with that many digits; what rounds to zero has no sign."""
    return minus(f"{value:z,.{digits}f}") if known(value) else UNKNOWN


def capital(sentence: str) -> str:
    """With a capital at its head, and what follows as it is."""
    return sentence[:1].upper() + sentence[1:]


def plus(value: float, written: str) -> str:
    """A written number with a plus where it is above zero."""
    return f"+{written}" if value > 0 else written


def number(value: float) -> str:
    """Three significant digits, in full: `25,100`, `0.0312`."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def percent(share: float) -> str:
    """A share as percent, two significant digits below 10 %."""
    if not math.isfinite(share):
        return "n/a"
    value = 100 * share if abs(share) > ROUNDING else 0.0
    digits = f"{value:.0f}" if abs(value) >= 9.95 or value == 0 else f"{value:.1f}" if abs(value) >= 0.095 else f"{value:.2g}"
    return f"{digits}{SPACE}%"


def average(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


# Amounts


def readable_time(seconds: float) -> str:
    """`40 s`, `5 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def readable_bytes(size: float) -> str:
    """`12 KB`, `340 MB`, `4.1 GB`."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# Intervals


@runtime_checkable
class Interval(Protocol):
    """A value with its interval, over seeds (`Mean`) or documents (`Estimate`); None where there is none."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def estimated(of: Interval | None, digits: int = 3, scale: float = 1.0, unit: str = "") -> str:
    """`0.123 (0.101 to 0.144)`; without the parentheses where there is no interval."""
    if of is None or of.value is None:
        return UNKNOWN
    middle = fixed(of.value * scale, digits) + unit
    if of.low is None or of.high is None:
        return middle
    return f"{middle} ({fixed(of.low * scale, digits)} to {fixed(of.high * scale, digits)})"


def plus_minus(of: Interval | None, digits: int) -> str:
    """`0.8012 ± 0.0010`; the value alone where there is no interval, and an interval that is not symmetric is written out."""
    if of is None or of.value is None or of.low is None or of.high is None:
        return estimated(of, digits)
    if abs((of.high - of.value) - (of.value - of.low)) < 1e-9 * max(abs(of.value), 1):
        return f"{fixed(of.value, digits)} ± {fixed(of.high - of.value, digits)}"
    return estimated(of, digits)


# Words


def plain(value: object, limit: int = 60) -> str:
    """One printable line of at most `limit` characters; a long path or name loses its middle."""
    line = " ".join("".join(character if character.isprintable() else " " for character in str(value)).split())
    if len(line) <= limit:
        return line
    half = (limit - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def setting(value: Any) -> str:
    """A setting as a study file would have it."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def ends(values: Sequence[float], digits: int) -> str:
    """From the least to the most of several numbers; one where they are alike."""
    least, most = fixed(min(values), digits), fixed(max(values), digits)
    return least if least == most else f"{least} to {most}"


def times_or_more(count: int) -> str:
    """How often a feature fires at least."""
    return f"{count:,} times or more"


def at_positions(first: int, last: int, names: Mapping[int, str]) -> str:
    """`position 3`, with its name where it has one, or `positions 4 to 7`, in a sentence."""
    if first != last:
        return f"positions {span(first, last)}"
    return f"position {first:,}" + (f" ({plain(names[first])})" if first in names else "")


def span(first: int, last: int) -> str:
    """`1`, `2 to 3`."""
    return str(first) if first == last else f"{first} to {last}"


# Tables


class Row(NamedTuple):
    """A line of a table."""

    head: str
    cells: list[str]
    summary: bool = False  # of the lines above it


class Table(NamedTuple):
    """A table with its columns; the first column heads the rows."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""
