"""What one family of arms explains more than a baseline on the same held-out tokens at equal L0: in all, and in bands of positions.

A pooled number cannot see what a first position loses: it is one token in a hundred. With E the squared errors of a family and of its
baseline, each read at the same L0 along its own curve (`comparison`), and S the squares about the mean, summed over the tokens of a band,

    difference = (E of the baseline - E of the family) / S,

paired by document and by seed. It varies over documents (bootstrap) and over seeds (Student); both are sources of their own, so standard
errors add in quadrature, with Satterthwaite's degrees of freedom. Verdicts on all positions together hold after Holm's correction over all
comparisons of an activations entry. Of one seed, intervals are over documents alone and establish nothing about training.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from temporallens.evaluation.comparison import Comparison, Part, RunScores, baselines_of, weights_at
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.statistics import CONFIDENCE, Verdict, holm, quotient, resampled_documents

RESAMPLES = 1000
SEED = 0


class Interval(Part):
    """A number with its 95 % interval; None where there is nothing, or too little for an interval."""

    value: float | None
    low: float | None
    high: float | None


class PairedBand(Part):
    """Tokens at positions `first` to `last`."""

    first: int
    last: int
    tokens: int
    fve: Interval
    """What the family explains more than the baseline."""
    l0: Interval
    """How many codes it has more in use: equal over all positions, they need not be in each band."""


class Paired(Part):
    """A family against a baseline at one L0."""

    family: str
    baseline: str
    l0: float
    seeds: int
    documents: int
    fve: Interval
    """Over all positions."""
    p: float | None
    """Of no difference; None for one seed."""
    p_holm: float | None
    """After Holm's correction over the comparisons of the entry."""
    verdict: Verdict
    bands: list[PairedBand]


class Banded(NamedTuple):
    """Errors of one dictionary, summed in bands of positions; the last column is all of them."""

    tokens: Float64[np.ndarray, "D B"]
    error: Float64[np.ndarray, "D B"]
    square: Float64[np.ndarray, "D B"]
    active: Float64[np.ndarray, "D B"]


def banded(errors: DocumentErrors, bands: Sequence[tuple[int, int]]) -> Banded:
    """Errors in bands, each given as its first position and the one after its last; the last one is that of all positions."""
    columns = (errors.tokens, errors.error, errors.square, errors.active)
    return Banded(*(np.stack([column[:, first:end].sum(1) for first, end in bands], axis=1) for column in columns))


def pair(runs: Sequence[tuple[RunScores, Banded]], comparison: Comparison, bands: Sequence[tuple[int, int]]) -> list[Paired]:
    """Every family against every baseline that the comparison has it against, at its L0 values, where both reach them."""
    curves: dict[str, dict[int, list[tuple[float, Banded]]]] = defaultdict(lambda: defaultdict(list))
    for scores, errors in runs:
        if scores.l0 > 0:
            curves[scores.family][scores.seed].append((scores.l0, errors))
    documents = len(runs[0][1].tokens)
    resamples = resampled_documents(documents, RESAMPLES, np.random.default_rng(SEED))
    found = []
    for l0 in comparison.l0:
        at = {family: {seed: read for seed, points in by_seed.items() if (read := _read(points, l0))} for family, by_seed in curves.items()}
        for family, ours in at.items():
            for baseline in baselines_of(family, comparison.baselines):
                theirs = at.get(baseline, {})
                if alike := [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]:
                    found.append(_paired(family, baseline, l0, alike, bands, resamples))
    return _corrected(found)


def _read(points: Sequence[tuple[float, Banded]], l0: float) -> Banded | None:
    """Errors at this L0, along the line between the two dictionaries beside it; None where they do not reach so far."""
    weights = weights_at([point for point, _ in points], l0)
    if weights is None:
        return None
    parts = [errors for _, errors in points]
    return parts[0]._replace(
        error=np.tensordot(weights, np.stack([part.error for part in parts]), 1),
        active=np.tensordot(weights, np.stack([part.active for part in parts]), 1),
    )


