"""What a feature's firings say about position, and what they would say by chance: the circular-shift null (`docs/method.md`, "Position
metrics").

In a draw of the null every sequence's firings are turned in a circle against its positions, each sequence by an offset of its own.
How often a feature fires in a sequence, and in what bursts, stays; where in the sequence it does so is lost. The unit is the sequence,
whatever documents are: clocks read rows, and where a text is cut into rows has nothing to do with what it says. (Of packed sequences,
those parts that are held out are joined until they make up one: `Firings.stretch`.) The p-value is the
share of draws that reach what was found; where hardly any draw does, it is the tail of a Pearson type III (shifted gamma) curve with
the draws' mean, variance and skewness, for information is nearly a sum of squares. A draw costs one gather and one count over firings.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from temporallens.evaluation.firings import Firings
from temporallens.evaluation.threads import on_threads

FITTED_BELOW = 10
"""Where fewer draws than this reach what was found, their share says little and the fitted tail is taken."""

PROMISING = 0.05
"""Features with a larger p-value are left at the first draws: they are no discoveries at any usual level."""

SMALLEST = 1e-9
"""Least p-value that is stated: further out a fitted tail means nothing."""

LEAST_SKEW = 0.02
"""Of the fitted curve, whose tail is to the right; below it is as good as normal."""

ROUNDING = 1e-12
"""Bits by which equal amounts of information may differ when they are summed in another order."""


class Trains(NamedTuple):
    """K firings of F chosen features, in feature order, and the N rows that they may fall on; positions, sequences and documents are
    numbered without gaps."""

    row: Int64[np.ndarray, " K"]
    feature: Int64[np.ndarray, " K"]  # ascending
    base: Int64[np.ndarray, " K"]  # where the feature's row begins in a flattened `[F, P]` table
    value: Float64[np.ndarray, " K"]
    number: Int64[np.ndarray, " N"]  # number of each row's position
    sequence: Int64[np.ndarray, " N"]  # ascending
    document: Int64[np.ndarray, " N"]
    features: int
    positions: int
    documents: int

    def of_features(self, chosen: Bool[np.ndarray, " F"]) -> "Trains":
        """The firings of some features, which are numbered anew."""
        kept = chosen[self.feature]
        feature = (np.cumsum(chosen) - 1)[self.feature[kept]]
        columns = {"row": self.row[kept], "feature": feature, "base": feature * self.positions, "value": self.value[kept]}
        return self._replace(**columns, features=int(np.count_nonzero(chosen)))


class Scores(NamedTuple):
    """What activations say about position, as counted: chance is not taken off."""

    specialisation: Float64[np.ndarray, " F"]  # PSI_f, 0 (alike everywhere) to 1 (at one position)
    eta2: Float64[np.ndarray, " F"]  # share of the variance of activations that the means of positions explain


class Tail(NamedTuple):
    """Pearson type III curve of each feature's draws."""

    mean: Float64[np.ndarray, " F"]
    deviation: Float64[np.ndarray, " F"]
    shape: Float64[np.ndarray, " F"]  # of the gamma distribution behind it: 4 over the squared skewness

    def above(self, found: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " F"]:
        """Share of the curve beyond `found`; 1 where draws do not differ."""
        from scipy.special import gammaincc

        z = np.divide(found - self.mean, self.deviation, out=np.full(len(found), -math.inf), where=self.deviation > 0)
        root = np.sqrt(self.shape)
        return np.asarray(gammaincc(self.shape, root * np.maximum(z + root, 0.0)))

    def at(self, p: float) -> Float64[np.ndarray, " F"]:
        """What has the share `p` of the curve beyond it."""
        from scipy.special import gammainccinv

        root = np.sqrt(self.shape)
        return self.mean + self.deviation * (np.asarray(gammainccinv(self.shape, p)) / root - root)


class Judgement(NamedTuple):
    """Whether each feature depends on position."""

    p: Float64[np.ndarray, " F"]
    tail: Tail  # from the draws that gave p


def trains_of(firings: Firings, features: Int[np.ndarray, " F"]) -> Trains:
    """The firings of these features (ascending), with all rows."""
    number = np.full(firings.features, -1, dtype=np.int64)
    number[features] = np.arange(len(features))
    feature = number[firings.feature]
    kept = np.flatnonzero(feature >= 0)
    order = kept[np.argsort(feature[kept], kind="stable")]
    positions, position = np.unique(firings.position, return_inverse=True)
    documents, document = np.unique(firings.document, return_inverse=True)
    return Trains(
        row=firings.row[order].astype(np.int64),
        feature=feature[order],
        base=feature[order] * len(positions),
        value=firings.value[order].astype(np.float64),
        number=position,
        sequence=np.cumsum(np.diff(firings.stretch, prepend=firings.stretch[:1]) != 0),
        document=document,
        features=len(features),
        positions=len(positions),
        documents=len(documents),
    )


def found_information(trains: Trains) -> Float64[np.ndarray, " F"]:
    """I_f of firings as they are."""
    return _informations(trains, [trains.number])[0]


def drawn_information(trains: Trains, draws: int, generator: np.random.Generator) -> Float64[np.ndarray, "R F"]:
    """`draws` times what chance gives."""
    return _informations(trains, _turned(trains, draws, generator))


def score(trains: Trains) -> Scores:
    """What activations say about position as they are."""
    return _mean_score(trains, [trains.number])


def chance_score(trains: Trains, draws: int, generator: np.random.Generator) -> Scores:
    """The same in the mean over draws of chance."""
    return _mean_score(trains, _turned(trains, draws, generator))


