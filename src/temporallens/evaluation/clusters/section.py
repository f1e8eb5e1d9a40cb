"""Temporal clusters: features grouped by when in the sequence they fire (lab notes, Run 9; method, section 4).

Profiles of features that fire often enough on held-out documents, a distance, average linkage, a cut by silhouette; beside it what chance
makes of the same procedure, whether the clusters hold over documents, training steps and seeds, and what they are about. Where clusters do
not stand out from chance there is one cluster, and that is the finding. `docs/method.md`, "Temporal clusters", says why.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from temporallens import wording
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.clusters.chance import SIGNIFICANT, Chance, Clustered, against_chance, clustered, p_value
from temporallens.evaluation.clusters.motifs import motifs_of
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.clusters.profiles import Bins, Table, bins_of, profiles_of, select, table_of
from temporallens.evaluation.clusters.stability import Agreement, Bootstraps, Reference, over_documents, over_seeds, over_steps
from temporallens.evaluation.clusters.table import ClusterRow, Drawing, drawing_of, peaks_of, rows_of
from temporallens.evaluation.clusters.trees import SCATTERED, Cut, one_cluster
from temporallens.evaluation.clusters.worlds import Recovery, is_world, recovery_of_world
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.section import Section, Subject
from temporallens.training.snapshots import snapshots_of
from temporallens.wording import UNKNOWN, Row, fixed, span

__all__ = ["ClusterMeasures", "ClustersPolicy", "cluster_firings", "measure_clusters"]


class BinsOfProfiles(NamedTuple):
    """Runs of positions that profiles are told in."""

    kind: str  # `positions` or `log`
    first: list[int]
    last: list[int]
    tokens: list[int]


class ClusterMeasures(NamedTuple):
    """All that is known of one dictionary's temporal clusters."""

    distance: str
    features: int
    kept: int  # that fire often enough to have a profile
    least_firings: int
    tokens: int
    documents: int
    bins: BinsOfProfiles | None  # None where too few features are kept to be clustered, as everything below
    clusters: int | None  # 1 where nothing stands out from chance
    chosen: int | None  # by silhouette, whatever chance says
    silhouette: float | None  # at that number; None where no cut has two clusters
    silhouettes: dict[str, float]  # best of each number of clusters
    p: float | None  # of the clusters against chance; they count up to .05
    cophenetic: float | None  # correlation of distances and heights of the tree
    sample: int | None  # features that chance and stability are measured on
    chance: dict[str, dict[str, Chance]]  # `shuffled` and `rotated`; in each `cophenetic`, `silhouette` and `explained`
    scattered: int | None  # features in branches too small for a cluster
    labels: list[int | None] | None  # cluster of each feature; -1 scattered, None too few firings
    rows: list[ClusterRow]
    scattered_peaks: list[int]  # of specialised features that are scattered, how many peak in each bin
    drawing: Drawing | None
    documents_drawn: Bootstraps | None
    steps: list[Agreement]
    seeds: list[Agreement]
    world: Recovery | None  # for worlds with known answers


@own_defaults()
def measure_clusters(
    dictionary: Dictionary,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: ClustersPolicy,
    snapshots: Mapping[int, Path] | None = None,
    other_seeds: Sequence[Dictionary] = (),
    cache: Path | None = None,
) -> ClusterMeasures:
    """Cluster the features of `dictionary` by when they fire on held-out sequences, whose encodings are kept in `cache`.

    `snapshots` are saved dictionaries of the same training by step, `other_seeds` the same arm trained from other initial weights.
    """
    documents = HeldOut(store, held_out, cache)
    firings = documents.encoded(dictionary).firings
    profiled, table, bins, found = _whole(firings, policy)
    if found is None:
        return _too_few(firings, len(profiled), policy)
    measures, reference = _measure(firings, profiled, table, bins, found, policy)
    return measures._replace(
        steps=over_steps(snapshots or {}, documents, reference, policy),
        seeds=over_seeds(dictionary, other_seeds, documents, reference, policy),
        world=recovery_of_world(dictionary, store, profiled, table, bins, policy) if is_world(store) else None,
    )


