"""Lengths of a code for which features fire on a row, when something is known of the row beforehand.

On every row each of F features fires or does not: independent Bernoulli events. Told nothing, feature f fires at its own rate `r_f`; told
that the row has the label l, at a rate that is shrunk to its own,

    r_f   = (k_f + a ρ) / (n + a),        ρ = (Σ_f k_f + 1/2) / (n F + 1)
    p_lf  = (k_lf + s r_f) / (n_l + s),

with k firings on n rows that are counted. A row takes `Σ_f -log2 P(fires or does not)` bits. It is scored by counts of other documents: of
training documents, or, where held-out ones are all there is, by counts of the other folds of these. a and s are those of a grid that do
best on a part of the counted documents that is itself left out of the counts. So nothing is chosen on the rows that it is scored on, and
what a label does not tell costs next to nothing: a large s leaves the rates as they are.

Everything is counted over firings and over the (label, feature) cells that hold one. What the silent features of a label cost depends on
its number of rows alone, so only a block of a table of distinct numbers by features is ever held.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings

STRENGTHS = tuple(4.0**power for power in range(8, -2, -1))
"""How many rows of the wider rate the grids for a and s add: from more than most labels have, which is taken where all do alike, to
hardly any."""

CELLS = 1 << 21
"""Entries of a table that is held at a time."""


class Fold(NamedTuple):
    """Rows by what they are for when some are scored; all of a document are for the same."""

    scored: Bool[np.ndarray, " N"]
    fitted: Bool[np.ndarray, " N"]  # those that are counted
    tried: Bool[np.ndarray, " N"]  # those of them on which strengths are chosen
    rest: Bool[np.ndarray, " N"]  # those of them that are counted meanwhile


class Rates(NamedTuple):
    """Each feature's own rate, above 0 and below 1."""

    rest: Float64[np.ndarray, " F"]
    fitted: Float64[np.ndarray, " F"]


class Labelled:
    """One label of each row, -1 where there is none: its position, its token."""

    def __init__(self, firings: Firings, label: Int[np.ndarray, " N"]) -> None:
        self.labelled: Bool[np.ndarray, " N"] = label >= 0
        self._number = np.zeros(len(label), dtype=np.int64)
        values, self._number[self.labelled] = np.unique(label[self.labelled], return_inverse=True)
        self._labels = len(values)
        counted = self.labelled[firings.row]
        self._row = firings.row[counted]
        filled, self._cell = np.unique(self._number[self._row] * firings.features + firings.feature[counted], return_inverse=True)
        self._cell_label, self._cell_feature = np.divmod(filled, firings.features)

    def lengths(
        self, fitted: Bool[np.ndarray, " N"], rate: Float64[np.ndarray, " F"], strengths: Sequence[float]
    ) -> Iterator[Float64[np.ndarray, " N"]]:
        """Bits of every row by counts of the fitted ones, for one strength after the other; without meaning where there is no label."""
        counted = fitted & self.labelled
        rows = np.bincount(self._number[counted], minlength=self._labels)
        fired = np.bincount(self._cell[counted[self._row]], minlength=len(self._cell_label))
        cell_rows, cell_rate = rows[self._cell_label], rate[self._cell_feature]
        for strength in strengths:
            seen, unseen = (_shrunk(count, cell_rows, cell_rate, strength) for count in (fired, 0))
            silent = _silence(rows, rate, strength)
            silent += np.bincount(self._cell_label, weights=np.log1p(-unseen) - np.log1p(-seen), minlength=self._labels)
            firing = _added(seen)[self._cell]
            yield (silent[self._number] + np.bincount(self._row, weights=firing, minlength=len(fitted))) / math.log(2)


class Persistent:
    """Whether each feature fired on another row, -1 where there is none: its own past, a chain of two states. A row is the past of one
    other at most."""

    def __init__(self, firings: Firings, before: Int[np.ndarray, " N"]) -> None:
        self.labelled: Bool[np.ndarray, " N"] = before >= 0
        after = np.full(len(before), -1, dtype=np.int64)
        after[before[self.labelled]] = np.flatnonzero(self.labelled)
        past, present = after[firings.row] >= 0, self.labelled[firings.row]
        self._past_row, self._past_feature = after[firings.row[past]], firings.feature[past]
        self._row, self._feature = firings.row[present].astype(np.int64), firings.feature[present]
        self._again = np.isin(
            self._row * firings.features + self._feature, self._past_row * firings.features + self._past_feature, assume_unique=True
        )

    def lengths(
        self, fitted: Bool[np.ndarray, " N"], rate: Float64[np.ndarray, " F"], strengths: Sequence[float]
    ) -> Iterator[Float64[np.ndarray, " N"]]:
        """The same as of labels, each feature having two of its own."""
        rows = np.bincount(self._past_feature[fitted[self._past_row]], minlength=len(rate))
        counted = fitted[self._row]
        again, anew = (np.bincount(self._feature[counted & which], minlength=len(rate)) for which in (self._again, ~self._again))
        others = np.count_nonzero(fitted & self.labelled) - rows
        for strength in strengths:
            after, without = _shrunk(again, rows, rate, strength), _shrunk(anew, others, rate, strength)
            silent = np.log1p(-without) - np.log1p(-after)
            firing = np.where(self._again, _added(after)[self._feature], _added(without)[self._feature])
            length = np.bincount(self._past_row, weights=silent[self._past_feature], minlength=len(fitted))
            length += np.bincount(self._row, weights=firing, minlength=len(fitted))
            yield (length - np.log1p(-without).sum()) / math.log(2)


