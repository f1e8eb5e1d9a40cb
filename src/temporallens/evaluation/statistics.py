"""Statistics over training seeds: means with Student's interval, and paired differences with the verdict that they bear.

One value has no interval and no p-value, and says so; nothing here claims what an interval does not leave out.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

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
    verdict: Verdict = "above" if mean.low > 0 else "below" if mean.high < 0 else "no difference"
    return Difference(**mean.model_dump(), p=_p_value(mean.value, statistics.stdev(differences), mean.seeds), verdict=verdict)


def ratio_of(ratios: Sequence[float]) -> Mean:
    """Geometric mean of positive paired ratios, with the interval of their logarithms."""
    logs = mean_of([math.log(ratio) for ratio in ratios])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Mean(value=math.exp(logs.value), low=low, high=high, seeds=logs.seeds)


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
