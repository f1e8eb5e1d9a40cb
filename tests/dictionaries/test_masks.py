"""Position masks: schedule, what logits learn from, both gates, shapes, fixed masks, reopening, centring, saving, refusals."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.conftest import LENGTH, POLICY, WIDTH
from torch import Tensor
from torch.nn import functional

from temporallens.dictionaries.arms.posthoc import PostHocDictionary
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.kinds import BatchTopK, Positional, PositionalReLU, PostHoc, RandomMask, Sliced
from temporallens.dictionaries.masks import PositionMask, group_of_position, group_starts, smooth_basis
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.dictionaries.sparse import select_largest_static
from temporallens.dictionaries.steps import Dead, Progress
from temporallens.errors import TemporalLensError
from temporallens.training.objective import RowWeights, inputs_for, objective
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms
from temporallens.training.views import View

FEATURES, K, ROWS = 20, 3, 32
SOME = Progress(40, 100)
"""A step at which masks of the default schedule learn."""


def positional(**options) -> Positional:
    return Positional(**{"features": FEATURES, "k": K, "groups": 4} | options)


def built(arm: ArmConfig, seed: int = 0, place: Progress = SOME) -> Dictionary:
    """A dictionary in the middle of its schedule, with every weight, logit, offset and gain away from its start."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = arm.make(WIDTH, LENGTH, generator)
    for bias in (dictionary.encoder_bias, dictionary.decoder_bias):
        bias.data = 0.3 * torch.randn(bias.shape, generator=generator)
    if hasattr(dictionary, "mask"):
        dictionary.mask.logits.data.normal_(generator=generator)
    if arm.centre != "pooled":
        gain = 0.5 + torch.rand(LENGTH, generator=generator)
        dictionary.centre_by_position(
            torch.randn(LENGTH, WIDTH, generator=generator), gain if arm.centre == "position_scaled" else torch.ones(LENGTH)
        )
    dictionary.advance(place)
    return dictionary


def exact(arm: ArmConfig, seed: int = 0, place: Progress = SOME) -> Dictionary:
    dictionary = built(arm, seed, place).double()
    dictionary.encoder_dtype = torch.float64
    dictionary.normalise_decoder()  # rows have norm 1 in float32 only
    if isinstance(arm, Positional):  # every entry may be judged
        dictionary.firings.fill_(1e6)
        dictionary.searched.fill_(1e6)
    return dictionary


