"""The matched comparison: families of arms at equal L0, paired by seed (`docs/method.md`).

A family is an arm of a study at all its levels. Its FVE(L0), for one seed, is a curve of one measured point per level; it is read
at common L0 values by straight lines in log L0 between measured points, and never beyond its range by more than `REACH`. What two
families reach there is paired by seed: mean difference with Student's interval, and the ratio of what they leave unexplained. A
family of one level is one point, compared where L0 agree within `EQUAL`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from temporallens.dictionaries.config import Role
from temporallens.dictionaries.kinds import UNTRAINED, kinds_of
from temporallens.evaluation.statistics import Difference, Mean, difference_of, mean_of, ratio_of

REACH = 0.05
"""Share of an L0 by which a curve is read beyond its range, along its nearest line."""

EQUAL = 0.01
"""Share of an L0 within which two L0 count as equal, where there is no line to read along: FVE rises by a few thousandths over it."""


class Part(BaseModel):
    """A part of `results.json`: frozen, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Reached(Part):
    """What one family reaches at one L0."""

    family: str
    l0: float
    fve: Mean
    fve_within_position: Mean


class Against(Part):
    """One family against a baseline at one L0, over the seeds that both have."""

    family: str
    baseline: str
    l0: float
    fve: Difference
    fve_within_position: Difference
    unexplained: Mean | None
    """`(1 - FVE) / (1 - FVE of the baseline)`, a geometric mean; None where one explains everything."""


class Comparison(Part):
    """All families of one activations entry at the L0 values that they have in common."""

    l0: list[float]
    baselines: list[str]
    reached: list[Reached]
    against: list[Against]


class RunScores(NamedTuple):
    """What the comparison needs to know of one dictionary."""

    family: str
    kind: str
    seed: int
    l0: float
    fve: float
    fve_within_position: float
    plain: bool = True  # whether nothing is known before its codes, so that it can be a baseline


class Point(NamedTuple):
    """A point of a curve."""

    l0: float
    fve: float
    fve_within_position: float


