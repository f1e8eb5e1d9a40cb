"""Position metrics find what is there and nothing else, and measure how much of it there is."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from tools.positions import firings_of, turned

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings, profile
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.positions import shifts
from temporallens.evaluation.positions.section import measure_positions
from temporallens.evaluation.positions.specialisation import PositionsPolicy, Specialisation, measure_specialisation
from temporallens.evaluation.statistics import correlation, estimate_of, half_samples, q_values, resampled_documents
from temporallens.serial import as_json
from temporallens.training.finishing import TrainedArm

POSITIONS, SEQUENCES = 32, 160
QUICK = PositionsPolicy(further_draws=400, resamples=40)
WIDTHS = (4, 8, 16)


def shapes(windows: int, flat: int) -> np.ndarray:
    """`[F, P]` relative rates: windows of several widths, then features that live everywhere alike."""
    out = np.ones((windows + flat, POSITIONS))
    for number in range(windows):
        width = WIDTHS[number % len(WIDTHS)]
        first = 1 + number * (POSITIONS - 1 - width) // max(1, windows - 1)
        out[number] = 0
        out[number, first : first + width] = 1
    out[:, 0] = 0
    return out


def simulated(shape: np.ndarray, rate: float, seed: int, burstiness: float = 0.0) -> Firings:
    """Firings with known profiles. Bursty ones go on with probability one half, also from before the row, and some documents have
    more of a feature than others; their shape must be flat."""
    generator = np.random.default_rng(seed)
    often = shape / shape[:, 1:].mean(1, keepdims=True) * rate
    mood = np.exp(burstiness * generator.normal(size=(SEQUENCES // 4, 1, len(shape))) - burstiness**2 / 2).repeat(4, 0)
    active = generator.random((SEQUENCES, POSITIONS, len(shape))) < np.minimum(often.T * mood, 1.0)
    if burstiness:
        going = generator.random((SEQUENCES, len(shape))) < 2 * rate * mood[:, 0]  # about as often as in the long run
        going_on = generator.random(active.shape) < 0.5
        for _ in range(8):  # until it is stationary
            going = (generator.random(going.shape) < rate * mood[:, 0]) | (going & (generator.random(going.shape) < 0.5))
        for position in range(1, POSITIONS):
            active[:, position] |= going & going_on[:, position]
            going = active[:, position]
    amplitude = 1 + generator.exponential(0.5, active.shape)
    return firings_of((active * amplitude).reshape(-1, len(shape)), POSITIONS)


def information_of(rate: np.ndarray) -> np.ndarray:
    """I_f in bits of known rates `[F, P]`, all positions alike."""
    mean = rate.mean(1, keepdims=True)
    parts = stats.bernoulli(rate).entropy().mean(1), stats.bernoulli(mean[:, 0]).entropy()
    return (parts[1] - parts[0]) / math.log(2)


@pytest.fixture(scope="module")
def mixed() -> tuple[np.ndarray, Firings, Specialisation]:
    shape = shapes(36, 36)
    firings = simulated(shape, 0.08, 0)
    return shape, firings, measure_specialisation(firings, QUICK)


class TestDiscoveries:
    def test_windows_are_found_and_flat_features_are_not(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        _, _, measured = mixed
        assert len(measured.features.feature) == 72 and measured.features.firings.min() >= 200
        windows = measured.features.feature < 36
        assert measured.specialised[windows].mean() >= 0.95
        false = measured.specialised[~windows].sum() / max(1, measured.specialised.sum())
        assert false <= 0.05 and measured.share.value == measured.specialised.mean()

    def test_windows_of_features_with_just_enough_firings_are_found(self) -> None:
        firings = simulated(shapes(24, 24), 0.045, 1)
        measured = measure_specialisation(firings, QUICK)
        windows = measured.features.feature < 24
        assert windows.sum() >= 15 and measured.features.firings.mean() < 260
        assert measured.specialised[windows].mean() >= 0.95

    @pytest.mark.parametrize("burstiness", [0.0, 0.8])
    def test_nothing_is_found_where_nothing_is(self, burstiness: float) -> None:
        """P-values are uniform, bursts or not: 300 features, of which 5 % and 1 % may lie below .05 and .01."""
        measured = measure_specialisation(simulated(shapes(0, 300), 0.08, 2, burstiness), QUICK)
        p = measured.features.p
        assert len(p) == 300 and measured.specialised.sum() <= 2
        for level in (0.05, 0.01):
            assert stats.binomtest(int((p <= level).sum()), len(p), level, alternative="greater").pvalue > 0.001
        assert stats.kstest(p, "uniform").pvalue > 0.001

    def test_few_windows_among_many_flat_features_are_found(self) -> None:
        """With 200 draws no p-value is below 1/201, too large for 3 discoveries among 303: the fitted tail is needed."""
        measured = measure_specialisation(simulated(shapes(3, 300), 0.06, 3), QUICK)
        assert (1 / 201) * len(measured.features.p) / 3 > QUICK.q
        assert measured.specialised[:3].all() and measured.specialised[3:].sum() <= 1

    def test_a_turned_train_holds_nothing(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        firings = turned(mixed[1], np.random.default_rng(0))
        assert np.array_equal(firings.counts, mixed[1].counts)
        assert measure_specialisation(firings, QUICK).specialised.sum() <= 2

    def test_rows_of_unequal_lengths_are_no_specialisation(self) -> None:
        """Features that fire more in short rows are more frequent early on, but not because of position."""
        generator = np.random.default_rng(4)
        firings = simulated(shapes(0, 60), 0.1, 5)
        short = firings.sequence % 2 == 0
        firings = firings.of_rows(np.flatnonzero(~short | (firings.position < 12)))
        rare = (firings.sequence[firings.row] % 2 == 1) & (generator.random(len(firings.row)) < 0.6)
        firings = firings._replace(row=firings.row[~rare], feature=firings.feature[~rare], value=firings.value[~rare])
        early = profile(firings).rate[1:12].mean(0) / profile(firings).rate[12:].mean(0)
        assert early.mean() > 1.3  # a test that shuffled rows would find position everywhere
        assert measure_specialisation(firings, QUICK).specialised.sum() <= 1


class TestMeasures:
    def test_information_is_that_of_the_rates(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        shape, firings, measured = mixed
        true = information_of(np.minimum(shape / shape[:, 1:].mean(1, keepdims=True) * 0.08, 1.0)[:, 1:])
        plug_in = shifts.found_information(shifts.trains_of(firings, measured.features.feature))
        found, flat = measured.features.information, slice(36, None)
        assert abs((found - true).mean()) < 0.35 * (plug_in - true).mean()  # the bias is taken off; rather too much of narrow windows
        assert np.abs(found[:36] / true[:36] - 1).max() < 0.25
        assert abs(found[flat].mean()) < 4 * found[flat].std() / 6 and plug_in[flat].min() > 0

    def test_specialisation_and_eta2_are_those_of_the_profile(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        shape, _, measured = mixed
        width = shape[:36].sum(1)
        expected = 1 - np.log(width) / math.log(POSITIONS - 1)
        np.testing.assert_allclose(measured.features.specialisation[:36], expected, atol=0.06)
        np.testing.assert_allclose(measured.features.specialisation[36:], 0, atol=0.03)
        np.testing.assert_allclose(measured.features.eta2[36:], 0, atol=0.01)
        rate, square = 0.08 * 31 / width, 2.5  # mean square of 1 + exponential(1/2); its mean is 1.5
        between = (0.08 * 1.5) ** 2 * (31 / width - 1)
        np.testing.assert_allclose(measured.features.eta2[:36], between / (0.08 * square - (0.08 * 1.5) ** 2), rtol=0.25)
        assert (rate <= 1).all()

    def test_a_formula_by_hand(self) -> None:
        fired, count = np.array([[3, 0, 1], [2, 2, 2]]), np.array([4, 4, 4])
        mean = 4 / 12
        by_hand = sum(
            (q * math.log(q / mean) if q else 0) + ((1 - q) * math.log((1 - q) / (1 - mean)) if q < 1 else 0) for q in (0.75, 0, 0.25)
        ) / (3 * math.log(2))
        np.testing.assert_allclose(shifts.information(fired, count), [by_hand, 0], atol=1e-12)
        np.testing.assert_allclose(
            shifts.specialisation(fired.astype(float), count),
            [1 - (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(3), 0],
            atol=1e-12,
        )
        np.testing.assert_allclose(shifts.eta2(fired.astype(float), count, np.array([4.0, 6.0])), [(10 / 4 - 16 / 12) / (4 - 16 / 12), 0])

    def test_reliability_tells_signal_from_noise(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        reliability = mixed[2].features.reliability
        assert reliability[:36].min() > 0.6 and abs(reliability[36:].mean()) < 0.1

    def test_intervals_hold_the_truth_and_shrink_with_documents(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        shape, firings, measured = mixed
        true = information_of(np.minimum(shape / shape[:, 1:].mean(1, keepdims=True) * 0.08, 1.0)[:, 1:]).mean()
        low, high = measured.information.low, measured.information.high
        assert low is not None and high is not None and low < true < high and measured.information.n == 72
        few = measure_specialisation(firings.of_rows(np.flatnonzero(firings.document < 10)), QUICK.model_copy(update={"least_firings": 20}))
        assert few.information.low is not None and few.information.high is not None
        assert few.information.high - few.information.low > 1.4 * (high - low)

    def test_the_same_question_gets_the_same_answer(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        again = measure_specialisation(mixed[1], QUICK)
        assert again.share == mixed[2].share and again.features.columns() == mixed[2].features.columns()


class TestNull:
    @given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
    @settings(max_examples=25)
    def test_a_draw_turns_every_sequence_and_nothing_else(self, seed: int, lengths: list[int]) -> None:
        generator = np.random.default_rng(seed)
        rows = sum(lengths)
        row, feature = (generator.random((rows, 3)) < 0.5).nonzero()
        position = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
        sequence = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
        firings = Firings(
            row.astype(np.int32), feature.astype(np.int32), np.ones(len(row), np.float32), position, position, sequence, sequence, sequence,
            np.full(rows, -1, np.int32), 3, 9,
        )  # fmt: skip
        trains = shifts.trains_of(firings, np.arange(3))
        (place,) = shifts._turned(trains, 1, generator)
        for number, length in enumerate(lengths):
            there = place[sequence == number]
            assert np.array_equal(np.sort(there), np.arange(length)) and np.array_equal(np.roll(there, -there.argmin()), np.arange(length))

    def test_a_fitted_tail_is_where_many_draws_are(self) -> None:
        """Of sums of squares, which the statistic is like, the tail fitted to 2,000 draws is right to a factor of 2 at 1e-3."""
        generator = np.random.default_rng(0)
        weight = np.array([5.0, 3, 2, 1, 1, 1, 0.5, 0.5])
        draws = generator.chisquare(1, (200_000, 8)) @ weight
        far = np.quantile(draws, [0.99, 0.999])
        for attempt in range(20):
            few = draws[attempt * 2000 : (attempt + 1) * 2000, None].repeat(2, 1)
            p = shifts._judge(far, few)
            assert 0.005 < p.p[0] < 0.02 and 0.0003 < p.p[1] < 0.003
            np.testing.assert_allclose(p.tail.above(p.tail.at(0.01)), 0.01, rtol=1e-6)

    def test_draws_that_do_not_differ_decide_nothing(self) -> None:
        found = np.array([0.5])
        judged = shifts._judge(found, np.full((200, 1), 0.5))
        assert judged.p[0] == 1 and judged.tail.at(0.01)[0] == 0.5


class TestStatistics:
    def test_q_values_control_what_they_say(self) -> None:
        np.testing.assert_allclose(q_values(np.array([0.01, 0.04, 0.03, 0.5])), [0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
        assert len(q_values(np.empty(0))) == 0

    def test_an_interval_without_documents_is_none(self) -> None:
        generator = np.random.default_rng(0)
        assert resampled_documents(1, 50, generator).shape == (0, 1) and half_samples(1, 50, generator).shape == (0, 1)
        assert estimate_of(0.5, np.empty(0), 3) == (0.5, None, None, 3) and estimate_of(math.nan, np.ones(5), 0) == (None, None, None, 0)
        assert estimate_of(0.99, np.array([0.0, 0.1]), 3, (0, 1)).high == 1

    def test_halves_are_halves(self) -> None:
        halves = half_samples(9, 30, np.random.default_rng(0))
        assert (halves.sum(1) == 4).all() and len(np.unique(halves, axis=0)) > 15

    def test_half_samples_vary_as_samples_do(self) -> None:
        generator = np.random.default_rng(0)
        data = generator.normal(size=(200, 40))
        halves = half_samples(40, 400, generator)
        spread = (data @ halves.T / 20).std(1)
        assert spread.mean() == pytest.approx(data.mean(1).std(), rel=0.15)

    def test_correlation_of_a_row_that_does_not_vary_is_none(self) -> None:
        left = np.array([[1.0, 2, 3], [1, 1, 1]])
        found = correlation(left, left)
        assert found[0] == pytest.approx(1) and np.isnan(found[1])


class TestBadInput:
    @pytest.mark.parametrize("wrong", [{"draws": 100}, {"q": 0.2}, {"colour": 1}, {"resamples": 1}])
    def test_an_impossible_policy_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(TemporalLensError):
            PositionsPolicy(**wrong)

    def test_too_few_tokens_everywhere_are_refused(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        firings = mixed[1].of_rows(np.flatnonzero(mixed[1].sequence < 8))
        with pytest.raises(TemporalLensError, match=r"no position has 20 held-out tokens \(the largest number is 8\)"):
            measure_specialisation(firings, QUICK)

    def test_features_without_firings_enough_leave_nothing_and_say_so(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        measured = measure_specialisation(mixed[1], QUICK.model_copy(update={"least_firings": 10**6}))
        assert measured.share == (None, None, None, 0) and measured.features.columns().q == []

    def test_rare_positions_are_left_out(self, mixed: tuple[np.ndarray, Firings, Specialisation]) -> None:
        firings = mixed[1]
        few = firings.of_rows(np.flatnonzero((firings.position < 20) | (firings.sequence < 10)))
        measured = measure_specialisation(few, QUICK)
        assert measured.positions == 19 and measured.tokens == 19 * SEQUENCES


class TestTrainedDictionaries:
    def test_measures_of_a_trained_dictionary_are_json(self, store: ActivationStore, trained: dict[str, TrainedArm]) -> None:
        held_out, policy = store.split(0.5, 0).held_out, QUICK.model_copy(update={"least_firings": 60})
        measures = measure_positions(
            trained["positional"].dictionary, store, held_out, policy, weights=np.linspace(0.5, 2, store.positions),
            other_seeds=[trained["batchtopk"].dictionary],
        )  # fmt: skip
        content = json.loads(json.dumps(as_json(measures), allow_nan=False))
        assert content["documents"] == 12 and content["positions"] == store.positions - 1
        assert content["specialised"]["n"] == len(content["features"]["feature"]) > 5
        assert content["specialised"]["low"] <= content["specialised"]["value"] <= content["specialised"]["high"]
        assert content["hardening"] is None and content["annealing"] == {} and len(content["seeds"]) == 1
        assert content["mask"]["entries"] > 0 and content["correlations"]["weight_loss"]["n"] == store.positions - 1

    def test_half_of_the_features_of_this_store_live_in_the_first_half(
        self, store: ActivationStore, trained: dict[str, TrainedArm]
    ) -> None:
        held_out = store.split(0.9, 0).held_out
        dictionary = trained["batchtopk"].dictionary
        assert isinstance(dictionary, BatchTopKDictionary)
        firings = find_firings(dictionary, store, held_out)
        measured = measure_specialisation(firings, QUICK.model_copy(update={"least_firings": 100}))
        rate = profile(firings).rate[:, measured.features.feature]
        early = rate[1:8].mean(0) > 5 * rate[8:].mean(0)
        assert early.sum() >= 5 and measured.specialised[early].all()
