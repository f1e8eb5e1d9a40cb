"""Whether temporal clusters are the classes of a world with known answers (`activations/made/worlds.py`).

Of the true features that a dictionary has found (`worlds.match_features`) and that fire often enough, the clusters are compared with
the five classes by the adjusted Rand index, under every distance: at the number of clusters that the silhouette chooses, and at five.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from temporallens.activations.made.worlds import CLASSES, read_truth
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.clusters.chance import clustered
from temporallens.evaluation.clusters.policy import ClustersPolicy, DistanceName
from temporallens.evaluation.clusters.profiles import Bins, Table
from temporallens.evaluation.clusters.stability import rand_index
from temporallens.evaluation.known.worlds import true_cosines
from temporallens.evaluation.matching import match_features

DISTANCES: tuple[DistanceName, ...] = ("jensen_shannon", "correlation", "motif")


class Recovered(NamedTuple):
    """What one distance makes of the classes."""

    clusters: int  # chosen by silhouette
    ari: float
    ari_at_classes: float  # at as many clusters as there are classes, where the tree has such a cut
    found: list[list[int]]  # features of each class (row) in each cluster, scattered ones last


class Recovery(NamedTuple):
    """Of one dictionary in one world."""

    features: int  # true features that are matched and fire often enough
    classes: list[str]  # those that occur among them
    by_distance: dict[str, Recovered]


def is_world(store: ActivationStore) -> bool:
    return store.manifest.description.source.get("kind") == "world"


def recovery_of_world(
    dictionary: Dictionary, store: ActivationStore, ids: Int[np.ndarray, " n"], table: Table, bins: Bins, policy: ClustersPolicy
) -> Recovery | None:
    """Compare clusters with the classes of matched features; None where too few are matched, or all are of one class."""
    truth = read_truth(store.folder)
    selected = np.zeros(dictionary.features, dtype=bool)
    selected[ids] = True
    match = match_features(true_cosines(dictionary, truth), selected)
    row_of = np.full(dictionary.features, -1)
    row_of[ids] = np.arange(len(ids))
    rows, kind = row_of[match.feature[match.matched]], truth.profiles.kind[match.matched]
    return recovery_of(_part(table, rows), bins, kind, policy)


def recovery_of(table: Table, bins: Bins, kind: Int[np.ndarray, " n"], policy: ClustersPolicy) -> Recovery | None:
    """Compare the clusters of a table's features with their true classes."""
    classes = np.unique(kind)
    if len(classes) < 2 or len(kind) < 2 * policy.least_features:
        return None
    by_distance: dict[str, Recovered] = {}
    for distance in DISTANCES:
        best = clustered(table, bins, policy, distance).cuts.best
        at_classes = clustered(table, bins, policy, distance, len(classes)).cuts.best
        found = [[int(((kind == one) & (best.labels == label)).sum()) for label in (*range(best.clusters), -1)] for one in classes]
        by_distance[distance] = Recovered(best.clusters, rand_index(kind, best.labels), rand_index(kind, at_classes.labels), found)
    return Recovery(len(kind), [CLASSES[one] for one in classes], by_distance)


def _part(table: Table, rows: Int[np.ndarray, " m"]) -> Table:
    return Table(table.mass[rows], table.tokens, table.firings[rows], table.size[rows])