def batch(rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (torch.arange(rows) * LENGTH) // rows


def dense_codes(d: Dictionary, x: Tensor, positions: Tensor) -> Tensor:
    """What the gates make of pre-activations, as the formulas have it."""
    pre, table = (x - d.decoder_bias) @ d.encoder.T + d.encoder_bias, d.mask.table()
    if d.mask.hard:
        return pre.relu() * d.mask.open()[d.mask.groups(positions)]
    if d.config.gate == "log":
        openness = functional.logsigmoid(table / d.mask.temperature)
        return (pre + d.config.tau * (openness - openness.max(0).values)[d.mask.groups(positions)]).relu()
    gates = torch.sigmoid(table / d.mask.temperature)
    if d.config.mask_gradient == "difference":
        gates = (2 * gates).clamp(max=1)
    return pre.relu() * gates[d.mask.groups(positions)]


def largest(codes: Tensor) -> Tensor:
    smallest = codes.detach().flatten().sort(descending=True).values[K * len(codes) - 1]
    return codes * (codes.detach() >= smallest)


def content(folder) -> tuple[bytes, ...]:
    return tuple((folder / name).read_bytes() for name in ("cfg.json", "sae_weights.safetensors", "history.safetensors", "training.json"))


@given(positions=st.integers(2, 300), groups=st.integers(1, 40))
@settings(max_examples=100)
def test_groups_divide_the_positions_in_ascending_runs(positions, groups):
    if groups > positions - 1:
        with pytest.raises(TemporalLensError, match="cannot divide"):
            group_starts(positions, groups)
        return
    group_of = group_of_position(positions, groups)
    assert group_of[0] == 0
    assert (group_of.diff() >= 0).all()
    assert group_of.unique().tolist() == list(range(groups))


def test_a_free_table_has_one_group_per_position():
    assert group_of_position(5, "positions").tolist() == [0, 1, 2, 3, 4]
    assert PositionMask(LENGTH, positional(groups="positions")).table().shape == (LENGTH, FEATURES)


def test_a_smooth_mask_is_a_few_bumps_and_a_constant_and_stays_as_it_is_at_its_end():
    mask = PositionMask(LENGTH, positional(groups="smooth", bumps=5, length=64))
    assert mask.logits.shape == (6, FEATURES)
    assert mask.table().shape == (64, FEATURES)
    assert mask.groups(torch.tensor([0, 63, 64, 100_000])).tolist() == [0, 63, 63, 63]
    basis = smooth_basis(2048, 9)
    assert (basis[:, 0] == 1).all()
    assert (basis[:, 1:] >= 0).all()
    u = np.log1p(np.arange(2048)) / np.log1p(2048)
    inner = (u > 1 / 8) & (u < 7 / 8)
    torch.testing.assert_close(basis[inner, 1:].sum(1), torch.full((int(inner.sum()),), 2.0))  # no position counts for more
    assert basis[1024:].diff(dim=0).abs().max() < 0.01  # late positions change slowly
    d = built(positional(groups="smooth"))
    x = batch()[0].float()
    assert torch.equal(d.encode(x, torch.full((ROWS,), 10_000)), d.encode(x, torch.full((ROWS,), LENGTH - 1)))


@pytest.mark.parametrize("full", [False, True])
def test_a_mask_sharpens_as_the_temperature_falls_and_hardens_to_zero_and_one(full):
    mask = PositionMask(LENGTH, positional(features=2, k=1), full)
    assert torch.equal(mask.gates(), torch.full((4, 2), 1.0 if full else 0.5))
    mask.logits.data[:] = torch.tensor([[-1.0, 1.0], [2.0, 1.0], [0.0, 1.0], [-2.0, 1.0]])
    soft = mask.gates()
    mask.temperature.fill_(0.1)
    sharp = mask.gates()
    closing = mask.logits < 0
    assert (sharp[closing] < soft[closing]).all()
    assert (sharp[~closing] >= soft[~closing]).all()
    mask.hard = True
    assert torch.equal(mask.gates(), torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]))


