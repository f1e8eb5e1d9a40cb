"""What is weighed by position: adaptive weights, budgets of codes, per-position means and scales."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.activations.moments import MomentSums
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.budgeted import Budgeted
from temporallens.dictionaries.arms.position_mean import PositionMean
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.budgets import apportioned, rows_at
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.training.history import load_history
from temporallens.training.objective import Inputs
from temporallens.training.policy import TrainingPolicy
from temporallens.training.scales import position_scales
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms
from temporallens.training.weights import DECAY, HIGHEST, LOWEST, PositionWeights

POSITIONS, WIDTH = 9, 6


def followed(share, losses, steps: int = 1) -> PositionWeights:
    """Weights after a loss of `losses[p]` at each position, NaN for one without tokens."""
    losses = torch.as_tensor(losses)
    weights = PositionWeights(torch.as_tensor(share), torch.ones(len(losses)))
    seen = (~losses.isnan()).nonzero()[:, 0]
    for _ in range(steps):
        weights.follow(losses[seen], seen, rows_at(seen, len(losses)).float())
    return weights


@given(
    losses=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20),
    shares=st.lists(st.floats(0.01, 1), min_size=20, max_size=20),
)
@settings(max_examples=200)
def test_weights_have_mean_one_over_tokens_and_stay_within_their_bounds(losses, shares):
    share = torch.tensor(shares[: len(losses)], dtype=torch.float64)
    share /= share.sum()
    weights = followed(share, losses).weights
    assert float((share * weights).sum()) == pytest.approx(1, abs=1e-6)
    assert weights.min() >= LOWEST
    assert weights.max() <= HIGHEST
    order = np.argsort(losses)
    assert (np.diff(weights.numpy()[order]) >= -1e-6).all()  # a harder position never counts less


def test_weights_between_the_bounds_are_in_proportion_to_the_losses():
    weights = followed([0.25] * 4, [3.0, 4.0, 5.0, 4.0]).weights
    torch.testing.assert_close(weights, torch.tensor([0.75, 1.0, 1.25, 1.0]))


def test_the_average_is_corrected_for_its_start_and_moves_only_where_there_are_tokens():
    share, variance = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 10.0, 1.0])
    weights = PositionWeights(share, variance)
    assert (weights.weights == 1).all()
    position = torch.tensor([0, 0, 1])
    weights.follow(torch.tensor([1.0, 3.0, 20.0]), position, torch.tensor([2.0, 1.0, 0.0]))
    torch.testing.assert_close(weights.weights, torch.ones(3))  # 2 at both in units of their variance; no evidence at the third
    weights.follow(torch.tensor([1.0, 1.0]), position[:2], torch.tensor([2.0, 0.0, 0.0]))
    first = (DECAY * (1 - DECAY) * 2 + (1 - DECAY)) / (1 - DECAY**2)
    factor = 0.75 / (0.5 * first + 0.25 * 2)
    torch.testing.assert_close(weights.weights, torch.tensor([first * factor, 2 * factor, 1.0]))


def test_budgets_sum_to_k_per_row_and_follow_the_weights():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        count = torch.randint(0, 9, (POSITIONS,), generator=generator)
        count[3] += 1
        weights = 0.5 + 1.5 * torch.rand(POSITIONS, generator=generator)
        budgets = apportioned(weights, count, 5)
        assert int(budgets.sum()) == 5 * int(count.sum())
        wanted = weights * count * 5 * count.sum() / (weights * count).sum()
        assert (budgets - wanted).abs().max() <= 1
        assert (budgets[count == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [2, 30])
def test_each_position_keeps_its_largest_codes(dtype, k):
    generator = torch.Generator().manual_seed(1)
    dictionary = Budgeted(features=40, k=k).make(WIDTH, POSITIONS, generator)
    dictionary.encoder_dtype = dtype
    dictionary.follow_weights(torch.linspace(0.5, 1.5, POSITIONS))
    for batch in range(6):  # the floor for candidates comes from a sample first, then from batches of another scale
        positions = torch.randint(1, POSITIONS, (50,), generator=generator).sort().values
        x = torch.randn(50, WIDTH, generator=generator) * (1 + positions[:, None]) * (3.0 if batch == 4 else 1.0)
        forward = dictionary.training_forward(x, positions)
        dense = dictionary.pre_activations(x).relu().detach()
        budgets = apportioned(dictionary.weights, rows_at(positions, POSITIONS), k)
        expected = torch.zeros_like(dense)
        for position in positions.unique():
            rows = (positions == position).nonzero()[:, 0]
            values = dense[rows]
            kept = min(int(budgets[position]), int((values > 0).sum()))
            smallest = values.flatten().sort(descending=True).values[kept - 1]
            expected[rows] = values * (values >= smallest)
        assert torch.equal(forward.active, (expected > 0).sum(1).float())
        torch.testing.assert_close(forward.reconstruction, dictionary.reconstruct(expected), rtol=1e-4, atol=1e-4)


def test_budgeted_codes_are_above_their_positions_threshold_dense_and_sparse():
    dictionary = Budgeted(features=40, k=3).make(WIDTH, POSITIONS, torch.Generator().manual_seed(0))
    dictionary.thresholds[1:] = torch.linspace(0.2, 2.0, POSITIONS - 1)
    dictionary.threshold.fill_(0.9)
    x, positions = torch.randn(60, WIDTH), torch.randint(0, POSITIONS + 4, (60,))
    limits = torch.cat([torch.tensor([0.9]), dictionary.thresholds[1:], dictionary.thresholds[-1:].expand(4)])[positions]
    expected = dictionary.pre_activations(x).relu().detach()
    expected *= expected > limits[:, None]
    torch.testing.assert_close(dictionary.encode(x, positions).detach(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(x, positions), expected, rtol=1e-4, atol=1e-5)
    dictionary.position_policy = "mean"
    assert ((dictionary.encode(x) > 0) == (dictionary.pre_activations(x) > 0.9)).all()


def test_a_budgeted_dictionary_is_saved_and_folded_whole(tmp_path):
    arm = Budgeted(features=20, k=3)
    dictionary = arm.make(WIDTH, POSITIONS, torch.Generator().manual_seed(0))
    x, positions = torch.randn(80, WIDTH) + 3, torch.arange(80) % POSITIONS
    ordered = positions.sort()
    dictionary.finish((x[ordered.indices] - 3) / 2, ordered.values)
    dictionary.finished()
    before = dictionary.encode((x - 3) / 2, positions)
    dictionary.fold(torch.full((WIDTH,), 3.0), 0.5)
    torch.testing.assert_close(dictionary.encode(x, positions), before * 2)
    save_dictionary(dictionary, tmp_path / "saved", arm, POSITIONS)
    assert torch.equal(load_dictionary(tmp_path / "saved").encode(x, positions), dictionary.encode(x, positions))


def moments_of(x, positions, known: int = POSITIONS):
    sums = MomentSums(known, x.shape[1])
    sums.add(x, positions, torch.zeros_like(positions))
    return sums.moments()


def test_position_scales_are_the_means_and_scales_of_positions_drawn_towards_all():
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(1, POSITIONS).repeat(500)
    offset, spread = 3 * torch.randn(POSITIONS, WIDTH, generator=generator), torch.linspace(0.5, 2, POSITIONS)
    x = offset[positions] + spread[positions, None] * torch.randn(len(positions), WIDTH, generator=generator)
    moments = moments_of(x, positions)
    inputs = Inputs(moments.pooled_mean().float(), 0.5)
    scales = position_scales(moments, inputs)
    entered = (inputs.normalise(x) - scales.offset[positions]) * scales.gain[positions, None]
    size = torch.stack([entered[positions == p].square().sum(1).mean().sqrt() for p in range(1, POSITIONS)])
    centre = torch.stack([entered[positions == p].mean(0) for p in range(1, POSITIONS)])
    assert centre.abs().max() < 0.02
    np.testing.assert_allclose(size, size.mean(), rtol=0.01)
    before = (inputs.normalise(x) - scales.offset[positions]).square().sum(1).mean().sqrt()
    assert float(size.mean()) == pytest.approx(float(before), rel=0.01)  # pooled, what is left keeps its scale
    assert not scales.offset[0].any()
    assert scales.gain[0] == 1
    np.testing.assert_allclose(scales.variance[1:], WIDTH * (0.5 * spread[1:]) ** 2, rtol=0.1)
    assert float(scales.share.sum()) == pytest.approx(1)


def test_few_tokens_are_not_believed_and_noise_is_no_difference():
    generator = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(POSITIONS - 1).repeat(400), torch.tensor([POSITIONS - 1])])
    x = torch.randn(len(positions), 200, generator=generator) + 0.3 * torch.randn(POSITIONS, 200, generator=generator)[positions]
    moments = moments_of(x, positions)
    inputs = Inputs(moments.pooled_mean().float(), 1.0)
    scales, deviation = position_scales(moments, inputs), moments.mean - moments.pooled_mean()
    kept = scales.offset.norm(dim=1) / deviation.norm(dim=1)
    share = 400 / (400 + 1 / 0.09)
    np.testing.assert_allclose(kept[:-1], share, rtol=0.02)
    assert float(kept[-1]) == pytest.approx(1 / (1 + 1 / 0.09), rel=0.2)
    assert 0.7 < float(scales.gain[-1]) < 1.4  # its own variance, of one token, is 0
    half = torch.randn(400, 6, generator=generator)
    alike = moments_of(torch.cat([half, -half]), torch.arange(400).repeat(2) % POSITIONS)  # every position's mean is 0
    scales = position_scales(alike, Inputs(alike.pooled_mean().float(), 1.0))
    assert not scales.offset.any()
    torch.testing.assert_close(scales.gain, torch.ones(POSITIONS))
    constant = moments_of(torch.ones(20, 2), torch.arange(20) % 2)
    assert all(bool(torch.isfinite(column).all()) for column in position_scales(constant, Inputs(torch.zeros(2), 1.0)))


def positional_store(folder):
    """Activations with an offset and a loudness for each position."""
    generator = np.random.default_rng(3)
    directions = generator.normal(size=(40, WIDTH * 3))
    codes = (generator.random((200, POSITIONS, 40)) < 0.1) * generator.random((200, POSITIONS, 40))
    loud = np.linspace(0.5, 2, POSITIONS)[:, None]
    x = 3 * generator.normal(size=(POSITIONS, WIDTH * 3)) + loud * (codes @ directions)
    return ActivationStore.from_arrays(x.astype(np.float32), folder, documents=np.arange(200) % 20)


@pytest.fixture(scope="module")
def offsets(tmp_path_factory):
    return positional_store(tmp_path_factory.mktemp("offsets") / "store")


POLICY = TrainingPolicy(steps=120, batch_size=128, learning_rate=3e-3, log_every=10)


@pytest.fixture(scope="module")
def weighed(offsets, tmp_path_factory):
    arms = {
        "plain": Standard(features=64, sparsity=0.5),
        "shared": Standard(features=64, sparsity=0.5, position_weights=True, position_sparsity="shared"),
        "own": Standard(features=64, sparsity=0.5, position_sparsity="own"),
        "budgeted": Budgeted(features=64, k=4),
        "position_mean": PositionMean(features=64, k=4),
        "centred": PositionMean(features=64, k=4, centre="position"),
        "permuted": PositionMean(features=64, k=4, centre="position", permuted=True, position_weights=True),
    }
    runs = [ArmRun(name, arm, 0) for name, arm in arms.items()]
    return train_arms(offsets, runs, POLICY, tmp_path_factory.mktemp("weighed"))


def history(arm):
    return load_history(arm.folder / "history.safetensors")


def test_the_history_records_weights_where_there_are_any(weighed):
    count = history(weighed["plain"])["position_count"].sum(0)
    for name, column in (
        ("shared", "position_weight"),
        ("shared", "sparsity_weight"),
        ("own", "sparsity_weight"),
        ("budgeted", "position_weight"),
    ):
        weight = history(weighed[name])[column]
        assert weight.std() > 0.01, name
        assert weight.min() >= LOWEST
        assert weight.max() <= HIGHEST
        assert (weight[:, 0] == 1).all()  # position 0 is not trained on
        np.testing.assert_allclose(weight @ count / count.sum(), 1, atol=0.02)
    assert (history(weighed["plain"])["position_weight"] == 1).all()
    assert (history(weighed["own"])["position_weight"] == 1).all()
    assert np.array_equal(history(weighed["shared"])["position_weight"], history(weighed["shared"])["sparsity_weight"])


def test_weights_of_their_own_follow_how_large_codes_are(weighed):
    weight = history(weighed["own"])["sparsity_weight"][-1, 1:]
    assert np.corrcoef(weight, np.arange(1, POSITIONS))[0, 1] > 0.8  # later positions are louder


def test_budgets_move_codes_to_hard_positions_and_keep_their_mean(weighed):
    columns = history(weighed["budgeted"])
    np.testing.assert_allclose(columns["l0"], 4, rtol=1e-6)
    used, weight = columns["position_l0"][-1, 1:], columns["position_weight"][-2:, 1:].mean(0)
    np.testing.assert_allclose(used, 4 * weight, rtol=0.05)
    codes = weighed["budgeted"].dictionary.encode(torch.zeros(2, WIDTH * 3), torch.tensor([1, 2]))
    assert codes.shape == (2, 64)


def test_at_inference_a_position_uses_about_its_budget(weighed, offsets):
    rows = offsets.read(np.arange(200))
    kept = rows.excluded == 0
    codes = weighed["budgeted"].dictionary.encode(rows.x[kept].float(), rows.position[kept].long())
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(4, rel=0.07)
    assert (weighed["budgeted"].dictionary.thresholds[1:] > 0).all()


def test_per_position_means_are_worn_and_leave_less_to_explain(weighed, offsets):
    assert history(weighed["position_mean"])["mse_loss"][0] < 0.5 * history(weighed["budgeted"])["mse_loss"][0]
    dictionary = weighed["position_mean"].dictionary
    rows = offsets.read(np.arange(200))
    kept = rows.excluded == 0
    x, position = rows.x[kept].float(), rows.position[kept].long()
    left = dictionary.centre(x, position).norm(dim=1)
    by_position = [float(left[position == p].square().mean()) for p in range(1, POSITIONS)]
    assert max(by_position) < 1.3 * min(by_position)
    error = (dictionary(x, position).detach() - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(error) < 0.1
    assert not dictionary.position_offset.isnan().any()


def test_losses_of_a_centred_arm_are_in_the_units_of_all(weighed, offsets):
    """What the history calls the squared error is that of the reconstruction in normalised units, whatever the gain."""
    arm = weighed["position_mean"]
    rows = offsets.read(offsets.split(POLICY.held_out, POLICY.data_seed).train)
    kept = rows.excluded == 0
    x, position = rows.x[kept].float(), rows.position[kept].long()
    error = (arm.dictionary(x, position).detach() - x).square().sum(1) * arm.summary["scale"] ** 2
    logged = history(arm)
    assert float(error.mean()) == pytest.approx(float(logged["mse_loss"][-1]), rel=0.1)
    for p in range(1, POSITIONS):
        assert float(error[position == p].mean()) == pytest.approx(float(logged["position_loss"][-1, p]), rel=0.25)


def test_permuted_labels_say_nothing_and_the_history_is_by_true_position(weighed):
    plain, permuted = history(weighed["centred"]), history(weighed["permuted"])
    np.testing.assert_array_equal(plain["position_count"], permuted["position_count"])
    np.testing.assert_allclose(permuted["position_loss"][:3, 1:], plain["position_loss"][:3, 1:], rtol=0.1)
    assert np.abs(permuted["position_weight"][-1] - 1).max() < 0.15
    assert np.corrcoef(plain["position_loss"][-1, 1:], permuted["position_loss"][-1, 1:])[0, 1] > 0.9


def test_sharing_weights_that_do_not_exist_is_refused():
    with pytest.raises(TemporalLensError, match="shares the weights of the reconstruction, which position_weights = false switches off"):
        Standard(position_sparsity="shared")
    with pytest.raises(TemporalLensError, match="position"):
        PositionMean(centre="pooled")
