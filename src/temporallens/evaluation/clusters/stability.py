"""Whether temporal clusters hold: found again in other documents, at other steps of the same training, and by other seeds.

Partitions are compared by the adjusted Rand index (1: the same, 0: as by chance), scattered features counting as one group; single
clusters by their largest Jaccard index with any cluster of the other partition (Hennig 2007, "Cluster-wise assessment of cluster
stability"). Other partitions are cut to the same number of clusters where their tree has such a cut.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.clusters.chance import Clustered, clustered
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.clusters.profiles import Bins, Selection, Table, select, table_of
from temporallens.evaluation.clusters.trees import SCATTERED
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.matching import directions_of, match_features
from temporallens.evaluation.statistics import resampled_documents
from temporallens.evaluation.threads import on_threads
from temporallens.progress import progress


class Bootstraps(NamedTuple):
    """Agreement with the clusters of documents drawn with replacement."""

    ari: float | None  # mean over draws; None for one cluster, or one document
    low: float | None  # 2.5th percentile of draws
    high: float | None  # 97.5th
    jaccard: list[float | None]  # of each cluster, mean over draws; None where none of its features is in the sample
    draws: int


class Agreement(NamedTuple):
    """One other partition of the same features, or of features matched with them."""

    name: str  # `step 150`, `seed 2`
    step: int | None
    features: int  # in both
    clusters: int | None  # that the other one has by itself, chosen by silhouette; None where too few features are in both
    silhouette: float | None
    cophenetic: float | None
    ari: float | None  # None for one cluster, or too few features
    jaccard: list[float | None]  # of each cluster; None where none of its features is in both


class Reference(NamedTuple):
    """The clusters that others are compared with, on the features that stability is measured on."""

    features: Int[np.ndarray, " n"]  # ids in the dictionary
    labels: Int[np.ndarray, " n"]
    clusters: int
    bins: Bins


def rand_index(first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> float:
    """Adjusted Rand index of two partitions."""
    from sklearn.metrics import adjusted_rand_score  # a second to import

    return float(adjusted_rand_score(first, second))


def jaccards(first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"], clusters: int) -> list[float | None]:
    """Of each cluster of the first partition the largest Jaccard index with a cluster of the second; None for an empty one."""
    found: list[float | None] = []
    others = [second == label for label in np.unique(second[second != SCATTERED])]
    for cluster in range(clusters):
        members = first == cluster
        shares = [(members & other).sum() / (members | other).sum() for other in others]
        found.append((float(max(shares)) if shares else 0.0) if members.any() else None)
    return found


def over_documents(
    firings: Firings, selection: Selection, reference: Reference, policy: ClustersPolicy, generator: np.random.Generator
) -> Bootstraps:
    """Cluster the same features on documents drawn with replacement, again and again."""
    document = np.unique(firings.document, return_inverse=True)[1]
    resamples = resampled_documents(int(document.max()) + 1, policy.bootstraps, generator)
    if reference.clusters < 2 or len(resamples) == 0:
        return Bootstraps(None, None, None, [], 0)
    found, shares = [], []
    with progress("clusters of other documents", len(resamples), "draws") as advance:
        tables = (table_of(selection, firings.position, times[document].astype(np.float64)) for times in resamples)
        for one in on_threads(lambda table: clustered(table, reference.bins, policy, policy.distance, reference.clusters), tables):
            labels = one.cuts.best.labels
            found.append(rand_index(reference.labels, labels))
            shares.append(jaccards(reference.labels, labels, reference.clusters))
            advance(1)
    low, high = np.quantile(found, [0.025, 0.975])
    jaccard = [
        None if None in of_draws else float(np.mean(of_draws)) for of_draws in zip(*shares, strict=True)
    ]  # a cluster is in all draws or in none
    return Bootstraps(float(np.mean(found)), float(low), float(high), jaccard, len(resamples))


def over_steps(snapshots: Mapping[int, Path], documents: HeldOut, reference: Reference, policy: ClustersPolicy) -> list[Agreement]:
    """The clusters of the same features at other steps of their training."""
    found = []
    for step, folder in sorted(snapshots.items()):
        firings = documents.encoded(load_dictionary(folder)).firings
        firing = firings.counts[reference.features] >= policy.least_firings
        active = np.flatnonzero(firing)
        found.append(_agreement(f"step {step}", step, firings, reference.features[active], active, reference, policy))
    return found


def over_seeds(
    dictionary: Dictionary,
    others: Sequence[Dictionary],
    documents: HeldOut,
    reference: Reference,
    policy: ClustersPolicy,
) -> list[Agreement]:
    """The clusters of other dictionaries' features, matched with ours by their decoder rows (Hungarian method on cosines)."""
    found = []
    for number, other in enumerate(others):
        firings = documents.encoded(other).firings
        firing = np.flatnonzero(firings.counts >= policy.least_firings)
        ours, theirs = matched(dictionary, reference.features, other, firing, policy.least_cosine)
        found.append(_agreement(f"other seed {number + 1}", None, firings, theirs, ours, reference, policy))
    return found


def matched(
    dictionary: Dictionary, features: Int[np.ndarray, " n"], other: Dictionary, candidates: Int[np.ndarray, " m"], least_cosine: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Places among `features`, and the features of the other dictionary that are the same: cosines of the largest sum, and large enough."""
    first, second = (directions_of(one)[chosen] for one, chosen in ((dictionary, features), (other, candidates)))
    if not len(second):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    match = match_features(first @ second.T, np.ones(len(second), dtype=bool))
    ours = np.flatnonzero(match.assigned & (match.cosine >= least_cosine))
    return ours, candidates[match.feature[ours]]


def _agreement(
    name: str,
    step: int | None,
    firings: Firings,
    theirs: Int[np.ndarray, " k"],
    ours: Int[np.ndarray, " k"],
    reference: Reference,
    policy: ClustersPolicy,
) -> Agreement:
    """Cluster features `theirs` of other firings and compare them with our places `ours`."""
    if len(theirs) < 2 * policy.least_features:
        return Agreement(name, step, len(theirs), None, None, None, None, [None] * reference.clusters)
    table = table_of(select(firings, theirs), firings.position)
    alone = clustered(table, reference.bins, policy, policy.distance)
    best = alone.cuts.best
    labels, compared = reference.labels[ours], reference.clusters > 1
    same = _at(table, alone, reference, policy) if compared else best.labels
    return Agreement(
        name=name,
        step=step,
        features=len(theirs),
        clusters=best.clusters,
        silhouette=best.silhouette,
        cophenetic=alone.cophenetic,
        ari=rand_index(labels, same) if compared else None,
        jaccard=jaccards(labels, same, reference.clusters) if compared else [None] * reference.clusters,
    )


def _at(table: Table, alone: Clustered, reference: Reference, policy: ClustersPolicy) -> Int[np.ndarray, " n"]:
    """Labels at the reference's number of clusters."""
    if alone.cuts.best.clusters == reference.clusters:
        return alone.cuts.best.labels
    return clustered(table, reference.bins, policy, policy.distance, reference.clusters).cuts.best.labels
