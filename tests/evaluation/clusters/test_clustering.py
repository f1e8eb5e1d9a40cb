"""Temporal clusters: profiles, distances and trees are what they say; known shapes are found, and nothing is found in noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.cluster.hierarchy import cophenet
from scipy.spatial.distance import jensenshannon, squareform
from sklearn.metrics import silhouette_score

from made_firings import POSITIONS, box, comb, flat, sampled
from temporallens.activations.made.worlds import WorldPolicy, harvest_world, read_truth, true_codes, truth_of
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.standard import Standard, StandardDictionary
from temporallens.evaluation.clusters.distances import between, condensed, similarity
from temporallens.evaluation.clusters.motifs import motifs_of
from temporallens.evaluation.clusters.policy import ClustersPolicy, DistanceName
from temporallens.evaluation.clusters.profiles import Bins, Table, bins_of, profiles_of, rotated, select, shuffled, standardised, table_of
from temporallens.evaluation.clusters.section import cluster_firings, measure_clusters
from temporallens.evaluation.clusters.stability import Reference, jaccards, matched, over_documents, rand_index
from temporallens.evaluation.clusters.trees import SCATTERED, cophenetic_correlation, cut, grow, part_of
from temporallens.evaluation.clusters.worlds import recovery_of
from temporallens.evaluation.firings import profile
from temporallens.serial import as_json
from temporallens.training.finishing import TrainedArm

DISTANCES: tuple[DistanceName, ...] = ("jensen_shannon", "correlation", "motif")
FEW: dict[str, Any] = {"draws": 19, "bootstraps": 2}
"""Enough draws to tell structure from none; the tests need no narrow intervals."""


def table(rate: np.ndarray, sequences: int = 300, seed: int = 0) -> Table:
    firings = sampled(rate, sequences, seed)
    return table_of(select(firings, np.arange(len(rate))), firings.position)


STRUCTURED = np.concatenate([[box(1, 8)] * 12, [box(20, 31)] * 12, flat(16)])
KIND = np.repeat([0, 1, 2], [12, 12, 16])


# Profiles


def test_profiles_are_mean_activations_by_position_and_sum_to_one() -> None:
    firings = sampled(STRUCTURED)
    found = table_of(select(firings, np.arange(40)), firings.position)
    mean = profile(firings).mean[1:].T
    single = Bins(np.arange(1, POSITIONS), np.arange(1, POSITIONS), "positions")
    assert np.allclose(profiles_of(found, single, 0.0), mean / mean.sum(1, keepdims=True), atol=1e-9)
    assert np.allclose(profiles_of(found, single, 2.0).sum(1), 1.0)


def test_smoothing_draws_thin_bins_further_towards_the_mean() -> None:
    mass, tokens = np.array([[4.0, 400.0]]), np.array([10.0, 1000.0])
    found = Table(mass * [[3.0, 1.0]], tokens, np.array([400.0]), np.array([1.0]))
    bins = Bins(np.array([0, 1]), np.array([0, 1]), "positions")
    raw, smooth = profiles_of(found, bins, 0.0)[0], profiles_of(found, bins, 5.0)[0]
    assert raw[0] == pytest.approx(0.75) and 0.5 < smooth[0] < 0.7
    level = (12 + 5 * 412 / 400) / (10 + 5 / (400 / 1010)), (400 + 5 * 412 / 400) / (1000 + 5 / (400 / 1010))
    assert smooth[0] == pytest.approx(level[0] / sum(level))


def test_a_feature_may_be_chosen_in_any_order_and_documents_weighed() -> None:
    firings = sampled(STRUCTURED)
    whole = table_of(select(firings, np.arange(40)), firings.position)
    some = table_of(select(firings, np.array([30, 2])), firings.position)
    assert np.array_equal(some.mass, whole.mass[[30, 2]]) and np.array_equal(some.size, whole.size[[30, 2]])
    twice = table_of(select(firings, np.arange(40)), firings.position, 2.0 * (firings.document < 10))
    half = firings.of_rows(np.flatnonzero(firings.document < 10))
    alone = table_of(select(half, np.arange(40)), half.position)
    assert np.allclose(twice.mass, 2 * alone.mass) and np.allclose(twice.tokens, 2 * alone.tokens)


def test_bins_are_positions_where_features_fire_often_enough_and_widen_where_they_do_not() -> None:
    assert bins_of(table(flat(8)), "auto").kind == "positions"
    thin = bins_of(table(flat(8, 0.01)), "auto")
    assert thin.kind == "log" and thin.first[0] == 1 and thin.last[-1] == POSITIONS - 1
    assert len(thin) < POSITIONS - 1 and np.all(np.diff(thin.last - thin.first) >= -1)


@given(st.lists(st.integers(0, 300), min_size=2, max_size=200), st.sampled_from(["positions", "log"]))
def test_bins_hold_every_token_once_and_enough_of_them(counts: list[int], wanted: Any) -> None:
    tokens = np.array(counts, dtype=np.float64)
    if not tokens.any():
        return
    bins = bins_of(Table(tokens[None], tokens, np.array([tokens.sum()]), np.ones(1)), wanted)
    assert np.all(bins.first[1:] == bins.last[:-1] + 1) and np.all(bins.first <= bins.last)
    held = bins.sums(tokens)
    assert held.sum() == tokens.sum()
    assert len(bins) == 1 or held.min() >= 50


def test_rotation_keeps_sequences_and_unties_positions_for_all_features_alike() -> None:
    firings = sampled(STRUCTURED)
    turned = rotated(firings.position, firings.sequence, np.random.default_rng(0))
    for sequence in (0, 7):
        own = firings.sequence == sequence
        steps = np.diff(turned[own])
        assert sorted(turned[own]) == list(range(1, POSITIONS)) and (steps == 1).sum() >= len(steps) - 1
    spread = table_of(select(firings, np.arange(40)), turned)
    assert motifs_of(spread, bins_of(spread, "positions")).evidence[:24].max() == 0


def test_shuffling_keeps_each_features_levels_and_breaks_what_they_share() -> None:
    found = table(STRUCTURED)
    mixed = shuffled(found, np.random.default_rng(0))
    assert np.allclose(np.sort(mixed.mass, 1), np.sort(found.mass, 1)) and (mixed.mass[:, 0] == 0).all()
    assert np.corrcoef(found.mass[0, 1:], found.mass[1, 1:])[0, 1] > 0.9
    assert abs(np.corrcoef(mixed.mass[0, 1:], mixed.mass[1, 1:])[0, 1]) < 0.6


# Distances


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 100))
def test_jensen_shannon_is_that_of_scipy(features: int, bins: int, seed: int) -> None:
    profiles = np.random.default_rng(seed).dirichlet(np.full(bins, 0.3), size=features) + 1e-12
    found = between(profiles, profiles[:3], "jensen_shannon")
    expected = [[jensenshannon(p, q, base=2) for q in profiles[:3]] for p in profiles]
    assert np.allclose(found, expected, atol=3e-3)
    assert found.shape == (features, min(features, 3))


@pytest.mark.parametrize("distance", DISTANCES)
def test_condensed_distances_are_those_of_every_pair_in_scipys_order(distance: DistanceName) -> None:
    vectors = np.random.default_rng(0).dirichlet(np.ones(5), size=301)
    if distance == "correlation":
        vectors = vectors - vectors.mean(1, keepdims=True)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = between(vectors, vectors, distance).astype(np.float64)
    np.fill_diagonal(whole, 0.0)
    assert np.allclose(squareform(condensed(vectors, distance)), whole, atol=1e-5)
    assert np.allclose(whole, whole.T, atol=2e-4)


def test_flat_profiles_correlate_with_nothing() -> None:
    profiles = np.full((2, 7), 1 / 7)
    profiles[1, 0] += 1e-16
    assert not standardised(profiles).any()


# Trees


def two_groups(seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(60, 3))
    points[:25] += 8
    points[59] += 100
    return np.linalg.norm(points[:, None] - points, axis=2)


def test_silhouette_and_cophenetic_correlation_are_those_of_the_libraries() -> None:
    square = two_groups()
    distances = squareform(square, checks=False)
    tree = grow(distances)
    assert cophenetic_correlation(tree, distances) == pytest.approx(cophenet(tree.merges, distances)[0])
    cuts = cut(tree, distances, least=1, most=20)
    for number, best in cuts.by_clusters.items():
        labels = cut(tree, distances, 1, 20, number).best.labels
        assert len(np.unique(labels)) == number
        assert best == pytest.approx(silhouette_score(square, labels, metric="precomputed"), abs=1e-6)


@pytest.mark.parametrize("distance", [0.1, 0.3, 0.37, 1 / 3])
def test_distances_that_are_all_equal_have_no_cophenetic_correlation(distance: float) -> None:
    distances = np.full(33 * 32 // 2, distance)
    assert cophenetic_correlation(grow(distances), distances) is None


def test_distances_that_hardly_differ_have_that_of_the_libraries() -> None:
    distances = 0.5 + 1e-6 * squareform(two_groups(), checks=False)
    tree = grow(distances)
    assert cophenetic_correlation(tree, distances) == pytest.approx(cophenet(tree.merges, distances)[0], abs=1e-6)


def test_a_branch_of_few_features_is_scattered_and_not_a_cluster() -> None:
    distances = squareform(two_groups(), checks=False)
    best = cut(grow(distances), distances, least=5, most=20).best
    assert best.clusters == 2 and best.labels[59] == SCATTERED and best.widths[59] == 0
    assert len(set(best.labels[:25])) == len(set(best.labels[25:59])) == 1 and best.labels[0] != best.labels[30]
    assert best.explained > 1


def test_no_cut_with_two_clusters_is_one_cluster() -> None:
    distances = squareform(two_groups(), checks=False)
    best = cut(grow(distances), distances, least=40, most=20).best
    assert best.clusters == 1 and best.silhouette is None and not best.labels.any()


def test_a_number_of_clusters_that_no_cut_has_falls_back_to_the_best_cut() -> None:
    distances = squareform(two_groups(), checks=False)
    tree = grow(distances)
    assert cut(tree, distances, 5, 20, wanted=19).best.clusters == cut(tree, distances, 5, 20).best.clusters == 2


def test_part_of_a_tree_joins_its_leaves_where_the_whole_one_does() -> None:
    distances = squareform(two_groups(), checks=False)
    tree = grow(distances)
    leaves = np.array([40, 3, 59, 17, 30, 5, 4])
    part = part_of(tree, leaves)
    assert np.allclose(squareform(cophenet(part.merges)), squareform(cophenet(tree.merges))[np.ix_(leaves, leaves)])
    rank = np.argsort(tree.order)
    assert list(part.order) == list(np.argsort(rank[leaves]))
    assert part.merges[-1, 3] <= tree.leaves


# Motifs


def test_motifs_name_shapes() -> None:
    place = np.arange(POSITIONS)
    rate = np.array(
        [box(1, 8), box(14, 21), comb(4, 1), comb(5, 3), 0.3 * place / POSITIONS, 0.3 * (1 - place / POSITIONS), 0 * place + 0.1]
    )
    motifs = motifs_of(found := table(rate, 800), bins_of(found, "positions"))
    assert motifs.width[:2] == pytest.approx([8 / 31] * 2, abs=0.03) and motifs.width[6] > 0.97
    assert list(motifs.recurring) == [0, 0, 4, 5, 0, 0, 0]
    assert motifs.trend[4] > 0.9 and motifs.trend[5] < -0.9
    assert 14 <= motifs.peak[1] + 1 <= 21
    assert list(motifs.specialised) == [True, True, True, True, False, False, False]


def test_shapes_are_alike_wherever_they_stand_but_for_the_start() -> None:
    rate = np.array([box(10, 17), box(20, 27), comb(4, 0), comb(4, 3), box(1, 8)])
    motifs = motifs_of(found := table(rate, 800), bins_of(found, "positions"))
    alike = similarity(motifs, motifs)
    assert alike[0, 1] > 0.95 and alike[2, 3] > 0.95
    assert alike[0, 2] < 0.6 and alike[0, 4] < 0.6
    assert similarity(motifs.of(np.array([1])), motifs)[0] == pytest.approx(alike[1], abs=1e-6)


def test_noise_has_no_motif() -> None:
    motifs = motifs_of(found := table(flat(200)), bins_of(found, "positions"))
    assert (motifs.evidence > 0).mean() < 0.02
    assert np.abs(motifs.coordinates()[motifs.evidence == 0]).max() == 0


# Clusters


@pytest.mark.parametrize("distance", DISTANCES)
def test_noise_is_one_cluster(distance: DistanceName) -> None:
    policy = ClustersPolicy(distance=distance, **FEW)
    found = [cluster_firings(sampled(flat(40), seed=seed), policy) for seed in range(1, 4)]
    assert sum(measures.clusters != 1 for measures in found) <= 1, "one in twenty is found by chance"
    one = next(measures for measures in found if measures.clusters == 1)
    assert set(one.labels) == {0} and (one.p is None or one.p > 0.05)
    assert len(one.rows) == 1 and one.rows[0].silhouette is None and one.rows[0].features == 40
    assert one.documents_drawn is not None and one.documents_drawn.ari is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_groups_of_features_are_found_and_hold(distance: DistanceName) -> None:
    measures = cluster_firings(sampled(STRUCTURED), ClustersPolicy(distance=distance, **FEW))
    labels = np.array(measures.labels)
    assert measures.p == pytest.approx(0.05) and labels[0] != labels[12] and len(set(labels[:24])) == 2
    if distance != "correlation":  # features that do not vary have no correlation to speak of
        assert measures.clusters == 3 and rand_index(KIND, labels) == 1
        assert measures.documents_drawn is not None and measures.documents_drawn.ari == pytest.approx(1.0, abs=0.1)


def test_a_cluster_row_says_what_the_cluster_is_about() -> None:
    firings = sampled(STRUCTURED)
    measures = cluster_firings(firings, ClustersPolicy(**FEW))
    row = measures.rows[int(measures.labels[0] or 0)]
    assert row.features == 12 and row.width == pytest.approx(8 / 31, abs=0.05) and row.correlation is not None and row.correlation > 0.8
    assert 1 <= row.peak[0] <= 8 and row.mean[0] > 2 and row.mean[-1] < 0.5
    assert sum(row.specialised) == 12 and sum(row.specialised[:8]) == 12
    for telling in row.telling:
        assert telling.feature < 12 and len(set(telling.alike)) == 3 and telling.feature not in telling.alike
        own = firings.value[firings.feature == telling.feature]
        assert telling.contexts[0].activation == pytest.approx(own.max(), abs=1e-4)
        assert len({context.sequence for context in telling.contexts}) == len(telling.contexts)
        for context in telling.contexts:
            assert context.tokens[context.place] == 1000 * context.sequence + context.position
            assert np.all(np.diff(context.tokens) == 1)  # neighbours of the same sequence


def test_measures_are_finite_json_and_the_same_every_time() -> None:
    firings, policy = sampled(STRUCTURED), ClustersPolicy(**FEW)
    first, second = (json.dumps(as_json(cluster_firings(firings, policy)), allow_nan=False) for _ in range(2))
    assert first == second
    other = cluster_firings(firings, policy.model_copy(update={"seed": 1}))
    assert other.labels == cluster_firings(firings, policy).labels  # the seed draws chance, not clusters


def test_the_drawing_holds_some_of_every_cluster_and_its_own_tree() -> None:
    rate = np.concatenate([flat(260), [box(1, 4, 0.6)] * 10])
    measures = cluster_firings(sampled(rate), ClustersPolicy(sample=100, **FEW))
    drawing = measures.drawing
    assert drawing is not None and measures.clusters == 2
    assert len(drawing.features) == len(drawing.profiles) == len(drawing.merges) + 1 < measures.kept
    assert sum(feature >= 260 for feature in drawing.features) == 10
    assert sorted(drawing.order) == list(range(len(drawing.features)))
    assert [measures.labels[feature] for feature in drawing.features] == drawing.cluster


def test_too_few_features_with_enough_firings_say_so() -> None:
    measures = cluster_firings(sampled(STRUCTURED[:12]), ClustersPolicy(least_firings=100_000))
    assert measures.kept == 0 and measures.clusters is None and measures.rows == [] and measures.drawing is None
    assert set(measures.labels) == {None} and json.dumps(as_json(measures), allow_nan=False)


def test_features_that_seldom_fire_are_in_no_cluster() -> None:
    rate = np.concatenate([STRUCTURED, flat(5, 0.002)])
    measures = cluster_firings(sampled(rate), ClustersPolicy(**FEW))
    assert measures.kept == 40 and measures.labels[40:] == [None] * 5 and None not in measures.labels[:40]


# Stability


def test_jaccard_is_that_of_the_best_match_and_the_rand_index_is_chance_corrected() -> None:
    first, second = np.array([0, 0, 0, 1, 1, -1]), np.array([1, 1, -1, 0, 0, 0])
    assert jaccards(first, second, 3) == [pytest.approx(2 / 3), pytest.approx(2 / 3), None]
    assert jaccards(first, np.full(6, -1), 2) == [0.0, 0.0]
    assert rand_index(first, first[::-1][::-1]) == 1.0


def test_a_cluster_without_a_feature_in_the_sample_has_no_stability() -> None:
    firings = sampled(STRUCTURED)
    policy = ClustersPolicy(**FEW)
    labels = np.repeat([0, 2, -1], [12, 12, 16])  # none of cluster 1
    chosen = select(firings, np.arange(len(STRUCTURED)))
    whole = table_of(chosen, firings.position)
    reference = Reference(np.arange(len(STRUCTURED)), labels, 3, bins_of(whole, policy.bins))
    drawn = over_documents(firings, chosen, reference, policy, np.random.default_rng(0))
    assert drawn.jaccard[0] == drawn.jaccard[2] == 1.0
    assert drawn.jaccard[1] is None


def test_matching_finds_the_same_features_in_another_order(trained: dict[str, TrainedArm]) -> None:
    ours = trained["batchtopk"].dictionary
    other = Standard(features=ours.features).build(ours.width, 1, torch.Generator().manual_seed(0))
    order = torch.randperm(ours.features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other.decoder.copy_(ours.decoder[order])
    places, theirs = matched(ours, np.arange(5, 40), other, np.arange(ours.features), 0.9)
    assert list(places) == list(range(35)) and list(order[theirs]) == list(range(5, 40))
    apart, _ = matched(ours, np.arange(5, 40), other, np.arange(0), 0.9)
    assert not len(apart)


def test_clusters_of_a_trained_dictionary_with_its_steps_and_seeds(store: ActivationStore, trained: dict[str, TrainedArm]) -> None:
    policy = ClustersPolicy(least_firings=60, **FEW)
    arm, everything = trained["batchtopk"], np.arange(store.sequences)
    measures = measure_clusters(
        arm.dictionary, store, everything, policy, {120: arm.folder, 60: trained["standard"].folder}, [arm.dictionary]
    )
    assert measures.clusters is not None and measures.clusters >= 2, "half of the features of this store live in the first half only"
    early = min(measures.rows, key=lambda row: row.width)
    assert early.peak[1] < 8 and early.mean[-1] < 0.5
    assert [agreement.step for agreement in measures.steps] == [60, 120]
    same, itself = measures.steps[1], measures.seeds[0]
    assert same.ari == itself.ari == 1.0 and same.features == itself.features == measures.kept
    assert same.jaccard == [1.0] * measures.clusters
    other = measures.steps[0]
    assert other.features < measures.kept or (other.ari is not None and other.ari < 1)


# Worlds


def test_the_five_classes_of_a_world_are_recovered_by_motif() -> None:
    policy = WorldPolicy(features=150, positions=64)
    truth = truth_of(policy)
    found = table(truth.profiles.rate, sequences=640)
    recovery = recovery_of(found, bins_of(found, "auto"), truth.profiles.kind, ClustersPolicy())
    assert recovery is not None and recovery.features == 150
    motif = recovery.by_distance["motif"]
    assert motif.ari >= 0.8 and motif.ari_at_classes >= 0.8
    assert sum(map(sum, motif.found)) == 150 and len(motif.found) == 5 and len(motif.found[0]) == motif.clusters + 1
    assert recovery.by_distance["jensen_shannon"].ari < 0.7  # windows of other places are far apart by definition


class Oracle(StandardDictionary):
    """A dictionary that is told the codes of a world's rows."""

    def __init__(self, store: ActivationStore) -> None:
        truth = read_truth(store.folder)
        super().__init__(truth.policy.width, Standard(features=truth.policy.features), torch.Generator().manual_seed(0))
        self._codes = torch.from_numpy(true_codes(truth.policy, store.sequence_table.sequence))
        self._known = {row.numpy().tobytes(): number for number, row in enumerate(store.read(np.arange(store.sequences)).x)}
        with torch.no_grad():
            self.decoder.copy_(torch.from_numpy(truth.directions))

    def codes(self, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        del positions
        return self._codes[[self._known[row.numpy().tobytes()] for row in x]]


def test_a_world_is_told_by_its_store(tmp_path: Path) -> None:
    policy = WorldPolicy(width=48, features=60, positions=32, sequences=320, active=2.0, start=6, coherence=0.45)
    store = harvest_world(policy, tmp_path / "store")
    measures = measure_clusters(Oracle(store), store, np.arange(320), ClustersPolicy(least_firings=100, distance="motif", **FEW))
    assert measures.world is not None and measures.world.features == measures.kept
    assert measures.world.classes == ["global", "window", "start", "ramp", "periodic"]
    assert set(measures.world.by_distance) == set(DISTANCES)
    assert measures.world.by_distance["motif"].clusters == measures.chosen