def cluster_firings(firings: Firings, policy: ClustersPolicy) -> ClusterMeasures:
    """The same of firings alone: nothing of other steps, seeds or worlds."""
    profiled, table, bins, found = _whole(firings, policy)
    if found is None:
        return _too_few(firings, len(profiled), policy)
    return _measure(firings, profiled, table, bins, found, policy)[0]


def _whole(firings: Firings, policy: ClustersPolicy) -> tuple[Int[np.ndarray, " n"], Table, Bins, Clustered | None]:
    """Features with enough firings, their table and bins, and their tree; None for a tree of too few."""
    profiled = np.flatnonzero(firings.counts >= policy.least_firings)
    table = table_of(select(firings, profiled), firings.position)
    if len(profiled) < 2 * policy.least_features:
        return profiled, table, Bins(np.empty(0, np.int64), np.empty(0, np.int64), "positions"), None
    bins = bins_of(table, policy.bins)
    return profiled, table, bins, clustered(table, bins, policy, policy.distance)


def _too_few(firings: Firings, profiled: int, policy: ClustersPolicy) -> ClusterMeasures:
    return ClusterMeasures(
        distance=policy.distance,
        features=firings.features,
        kept=profiled,
        least_firings=policy.least_firings,
        tokens=len(firings.position),
        documents=len(np.unique(firings.document)),
        bins=None,
        clusters=None,
        chosen=None,
        silhouette=None,
        silhouettes={},
        p=None,
        cophenetic=None,
        sample=None,
        chance={},
        scattered=None,
        labels=[None] * firings.features,
        rows=[],
        scattered_peaks=[],
        drawing=None,
        documents_drawn=None,
        steps=[],
        seeds=[],
        world=None,
    )


def _measure(
    firings: Firings, profiled: Int[np.ndarray, " n"], table: Table, bins: Bins, found: Clustered, policy: ClustersPolicy
) -> tuple[ClusterMeasures, Reference]:
    generator = np.random.default_rng(policy.seed)
    sample = np.sort(generator.permutation(len(profiled))[: policy.sample])
    selection = select(firings, profiled[sample])
    chance = against_chance(firings, selection, bins, policy, generator)
    p = p_value(chance, policy.distance)
    best = found.cuts.best
    final = best if p is not None and p <= SIGNIFICANT and best.clusters > 1 else one_cluster(len(profiled))
    reference = Reference(profiled[sample], final.labels[sample], final.clusters, bins)
    profiles, motifs = profiles_of(table, bins, policy.smoothing), motifs_of(table, bins)
    measures = _too_few(firings, len(profiled), policy)._replace(
        bins=BinsOfProfiles(bins.kind, bins.first.tolist(), bins.last.tolist(), bins.sums(table.tokens).astype(np.int64).tolist()),
        clusters=final.clusters,
        chosen=best.clusters,
        silhouette=best.silhouette,
        silhouettes={str(number): value for number, value in found.cuts.by_clusters.items()},
        p=p,
        cophenetic=found.cophenetic,
        sample=len(sample),
        chance=chance,
        scattered=int((final.labels == SCATTERED).sum()),
        labels=_labels(firings.features, profiled, final),
        rows=rows_of(firings, profiled, table, profiles, bins, motifs, final, policy),
        scattered_peaks=peaks_of(motifs.of(np.flatnonzero(final.labels == SCATTERED)), bins),
        drawing=drawing_of(found.tree, final, profiled, profiles),
        documents_drawn=over_documents(firings, selection, reference, policy, generator),
    )
    return measures, reference


def _labels(features: int, profiled: Int[np.ndarray, " n"], cut: Cut) -> list[int | None]:
    labels: list[int | None] = [None] * features
    for feature, label in zip(profiled.tolist(), cut.labels.tolist(), strict=True):
        labels[feature] = label
    return labels


