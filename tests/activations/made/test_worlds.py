"""Worlds with known answers: they are what they say, and a dictionary's scores in them mean what they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from temporallens.activations.made import worlds as synthetic
from temporallens.activations.made.worlds import CLASSES, Truth, WorldPolicy, harvest_world, read_truth, true_codes, truth_of, zipf_rates
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import StoreWriter
from temporallens.dictionaries.arms.standard import Standard, StandardDictionary
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.kinds import BatchTopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.known.worlds import groups_of, judge_mask, posthoc_mask, score_world
from temporallens.evaluation.matching import Match, match_features
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

SMALL: dict[str, Any] = {
    "width": 48, "features": 60, "positions": 32, "sequences": 600, "active": 2.0, "start": 6, "periods": (3, 5), "coherence": 0.45,
}  # fmt: skip
VARIANTS = ("known", "null", "shifted", "growing")


class Told(StandardDictionary):
    """A dictionary that was told the truth: its directions, what is active, and its mask."""

    masked = True

    def __init__(self, truth: Truth, gates: Tensor | None, codes: Tensor) -> None:
        super().__init__(truth.policy.width, Standard(features=truth.policy.features), torch.Generator().manual_seed(0))
        self._gates, self._codes, self._given = gates, codes, 0
        with torch.no_grad():
            self.decoder.copy_(torch.from_numpy(truth.directions))

    def codes(self, x: Tensor, positions: Tensor | None) -> Tensor:
        del positions
        nearest = torch.cdist(x, self._rows).argmin(1)
        return self._codes[nearest]

    def gates_by_position(self) -> Tensor | None:
        return self._gates


def told(store: ActivationStore, gates: Tensor | None = None) -> Told:
    truth = read_truth(store.folder)
    entries = np.arange(store.sequences)
    dictionary = Told(truth, gates, torch.from_numpy(true_codes(truth.policy, store.sequence_table.sequence)))
    dictionary._rows = store.read(entries).x
    return dictionary


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest_world(WorldPolicy(**SMALL), tmp_path_factory.mktemp("known") / "store")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest_world(WorldPolicy(**SMALL | {"sequences": 60}), tmp_path_factory.mktemp("few") / "store")


def features_of(truth: Truth, name: str) -> np.ndarray:
    return np.flatnonzero(truth.profiles.kind == CLASSES.index(name))


class TestTruth:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("growth", [1.0, 2.0])
    def test_mean_rates_depend_on_rank_and_not_on_class(self, variant: str, growth: float) -> None:
        policy = WorldPolicy(**SMALL, variant=variant, growth=growth)
        mean = truth_of(policy).profiles.rate[:, 1:].mean(1)
        by_rank = mean.reshape(-1, len(CLASSES))
        np.testing.assert_allclose(by_rank, by_rank[:, :1].repeat(len(CLASSES), 1), rtol=1e-12)
        assert mean.sum() == pytest.approx(policy.active)
        assert (np.diff(by_rank[:, 0]) <= 1e-15).all() and by_rank[0, 0] <= policy.highest_rate * (1 + 1e-12)

    def test_classes_are_what_they_are_called(self) -> None:
        policy = WorldPolicy(**SMALL)
        truth = truth_of(policy)
        rate, position = truth.profiles.rate[:, 1:], np.arange(1, policy.positions)
        assert (truth.profiles.rate[:, 0] == 0).all()
        assert (np.ptp(rate[features_of(truth, "global")], axis=1) < 1e-12).all()
        assert all(np.array_equal(lives, position <= policy.start) for lives in rate[features_of(truth, "start")] > 0)
        ramps = np.diff(rate[features_of(truth, "ramp")], axis=1)
        rising = (ramps > 0).all(1)
        assert (rising | (ramps < 0).all(1)).all() and rising.sum() == len(rising) // 2
        for feature in features_of(truth, "periodic"):
            period = truth.profiles.period[feature]
            assert period in policy.periods and len(set(position[rate[feature] > 0] % period)) == 1
        windows = features_of(truth, "window")
        widths = {round(share * (policy.positions - 1)) for share in policy.windows}
        for feature in windows:
            lives = position[rate[feature] > 0]
            assert len(lives) == truth.profiles.width[feature] and len(lives) in widths
            assert np.array_equal(lives, np.arange(lives[0], lives[-1] + 1)) and lives.mean() == truth.profiles.centre[feature]
        narrow = np.sort(truth.profiles.centre[windows][truth.profiles.width[windows] == min(widths)])
        assert narrow[1] - narrow[0] < narrow[-1] - narrow[-2]  # log-spaced

    def test_no_two_directions_are_nearer_than_stated(self) -> None:
        directions = truth_of(WorldPolicy(**SMALL | {"coherence": 0.3})).directions
        cosines = np.abs(directions @ directions.T) - np.eye(len(directions))
        assert cosines.max() <= 0.3 + 1e-6
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)

    def test_a_null_world_has_no_positional_class(self) -> None:
        known, null = truth_of(WorldPolicy(**SMALL)), truth_of(WorldPolicy(**SMALL, variant="null"))
        assert null.open[1:].all() and (null.profiles.kind == 0).all()
        assert np.array_equal(null.directions, known.directions) and np.array_equal(null.offset, known.offset)

    def test_a_shifted_world_is_the_known_one_with_its_clock_ahead(self) -> None:
        known, shifted = truth_of(WorldPolicy(**SMALL)), truth_of(WorldPolicy(**SMALL, variant="shifted", shift=7))
        lived = known.policy.positions - 1
        for p in range(1, lived + 1):
            clock = (p - 1 + 7) % lived + 1
            np.testing.assert_allclose(shifted.profiles.rate[:, p], known.profiles.rate[:, clock])
            np.testing.assert_array_equal(shifted.offset[p], known.offset[clock])
        divided = np.isnan(shifted.profiles.centre) & ~np.isnan(known.profiles.centre)
        assert divided.any() and np.array_equal(shifted.directions, known.directions)

    def test_the_offset_is_smooth_and_of_the_stated_norm(self) -> None:
        policy = WorldPolicy(**SMALL, offset=0.7)
        offset = truth_of(policy).offset.astype(np.float64)
        norm = np.sqrt(np.square(offset[1:]).sum(1).mean())
        assert norm == pytest.approx(0.7 * synthetic.signal_norm(policy), rel=1e-5)
        steps = np.linalg.norm(np.diff(offset[1:], axis=0), axis=1)
        assert steps[10:].max() < steps[0] and steps[10:].max() < 0.3 * norm

    @given(features=st.integers(5, 300), share=st.floats(0.01, 0.98), exponent=st.floats(0, 3), highest=st.floats(0.001, 1))
    def test_rates_sum_to_what_is_active_and_stop_at_the_highest(
        self, features: int, share: float, exponent: float, highest: float
    ) -> None:
        active = share * features * highest
        rates = zipf_rates(features, active, exponent, highest)
        assert rates.sum() == pytest.approx(active) and rates.max() <= highest * (1 + 1e-12) and rates.min() > 0
        free = rates < highest * (1 - 1e-9)
        law = rates[free] * (1.0 + np.arange(features)[free] // len(CLASSES)) ** exponent
        assert not len(law) or np.ptp(law) <= 1e-9 * law.max()

    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"coherence": 0.01}, "directions in 48 dimensions reach"),
            ({"active": 30.0}, "cannot come from 60 features"),
            ({"highest_rate": 0.5, "active": 12.0}, "feature would be active .* lower highest_rate"),
            ({"start": 31}, "leaves no position without"),
            ({"windows": (0.0,)}, "shares of the positions"),
            ({"periods": (1,)}, "lies between 2 and 31"),
            ({"shift": 3}, "goes with variant: shifted"),
            ({"positions": 10**9}, "60 features need a table of 60 by 1000000000"),
            ({"colour": 1}, "has no setting .colour"),
        ],
    )
    def test_an_impossible_world_is_refused_before_any_work(self, wrong: dict[str, Any], sentence: str) -> None:
        with pytest.raises(TemporalLensError, match=sentence):
            WorldPolicy(**SMALL | wrong)

    def test_directions_that_cannot_be_pushed_apart_are_refused(self, folder: Path) -> None:
        policy = WorldPolicy(width=4, features=12, positions=8, sequences=8, active=0.1, start=2, periods=(2,), coherence=0.427)
        with pytest.raises(TemporalLensError, match="could not be pushed apart"):
            harvest_world(policy, folder)
        assert not (folder / "manifest.json").exists()


class TestStore:
    def test_rows_are_made_of_what_was_active(self, known: ActivationStore) -> None:
        truth, chosen = read_truth(known.folder), np.array([3, 17, 18, 599])
        rows, codes = known.read(chosen), true_codes(read_truth(known.folder).policy, chosen)
        left = rows.x.numpy() - codes @ truth.directions - truth.offset[rows.position.numpy()]
        expected = truth.policy.noise * synthetic.signal_norm(truth.policy)
        assert np.sqrt(np.square(left).sum(1).mean()) == pytest.approx(expected, rel=0.05)
        assert ((rows.excluded > 0) == (rows.position == 0)).all() and (codes[rows.position.numpy() == 0] == 0).all()
        assert codes[codes > 0].min() >= synthetic.AMPLITUDE_FLOOR

    def test_features_fire_at_their_rates(self, known: ActivationStore) -> None:
        truth = read_truth(known.folder)
        active = (true_codes(truth.policy, known.sequence_table.sequence) > 0).reshape(600, 32, 60)
        rate = truth.profiles.rate.T
        spread = np.sqrt(rate * (1 - rate) / 600)
        z = (active.mean(0) - rate) / np.where(spread > 0, spread, 1)
        assert np.abs(z).max() < 5 and z[spread > 0].std() == pytest.approx(1, abs=0.1) and (active.mean(0)[rate == 0] == 0).all()

    def test_documents_of_four_sequences_stay_whole(self, known: ActivationStore) -> None:
        split = known.split(0.1, 0)
        assert known.documents == 150 and len(split.held_out) == 60
        assert set(known.sequence_table.sequence[split.held_out] // 4).isdisjoint(known.sequence_table.sequence[split.train] // 4)

    def test_the_same_policy_gives_the_same_bytes(self, folder: Path) -> None:
        policies = [WorldPolicy(**SMALL | {"sequences": 24}, seed=seed) for seed in (1, 1, 2)]
        stores = [harvest_world(policy, folder / str(number)) for number, policy in enumerate(policies)]
        first, same, other = [[shard.sha256 for shard in store.manifest.shards] for store in stores]
        assert first == same != other
        assert (folder / "0" / "truth.safetensors").read_bytes() == (folder / "1" / "truth.safetensors").read_bytes()

    def test_a_growing_world_has_rows_of_many_lengths_and_the_same_rates(self, folder: Path) -> None:
        policy = WorldPolicy(**SMALL, variant="growing")
        store = harvest_world(policy, folder)
        lengths = store.sequence_table.length
        assert lengths.min() == 8 and lengths.max() == 32 and store.rows == lengths.sum() == pytest.approx(policy.tokens, rel=0.05)
        count = store.moments.all_count.tolist()
        assert count[0] == 600 and count == sorted(count, reverse=True) and count[31] < 60
        rows, codes = store.read(np.arange(40)), true_codes(policy, np.arange(40))
        assert len(rows.x) == len(codes) and rows.index.tolist() == [i for length in lengths[:40] for i in range(length)]
        truth = read_truth(folder)
        left = rows.x.numpy() - codes @ truth.directions - truth.offset[rows.position.numpy()]
        assert np.linalg.norm(left, axis=1).max() < 1

    def test_a_sink_stands_at_the_excluded_position(self, folder: Path) -> None:
        store = harvest_world(WorldPolicy(**SMALL | {"sequences": 24}, sink=True), folder)
        norm = store.moments.all_norm
        assert norm[0] > 20 * norm[1:].max() and store.moments.count[0] == 0

    def test_a_finished_world_is_returned_and_another_refused(self, folder: Path) -> None:
        policy = WorldPolicy(**SMALL | {"sequences": 24})
        harvest_world(policy, folder)
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert harvest_world(policy, folder).rows == 24 * 32
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        with pytest.raises(TemporalLensError, match="already holds another store"):
            harvest_world(policy.model_copy(update={"seed": 1}), folder)

    @pytest.mark.parametrize("place", ["append", "finish"])
    def test_an_interrupted_world_is_not_a_store_and_is_made_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        policy = WorldPolicy(**SMALL | {"sequences": 600})
        whole = harvest_world(policy, folder / "whole")

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(StoreWriter, place, stop)
            with pytest.raises(KeyboardInterrupt):
                harvest_world(policy, folder / "stopped")
        with pytest.raises(TemporalLensError, match="not an activation store"):
            ActivationStore(folder / "stopped")
        again = harvest_world(policy, folder / "stopped")
        assert [shard.sha256 for shard in again.manifest.shards] == [shard.sha256 for shard in whole.manifest.shards]

    def test_a_strangers_truth_is_left_alone(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "truth.json").write_text('{"mine": 1}')
        with pytest.raises(TemporalLensError, match="not empty"):
            harvest_world(WorldPolicy(**SMALL | {"sequences": 24}), folder)
        assert (folder / "truth.json").read_text() == '{"mine": 1}'

    def test_a_damaged_truth_is_refused(self, folder: Path) -> None:
        harvest_world(WorldPolicy(**SMALL | {"sequences": 24}), folder)
        path = folder / "truth.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(TemporalLensError, match="checksum"):
            read_truth(folder)


class TestScores:
    def test_the_truth_itself_scores_full_marks(self, few: ActivationStore) -> None:
        truth = read_truth(few.folder)
        gates = torch.from_numpy(truth.open.astype(np.float32))
        scores = score_world(told(few, gates), few, few.split(0.4, 0).held_out)
        assert scores.mcc == pytest.approx(1) and scores.firing_f1 == scores.firing_f1_matched == 1
        assert scores.precision == 1 and scores.closed_mass == 0 and scores.duplicated == 0
        assert scores.matched == 1 - scores.dead / 60 and scores.truth_fve > 0.99
        assert scores.mask is not None and scores.posthoc.keys() == {"positions", "groups"}
        for part in ("matched", "limited", "assigned"):
            judged = scores.mask[part]
            assert judged["f1"] == judged["auroc"] == judged["f1_closed"] == 1
            assert judged["calibration"] == judged["brier"] == judged["false_closed"] == judged["closed_firings"] == 0
        windows = scores.mask["windows"]
        assert windows["windows"] == 12 and windows["centre"] == windows["width"] == windows["width_octaves"] == windows["closed"] == 0
        json.dumps(scores._asdict(), allow_nan=False)

    def test_with_enough_data_the_truths_own_firings_give_its_mask(self, known: ActivationStore) -> None:
        truth = read_truth(known.folder)
        active = true_codes(truth.policy, known.sequence_table.sequence).reshape(600, 32, 60) > 0
        found = posthoc_mask(active.mean(0), 0.05)
        assert ((found == truth.open)[1:]).mean() > 0.98 and not (found & ~truth.open)[1:].any()

    def test_an_ordinary_dictionary_of_chance_directions_scores_badly(self, few: ActivationStore) -> None:
        chance = Standard(features=60, sparsity=1.0).build(48, 32, torch.Generator().manual_seed(3))
        scores = score_world(chance, few, few.split(0.2, 0).held_out)
        assert scores.mcc < 0.55 and scores.matched == 0 == scores.precision and scores.firing_f1 is not None and scores.firing_f1 < 0.3
        assert scores.mask is None and scores.closed_mass is None and scores.posthoc.keys() == {"positions"}
        assert scores.firing_f1_matched is None
        json.dumps(scores._asdict(), allow_nan=False)

    def test_an_open_mask_loses_nothing_in_a_null_world(self, folder: Path) -> None:
        store = harvest_world(WorldPolicy(**SMALL | {"sequences": 60}, variant="null"), folder)
        half = torch.ones(32, 60)
        half[16:] = 0
        for gates, lost in ((torch.ones(32, 60), 0.0), (half, 0.5)):
            scores = score_world(told(store, gates), store, store.split(0.4, 0).held_out)
            assert scores.mask is not None and scores.closed_mass == pytest.approx(lost, abs=0.05)
            assert scores.mask["matched"]["false_closed"] == pytest.approx(lost, abs=0.02)
            assert scores.mask["matched"]["auroc"] is None and scores.mask["windows"]["windows"] == 0

    def test_scores_are_those_counted_by_hand(self) -> None:
        truth = truth_of(WorldPolicy(**SMALL))
        all_features = np.ones(60, bool)
        match = Match(np.arange(60), all_features, np.ones(60), all_features)
        gates = np.where(truth.open, 0.87, 0.33)
        gates[3, :20] = 1 - gates[3, :20]
        judged: Any = judge_mask(gates, gates, truth, match)["matched"]
        wanted, found = truth.open[1:], gates[1:] >= 0.5
        right, entries = (wanted & found).sum(), wanted.size
        assert judged["entries"] == entries and judged["f1"] == pytest.approx(2 * right / (wanted.sum() + found.sum()))
        assert judged["false_closed"] == pytest.approx((wanted & ~found).sum() / wanted.sum())
        assert judged["brier"] == pytest.approx(np.square(gates[1:] - wanted).mean())
        positives, negatives = gates[1:][wanted], gates[1:][~wanted]
        pairs = (positives[:, None] > negatives).mean() + (positives[:, None] == negatives).mean() / 2
        assert judged["auroc"] == pytest.approx(pairs)
        bins = [(gates[1:] >= low) & (gates[1:] < low + 0.1) for low in np.arange(10) / 10]
        error = sum(abs(gates[1:][b].mean() - wanted[b].mean()) * b.sum() for b in bins if b.any()) / entries
        assert judged["calibration"] == pytest.approx(error)

    def test_windows_are_measured_in_positions_and_octaves(self) -> None:
        truth = truth_of(WorldPolicy(**SMALL))
        one = np.zeros(60, bool)
        one[np.nanargmin(np.where(truth.profiles.kind == 1, truth.profiles.centre, np.nan))] = True
        match = Match(np.arange(60), one, np.ones(60), one)
        lives = np.flatnonzero(truth.open[:, one][:, 0])
        gates = truth.open.astype(np.float64)
        gates[lives[-1] + 1 : lives[-1] + 1 + len(lives), one] = 1  # twice as wide
        windows: Any = judge_mask(gates, gates, truth, match)["windows"]
        assert windows["width"] == len(lives) and windows["width_octaves"] == 1 and windows["centre"] == len(lives) / 2
        assert windows["centre_octaves"] == pytest.approx(np.log2((lives.mean() + len(lives) / 2) / lives.mean()))
        assert judge_mask(gates * 0, gates, truth, match)["windows"] == {
            "centre": None, "centre_octaves": None, "width": None, "width_octaves": None, "windows": 1, "closed": 1,
        }  # fmt: skip

    def test_a_dead_row_is_no_match_and_a_second_row_is_counted(self, few: ActivationStore) -> None:
        cosines = np.array([[0.95, 0.2, 0.1], [0.3, 0.99, 0.97]])
        match = match_features(cosines, np.array([False, True, True]))
        assert match.feature.tolist() == [0, 1] and match.matched.tolist() == [False, True]
        lone = match_features(cosines[:, 1:2], np.array([True]))
        assert lone.assigned.tolist() == [False, True] and lone.cosine.tolist() == [0.0, 0.99]
        dictionary = told(few)
        twice = torch.cat([dictionary.decoder.detach(), dictionary.decoder.detach()[:4]])
        dictionary.decoder, dictionary.encoder = torch.nn.Parameter(twice), torch.nn.Parameter(twice)
        dictionary._codes = torch.cat([dictionary._codes, dictionary._codes[:, :4]], 1)
        assert score_world(dictionary, few, few.split(0.5, 0).held_out).duplicated == 4

    @given(st.data())
    def test_groups_are_read_off_the_gates(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
        groups = np.concatenate([[0], np.repeat(np.arange(len(sizes)), sizes)])
        gates = np.eye(len(sizes))[groups]
        np.testing.assert_array_equal(groups_of(gates), groups)
        np.testing.assert_array_equal(groups_of(gates[1:], first=0), groups[1:])

    def test_position_0_is_a_group_of_its_own_where_it_counts(self) -> None:
        gates = np.eye(3)
        assert (groups_of(gates).tolist(), groups_of(gates, first=0).tolist()) == ([0, 0, 1], [0, 1, 2])
        assert groups_of(gates[:1]).tolist() == groups_of(gates[:1], first=0).tolist() == [0]

    def test_posthoc_closes_on_evidence_only(self) -> None:
        rates = np.array([[np.nan, np.nan], [0.5, 0], [0.01, 0], [np.nan, np.nan], [0.2, 0]])
        assert posthoc_mask(rates, 0.05)[1:].tolist() == [[True, True], [False, True], [True, True], [True, True]]


class TestTokensAndDynamics:
    def test_rows_are_what_token_and_row_before_say(self, tmp_path):
        policy = WorldPolicy(**SMALL | {"sequences": 240}, variant="dynamic", vocabulary=20, noise=0.0)
        store, truth = harvest_world(policy, tmp_path / "store"), truth_of(policy)
        assert truth.said is not None and truth.carried is not None
        rows = store.read(np.arange(12))
        x = rows.x.numpy() - truth.offset[rows.position] - truth.said[rows.token]
        deviation = x.reshape(12, policy.positions, policy.width)
        codes = true_codes(policy, np.arange(12)).reshape(12, policy.positions, -1) @ truth.directions
        np.testing.assert_allclose(deviation[:, 1:], codes[:, 1:] + deviation[:, :-1] @ truth.carried, atol=1e-4)
        assert read_truth(tmp_path / "store").said.shape == (20, policy.width)
        np.testing.assert_array_equal(np.unique(rows.token) < 20, True)

    @pytest.mark.slow
    def test_what_tokens_say_is_found_and_need_not_be_coded(self, tmp_path):
        policy = WorldPolicy(**SMALL | {"sequences": 800}, variant="dynamic", vocabulary=20, said=2.0, carried=0.7)
        store, truth = harvest_world(policy, tmp_path / "store"), truth_of(policy)
        arms = {"plain": BatchTopK(features=SMALL["features"], k=3)}
        for name, settings in {"token": {}, "both": {"past": ("previous",)}, "null": {"permuted": True}}.items():
            expectation = ExpectationPolicy(embedding=False, **settings)
            arms[name] = BatchTopK(features=SMALL["features"], k=3, expectation=expectation)
        runs = [ArmRun(name, arm, 0) for name, arm in arms.items()]
        policy_of_training = TrainingPolicy(steps=300, batch_size=256, learning_rate=0.005)
        trained = {name: run.dictionary for name, run in train_arms(store, runs, policy_of_training, tmp_path / "arms").items()}
        table = trained["token"].expectation.token.float().numpy()
        assert np.linalg.norm(table - truth.said) / np.linalg.norm(truth.said) < 0.1
        held_out = store.split(0.1, 0).held_out
        fve = {name: evaluate_reconstruction(dictionary, store, held_out, 1.0).fve for name, dictionary in trained.items()}
        assert fve["token"] > fve["plain"] + 0.05
        assert fve["both"] > fve["token"] + 0.01
        assert fve["null"] == pytest.approx(fve["plain"], abs=0.01)
