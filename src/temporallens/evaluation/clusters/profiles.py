"""Temporal profiles: how a feature's activation is spread over positions, in bins that hold enough firings to say so.

A table holds, for chosen features, the activation that falls on each position. From it come the profile of method, section 4,
`pi_f ∝ l_f`, with l_f the mean activation by bin: every bin weighs the same, so that bins which widen with the logarithm weigh early
positions as the logarithmic axis of the figures does. Tables can be made again of reweighted documents, of sequences whose
positions are rotated, and of shuffled positions, which is all that bootstraps and chance need.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from temporallens.evaluation.bins import profile_starts
from temporallens.evaluation.firings import Firings

FIRINGS_PER_POSITION = 4
"""Expected firings of a typical feature at a position, from which `auto` takes single positions as bins."""
LOG_EDGES = 32
"""Ends of logarithmic bins between the first position and the last, before equal ones are merged."""
MOST_BINS = 128
"""Single positions are bins up to so many: distances cost as much time as there are bins."""
LEAST_TOKENS = 50
"""A bin with fewer tokens is merged with the one before it."""
TINY = 1e-12
"""Least share of a bin, which keeps logarithms finite."""


class Table(NamedTuple):
    """Activation by position of n features; positions without tokens included."""

    mass: Float[np.ndarray, "n P"]  # sum of activations
    tokens: Float[np.ndarray, " P"]  # rows; weighted ones where documents are
    firings: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]  # sum of squares over sum: what one firing adds, and so the variance of a count of them


class Bins(NamedTuple):
    """Runs of positions, in order."""

    first: Int[np.ndarray, " B"]
    last: Int[np.ndarray, " B"]  # inclusive
    kind: Literal["positions", "log"]

    def __len__(self) -> int:
        return len(self.first)

    def sums(self, values: Float[np.ndarray, "*n P"]) -> Float[np.ndarray, "*n B"]:
        """Totals over the positions of each bin, from the first bin's first position on."""
        return np.add.reduceat(values[..., : self.last[-1] + 1], self.first, axis=-1)


class Selection(NamedTuple):
    """The firings of chosen features alone, as every table of them is made from."""

    feature: Int[np.ndarray, " K"]  # index among the chosen features
    row: Int[np.ndarray, " K"]
    value: Float[np.ndarray, " K"]
    chosen: Int[np.ndarray, " n"]
    positions: int


def select(firings: Firings, chosen: Int[np.ndarray, " n"]) -> Selection:
    """The firings of these features, each of which gets its index among them."""
    index = np.full(firings.features, -1, dtype=np.int32)
    index[chosen] = np.arange(len(chosen), dtype=np.int32)
    feature = index[firings.feature]
    selected = feature >= 0
    return Selection(feature[selected], firings.row[selected], firings.value[selected], chosen, firings.positions)


def table_of(selection: Selection, position: Int[np.ndarray, " N"], weight: Float[np.ndarray, " N"] | None = None) -> Table:
    """Activation by position, rows counted `weight` times (once by default)."""
    count, positions = len(selection.chosen), selection.positions
    value = selection.value.astype(np.float64)
    times = np.ones(len(value)) if weight is None else weight[selection.row]
    cell = selection.feature.astype(np.int64) * positions + position[selection.row]
    mass = np.bincount(cell, value * times, count * positions).reshape(count, positions)
    total = mass.sum(1)
    squares = np.bincount(selection.feature, value * value * times, count)
    return Table(
        mass=mass,
        tokens=np.bincount(position, weight, positions).astype(np.float64),
        firings=np.bincount(selection.feature, times, count),
        size=np.divide(squares, total, out=np.zeros(count), where=total > 0),
    )


def rotated(position: Int[np.ndarray, " N"], sequence: Int[np.ndarray, " N"], generator: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Positions of rows after each sequence's labels were turned in a circle by a random offset, the same for all features: what
    fires together still does, and nothing is tied to a position."""
    starts = np.flatnonzero(np.concatenate([[True], sequence[1:] != sequence[:-1]]))
    lengths = np.diff(np.append(starts, len(sequence)))
    offset = (generator.random(len(starts)) * lengths).astype(np.int64)
    first = np.repeat(starts, lengths)
    index = (np.arange(len(sequence)) - first + np.repeat(offset, lengths)) % np.repeat(lengths, lengths)
    return position[first + index]


def shuffled(table: Table, generator: np.random.Generator) -> Table:
    """Each feature's mean activations by position in an order of its own."""
    live = table.tokens > 0
    level = table.mass[:, live] / table.tokens[live]
    mass = np.zeros_like(table.mass)
    mass[:, live] = generator.permuted(level, axis=1) * table.tokens[live]
    return table._replace(mass=mass)


def bins_of(table: Table, wanted: Literal["auto", "positions", "log"]) -> Bins:
    """The bins of every profile of a store: single positions, or runs that widen with the logarithm where evidence is thin."""
    live = np.flatnonzero(table.tokens > 0)
    if wanted == "auto":
        rate = float(np.median(table.firings)) / max(float(table.tokens.sum()), 1.0)
        dense = rate * float(np.median(table.tokens[live])) >= FIRINGS_PER_POSITION
        wanted = "positions" if dense and len(live) <= MOST_BINS else "log"
    starts = live if wanted == "positions" else profile_starts(int(live[0]), int(live[-1]), LOG_EDGES)
    return Bins(*_enough_tokens(table.tokens, starts.tolist(), int(live[-1])), kind=wanted)


def _enough_tokens(tokens: Float[np.ndarray, " P"], starts: Iterable[int], last: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last positions of bins that begin at `starts`, those with too few tokens joined to the one before."""
    first: list[int] = []
    held = 0.0
    edges = [*starts, last + 1]
    for start, end in pairwise(edges):
        if not first or held >= LEAST_TOKENS:
            first.append(start)
            held = 0.0
        held += float(tokens[start:end].sum())
    if len(first) > 1 and held < LEAST_TOKENS:
        first.pop()
    ends = [*(start - 1 for start in first[1:]), last]
    return np.array(first), np.array(ends)


def levels_of(table: Table, bins: Bins) -> tuple[Float[np.ndarray, "n B"], Float[np.ndarray, " B"]]:
    """Mean activation of each feature in each bin, and the bins' tokens."""
    tokens = bins.sums(table.tokens)
    return bins.sums(table.mass) / np.maximum(tokens, 1.0), tokens


def profiles_of(table: Table, bins: Bins, smoothing: float) -> Float[np.ndarray, "n B"]:
    """Profiles that sum to 1, every bin drawn towards the feature's mean by `smoothing` firings of its usual strength.

    `l(b) = (mass(b) + c a) / (tokens(b) + c / r)`, with a the mean strength of a firing and r the firing rate: bins in which the
    feature could hardly have fired stay near its mean, others near what was counted.
    """
    tokens = bins.sums(table.tokens)
    mass = bins.sums(table.mass)
    firings = np.maximum(table.firings, TINY)
    strength = table.mass.sum(1) / firings
    rate = firings / max(float(tokens.sum()), 1.0)
    level = (mass + smoothing * strength[:, None]) / np.maximum(tokens + smoothing / rate[:, None], TINY)
    level += TINY * np.maximum(level.sum(1, keepdims=True), TINY)
    return level / level.sum(1, keepdims=True)


def standardised(profiles: Float[np.ndarray, "n B"]) -> Float[np.ndarray, "n B"]:
    """Profiles about their mean, of length 1, so that products are correlations; 0 for flat ones, which rounding would give a shape."""
    centred = profiles - profiles.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > TINY)