def judge_positions(
    trains: Trains, found: Float64[np.ndarray, " F"], drawn: Float64[np.ndarray, "R F"], further: int, generator: np.random.Generator
) -> Judgement:
    """P-values of the information that was `found`. Features that look promising beside what was `drawn` are judged by `further` fresh
    draws, not by those that chose them; so their p-values stay valid, and many tests can be told apart."""
    p, tail = _judge(found, drawn)
    again = (p <= PROMISING) & (p > SMALLEST)
    if again.any():
        p[again], better = _judge(found[again], drawn_information(trains.of_features(again), further, generator))
        for values, new in zip(tail, better, strict=True):
            values[again] = new
    return Judgement(p, tail)


def information(fired: Int64[np.ndarray, "F P"], count: Int64[np.ndarray, " P"]) -> Float64[np.ndarray, " F"]:
    """`I_f = sum_p q_p KL(Bern(r_f(p)) || Bern(mean r_f))` in bits, of features that fire so often on so many rows."""
    from scipy.special import xlogy

    numbers = np.arange(count.max() + 1)
    table = xlogy(numbers, numbers)
    by_position = table[fired].sum(1) + table[count - fired].sum(1) - table[count].sum()
    whole, rows = fired.sum(1), count.sum()
    pooled = xlogy(whole, whole) + xlogy(rows - whole, rows - whole) - xlogy(rows, rows)
    return np.asarray(by_position - pooled) / (rows * math.log(2))


def specialisation(mass: Float64[np.ndarray, "F P"], count: Int64[np.ndarray, " P"]) -> Float64[np.ndarray, " F"]:
    """`PSI_f = 1 - H(pi_f) / log P`, pi_f in proportion to mean activations, over the positions that have rows."""
    from scipy.special import entr

    seen = count > 0
    if seen.sum() < 2:
        return np.zeros(len(mass))
    level = mass[:, seen] / count[seen]
    height = level.sum(1, keepdims=True)
    share = level / np.where(height > 0, height, 1.0)
    return np.where(height[:, 0] > 0, 1 - np.asarray(entr(share)).sum(1) / math.log(seen.sum()), 0.0)


def eta2(mass: Float64[np.ndarray, "F P"], count: Int64[np.ndarray, " P"], squares: Float64[np.ndarray, " F"]) -> Float64[np.ndarray, " F"]:
    """Share of the variance of activations, zeros included, that the means of positions explain."""
    about = mass.sum(1) ** 2 / count.sum()
    total, between = squares - about, (mass**2 / np.maximum(count, 1)).sum(1) - about
    return np.divide(between, total, out=np.zeros(len(mass)), where=total > 0)


def cells(trains: Trains, number: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " K"]:
    """Where every firing falls in a flattened `[F, P]` table, were the rows at the positions `number`."""
    return trains.base + number[trains.row]


def by_position(trains: Trains, cell: Int64[np.ndarray, " K"], weight: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, "F P"]:
    """Firings of each feature at each position, each counting as much as its weight."""
    size, shape = trains.features * trains.positions, (trains.features, trains.positions)
    return np.bincount(cell, weights=weight, minlength=size).astype(np.float64, copy=False).reshape(shape)


def _fired(trains: Trains, cell: Int64[np.ndarray, " K"]) -> Int64[np.ndarray, "F P"]:
    return np.bincount(cell, minlength=trains.features * trains.positions).reshape(trains.features, trains.positions)


def _informations(trains: Trains, numbers: Iterable[Int64[np.ndarray, " N"]]) -> Float64[np.ndarray, "R F"]:
    """Information, were the rows at each of these positions."""
    count = np.bincount(trains.number, minlength=trains.positions)
    return np.stack(list(on_threads(lambda number: information(_fired(trains, cells(trains, number)), count), numbers)))


def _mean_score(trains: Trains, numbers: Iterable[Int64[np.ndarray, " N"]]) -> Scores:
    """Mean scores, were the rows at each of these positions."""
    count = np.bincount(trains.number, minlength=trains.positions)
    squares = np.bincount(trains.feature, weights=trains.value**2, minlength=trains.features).astype(np.float64, copy=False)

    def at(number: Int64[np.ndarray, " N"]) -> Scores:
        mass = by_position(trains, cells(trains, number), trains.value)
        return Scores(specialisation(mass, count), eta2(mass, count, squares))

    return Scores(*(np.mean(column, axis=0) for column in zip(*on_threads(at, numbers), strict=True)))


def _turned(trains: Trains, draws: int, generator: np.random.Generator) -> Iterator[Int64[np.ndarray, " N"]]:
    """The position that each row's firings get when every sequence is turned by a random offset, 0 among them."""
    lengths = np.bincount(trains.sequence)
    first = (np.cumsum(lengths) - lengths)[trains.sequence]
    turn, length = np.arange(len(trains.sequence)) - first, lengths[trains.sequence]
    for _ in range(draws):
        offset = generator.integers(0, lengths)[trains.sequence]
        yield trains.number[first + (turn + offset) % length]


def _judge(found: Float64[np.ndarray, " F"], draws: Float64[np.ndarray, "R F"]) -> Judgement:
    mean, deviation = draws.mean(0), draws.std(0, ddof=1)
    varies = deviation > ROUNDING
    cubed = ((draws - mean) ** 3).mean(0)
    skew = np.divide(cubed, deviation**3, out=np.zeros(len(found)), where=varies)
    tail = Tail(mean, np.where(varies, deviation, 0.0), 4 / np.maximum(skew, LEAST_SKEW) ** 2)
    reached = (draws >= found - ROUNDING).sum(0)
    p = np.where(reached < FITTED_BELOW, tail.above(found), (1 + reached) / (1 + len(draws)))
    return Judgement(np.clip(p, SMALLEST, 1.0), tail)
