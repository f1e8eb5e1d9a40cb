"""Statistics over training seeds and over documents: means with Student's interval, paired differences with the verdict that they
bear, bootstraps over documents, and discoveries among many tests.

One value has no interval and no p-value, and says so; nothing here claims what an interval does not leave out.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Num
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95

Verdict = Literal["above", "below", "no difference", "one seed"]


class Mean(BaseModel):
    """A mean over seeds with its interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float | None
    """Lower end of Student's 95 % interval; None for one seed."""
    high: float | None
    seeds: int


class Difference(Mean):
    """A mean paired difference over seeds."""

    p: float | None
    """Of the two-sided paired t-test; None for one seed."""
    verdict: Verdict
    """Where the interval lies: above zero, below it, or around it."""


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and Student's interval of at least one value."""
    mean, half = statistics.fmean(values), _half_width(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Mean(value=mean, low=low, high=high, seeds=len(values))


def difference_of(differences: Sequence[float]) -> Difference:
    """Mean, interval and test of at least one paired difference, each from one seed."""
    mean = mean_of(differences)
    if mean.low is None or mean.high is None:
        return Difference(**mean.model_dump(), p=None, verdict="one seed")
    verdict = verdict_of(mean.low, mean.high)
    return Difference(**mean.model_dump(), p=_p_value(mean.value, statistics.stdev(differences), mean.seeds), verdict=verdict)


def verdict_of(low: float | None, high: float | None) -> Verdict:
    """What an interval of a difference leaves to say; without an interval, no difference is claimed."""
    if low is not None and low > 0:
        return "above"
    return "below" if high is not None and high < 0 else "no difference"


def quotient(numerator: Num[np.ndarray, "..."], denominator: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """NaN where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def ratio_of(ratios: Sequence[float]) -> Mean:
    """Geometric mean of positive paired ratios, with the interval of their logarithms."""
    logs = mean_of([math.log(ratio) for ratio in ratios])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Mean(value=math.exp(logs.value), low=low, high=high, seeds=logs.seeds)


class Estimate(NamedTuple):
    """A number with its bootstrap interval."""

    value: float | None  # None where there is nothing to measure
    low: float | None  # lower end of the 95 % interval; None where documents are too few for one
    high: float | None
    n: int  # how many things it is a mean over, or was measured on


def resampled_documents(documents: int, resamples: int, generator: np.random.Generator) -> Int[np.ndarray, "B D"]:
    """How often each document is in each bootstrap resample; a single document supports none."""
    resamples = resamples if documents > 1 else 0
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=resamples)


def half_samples(documents: int, resamples: int, generator: np.random.Generator) -> Int[np.ndarray, "B D"]:
    """Random halves of the documents: 1 for those that are in, 0 for the others; a single document supports none.

    An estimate varies from half to half as it does from one sample of all documents to another (delete-d jackknife with d half of
    them; Shao and Wu 1989). Measures of dependence need this: a document that is drawn twice looks like one more coincidence.
    """
    ordered = np.tile(np.arange(documents), (resamples if documents > 1 else 0, 1))
    return (generator.permuted(ordered, axis=1) < documents // 2).astype(np.int64)


def estimate_of(value: float, resampled: Float[np.ndarray, " B"], n: int, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """`value` with the spread of its resamples about their own mean: fewer distinct documents raise every measure of dependence,
    so that where resamples lie says nothing. The interval keeps within `limits`; without resamples there is none."""
    known = resampled[np.isfinite(resampled)]
    if not math.isfinite(value):
        return Estimate(None, None, None, n)
    if len(known) < 2:
        return Estimate(float(value), None, None, n)
    spread = np.quantile(known - known.mean(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.clip(value + spread, *limits)
    return Estimate(float(value), float(low), float(high), n)


def q_values(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Benjamini-Hochberg: for each test, the smallest false discovery rate at which it is a discovery."""
    from scipy import stats

    return np.asarray(stats.false_discovery_control(p, method="bh")) if len(p) else p.astype(np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """Holm (1979): for each test, the smallest level of all together at which it is rejected."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate([(len(p) - rank) * p[test] for rank, test in enumerate(order)]) if len(p) else np.empty(0)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def _half_width(values: Sequence[float]) -> float | None:
    from scipy import stats  # a second to import, and only studies with several seeds need it

    count = len(values)
    if count < 2:
        return None
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def _p_value(mean: float, deviation: float, count: int) -> float:
    """Of a mean as far from zero; where seeds do not differ at all, 0 or 1."""
    from scipy import stats

    if deviation == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / (deviation / math.sqrt(count)), count - 1))


def ranks(values: Float[np.ndarray, "f P"]) -> Float64[np.ndarray, "f P"]:
    """Of finite values in their row, from 1 on; equal ones share their mean. SciPy's `rankdata`, which takes more than twice as long: here
    only what equals a neighbour is looked at again."""
    rows, columns = values.shape
    order = (values.argsort(1) + np.arange(rows)[:, None] * columns).ravel()
    ordered = values.ravel()[order]
    equal = np.zeros(values.size + 1, dtype=bool)  # to the one before it
    np.equal(ordered[1:], ordered[:-1], out=equal[1:-1])
    equal[:-1].reshape(values.shape)[:, :1] = False
    before, after = equal[:-1], equal[1:]
    first, last = np.flatnonzero(after & ~before), np.flatnonzero(before & ~after)
    rank = np.tile(np.arange(1.0, columns + 1), rows)
    rank[before | after] = np.repeat((rank[first] + rank[last]) / 2, last - first + 1)
    found = np.empty(values.size)
    found[order] = rank
    return found.reshape(values.shape)


def correlation(left: Float[np.ndarray, "f P"], right: Float[np.ndarray, "f P"]) -> Float[np.ndarray, " f"]:
    """Pearson's, row by row; NaN where a row does not vary. Of ranks it is Spearman's."""
    left, right = (part - part.mean(1, keepdims=True) for part in (left, right))
    products, *squares = (np.einsum("fp,fp->f", *pair) for pair in ((left, right), (left, left), (right, right)))
    scale = np.sqrt(squares[0] * squares[1])
    return np.divide(products, scale, out=np.full(len(left), np.nan), where=scale > 0)
