"""Clocks by expression: what a study says in place of a clock's name.

    {modulo: m, of: CLOCK}     t mod m
    {from_end: CLOCK}          how many tokens stand behind this one until the row ends or the clock starts anew
    {since: REGEX}             tokens since the first one that begins behind a match of the expression in the text
    {field: ","}               separators in its line before the token: the column of a table
    {product: [A, B]}          t_A |B| + t_B, where B tells |B| positions apart: a row and a column, say

CLOCK is a name, or an expression again; `of` is the index where it is left out. In manifests an expression stands as JSON.
`since` begins anew with every row and document; `field` is told of the document, whatever rows it is cut into.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from temporallens.activations.clocks import CLOCKS, MOST_POSITIONS, Clock, TokenMarks, TokenRow
from temporallens.errors import TemporalLensError, did_you_mean

DEEPEST = 8
"""Expressions within expressions."""
LONGEST_SINCE = 256
FIELDS = 64
"""Columns of a table that are told apart."""
EXPRESSION_CHARACTERS = 1000


def clock_of(asked: Any, depth: int = 0) -> Clock:
    """The clock that a study asks for, by name, by a mapping, or by the JSON of one.

    Raises TemporalLensError for what is none.
    """
    if isinstance(asked, str) and asked.lstrip().startswith("{"):
        return _from_json(asked)
    if isinstance(asked, str):
        if asked not in CLOCKS:
            known = ", ".join(CLOCKS)
            raise TemporalLensError(f"there is no clock '{asked}'{did_you_mean(asked, CLOCKS)} (there are {known}, and expressions)")
        return CLOCKS[asked]
    if not isinstance(asked, Mapping) or depth > DEEPEST:
        raise TemporalLensError(f"a clock is a name or an expression such as {{modulo: 24}}; this one is {asked!r:.80}")
    kinds = [name for name in EXPRESSIONS if name in asked]
    if len(kinds) != 1:
        raise TemporalLensError(f"a clock by expression has one of the keys {', '.join(EXPRESSIONS)}; this one has {_keys(asked)}")
    (kind,) = kinds
    allowed, make = EXPRESSIONS[kind]
    if unknown := [key for key in asked if key not in {kind, *allowed}]:
        raise TemporalLensError(f"the clock {kind} has no setting '{unknown[0]}'")
    return make(asked, depth + 1)


def canonical(asked: Any) -> str:
    """As it stands in manifests: its name, or the JSON of its expression. Raises TemporalLensError as `clock_of` does."""
    clock = clock_of(asked)
    if isinstance(asked, str) and clock.name in CLOCKS:
        return clock.name
    return json.dumps(json.loads(asked) if isinstance(asked, str) else asked, sort_keys=True, ensure_ascii=False)


@lru_cache(maxsize=64)
def _from_json(text: str) -> Clock:
    try:
        return clock_of(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise TemporalLensError(f"the clock {text:.60} is no JSON: {error}") from error


def _keys(asked: Mapping[Any, Any]) -> str:
    return ", ".join(str(key) for key in asked) or "none"


# The expressions


def _modulo(asked: Mapping[str, Any], depth: int) -> Clock:
    """`{modulo: m, of: CLOCK}`: another clock, modulo a number"""
    of, modulo = clock_of(asked.get("of", "index"), depth), asked["modulo"]
    if not isinstance(modulo, int) or isinstance(modulo, bool) or not 2 <= modulo <= MOST_POSITIONS:
        raise TemporalLensError(f"modulo is a whole number from 2 to {MOST_POSITIONS:,}; this one is {modulo!r:.40}")

    def times(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
        return of.times(row, marks) % modulo

    within = of.within_row
    return Clock(f"{of.name} modulo {modulo}", f"{of.label}, modulo {modulo}", times, modulo, within, of.reads_text, of.readers)


def _from_end(asked: Mapping[str, Any], depth: int) -> Clock:
    """`{from_end: CLOCK}`: tokens until the row ends or another clock starts anew"""
    of = clock_of(asked["from_end"], depth)

    def times(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
        forth, index = of.times(row, marks), np.arange(len(row.tokens))
        last = np.append(np.flatnonzero(forth[1:] <= forth[:-1]), len(index) - 1)  # of every stretch of the clock
        return last[np.searchsorted(last, index)] - index

    return Clock(f"{of.name} from the end", f"until the end of: {of.label}", times, of.longest, True, of.reads_text, of.readers)


def _since(asked: Mapping[str, Any], depth: int) -> Clock:
    """`{since: REGEX}`: tokens since an expression matched in the text"""
    pattern = asked["since"]
    if not isinstance(pattern, str) or not pattern or len(pattern) > EXPRESSION_CHARACTERS:
        raise TemporalLensError(f"since is a regular expression of 1 to {EXPRESSION_CHARACTERS:,} characters; this one is {pattern!r:.40}")
    try:
        found = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise TemporalLensError(f"since is no regular expression: {error} ({pattern!r:.40})") from error

    def begins(text: str, starts: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        ends = np.array([match.end() for match in found.finditer(text)], dtype=np.int64)
        token = np.searchsorted(starts, ends)
        return np.isin(np.arange(len(starts)), token).astype(np.int64)

    def times(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
        index = np.arange(len(row.tokens))
        restarts = row.read[0].astype(bool) | np.append(True, row.document[1:] != row.document[:-1])
        return index - np.maximum.accumulate(np.where(restarts, index, 0))

    name = f"since {pattern!r}"
    return Clock(name, f"tokens {name}", times, LONGEST_SINCE, True, readers=(begins,))


def _field(asked: Mapping[str, Any], depth: int) -> Clock:
    """`{field: ","}`: separators in its line before the token, which is the column of a table"""
    separator, fields = asked["field"], asked.get("fields", FIELDS)
    if not isinstance(separator, str) or not separator or "\n" in separator or len(separator) > EXPRESSION_CHARACTERS:
        raise TemporalLensError(f"field is what separates the fields of a line, such as ','; this one is {separator!r:.40}")
    if not isinstance(fields, int) or isinstance(fields, bool) or not 2 <= fields <= MOST_POSITIONS:
        raise TemporalLensError(f"fields, of a line, are a whole number from 2 to {MOST_POSITIONS:,}; this one is {fields!r:.40}")

    def column(text: str, starts: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        ends, lines = ([match.end() for match in re.finditer(what, text)] for what in (re.escape(separator), "\n"))
        before = np.searchsorted(np.array(ends, dtype=np.int64), starts, side="right")
        line = np.array([0, *lines], dtype=np.int64)
        opening = line[np.searchsorted(line, starts, side="right") - 1]
        return np.asarray(before - np.searchsorted(np.array(ends, dtype=np.int64), opening, side="right"))

    def times(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
        return row.read[0]

    return Clock(f"field by {separator!r}", f"field of the line (by {separator!r})", times, fields, False, readers=(column,))


def _product(asked: Mapping[str, Any], depth: int) -> Clock:
    """`{product: [A, B]}`: two clocks together, a row and a column, say"""
    pair = asked["product"]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TemporalLensError(f"product is a list of two clocks; this one is {pair!r:.60}")
    first, second = (clock_of(one, depth) for one in pair)
    if second.longest is None:
        raise TemporalLensError(f"the second clock of a product has a known number of positions; '{second.name}' has as many as a row")

    def times(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
        own = row._replace(read=row.read[: len(first.readers)]), row._replace(read=row.read[len(first.readers) :])
        assert second.longest is not None
        inner = np.minimum(second.times(own[1], marks), second.longest - 1)
        return first.times(own[0], marks) * second.longest + inner

    longest = None if first.longest is None else first.longest * second.longest
    if longest is None or longest > MOST_POSITIONS:
        number = "no known number of" if longest is None else f"{longest:,}"
        raise TemporalLensError(
            f"the product of '{first.name}' and '{second.name}' has {number} positions: both clocks have a known number, and at most "
            f"{MOST_POSITIONS:,} together; take them modulo a number"
        )
    reads_text, name = first.reads_text or second.reads_text, f"{first.name} by {second.name}"
    return Clock(name, name, times, longest, False, reads_text, (*first.readers, *second.readers))


EXPRESSIONS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any], int], Clock]]] = {
    "modulo": (("of",), _modulo),
    "from_end": ((), _from_end),
    "since": ((), _since),
    "field": (("fields",), _field),
    "product": ((), _product),
}
"""By the key that names one, with its other settings."""