Known = Labelled | Persistent
"""What may be told of rows before their codes are read."""


def folds_of(document: Int[np.ndarray, " N"], training: Bool[np.ndarray, " N"], folds: int, generator: np.random.Generator) -> list[Fold]:
    """Rows of training documents are counted and all others scored at once; without any, documents are drawn into folds of equally many
    and each fold is scored by the others.

    Raises TemporalLensError for fewer documents than parts are needed.
    """
    if training.any():
        part = np.where(training, _parts(document, training, folds, 2, "training", generator), -1)
        return [Fold(~training, training, part == 0, part > 0)]
    part = _parts(document, ~training, folds, 3, "held-out", generator)
    last = int(part.max()) + 1
    sides = ((part == one, part == (one + 1) % last) for one in range(last))
    return [Fold(scored, ~scored, tried, ~scored & ~tried) for scored, tried in sides]


def _parts(
    document: Int[np.ndarray, " N"], wanted: Bool[np.ndarray, " N"], parts: int, least: int, which: str, generator: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """The part into which each row's document is drawn, of those that have wanted rows."""
    documents = np.unique(document[wanted])
    if len(documents) < least:
        raise TemporalLensError(f"bits counts on {least} {which} documents or more and there are {len(documents)}; store more documents")
    drawn = generator.permutation(len(documents)) % parts
    return drawn[np.searchsorted(documents, document).clip(max=len(documents) - 1)]


def own_rates(firings: Firings, folds: Sequence[Fold]) -> tuple[list[Rates], Float64[np.ndarray, " N"]]:
    """Each feature's own rate for every fold, and the bits that rows take by these rates alone; NaN where they are not scored."""
    rates, bits = [], np.full(len(firings.position), np.nan)
    for fold in folds:
        rest = [_own_rate(firings, fold.rest, strength) for strength in STRENGTHS]
        best = int(np.argmin([_plain_lengths(firings, rate)[fold.tried].sum() for rate in rest]))
        rates.append(Rates(rest[best], _own_rate(firings, fold.fitted, STRENGTHS[best])))
        bits[fold.scored] = _plain_lengths(firings, rates[-1].fitted)[fold.scored]
    return rates, bits


def known_lengths(
    ways: Sequence[Known], folds: Sequence[Fold], rates: Sequence[Rates], plain: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Bits of every row when this is known, told in the way that does best on the fitting side; where nothing is told, those that it
    takes by rates alone."""
    bits, labelled = plain.copy(), ways[0].labelled
    for fold, rate in zip(folds, rates, strict=True):
        tried, scored = fold.tried & labelled, fold.scored & labelled
        totals = [[lengths[tried].sum() for lengths in way.lengths(fold.rest, rate.rest, STRENGTHS)] for way in ways]
        way, strength = divmod(int(np.argmin(totals)), len(STRENGTHS))
        (found,) = ways[way].lengths(fold.fitted, rate.fitted, [STRENGTHS[strength]])
        bits[scored] = found[scored]
    return bits


def _own_rate(firings: Firings, fitted: Bool[np.ndarray, " N"], strength: float) -> Float64[np.ndarray, " F"]:
    fired, rows = np.bincount(firings.feature[fitted[firings.row]], minlength=firings.features), int(fitted.sum())
    return _shrunk(fired, rows, (fired.sum() + 0.5) / (rows * firings.features + 1), strength)


def _plain_lengths(firings: Firings, rate: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " N"]:
    fired = np.bincount(firings.row, weights=_added(rate)[firings.feature], minlength=len(firings.position))
    return np.asarray((fired - np.log1p(-rate).sum()) / math.log(2))


def _shrunk(
    fired: Int[np.ndarray, " n"] | int, rows: Int[np.ndarray, " n"] | int, rate: Float64[np.ndarray, " n"] | float, strength: float
) -> Float64[np.ndarray, " n"]:
    return np.asarray((fired + strength * rate) / (rows + strength))


def _added(rate: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """What a firing costs more than silence, in nats."""
    return np.asarray(np.log1p(-rate) - np.log(rate))


def _silence(rows: Int[np.ndarray, " L"], rate: Float64[np.ndarray, " F"], strength: float) -> Float64[np.ndarray, " L"]:
    """What it costs that no feature fires, in nats, at labels of so many rows on which none did."""
    distinct, place = np.unique(rows, return_inverse=True)
    blocks = np.array_split(strength / (distinct + strength), math.ceil(len(distinct) * len(rate) / CELLS))
    return np.concatenate([-np.log1p(-np.outer(block, rate)).sum(1) for block in blocks])[place]