def _of_subject(subject: Subject, policy: ClustersPolicy) -> ClusterMeasures:
    snapshots, others = snapshots_of(subject.folder), subject.other_seeds()
    return measure_clusters(subject.dictionary, subject.store, subject.held_out, policy, snapshots, others, subject.cache)


def tables(found: Mapping[str, ClusterMeasures]) -> list[wording.Table]:
    """How many temporal clusters stand out from chance, how well they hold, and what each is."""
    each = [_each_cluster(head, measure) for head, measure in found.items() if len(measure.rows) > 1]
    return [_held_table(found), *_worlds_tables(found), *each]


def _held_table(found: Mapping[str, ClusterMeasures]) -> wording.Table:
    rows = []
    for head, measure in found.items():
        drawn, shuffled = measure.documents_drawn, measure.chance.get("shuffled", {}).get("cophenetic")
        seeds = [other.ari for other in measure.seeds if other.ari is not None]
        cells = [
            f"{measure.kept:,} of {measure.features:,}",
            fixed(measure.clusters, 0),
            fixed(measure.silhouette, 2),
            fixed(measure.p, 3),
            f"{fixed(measure.cophenetic, 2)} ({fixed(shuffled and shuffled.mean, 2)})",
            UNKNOWN if drawn is None or drawn.ari is None else f"{fixed(drawn.ari, 2)} ({fixed(drawn.low, 2)} to {fixed(drawn.high, 2)})",
            fixed(sum(seeds) / len(seeds), 2) if seeds else UNKNOWN,
        ]
        rows.append(Row(head, cells))
    columns = [
        "dictionary",
        "features",
        "clusters",
        "silhouette",
        "p against chance",
        "cophenetic (shuffled)",
        "ARI over documents",
        "ARI over seeds",
    ]
    note = (
        "Features that fire often enough to have a profile. One cluster: nothing stands out from chance. ARI: adjusted Rand index with "
        "the clusters of other draws of the documents, and of other seeds."
    )
    return wording.Table("Temporal clusters", columns, rows, note)


def _worlds_tables(found: Mapping[str, ClusterMeasures]) -> list[wording.Table]:
    """What is made of the classes of a world with known answers, by each distance."""
    rows = []
    for head, world in ((head, measure.world) for head, measure in found.items() if measure.world):
        for distance, recovered in world.by_distance.items():
            cells = [f"{world.features:,}", f"{recovered.clusters:,}", fixed(recovered.ari, 2)]
            rows.append(Row(f"{head}: {distance.replace('_', '-')}", [*cells, fixed(recovered.ari_at_classes, 2)]))
    columns = ["dictionary: distance", "true features", "clusters", "ARI with the classes", "at as many clusters as classes"]
    note = "Of the true features that the dictionary has found and that fire often enough."
    return [wording.Table("Temporal clusters and the classes of this world", columns, rows, note)] if rows else []


def _each_cluster(head: str, measure: ClusterMeasures) -> wording.Table:
    rows = []
    for number, cluster in enumerate(measure.rows, 1):
        periods = [f"{period} ({count:,})" for period, count in cluster.periods.items()]
        cells = [
            f"{cluster.features:,}",
            span(*cluster.peak),
            f"{fixed(100 * cluster.width, 0)} %",
            fixed(cluster.trend, 2),
            ", ".join(periods) or UNKNOWN,
            fixed(cluster.silhouette, 2),
            ", ".join(str(telling.feature) for telling in cluster.telling),
        ]
        rows.append(Row(str(number), cells))
    columns = ["cluster", "features", "peak at positions", "width", "trend", "periods (features)", "silhouette", "most telling features"]
    note = (
        "Peak: where the mean profile is highest. Width: share of the bins of positions that a feature is spread over; trend: "
        "correlation of its level and the bin; medians. The feature browser shows each feature."
    )
    return wording.Table(f"Clusters of {head}", columns, rows, note)


SECTION = Section(
    name="clusters",
    policy=ClustersPolicy,
    version=1,
    measure=_of_subject,
    measures=ClusterMeasures,
    details=("labels", "drawing"),
    across_seeds=True,
    tables=tables,
)