def common_levels(levels: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The L0 values that a study's levels name, at which families are compared; none where no level is an L0."""
    return levels.get("k") or levels.get("l0") or ()


def compare(runs: Sequence[RunScores], levels: Sequence[float]) -> Comparison:
    """Compare the families among `runs` at the L0 values `levels` (without any, at those of the baselines), and at those of dictionaries
    that were trained elsewhere. Where no family comes to any of the levels, it is in the middle of what all curves have in common."""
    curves: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.l0 > 0:
            curves[run.family][run.seed].append(Point(run.l0, run.fve, run.fve_within_position))
    baselines = baselines_among(runs)
    asked = [float(level) for level in levels] or _levels_of(baselines, curves)
    if not any(_read_all(by_seed, l0) for l0 in asked for by_seed in curves.values()):
        asked = _within_all(curves) or asked
    common = _with_own(asked, runs, curves)
    reached, against = [], []
    for l0 in common:
        at = {family: _read_all(by_seed, l0) for family, by_seed in curves.items()}
        at = {family: by_seed for family, by_seed in at.items() if by_seed}
        reached += [_reached(family, l0, list(by_seed.values())) for family, by_seed in at.items()]
        for family in at:
            for baseline in baselines_of(family, baselines):
                if pairs := _pairs(at[family], at.get(baseline, {})):
                    against.append(_against(family, baseline, l0, pairs))
    return Comparison(l0=common, baselines=baselines, reached=reached, against=against)


def baselines_among(runs: Sequence[RunScores]) -> list[str]:
    """The families that others are compared with (`dictionaries.config.Role`): one for each kind of baseline, or else of fallback."""
    return _families_of("baseline", runs) or _families_of("fallback", runs)


def _families_of(role: Role, runs: Sequence[RunScores]) -> list[str]:
    """For each kind of a role the family of that name, or else the first of that kind."""
    by_kind = [(kind, list(dict.fromkeys(run.family for run in runs if run.kind == kind and run.plain))) for kind in kinds_of(role)]
    return [kind if kind in families else families[0] for kind, families in by_kind if families]


def baselines_of(family: str, baselines: Sequence[str]) -> Sequence[str]:
    """Those that `family` is compared with: a baseline itself only with the ones before it."""
    return baselines[: baselines.index(family)] if family in baselines else baselines


def _levels_of(baselines: Sequence[str], curves: dict[str, dict[int, list[Point]]]) -> list[float]:
    """Mean L0 of each baseline, those that count as equal taken as one."""
    common: list[float] = []
    for baseline in baselines:
        points = [point.l0 for by_seed in curves.get(baseline, {}).values() for point in by_seed]
        l0 = sum(points) / len(points) if points else math.nan
        if points and not any(_equal(l0, other) for other in common):
            common.append(l0)
    return common


def _within_all(curves: dict[str, dict[int, list[Point]]]) -> list[float]:
    """The middle, on the logarithm, of the L0 that every curve covers, where each has several points and these overlap."""
    ranges = [[point.l0 for point in points] for by_seed in curves.values() for points in by_seed.values()]
    if not ranges or any(len(set(l0s)) < 2 for l0s in ranges):
        return []
    low, high = max(min(l0s) for l0s in ranges), min(max(l0s) for l0s in ranges)
    return [math.sqrt(low * high)] if low < high else []


def _with_own(common: list[float], runs: Sequence[RunScores], curves: dict[str, dict[int, list[Point]]]) -> list[float]:
    """With the L0 of dictionaries that no level of the study sets."""
    own = _levels_of(list(dict.fromkeys(run.family for run in runs if run.kind in UNTRAINED)), curves)
    further = [l0 for l0 in own if not any(_equal(l0, other) for other in common)]
    return sorted([*common, *further]) if further else common


def _equal(l0: float, other: float) -> bool:
    return other / (1 + EQUAL) <= l0 <= other * (1 + EQUAL)


def _read_all(curves: dict[int, list[Point]], l0: float) -> dict[int, Point]:
    """The point at `l0` of each seed's curve that reaches so far."""
    read = {seed: read_curve(points, l0) for seed, points in curves.items()}
    return {seed: point for seed, point in read.items() if point is not None}


def read_curve(points: Sequence[Point], l0: float) -> Point | None:
    """The point of a curve at `l0`; None where it does not reach so far. A single point stands as it is."""
    weights = weights_at([point.l0 for point in points], l0)
    if weights is None:
        return None
    fve, within = (
        sum(weight * value for weight, value in zip(weights, column, strict=True)) for column in list(zip(*points, strict=True))[1:]
    )
    return Point(points[0].l0 if len({point.l0 for point in points}) == 1 else l0, fve, within)


def weights_at(l0s: Sequence[float], l0: float) -> list[float] | None:
    """How much each dictionary of a curve counts at `l0`, along straight lines in log L0 between those beside it; None where the curve
    does not reach so far. Those of equal L0 count alike."""
    steps = sorted(set(l0s))
    if len(steps) == 1:
        return [1 / len(l0s)] * len(l0s) if _equal(steps[0], l0) else None
    if not steps[0] / (1 + REACH) <= l0 <= steps[-1] * (1 + REACH):
        return None
    right = max(1, next((index for index, step in enumerate(steps) if step >= l0), len(steps) - 1))
    share = math.log(l0 / steps[right - 1]) / math.log(steps[right] / steps[right - 1])
    at = {steps[right - 1]: 1 - share, steps[right]: share}
    return [at.get(own, 0.0) / l0s.count(own) for own in l0s]


def _pairs(ours: dict[int, Point], theirs: dict[int, Point]) -> list[tuple[Point, Point]]:
    return [(point, theirs[seed]) for seed, point in ours.items() if seed in theirs]


def _reached(family: str, l0: float, points: Sequence[Point]) -> Reached:
    return Reached(
        family=family,
        l0=l0,
        fve=mean_of([point.fve for point in points]),
        fve_within_position=mean_of([point.fve_within_position for point in points]),
    )


def _against(family: str, baseline: str, l0: float, pairs: Sequence[tuple[Point, Point]]) -> Against:
    left = [(1 - ours.fve, 1 - theirs.fve) for ours, theirs in pairs]
    return Against(
        family=family,
        baseline=baseline,
        l0=l0,
        fve=difference_of([ours.fve - theirs.fve for ours, theirs in pairs]),
        fve_within_position=difference_of([ours.fve_within_position - theirs.fve_within_position for ours, theirs in pairs]),
        unexplained=ratio_of([a / b for a, b in left]) if all(a > 0 and b > 0 for a, b in left) else None,
    )