@given(
    groups=st.sampled_from([1, 3, 8, "positions", "smooth"]),
    strictness=st.sampled_from(["hard", "straight_through"]),
    shift=st.floats(-60, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_no_feature_is_closed_everywhere(groups, strictness, shift, seed):
    mask = PositionMask(LENGTH, positional(groups=groups, strictness=strictness))
    mask.logits.data = torch.randn(mask.logits.shape, generator=torch.Generator().manual_seed(seed)) + shift
    mask.hard = True
    gates = mask.gates()
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert gates.any(0).all()


@pytest.mark.parametrize("strictness", ["hard", "soft", "straight_through"])
@pytest.mark.parametrize("gate", ["multiplicative", "log"])
def test_the_mask_warms_up_anneals_exponentially_and_hardens(strictness, gate):
    dictionary = built(positional(strictness=strictness, gate=gate, mask_warmup=0.2, harden_at=0.8))
    mask, (x, positions) = dictionary.mask, batch()
    for step in range(0, 100, 5):
        dictionary.advance(Progress(step, 100))
        annealed = min(1, max(0, (step - 20) / 60))
        assert float(mask.temperature) == pytest.approx(5.0 * (0.1 / 5.0) ** annealed)
        dictionary.zero_grad(set_to_none=True)
        dictionary.training_forward(x.float(), positions).reconstruction.square().sum().backward()
        assert dictionary.encoder.grad.any()
        learns = step >= 20 and (step < 80 or strictness != "hard")
        assert (mask.logits.grad is not None) == learns
        assert mask.hard == {"hard": step >= 80, "soft": False, "straight_through": step >= 20}[strictness]
        if mask.hard:
            assert set(mask.gates().unique().tolist()) <= {0.0, 1.0}
    assert dictionary.temperature == pytest.approx(0.0 if strictness == "hard" else 0.1)


def test_logits_keep_their_start_through_the_warm_up_and_their_end_under_the_hard_mask(store):
    """Under Adam, a gradient of zero would still move what has moved before."""
    arm = positional(reopen_every=10_000)
    trainee = Trainee(ArmRun("run", arm, 0), WIDTH, LENGTH, POLICY, torch.device("cpu"))
    x, positions = batch(128)
    logits = []
    for step in range(100):
        trainee.step(View(x.float(), positions, positions, None), Progress(step, 100))
        logits.append(trainee.dictionary.mask.logits.detach().clone())
    assert not logits[9].any()
    assert logits[10].any()
    assert not torch.equal(logits[79], logits[78])
    assert torch.equal(logits[99], logits[79])


LEARNERS = {
    "multiplicative": {},
    "log": {"gate": "log"},
    "straight_through": {"strictness": "straight_through"},
    "straight_through_log": {"strictness": "straight_through", "gate": "log"},
    "positions": {"groups": "positions"},
    "smooth": {"groups": "smooth"},
    "nothing_asked": {"least_share": 0.0},
}


@pytest.mark.parametrize("centre", ["pooled", "position_scaled"])
@pytest.mark.parametrize("options", LEARNERS.values(), ids=LEARNERS)
def test_logits_learn_the_loss_without_each_code_less_the_loss_with_it(options, centre):
    arm = positional(features=10, centre=centre, **options)
    d, (x, positions) = exact(arm, place=Progress(50, 100)), batch(12)
    weights = RowWeights(gain=d.gain(positions))
    objective(d, d.training_forward(x, positions), x, positions, 0.0, 0.0, None, weights).loss.backward()

    with torch.no_grad():
        codes = largest(dense_codes(d, x, positions))
        units = torch.ones(12) if weights.gain is None else weights.gain**2

        def loss(changed: Tensor) -> Tensor:
            return ((x - changed @ d.decoder - d.decoder_bias).square().sum(1) / units).mean()

        group, table = d.mask.groups(positions), d.mask.table()
        saved = torch.zeros_like(table)
        for row, feature in codes.nonzero().tolist():
            without = codes.clone()
            without[row, feature] = 0
            saved[group[row], feature] += loss(without) - loss(codes)
        share = torch.bincount(group, minlength=len(table)).double() / 12
        expected = arm.least_share * share[:, None] * saved.sum(0).clamp(min=0) - saved
        expected = expected if d.mask.basis is None else d.mask.basis.T @ expected
    assert (saved > 0).any()
    assert (saved < 0).any()
    torch.testing.assert_close(d.mask.logits.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [4, "smooth"])
def test_an_entry_is_not_pressed_to_close_before_firings_were_to_be_expected_of_it(groups):
    gradients = []
    for firings in (0.0, 11.0, 13.0):  # a quarter of them are to be expected of each group
        d, (x, positions) = exact(positional(features=10, groups=groups)), batch(12)
        d.firings.fill_(firings)
        ((x - d.training_forward(x, positions).reconstruction) ** 2).sum().backward()
        gradients.append(d.mask.logits.grad.clone())
    unseen, few, enough = gradients
    assert torch.equal(unseen, few) and (enough > 0).any()
    if groups == 4:
        of_group = torch.bincount(d.mask.groups(positions), minlength=4)[:, None]
        asked = (enough - unseen) / of_group  # least_share of what each feature earned, by the group's share of the tokens
        torch.testing.assert_close(asked, asked[:1].expand_as(asked))
        assert (asked >= 0).all() and (asked > 0).any()
    else:
        assert torch.equal(unseen, enough)  # a smooth mask has no entry of its own


@pytest.mark.parametrize("mask_gradient", ["difference", "derivative"])
@pytest.mark.parametrize("groups", [4, "smooth"])
def test_the_rest_learns_from_the_derivative_and_so_do_logits_where_it_is_asked_for(mask_gradient, groups):
    d, (x, positions) = exact(positional(groups=groups, mask_gradient=mask_gradient)), batch()
    codes = largest(dense_codes(d, x, positions))
    assert int((codes > 0).sum()) == K * ROWS
    plain = (x - codes @ d.decoder - d.decoder_bias).square().sum()
    ours = (x - d.training_forward(x, positions).reconstruction).square().sum()
    torch.testing.assert_close(ours, plain)
    same = [parameter for name, parameter in d.named_parameters() if mask_gradient == "derivative" or name != "mask.logits"]
    for mine, theirs in zip(torch.autograd.grad(ours, same), torch.autograd.grad(plain, same), strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("gate", ["multiplicative", "log"])
@pytest.mark.parametrize("groups", [4, "positions", "smooth"])
@pytest.mark.parametrize("hard", [False, True])
def test_codes_are_the_formula_in_training_and_at_inference_on_every_path(gate, groups, hard):
    d, (x, positions) = exact(positional(gate=gate, groups=groups, tau=1.5)), batch(200)
    d.mask.hard = hard
    formula = dense_codes(d, x, positions).detach()
    with torch.no_grad():
        chosen = d.training_codes(x, positions)
    found = torch.zeros_like(formula).index_put((chosen.pattern.row, chosen.pattern.feature), chosen.values)
    torch.testing.assert_close(found, largest(formula))
    pre = d.pre_activations(x).detach()
    static = select_largest_static([(pre, d.modulate(pre, positions))], K * 200, partial(d.scale, positions=positions))  # in float32
    on_devices = torch.zeros_like(formula).index_put((static.pattern.row, static.pattern.feature), static.values.detach().double())
    torch.testing.assert_close(on_devices, found, rtol=1e-5, atol=1e-6)
    d.threshold.fill_(0.7)
    expected = formula * (formula > 0.7)
    assert expected.any()
    torch.testing.assert_close(d.encode(x, positions).detach(), expected)  # dense, with gradients
    for order in (torch.arange(200), torch.randperm(200, generator=torch.Generator().manual_seed(0))):
        with torch.no_grad():
            torch.testing.assert_close(d.encode(x[order], positions[order]), expected[order])


def test_a_log_gate_leaves_a_feature_alone_where_it_is_most_open_and_becomes_the_hard_mask():
    d, (x, positions) = exact(positional(gate="log")), batch(200)
    best = d.mask.table().argmax(0)
    pre, codes = d.pre_activations(x).relu(), d.encode(x, positions)
    at_best = d.mask.groups(positions)[:, None] == best
    torch.testing.assert_close(codes[at_best], pre[at_best])
    assert (codes <= pre).all()
    d.mask.temperature.fill_(1e-6)
    cold = d.encode(x, positions)
    d.mask.hard = True
    torch.testing.assert_close(cold, d.encode(x, positions))


MASKED = {
    "soft": (positional(strictness="soft"), Progress(90, 100)),
    "log": (positional(gate="log"), SOME),
    "hard": (positional(), Progress(90, 100)),
    "straight_through": (positional(strictness="straight_through"), SOME),
    "relu": (PositionalReLU(features=FEATURES, groups=4), Progress(90, 100)),
    "sliced": (Sliced(features=FEATURES, k=K, groups=4, shared=0.5), SOME),
    "random": (RandomMask(features=FEATURES, k=K, groups=4, openness=0.5), SOME),
}


@pytest.mark.parametrize(("arm", "place"), MASKED.values(), ids=MASKED)
def test_a_closed_entry_teaches_its_feature_nothing(arm, place):
    d = built(arm, place=place)
    if hasattr(d, "mask"):
        d.mask.logits.data[0, :10] = -50.0
        d.mask.logits.data[:, 10:] = 1.0
    shut = d.gates_by_position()[0] < 0.01
    assert 0 < shut.sum() < FEATURES
    x = batch(80)[0].float()
    late, early = torch.full((40,), LENGTH - 1), torch.zeros(40, dtype=torch.long)
    d.training_forward(x[:40], early).reconstruction.square().sum().backward()
    for name in ("encoder", "encoder_bias", "decoder"):
        gradient = getattr(d, name).grad
        assert not gradient[shut].any(), name
        assert gradient[~shut].any(), name
    with torch.no_grad():
        assert not d.encode(x[:40], early)[:, shut].any()
    d.zero_grad()
    rows = d.training_forward(x, torch.cat([early, late])).reconstruction.square().sum(1)
    rows[:40].sum().backward()
    assert not d.encoder.grad[shut].any()


def test_auxk_revives_a_feature_only_where_it_is_open():
    d = built(Sliced(features=FEATURES, k=K, groups=4, shared=0.5), place=SOME)
    x = batch(40)[0].float()
    shut = ~d.open[0]
    dead, early = Dead(torch.arange(FEATURES), torch.ones(FEATURES)), torch.zeros(40, dtype=torch.long)
    d.auxiliary(x, early, x, dead).sum().backward()
    for name in ("encoder", "encoder_bias"):
        gradient = getattr(d, name).grad
        assert not gradient[shut].any(), name
        assert gradient[~shut].any(), name


def fitted(**options) -> tuple[Dictionary, Tensor, Tensor]:
    """Feature i is the i-th axis; the first three are closed in the last of two groups, in which 64 of 128 tokens lie."""
    d = positional(features=8, k=2, groups=2, **options).make(WIDTH, LENGTH, torch.Generator().manual_seed(0))
    d.advance(SOME)
    d.encoder.data, d.decoder.data = torch.eye(8, WIDTH), torch.eye(8, WIDTH)
    d.encoder.data[2] = d.encoder.data[0]  # fires with feature 0, and its direction is never missing
    d.mask.logits.data[1, :3] = -50.0
    positions = torch.tensor([1] * 64 + [LENGTH - 1] * 64)
    x = torch.zeros(128, WIDTH)
    x[:, 0] = 3.0  # everywhere
    x[:64, 1] = 3.0  # only where feature 1 is open
    return d, x, positions


def residual_of(d: Dictionary, x: Tensor, positions: Tensor) -> Tensor:
    gates = d.mask.gates()[d.mask.groups(positions)] > 0.01
    return x - (d.pre_activations(x).relu() * gates * (torch.arange(8) != 2)) @ d.decoder


def look(d: Dictionary, x: Tensor, positions: Tensor, place: Progress) -> None:
    forward = d.training_forward(x, positions)
    d.threshold.fill_(1.0)  # codes here are all alike, none of them above the smallest
    d.observe(x, positions, forward, residual_of(d, x, positions), place)


def test_an_entry_is_reopened_where_its_feature_is_missed_and_only_there():
    d, x, positions = fitted()
    look(d, x, positions, Progress(39, 100))
    assert d.mask.logits[1, 0] == 0
    assert (d.mask.logits[1, 1:3] == -50).all()
    assert not d.missed[1, 0]
    assert d.searched.tolist() == [64, 64]


@pytest.mark.parametrize(("options", "step"), [({}, 38), ({"mask_warmup": 0.5}, 39), ({"reopen_every": 3}, 39)])
def test_entries_are_searched_only_when_it_is_time(options, step):
    d, x, positions = fitted(**options)
    look(d, x, positions, Progress(step, 100))
    assert (d.mask.logits[1, :3] == -50).all()
    assert not d.searched.any()


@pytest.mark.parametrize(("early", "reopened"), [(16, (False, True, True)), (64, (False, False, False))])
def test_few_firings_reopen_nothing_until_there_are_more_and_rare_ones_nothing_at_all(early, reopened):
    """A feature is missed in two of 64 tokens; where it is open it has been needed in `early` of 64."""
    d, x, positions = fitted()
    x[early:64, 0] = 0
    x[66:, 0] = 0
    for search, expected in enumerate(reopened):
        look(d, x, positions, Progress(10 * search + 19, 100))
        assert bool(d.mask.logits[1, 0] == 0) == expected


def test_a_smooth_mask_needs_no_reopening():
    d = built(positional(groups="smooth"))
    before = d.mask.logits.detach().clone()
    x, positions = batch()
    d.observe(x.float(), positions, d.training_forward(x.float(), positions), x.float(), Progress(39, 100))
    assert torch.equal(d.mask.logits, before)


@given(features=st.integers(1, 60), groups=st.integers(1, 15), shared=st.floats(0, 1))
@settings(max_examples=100)
def test_slices_are_disjoint_cover_what_is_not_shared_and_differ_by_one_feature_at_most(features, groups, shared):
    arm = Sliced(features=features, k=1, groups=groups, shared=shared)
    own = features - arm.shared_features
    if 0 < own < groups:
        with pytest.raises(TemporalLensError, match=f"{own} features cannot be dealt out to {groups} groups"):
            arm.make(4, 16, torch.Generator())
        return
    gates = arm.make(4, 16, torch.Generator()).gates()
    assert (gates[:, : arm.shared_features] == 1).all()
    assert (gates[:, arm.shared_features :].sum(0) == 1).all()
    sizes = gates[:, arm.shared_features :].sum(1)
    assert sizes.max() - sizes.min() <= 1


@pytest.fixture(scope="module")
def fixed(store, tmp_path_factory):
    """Trained side by side: BatchTopK, and arms of which training must be its own to the bit or stay within a mask."""
    calls = []
    finish = PostHocDictionary.finish

    def recording(self, x, positions):
        calls.append((x.clone(), positions.clone()))
        finish(self, x, positions)

    arms = {
        "batchtopk": BatchTopK(features=48, k=K),
        "sliced": Sliced(features=48, k=K, groups=4, shared=1),
        "pure": Sliced(features=48, k=K, groups=4, shared=0),
        "random_mask": RandomMask(features=48, k=K, groups=4, openness=(0.1, 0.25, 0.5, 1.0)),
        "posthoc": PostHoc(features=48, k=K, groups=4, cut=0.2),
    }
    policy = POLICY.model_copy(update={"steps": 60})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PostHocDictionary, "finish", recording)
        trained = train_arms(store, [ArmRun(name, arm, 0) for name, arm in arms.items()], policy, tmp_path_factory.mktemp("fixed"))
    return trained, calls


@pytest.mark.parametrize("name", ["sliced", "posthoc"])
def test_what_is_open_everywhere_trains_as_batchtopk_to_the_bit(fixed, name):
    trained, _ = fixed
    own, plain = trained[name].dictionary.state_dict(), trained["batchtopk"].dictionary.state_dict()
    for tensor in plain:
        assert torch.equal(own[tensor], plain[tensor]), tensor


def test_a_post_hoc_mask_is_open_where_the_firing_rate_is(fixed, store):
    trained, calls = fixed
    d = trained["posthoc"].dictionary
    moments = store.moments_of(store.split(POLICY.held_out, POLICY.data_seed).train)
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    fired, seen, group_of = np.zeros((4, 48)), np.zeros(4), group_of_position(LENGTH, 4)
    assert len(calls) == 32
    for x, positions in calls:
        pre = d.pre_activations(x / inputs.scale + inputs.centre)  # in raw units, as the dictionary now is
        in_use = (largest(pre.relu().detach()) > 0).double().numpy()
        np.add.at(fired, group_of[positions].numpy(), in_use)
        np.add.at(seen, group_of[positions].numpy(), 1)
    rate = fired / seen[:, None]
    near = np.abs(rate - 0.2 * rate.max(0)) < 2e-3 * rate.max(0)  # where rounding may decide
    expected = rate >= 0.2 * rate.max(0)
    assert near.mean() < 0.05
    assert 0.05 < expected.mean() < 0.999
    np.testing.assert_array_equal(d.open.numpy()[~near], expected[~near])


def test_post_hoc_leaves_open_what_it_knows_nothing_of():
    d = PostHoc(features=FEATURES, k=K, groups=4).make(WIDTH, LENGTH, torch.Generator().manual_seed(0))
    d.encoder_bias.data[:5] = -100.0
    x = batch()[0].float()
    d.finish(x, torch.full((ROWS,), LENGTH - 1))
    d.finished()
    assert d.gates()[:3].all()  # no token
    assert d.gates()[:, :5].all()  # no firing


def test_a_random_mask_is_as_open_as_asked_in_every_group_and_the_same_for_every_seed():
    shares = (0.1, 0.25, 0.5, 1.0)
    arm = RandomMask(features=48, k=K, groups=4, openness=shares)
    dictionaries = [arm.make(WIDTH, LENGTH, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert dictionaries[0].gates().sum(1).tolist() == [round(share * 48) for share in shares]
    assert torch.equal(dictionaries[0].open, dictionaries[1].open)
    assert not torch.equal(dictionaries[0].open[0], dictionaries[0].open[1])
    plain = BatchTopK(features=48, k=K).make(WIDTH, LENGTH, torch.Generator().manual_seed(1))
    assert torch.equal(dictionaries[1].decoder, plain.decoder)
    everywhere = RandomMask(features=48, k=K, groups="positions", openness=0.25).make(WIDTH, LENGTH, torch.Generator())
    assert (everywhere.openness() == 0.25).all()
    assert RandomMask(features=9, k=1, groups=2, openness=0.01).make(WIDTH, LENGTH, torch.Generator()).open.any(1).all()


@pytest.mark.parametrize("name", ["pure", "random_mask", "posthoc"])
def test_codes_of_a_fixed_mask_stay_within_it(fixed, store, name):
    d = fixed[0][name].dictionary
    rows = store.read(np.arange(40))
    with torch.no_grad():
        used = d.encode(rows.x, rows.position) > 0
    assert used.any()
    assert not (used & (d.gates_by_position()[rows.position.long()] == 0)).any()
    if name == "pure":
        assert (d.gates().sum(0) == 1).all()


CENTRED = {
    "batchtopk": BatchTopK(features=FEATURES, k=K, centre="position"),
    "positional": positional(centre="position_scaled"),
    "relu": PositionalReLU(features=FEATURES, groups=4, centre="position_scaled"),
    "sliced": Sliced(features=FEATURES, k=K, groups=4, centre="position_scaled"),
}


@pytest.mark.parametrize("arm", CENTRED.values(), ids=CENTRED)
def test_per_position_centring_goes_in_and_out_in_any_units(arm):
    d, raw = exact(arm), exact(arm)
    if hasattr(d, "threshold"):
        d.threshold.fill_(0.4)
        raw.threshold.fill_(0.4)
    x, positions = batch()
    offset, gain = d.position_offset, d.position_gain
    by_hand = (x - offset[positions]) * gain[positions, None]
    torch.testing.assert_close(d.centre(x, positions), by_hand)
    torch.testing.assert_close(d.uncentre(d.centre(x, positions), positions), x)
    torch.testing.assert_close(d.centre(x, positions + 10 * LENGTH), (x - offset[-1]) * gain[-1])
    codes = d.encode(x, positions)
    assert codes.any()
    torch.testing.assert_close(codes, d.codes(by_hand, positions))
    inside = (codes @ d.decoder + d.decoder_bias) / gain[positions, None] + offset[positions]
    torch.testing.assert_close(d.decode(codes, positions), inside)
    centre, scale = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 0.3
    raw.fold(centre, scale)
    torch.testing.assert_close(raw.encode(x / scale + centre, positions), codes / scale)
    torch.testing.assert_close(raw(x / scale + centre, positions), inside / scale + centre)
    with pytest.raises(TemporalLensError, match="needs the positions"):
        raw.encode(x)


REFUSED = [
    (Positional, {"features": 8, "k": 9}, "k = 9 codes per token cannot come from 8 features"),
    (Sliced, {"features": 8, "k": 9}, "k = 9 codes per token cannot come from 8 features"),
    (Positional, {"temperature_start": -1.0}, "greater than 0"),
    (Positional, {"temperature_end": 0.0}, "greater than 0"),
    (Positional, {"temperature_start": 1.0, "temperature_end": 2.0}, "temperature_end = 2.0 is above temperature_start = 1.0"),
    (PositionalReLU, {"temperature_start": 1.0, "temperature_end": 2.0}, "temperature_end = 2.0 is above temperature_start = 1.0"),
    (Positional, {"mask_warmup": 0.8}, "mask_warmup = 0.8 is not below harden_at = 0.8"),
    (Positional, {"gate": "log", "mask_gradient": "derivative"}, "a log gate learns by difference only"),
    (Positional, {"strictness": "straight_through", "mask_gradient": "derivative"}, "a straight-through mask learns by difference only"),
    (Positional, {"strictness": "firm"}, "'hard', 'soft' or 'straight_through'"),
    (Positional, {"groups": "few"}, "'positions' or 'smooth'"),
    (Sliced, {"shared": 1.5}, "less than or equal to 1"),
    (Sliced, {"shared": -0.1}, "greater than or equal to 0"),
    (RandomMask, {"openness": 0.0}, "greater than 0"),
    (RandomMask, {"openness": 1.5}, "less than or equal to 1"),
    (PostHoc, {"cut": 1.0}, "less than 1"),
]


@pytest.mark.parametrize(("arm", "options", "sentence"), REFUSED)
def test_arms_that_contradict_themselves_are_refused(arm, options, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        arm(**options)


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (positional(groups=16), "16 groups cannot divide 16 positions: give 1 to 15, or 'positions'"),
        (positional(groups="positions", length=8), "length = 8 is below the data's 16 positions"),
        (positional(groups=8, length=8), "8 groups cannot divide 8 positions"),
        (PositionalReLU(groups=0), "0 groups cannot divide"),
        (Sliced(features=8, k=1, groups=8), "4 features cannot be dealt out to 8 groups"),
        (Sliced(features=16, k=5, groups=4, shared=0.0), "k = 5 codes per token cannot come from the 4 features that are open"),
        (RandomMask(features=16, k=5, groups=4, openness=0.25), "k = 5 codes per token cannot come from the 4 features that are open"),
        (PostHoc(groups=16), "16 groups cannot divide 16 positions"),
        (RandomMask(groups=4, openness=(0.5, 0.5)), "openness has 2 values for 4 groups of positions"),
    ],
)
def test_arms_that_do_not_fit_the_positions_are_refused(arm, sentence):
    with pytest.raises(TemporalLensError, match=sentence) as refusal:
        arm.make(WIDTH, LENGTH, torch.Generator())
    assert "\n" not in str(refusal.value)


SAVED = MASKED | {
    "derivative": (positional(strictness="soft", mask_gradient="derivative"), SOME),
    "log_hard": (positional(gate="log", centre="position_scaled"), Progress(90, 100)),
    "relu_soft": (PositionalReLU(features=FEATURES, groups="smooth", strictness="soft"), Progress(90, 100)),
    "table": (positional(groups="positions", length=40), Progress(90, 100)),
    "smooth": (positional(groups="smooth", bumps=4, length=40), SOME),
    "sliced_centred": (Sliced(features=FEATURES, k=2, groups="positions", shared=0, centre="position"), SOME),
    "posthoc": (PostHoc(features=FEATURES, k=K, groups=4), SOME),
}


@pytest.mark.parametrize(("arm", "place"), SAVED.values(), ids=SAVED)
def test_a_saved_dictionary_is_read_back_bit_for_bit(arm, place, folder):
    dictionary = built(arm, place=place)
    if hasattr(dictionary, "threshold"):
        dictionary.threshold.fill_(0.3)
    for name in ("missed", "earned", "firings", "searched"):
        if hasattr(dictionary, name):
            getattr(dictionary, name).uniform_()
    if isinstance(arm, PostHoc):
        dictionary.open.bernoulli_(0.5)
    save_dictionary(dictionary, folder, arm, LENGTH)
    back = load_dictionary(folder)
    assert back.state_dict().keys() == dictionary.state_dict().keys()
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    x = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    assert torch.equal(back.encode(x), dictionary.encode(x))
    with torch.no_grad():
        assert torch.equal(back(x), dictionary(x))
    assert torch.equal(back.openness(), dictionary.openness())
    layout = json.loads((folder / "cfg.json").read_text())
    assert layout["architecture"] == f"temporallens_{arm.kind}"
    assert layout["metadata"]["temporallens"]["state"] == ({"mask_hard": dictionary.mask.hard} if hasattr(dictionary, "mask") else {})
    save_dictionary(back, folder / "again", arm, LENGTH)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (folder / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    policy = POLICY.model_copy(update={"steps": 30, "log_every": 4, "checkpoint_every": 8, "learning_rate": 3e-2})
    arms = {
        "multiplicative": positional(reopen_every=3, mask_rate=50.0, least_share=0.9),
        "log": positional(gate="log", reopen_every=3),
        "straight_through": positional(strictness="straight_through", reopen_every=3, centre="position_scaled"),
        "smooth": positional(groups="smooth", strictness="soft"),
        "relu": PositionalReLU(features=FEATURES, groups=4, sparsity=1.0),
        "posthoc": PostHoc(features=FEATURES, k=K, groups=4),
    }
    runs = [ArmRun(name, arm, 0) for name, arm in arms.items()]
    whole = train_arms(store, runs, policy, tmp_path / "whole")
    assert whole["multiplicative"].dictionary.missed.any()
    original = Trainee.step

    def failing_at(cut: int) -> None:
        def failing(self, view, progress):
            if progress.step == cut:
                raise MemoryError
            original(self, view, progress)

        monkeypatch.setattr(Trainee, "step", failing)

    for cut in (13, 27):  # while masks learn, and once they are hard
        failing_at(cut)
        with pytest.raises(MemoryError):
            train_arms(store, runs, policy, tmp_path / "cut")
    failing_at(-1)
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    for name, run in train_arms(store, runs, policy, tmp_path / "cut").items():
        assert content(run.folder) == content(whole[name].folder), name
