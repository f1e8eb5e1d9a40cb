"""What a dictionary keeps of its position specialisation when it hardens, and what another seed finds again."""

import numpy as np
import pytest
import torch
from tools.positions import firings_of

from temporallens.activations.made.worlds import WorldPolicy, harvest_world
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.heldout import HeldOut, errors_by_document
from temporallens.evaluation.matching import match_features
from temporallens.evaluation.positions.retention import Change, Examined, compare_patterns, compare_seeds, compare_states, measure
from temporallens.evaluation.positions.section import measure_positions
from temporallens.evaluation.positions.specialisation import PositionsPolicy, discover
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.serial import as_json
from temporallens.training.finishing import TrainedArm
from temporallens.training.policy import TrainingPolicy
from temporallens.training.snapshots import snapshots_of
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

POLICY = PositionsPolicy(least_firings=100, further_draws=300, resamples=30)
WORLD = WorldPolicy(width=32, features=30, positions=24, sequences=480, active=1.5, start=5, periods=(3, 5), coherence=0.5)
STEPS = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest_world(WORLD, tmp_path_factory.mktemp("world") / "store")


@pytest.fixture(scope="module")
def seeds(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> list[TrainedArm]:
    """Two seeds of a positional arm, with soft states and snapshots."""
    policy = TrainingPolicy(steps=STEPS, batch_size=192, learning_rate=5e-3, log_every=30, held_out=0.3, dead_after=5000, snapshots=2)
    runs = [ArmRun(f"seed{seed}", Positional(features=30, k=2, groups="positions"), seed) for seed in (0, 1)]
    return list(train_arms(store, runs, policy, tmp_path_factory.mktemp("arms")).values())


@pytest.fixture(scope="module")
def held_out(store: ActivationStore) -> np.ndarray:
    return store.split(0.3, 0).held_out


@pytest.fixture(scope="module")
def states(store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray) -> tuple[Examined, Examined]:
    """Soft and hard."""
    soft = load_dictionary(seeds[0].folder / "soft")
    return tuple(measure(one, HeldOut(store, held_out), POLICY) for one in (soft, seeds[0].dictionary))


class TestHardening:
    def test_nothing_is_lost_where_nothing_changes(self, states: tuple[Examined, Examined]) -> None:
        change = compare_states(states[1], states[1], POLICY)
        assert change.pattern.profile.value == pytest.approx(1) and change.pattern.set_retention.value == 1
        assert change.firing_overlap.value == 1 and change.strength.value == pytest.approx(1)
        assert change.fve_gap == (0, 0, 0, states[1].errors.tokens.sum()) and change.l0_gap.value == 0
        assert change.pattern.specialised_before == change.pattern.specialised_after > 0

    def test_soft_and_hard_are_two_states_of_one_dictionary(self, states: tuple[Examined, Examined], held_out: np.ndarray) -> None:
        change = compare_states(*states, POLICY)
        assert 0.5 < change.firing_overlap.value < 1 and change.fve_before != change.fve_after
        assert change.pattern.profile.value > 0.8 and change.pattern.set_retention.value > 0.8
        assert change.fve_gap.value == pytest.approx(change.fve_after - change.fve_before)
        for estimate in (change.pattern.set_retention, change.fve_gap, change.l0_gap, change.firing_overlap, change.pattern.profile):
            assert estimate.low <= estimate.value <= estimate.high and estimate.n > 0

    def test_the_study_gets_hardening_and_annealing(self, store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray) -> None:
        snapshots = snapshots_of(seeds[0].folder)
        soft = load_dictionary(seeds[0].folder / "soft")
        measures = measure_positions(seeds[0].dictionary, store, held_out, POLICY, soft=soft, snapshots=snapshots)
        assert isinstance(measures.hardening, Change) and sorted(measures.annealing) == sorted(snapshots)
        first = measures.annealing[min(snapshots)]
        assert first.firing_overlap.value < measures.hardening.firing_overlap.value  # the longer ago, the more has changed
        assert as_json(measures)["annealing"].keys() == {str(step) for step in snapshots}


class TestSeeds:
    def test_a_dictionary_agrees_with_its_own_shuffled_copy(
        self, store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray, states: tuple[Examined, Examined]
    ) -> None:
        one = seeds[0].dictionary
        order = torch.randperm(one.features, generator=torch.Generator().manual_seed(0))
        other = load_dictionary(seeds[0].folder)
        with torch.no_grad():
            for name in ("encoder", "encoder_bias", "decoder"):
                getattr(other, name).copy_(getattr(one, name)[order])
            other.mask.logits.copy_(one.mask.logits[:, order])
        agreement = compare_seeds((one, states[1]), (other, measure(other, HeldOut(store, held_out), POLICY)), POLICY)
        assert agreement.matched == agreement.measured > 15 and agreement.cosine == pytest.approx(1)
        assert agreement.pattern.profile.value == pytest.approx(1)
        assert agreement.pattern.set_retention.value > 0.9  # shifts are the same, features only stand elsewhere

    def test_another_seed_finds_most_of_the_world_again(
        self, store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray, states: tuple[Examined, Examined]
    ) -> None:
        first, second = (arm.dictionary for arm in seeds)
        agreement = compare_seeds((first, states[1]), (second, measure(second, HeldOut(store, held_out), POLICY)), POLICY)
        assert 3 <= agreement.matched <= agreement.measured and 0.5 < agreement.cosine <= 1
        assert agreement.pattern_matched.pairs == agreement.matched and agreement.pattern_matched.profile_specialised.value > 0.6
        assert agreement.pattern.pairs > agreement.matched and agreement.pattern.profile.value < agreement.pattern_matched.profile.value
        assert agreement.pattern.set_retention.n == agreement.pattern.specialised_before


class TestPatterns:
    def of(self, codes: np.ndarray) -> Examined:
        firings = firings_of(codes.reshape(-1, codes.shape[2]), codes.shape[1])
        one = np.ones((40, codes.shape[1]))
        return Examined(firings, discover(firings, POLICY), DocumentErrors(one, one, one, one, one))

    def test_sets_and_profiles_are_compared_pair_by_pair(self) -> None:
        """Three windows and three flat features; afterwards, one window has opened, and two features have changed places."""
        generator = np.random.default_rng(0)
        rate = np.full((6, 20), 0.12)
        for feature in range(3):
            rate[feature] = 0
            rate[feature, 3 + 4 * feature : 9 + 4 * feature] = 0.4
        opened = rate.copy()
        opened[1] = 0.12
        draw = generator.random((160, 20, 6))
        before, after = self.of((draw < rate.T) * 1.0), self.of((draw < opened.T) * 1.0)
        every = np.arange(6)
        pattern = compare_patterns(before, after, every, every, POLICY)
        assert (pattern.pairs, pattern.specialised_before, pattern.specialised_after) == (6, 3, 2)
        assert pattern.set_retention.value == pytest.approx(2 / 3) and pattern.set_chance == pytest.approx(2 / 6)
        assert pattern.profile.n == 6 and pattern.profile_specialised.n == 3 and 0.6 < pattern.profile_specialised.value < 0.95
        crossed = compare_patterns(before, before, every, np.array([3, 4, 5, 0, 1, 2]), POLICY)
        assert crossed.set_retention.value == 0 and crossed.profile.value < 0.5

    def test_a_feature_that_falls_silent_counts_as_lost(self) -> None:
        generator = np.random.default_rng(1)
        rate = np.zeros((2, 20))
        rate[:, 3:9] = 0.4
        codes = (generator.random((160, 20, 2)) < rate.T) * 1.0
        silent = codes.copy()
        silent[:, :, 1] = 0
        before, after = self.of(codes), self.of(silent)
        change = compare_states(before, after, POLICY)
        assert change.pattern.pairs == 1 and change.pattern.set_retention.value == 0.5
        assert change.firing_overlap.value == pytest.approx(codes[:, 1:, 0].sum() / codes[:, 1:].sum())


class TestDocumentErrors:
    def test_totals_are_those_of_the_reconstruction(self, store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray) -> None:
        dictionary: Dictionary = seeds[0].dictionary
        errors, found = errors_by_document(dictionary, store, held_out), evaluate_reconstruction(dictionary, store, held_out, 1.0)
        assert errors.fve()[0] == pytest.approx(found.fve, rel=1e-6) and errors.l0()[0] == pytest.approx(found.l0)
        np.testing.assert_allclose(errors.loss_by_position()[0, 1:], found.position_loss[1:], rtol=1e-5)
        np.testing.assert_allclose(errors.unexplained_by_position()[0, 1:], 1 - np.array(found.position_fve[1:], float), rtol=1e-4)
        assert errors.tokens.sum() == found.held_out_tokens and len(errors.tokens) == len(
            np.unique(store.sequence_table.document[held_out])
        )
        assert np.isnan(errors.loss_by_position()[0, 0])

    def test_a_resample_is_the_dictionary_on_other_documents(
        self, store: ActivationStore, seeds: list[TrainedArm], held_out: np.ndarray
    ) -> None:
        documents = store.sequence_table.document[held_out]
        names = np.unique(documents)
        errors = errors_by_document(seeds[0].dictionary, store, held_out)
        times = np.zeros((1, len(names)), dtype=np.int64)
        times[0, :10] = 1
        part = evaluate_reconstruction(seeds[0].dictionary, store, held_out[np.isin(documents, names[:10])], 1.0)
        assert errors.l0(times)[0] == pytest.approx(part.l0)
        np.testing.assert_allclose(errors.loss_by_position(times)[0, 1:], part.position_loss[1:], rtol=1e-5)


def test_features_have_no_partner_where_none_of_the_other_seed_was_measured() -> None:
    match = match_features(np.zeros((2, 0)), np.zeros(0, dtype=bool))
    assert not match.assigned.any() and not match.matched.any()
