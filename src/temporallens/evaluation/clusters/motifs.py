"""Motifs: the shape of a temporal profile in a few numbers, and how alike two shapes are wherever they stand.

Lab notes, Run 9, next steps ("activation pattern motifs", "feature pattern similarity metrics"); definitions in `docs/method.md`,
"Temporal clusters". A profile of few firings looks jagged by chance alone, so what sampling adds is taken off every sum of squares:
a mean level l over n tokens, to which a firing adds q, has variance l q / n. Period is looked for position by position, everything else
in the bins of the profile.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from temporallens.evaluation.clusters.profiles import TINY, Bins, Table, levels_of

LEAST_EVIDENCE, FULL_EVIDENCE = 3.0, 6.0
"""Standard errors by which a profile's variance exceeds that of sampling: below the first it counts as flat, from the second on as
shaped, in between in part."""
REPEATS, LONGEST_PERIOD = 4, 32
"""A period is seen at least so many times in a row of tokens, and is no longer than so many positions."""
LONGER = 0.05
"""By how much more a longer period must explain to be named instead of a shorter one."""
OPEN_WIDTH, NARROW_WIDTH = 0.8, 0.5
"""Widths at which a shape counts as not selective at all, and as wholly so."""
ONSET = 3
"""Bins at the start that decide whether a shape begins there."""


class Motifs(NamedTuple):
    """Shapes of n profiles."""

    peak: Int[np.ndarray, " n"]  # bin of the highest level
    width: Float[np.ndarray, " n"]  # share of the bins that the activation is effectively spread over: 1 is flat
    trend: Float[np.ndarray, " n"]  # correlation of level and bin, -1 to 1
    period: Int[np.ndarray, " n"]  # positions; 0 where nothing recurs
    recurrence: Float[np.ndarray, " n"]  # share of the variance over positions that recurs with that period
    onset: Float[np.ndarray, " n"]  # level of the first bins over the usual one, at most 1
    evidence: Float[np.ndarray, " n"]  # 0 for a profile that sampling alone may have shaped, 1 for one that it has not

    @property
    def selective(self) -> Float[np.ndarray, " n"]:
        """0 where activation is spread over nearly everything, 1 where half of it is silent."""
        return self.evidence * np.clip((OPEN_WIDTH - self.width) / (OPEN_WIDTH - NARROW_WIDTH), 0.0, 1.0)

    @property
    def specialised(self) -> Bool[np.ndarray, " n"]:
        """Whose activation is spread over at most half of the bins, for more reasons than sampling noise."""
        return (self.width <= NARROW_WIDTH) & (self.evidence > 0)

    @property
    def recurring(self) -> Int[np.ndarray, " n"]:
        """The period of features of which it explains most; 0 of others."""
        return np.where(self.recurrence * self.evidence > 0.5, self.period, 0)

    def coordinates(self) -> Float[np.ndarray, "n 4"]:
        """Selective, recurring, trending though never silent, and open from the start on: what the motif distance is measured between.
        Where a window stands, in which phase a period is and which way a trend goes make no difference."""
        selective, recurring = self.selective, self.evidence * self.recurrence
        trending = self.evidence * self.trend**2 * (1.0 - selective)
        starting = self.onset * selective * (1.0 - recurring)
        return np.stack([selective, recurring, trending, starting], axis=1)

    def of(self, features: Int[np.ndarray, " m"]) -> "Motifs":
        return Motifs(*(values[features] for values in self))


def motifs_of(table: Table, bins: Bins) -> Motifs:
    """The motif of every feature of a table."""
    level, tokens = levels_of(table, bins)
    mean = level.mean(1)
    noise = (level * (table.size[:, None] / np.maximum(tokens, 1.0))).mean(1)  # what sampling adds to the variance
    variance = level.var(1)
    square = np.maximum(mean**2 + variance - noise, np.maximum(mean, TINY) ** 2)
    strength, period, evidence = _period(table)
    evidence = np.maximum(evidence, _evidence(variance, noise, len(bins)))
    axis = np.linspace(-1.0, 1.0, len(bins)) if len(bins) > 1 else np.zeros(1)
    covariance = (level * axis).mean(1)
    true_variance = np.maximum(variance - noise, TINY * np.maximum(square, TINY))
    trend = np.clip(covariance / np.sqrt(true_variance * max(float((axis**2).mean()), TINY)), -1.0, 1.0)
    usual = square / np.maximum(mean, TINY)  # level that a unit of activation sees
    return Motifs(
        peak=level.argmax(1),
        width=mean**2 / square,
        trend=np.where(evidence > 0, trend, 0.0),
        period=np.where(evidence > 0, period, 0),
        recurrence=np.where(evidence > 0, strength, 0.0),
        onset=np.clip(level[:, :ONSET].mean(1) / np.maximum(usual, TINY), 0.0, 1.0),
        evidence=evidence,
    )


def _evidence(variance: Float[np.ndarray, " n"], noise: Float[np.ndarray, " n"], values: int) -> Float[np.ndarray, " n"]:
    """How surely the variance of so many values is more than noise."""
    errors = (variance / np.maximum(noise, TINY) - 1.0) / np.sqrt(2.0 / max(values - 1, 1))
    return np.clip((errors - LEAST_EVIDENCE) / (FULL_EVIDENCE - LEAST_EVIDENCE), 0.0, 1.0)


def _period(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each feature the share of variance over positions that recurs, its period, and the evidence for any variance at all.

    For a period T, what a running mean of T positions leaves is folded: its means by phase hold all of a comb of period T and next
    to nothing of a window or of a trend, whose running mean follows them.
    """
    live = np.flatnonzero(table.tokens >= 0.5 * np.median(table.tokens[table.tokens > 0]))
    features, first, last = len(table.mass), int(live[0]), int(live[-1])
    tokens = np.maximum(table.tokens[first : last + 1], 1.0)
    weight = np.where(table.tokens[first : last + 1] > 0, table.tokens[first : last + 1], 0.0)
    level, weight = table.mass[:, first : last + 1] / tokens, weight / weight.sum()
    positions = len(weight)
    mean = level @ weight
    variance = np.square(level - mean[:, None]) @ weight
    noise = table.size * mean / tokens.sum()  # of the variance, for each mean that was taken
    true_variance = variance - noise * positions
    best, period = np.zeros(features), np.zeros(features, dtype=np.int64)
    for candidate in range(2, min(positions // REPEATS, LONGEST_PERIOD) + 1):
        share = _recurring(level, weight, noise, candidate) / np.maximum(true_variance, TINY * np.maximum(mean, TINY) ** 2)
        better = share > best + LONGER
        best, period = np.where(better, share, best), np.where(better, candidate, period)
    evidence = _evidence(variance, noise * positions, positions)
    return np.where(evidence > 0, np.clip(best, 0.0, 1.0), 0.0), period, evidence


def _recurring(
    level: Float[np.ndarray, "n P"], weight: Float[np.ndarray, " P"], noise: Float[np.ndarray, " n"], period: int
) -> Float[np.ndarray, " n"]:
    """Variance between the phases of a period, of what the running mean over one period leaves, sampling noise taken off."""
    total = np.cumsum(np.pad(level, ((0, 0), (1, 0))), axis=1)
    running = (total[:, period:] - total[:, :-period]) / period
    start = period // 2
    rest = level[:, start : start + running.shape[1]] - running
    weight = weight[start : start + running.shape[1]]
    phase = np.arange(len(weight)) % period
    member = (phase[:, None] == np.arange(period)) * weight[:, None]
    share = member.sum(0)
    folded = rest @ (member / np.maximum(share, TINY))
    return np.square(folded) @ share / share.sum() - noise * (period - 1)
