"""Whether masks and weights follow difficulty, and whether masks agree with firing: against answers that are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.standard import Standard, StandardDictionary
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.firings import profile
from temporallens.evaluation.heldout import HeldOut, find_firings
from temporallens.evaluation.positions.correlations import MaskAgreement, correlate_positions, mask_agreement
from temporallens.evaluation.positions.specialisation import PositionsPolicy
from temporallens.training.finishing import TrainedArm

POSITIONS, DOCUMENTS = 12, 30
POLICY = PositionsPolicy(resamples=60, least_firings=40)


def errors_of(difficulty: np.ndarray, noise: float, seed: int = 0) -> DocumentErrors:
    """Documents of 8 tokens per position, whose errors are a position's difficulty and noise of their own."""
    generator = np.random.default_rng(seed)
    tokens = np.full((DOCUMENTS, POSITIONS), 8.0)
    tokens[:, 0] = 0
    error = tokens * (difficulty + noise * generator.random((DOCUMENTS, POSITIONS)))
    square = 5 * tokens
    return DocumentErrors(tokens, error, square, square * np.linspace(1, 3, POSITIONS), tokens)


class TestPositions:
    def test_weights_that_follow_difficulty_correlate_fully(self) -> None:
        difficulty = np.linspace(1, 2, POSITIONS) ** 2
        found = correlate_positions(errors_of(difficulty, 0.0), None, difficulty, POLICY)
        assert found.weight_loss == (pytest.approx(1), pytest.approx(1), pytest.approx(1), POSITIONS - 1)
        assert found.openness_loss.value is None and found.openness_loss.n == 0 and found.documents == DOCUMENTS

    def test_openness_against_difficulty_is_negative(self) -> None:
        difficulty = np.linspace(2, 1, POSITIONS)
        found = correlate_positions(errors_of(difficulty, 0.1), np.linspace(0.2, 1, POSITIONS), None, POLICY)
        assert found.openness_loss.value == pytest.approx(-1, abs=0.05) and found.openness_unexplained.value < -0.9

    def test_noisy_errors_widen_the_interval(self) -> None:
        difficulty, weights = np.linspace(1, 1.3, POSITIONS), np.linspace(1, 2, POSITIONS)
        widths = []
        for noise in (0.3, 3.0):
            estimate = correlate_positions(errors_of(difficulty, noise), None, weights, POLICY).weight_loss
            assert estimate.low <= estimate.value <= estimate.high <= 1
            widths.append(estimate.high - estimate.low)
        assert widths[1] > 2 * widths[0]

    def test_what_does_not_vary_has_no_correlation(self) -> None:
        found = correlate_positions(errors_of(np.linspace(1, 2, POSITIONS), 0.1), None, np.ones(POSITIONS), POLICY)
        assert found.weight_loss == (None, None, None, POSITIONS - 1)

    def test_unexplained_is_relative_to_the_position(self) -> None:
        """Loss rises with the variance of a position, of which each leaves the same share."""
        errors = errors_of(5 * 0.1 * np.linspace(1, 3, POSITIONS), 0.0)
        np.testing.assert_allclose(errors.unexplained_by_position()[0, 1:], 0.1)
        rising = correlate_positions(errors, None, np.linspace(1, 2, POSITIONS), POLICY)
        assert rising.weight_loss.value == pytest.approx(1)


class Gated(StandardDictionary):
    """A ReLU dictionary under any gates."""

    masked = True

    def __init__(self, width: int, features: int, gates: Tensor) -> None:
        super().__init__(width, Standard(features=features), torch.Generator().manual_seed(0))
        self._gates = gates

    def codes(self, x: Tensor, positions: Tensor | None) -> Tensor:
        assert positions is not None
        return self.ungated(x, positions) * self._gates[positions]

    def ungated(self, x: Tensor, positions: Tensor, tokens: object = None) -> Tensor:
        del positions
        return (self.pre_activations(x) - 0.6).relu()

    def gates_by_position(self) -> Tensor:
        return self._gates


def agreement_of(store: ActivationStore, gates: Tensor) -> tuple[MaskAgreement | None, Gated]:
    entries = np.arange(store.sequences)
    dictionary = Gated(store.width, gates.shape[1], gates)
    return mask_agreement(dictionary, HeldOut(store, entries), profile(find_firings(dictionary, store, entries)), POLICY), dictionary


class TestMasks:
    def test_a_mask_that_is_open_where_features_would_fire_agrees(self, store: ActivationStore) -> None:
        entries = np.arange(store.sequences)
        features = 24
        opened = Gated(store.width, features, torch.ones(store.positions, features))
        would = HeldOut(store, entries).ungated(opened).fired
        rate = would / np.maximum(would.max(0), 1)
        right = torch.from_numpy((rate >= POLICY.agreement).astype(np.float32))
        right[0] = 1
        agreement, dictionary = agreement_of(store, right)
        assert agreement is not None and agreement.auroc_ungated > 0.95 and agreement.auroc > 0.95
        assert agreement.closed_mass == HeldOut(store, entries).ungated(dictionary).closed_mass and agreement.closed_mass < 0.1
        wrong, _ = agreement_of(store, torch.cat([right[:1], 1 - 0.9 * right[1:]]))
        assert wrong is not None and wrong.auroc_ungated < 0.1 and wrong.closed_mass > 0.5

    def test_a_random_mask_agrees_by_chance_with_what_would_fire(self, store: ActivationStore) -> None:
        gates = (torch.rand(store.positions, 24, generator=torch.Generator().manual_seed(1)) < 0.6).float()
        agreement, _ = agreement_of(store, gates)
        assert agreement is not None and agreement.closed_entries == pytest.approx(0.4, abs=0.1)
        assert abs(agreement.auroc_ungated - 0.5) < 0.1 < agreement.auroc - 0.5  # a closed entry cannot fire, whatever it is worth

    def test_entries_are_groups_of_positions_with_equal_gates(self, store: ActivationStore, trained: dict[str, TrainedArm]) -> None:
        held_out = store.split(0.5, 0).held_out
        dictionary = trained["positional"].dictionary
        found = profile(find_firings(dictionary, store, held_out))
        agreement = mask_agreement(dictionary, HeldOut(store, held_out), found, POLICY)
        assert agreement is not None and agreement.entries <= 4 * int((found.firings >= POLICY.least_firings).sum())

    def test_no_mask_no_agreement(self, store: ActivationStore, trained: dict[str, TrainedArm]) -> None:
        dictionary, held_out = trained["batchtopk"].dictionary, store.split(0.5, 0).held_out
        assert mask_agreement(dictionary, HeldOut(store, held_out), profile(find_firings(dictionary, store, held_out)), POLICY) is None