def _paired(
    family: str,
    baseline: str,
    l0: float,
    alike: Sequence[tuple[Banded, Banded]],
    bands: Sequence[tuple[int, int]],
    resamples: Int[np.ndarray, "R D"],
) -> Paired:
    tokens, square = alike[0][0].tokens, alike[0][0].square
    fve = _Spread(np.stack([theirs.error - ours.error for ours, theirs in alike]), square, resamples)
    l0s = _Spread(np.stack([ours.active - theirs.active for ours, theirs in alike]), tokens, resamples)
    counts = tokens.sum(0)
    found = [
        PairedBand(first=first, last=end - 1, tokens=int(counts[number]), fve=fve.interval(number), l0=l0s.interval(number))
        for number, (first, end) in enumerate(bands[:-1])
        if counts[number]
    ]
    return Paired(
        family=family,
        baseline=baseline,
        l0=l0,
        seeds=len(alike),
        documents=len(tokens),
        fve=fve.interval(len(bands) - 1),
        p=fve.p_value(len(bands) - 1) if len(alike) > 1 else None,
        p_holm=None,
        verdict="one seed",
        bands=found,
    )


class _Spread:
    """Differences per unit by band: sums of S seeds over D documents, divided by what the documents hold of the unit."""

    def __init__(self, sums: Float64[np.ndarray, "S D B"], unit: Float64[np.ndarray, "D B"], resamples: Int[np.ndarray, "R D"]) -> None:
        by_seed = quotient(sums.sum(1), np.broadcast_to(unit.sum(0), sums[:, 0].shape))
        self._value = by_seed.mean(0)
        self._seeds, self._documents = sums.shape[:2]
        of_seeds = by_seed.var(0, ddof=1) / self._seeds if self._seeds > 1 else np.zeros_like(self._value)
        of_documents = quotient(resamples @ sums.mean(0), resamples @ unit).var(0, ddof=1) if len(resamples) else np.zeros_like(self._value)
        self._error = np.sqrt(of_seeds + of_documents)
        shares = [(variance, parts - 1) for variance, parts in ((of_seeds, self._seeds), (of_documents, self._documents)) if parts > 1]
        squares = sum(variance**2 / freedom for variance, freedom in shares)
        self._freedom = quotient((of_seeds + of_documents) ** 2, np.asarray(squares + np.zeros_like(self._value)))

    def interval(self, band: int) -> Interval:
        from scipy import stats

        value, error, freedom = (float(column[band]) for column in (self._value, self._error, self._freedom))
        if not math.isfinite(value):
            return Interval(value=None, low=None, high=None)
        if self._documents < 2 or not math.isfinite(error):
            return Interval(value=value, low=None, high=None)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error if math.isfinite(freedom) else 0.0
        return Interval(value=value, low=value - half, high=value + half)

    def p_value(self, band: int) -> float | None:
        from scipy import stats

        value, error, freedom = (float(column[band]) for column in (self._value, self._error, self._freedom))
        if not math.isfinite(value):
            return None
        if not math.isfinite(freedom):  # nothing varies at all
            return 0.0 if value else 1.0
        return float(2 * stats.t.sf(abs(value) / error, freedom))


def _corrected(found: Sequence[Paired]) -> list[Paired]:
    """With Holm's correction, and the verdict that is left after it."""
    tested = [one.p for one in found if one.p is not None]
    corrected = iter(holm(tested))
    return [one if one.p is None else _judged(one, next(corrected)) for one in found]


def _judged(one: Paired, p: float) -> Paired:
    assert one.fve.value is not None
    verdict: Verdict = "no difference" if p >= 1 - CONFIDENCE else "above" if one.fve.value > 0 else "below"
    return one.model_copy(update={"p_holm": p, "verdict": verdict})
