"""What there is to see of temporal clusters: a row for each with its mean profile, motif, most telling features and contexts, and
the part of the tree that a picture has room for."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from temporallens.evaluation.clusters.distances import similarity
from temporallens.evaluation.clusters.motifs import Motifs
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.clusters.profiles import Bins, Table, standardised
from temporallens.evaluation.clusters.trees import Cut, Tree, part_of
from temporallens.evaluation.firings import Firings

BEFORE, AFTER = 8, 4
"""Tokens of a context on either side of the one on which the feature fires."""
ALIKE = 3
"""Features of the most similar shape that are named beside a telling one."""
LEAVES = 192
"""Features in the picture of the tree."""
LEAST_LEAVES = 10
"""Of them in every cluster, where it has so many."""
CORRELATED = 2000
"""Features of a cluster at most whose correlations are averaged."""
DIGITS = 5
"""Decimals of what is written: profiles and heights."""


class Context(NamedTuple):
    """A strong firing of a feature and the tokens around it; their ids are the store's, -1 where it has none."""

    tokens: list[int]
    place: int  # index of the firing token among them
    position: int
    activation: float
    sequence: int  # entry of the store's sequence table
    index: int  # type: ignore[assignment]  # in the sequence (shadows a method of tuples)


class Telling(NamedTuple):
    """A feature that shows what its cluster is about: of a clear silhouette, and not rare."""

    feature: int
    silhouette: float
    firings: int
    peak: int  # first position of the bin in which it is most active
    width: float
    trend: float
    period: int  # 0: none
    alike: list[int]  # features of the most similar motif, whatever their cluster
    contexts: list[Context]


class ClusterRow(NamedTuple):
    """One cluster. Bins are those of `ClusterMeasures.bins`."""

    features: int
    mean: list[float]  # profile, relative to a flat one: 1 is the level of a feature that does not care
    low: list[float]  # 10th percentile of the features
    high: list[float]  # 90th
    peak: tuple[int, int]  # first and last position of the bin in which the mean is highest
    width: float  # median of its features: share of the bins that the activation is effectively spread over
    trend: float  # median of its features: correlation of level and bin
    trends: tuple[float, float]  # 10th and 90th percentile: a cluster by motif holds rises and falls
    periods: dict[str, int]  # how many of its features recur, by period
    silhouette: float | None  # mean of its features; None for the only cluster
    correlation: float | None  # of profiles, mean over pairs of its features; None for a single one
    specialised: list[int]  # of its specialised features (`motifs.Motifs.specialised`), how many peak in each bin
    telling: list[Telling]


class Drawing(NamedTuple):
    """A part of the tree: features chosen evenly along its leaves, joined at the heights of the whole tree."""

    features: list[int]  # ids
    cluster: list[int]  # -1: scattered
    profiles: list[list[float]]  # relative to a flat profile
    merges: list[list[float]]  # as scipy has them
    order: list[int]  # leaves from left to right


def rows_of(
    firings: Firings,
    ids: Int[np.ndarray, " n"],
    table: Table,
    profiles: Float[np.ndarray, "n B"],
    bins: Bins,
    motifs: Motifs,
    cut: Cut,
    policy: ClustersPolicy,
) -> list[ClusterRow]:
    """A row for each cluster, in order."""
    finder = Contexts(firings)
    rows = []
    for cluster in range(cut.clusters):
        members = np.flatnonzero(cut.labels == cluster)
        clear = members[np.lexsort((members, -table.firings[members], -cut.widths[members].round(2)))]
        telling = [
            _telling(firings, finder, ids, table, bins, motifs, cut, int(index), policy.examples) for index in clear[: policy.examples]
        ]
        rows.append(_row(members, profiles, bins, motifs, cut, telling))
    return rows


def _row(
    members: Int[np.ndarray, " m"],
    profiles: Float[np.ndarray, "n B"],
    bins: Bins,
    motifs: Motifs,
    cut: Cut,
    telling: list[Telling],
) -> ClusterRow:
    relative = profiles[members] * len(bins)
    mean = relative.mean(0)
    low, high = np.quantile(relative, [0.1, 0.9], axis=0)
    peak = int(mean.argmax())
    periods = motifs.recurring[members]
    return ClusterRow(
        features=len(members),
        mean=_rounded(mean),
        low=_rounded(low),
        high=_rounded(high),
        peak=(int(bins.first[peak]), int(bins.last[peak])),
        width=float(np.median(motifs.width[members])),
        trend=float(np.median(motifs.trend[members])),
        trends=(float(np.quantile(motifs.trend[members], 0.1)), float(np.quantile(motifs.trend[members], 0.9))),
        periods={str(period): int((periods == period).sum()) for period in np.unique(periods[periods > 0]).tolist()},
        silhouette=float(cut.widths[members].mean()) if cut.clusters > 1 else None,
        correlation=mean_correlation(profiles[members]),
        specialised=peaks_of(motifs.of(members), bins),
        telling=telling,
    )


