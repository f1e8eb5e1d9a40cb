"""What chance makes of temporal clusters: the same procedure on profiles whose positions mean nothing.

Two kinds of chance. `shuffled`: each feature's activations by position stand in an order of their own, so that nothing is shared
between features, however jagged each is. `rotated`: the positions of every sequence are turned in a circle, by the same offset for all
features, so that what fires together still does and only the tie to a position is gone; what is left is sampling noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from temporallens.evaluation.clusters.distances import condensed, vectors_of
from temporallens.evaluation.clusters.policy import ClustersPolicy, DistanceName
from temporallens.evaluation.clusters.profiles import Bins, Selection, Table, rotated, shuffled, table_of as tabulate
from temporallens.evaluation.clusters.trees import Cuts, Tree, cophenetic_correlation, cut, grow
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.threads import on_threads
from temporallens.progress import progress

SIGNIFICANT = 0.05
"""p-value up to which clusters count as more than chance."""


class Clustered(NamedTuple):
    """One table of features, clustered."""

    tree: Tree
    cuts: Cuts
    cophenetic: float | None


class Statistics(NamedTuple):
    """How clustered features are, by three measures."""

    cophenetic: float | None  # None where distances or heights do not vary
    silhouette: float | None  # of the best cut; None where no cut has two clusters
    explained: float  # distance that the best cut explains


class Chance(NamedTuple):
    """One measure against one kind of chance; None where no draw has a value."""

    found: float | None
    mean: float | None  # over draws
    high: float | None  # 95th percentile of draws
    p: float | None  # share of draws, the finding counted in, that are as high
    draws: int


def clustered(table: Table, bins: Bins, policy: ClustersPolicy, distance: DistanceName, wanted: int | None = None) -> Clustered:
    """The tree of a table's features and its cuts, the best one of `wanted` clusters where that is given."""
    distances = condensed(vectors_of(table, bins, policy.smoothing, distance), distance)
    tree = grow(distances)
    cuts = cut(tree, distances, policy.least_features, policy.most_clusters, wanted)
    return Clustered(tree, cuts, cophenetic_correlation(tree, distances))


def statistics_of(found: Clustered) -> Statistics:
    return Statistics(found.cophenetic, found.cuts.best.silhouette, found.cuts.best.explained)


def against_chance(
    firings: Firings, selection: Selection, bins: Bins, policy: ClustersPolicy, generator: np.random.Generator
) -> dict[str, dict[str, Chance]]:
    """Every measure of the selected features against both kinds of chance."""
    table = tabulate(selection, firings.position)
    kinds: dict[str, Callable[[], Table]] = {
        "shuffled": lambda: shuffled(table, generator),
        "rotated": lambda: tabulate(selection, rotated(firings.position, firings.stretch, generator)),
    }
    found = statistics_of(clustered(table, bins, policy, policy.distance))
    result = {}
    with progress("clusters by chance", len(kinds) * policy.draws, "draws") as advance:
        for kind, draw in kinds.items():
            drawn = []
            for one in on_threads(lambda table: clustered(table, bins, policy, policy.distance), (draw() for _ in range(policy.draws))):
                drawn.append(statistics_of(one))
                advance(1)
            result[kind] = {name: chance_of(getattr(found, name), [getattr(one, name) for one in drawn]) for name in Statistics._fields}
    return result


def chance_of(found: float | None, drawn: list[float | None]) -> Chance:
    """Where a finding stands among draws; a draw without a value, such as one that has no two clusters, is lower than any."""
    known = np.array([value for value in drawn if value is not None])
    return Chance(
        found=found,
        mean=float(known.mean()) if len(known) else None,
        high=float(np.quantile(known, 0.95)) if len(known) else None,
        p=None if found is None else (1 + int((known >= found).sum())) / (1 + len(drawn)),
        draws=len(drawn),
    )


def p_value(chance: dict[str, dict[str, Any]], distance: DistanceName) -> float | None:
    """The p-value by which clusters stand or fall; None where there are no two clusters.

    Silhouettes must beat both kinds of chance. The motif distance puts everything that sampling may have shaped at one point, where
    the silhouette is nearly 1 whatever else there is, and shuffling leaves widths as they are: there the explained distance must
    beat rotation.
    """
    if distance == "motif":
        return None if chance["rotated"]["silhouette"].found is None else chance["rotated"]["explained"].p
    values = [kind["silhouette"].p for kind in chance.values()]
    return None if None in values else max(values)