def peaks_of(motifs: Motifs, bins: Bins) -> list[int]:
    """How many specialised features are most active in each bin."""
    return np.bincount(motifs.peak[motifs.specialised], minlength=len(bins)).tolist()


def mean_correlation(profiles: Float[np.ndarray, "n B"]) -> float | None:
    """Mean correlation over pairs of profiles, from the sum of the standardised ones; None for a single profile."""
    profiles = profiles[:: -(-len(profiles) // CORRELATED)]
    count = len(profiles)
    if count < 2:
        return None
    unit = standardised(profiles)
    total = unit.sum(0)
    return float((total @ total - np.square(unit).sum()) / (count * (count - 1)))


def _telling(
    firings: Firings,
    finder: "Contexts",
    ids: Int[np.ndarray, " n"],
    table: Table,
    bins: Bins,
    motifs: Motifs,
    cut: Cut,
    index: int,
    examples: int,
) -> Telling:
    alike = similarity(motifs.of(np.array([index])), motifs)[0]
    alike[index] = -1.0
    nearest = np.argsort(-alike, kind="stable")[: min(ALIKE, len(ids) - 1)]
    return Telling(
        feature=int(ids[index]),
        silhouette=float(cut.widths[index]),
        firings=int(table.firings[index]),
        peak=int(bins.first[motifs.peak[index]]),
        width=float(motifs.width[index]),
        trend=float(motifs.trend[index]),
        period=int(motifs.recurring[index]),
        alike=ids[nearest].tolist(),
        contexts=finder.strongest(int(ids[index]), examples),
    )


class Contexts:
    """Finds where features fire, with the tokens around."""

    def __init__(self, firings: Firings) -> None:
        self._firings = firings
        self._order = np.argsort(firings.feature, kind="stable")
        self._starts = np.searchsorted(firings.feature[self._order], np.arange(firings.features + 1))

    def strongest(self, feature: int, count: int) -> list[Context]:
        """The strongest firings of a feature, one of each sequence."""
        firings = self._firings
        entries = self._order[self._starts[feature] : self._starts[feature + 1]]
        entries = entries[np.argsort(-firings.value[entries], kind="stable")]
        _, first = np.unique(firings.sequence[firings.row[entries]], return_index=True)
        return [self._context(int(entry)) for entry in entries[np.sort(first)[:count]]]

    def _context(self, entry: int) -> Context:
        firings = self._firings
        row = int(firings.row[entry])
        window = np.arange(max(row - BEFORE, 0), min(row + AFTER + 1, len(firings.sequence)))
        window = window[firings.sequence[window] == firings.sequence[row]]
        return Context(
            tokens=firings.token[window].tolist(),
            place=int(row - window[0]),
            position=int(firings.position[row]),
            activation=round(float(firings.value[entry]), DIGITS),
            sequence=int(firings.sequence[row]),
            index=int(firings.index[row]),
        )


def drawing_of(tree: Tree, cut: Cut, ids: Int[np.ndarray, " n"], profiles: Float[np.ndarray, "n B"]) -> Drawing:
    """Leaves taken evenly along the tree, a few of every cluster at least, and the tree of those."""
    ordered = cut.labels[tree.order]
    even = np.unique(np.linspace(0, len(ordered) - 1, min(LEAVES, len(ordered))).round().astype(np.int64))
    few = [_evenly(np.flatnonzero(ordered == cluster), LEAST_LEAVES) for cluster in range(cut.clusters)]
    chosen = tree.order[np.unique(np.concatenate([even, *few]))]
    part = part_of(tree, chosen)
    return Drawing(
        features=ids[chosen].tolist(),
        cluster=cut.labels[chosen].tolist(),
        profiles=[_rounded(row) for row in profiles[chosen] * profiles.shape[1]],
        merges=[_rounded(row) for row in part.merges],
        order=part.order.tolist(),
    )


def _evenly(indices: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def _rounded(values: Float[np.ndarray, " n"]) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
