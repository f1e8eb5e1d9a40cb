"""The arms of the literature: exact selections, every loss term against a dense float64 reference, training, saving, refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file
from tests.conftest import LENGTH, POLICY, WIDTH
from torch import Tensor
from torch.nn import functional

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms import tsae
from temporallens.dictionaries.arms.topk import largest_of_rows, largest_of_rows_static
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.kinds import TSAE, BatchTopK, JumpReLU, Matryoshka, TopK
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.dictionaries.sparse import Codes, pattern_of
from temporallens.dictionaries.steps import Dead, Forward, Previous, Progress
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.training.history import load_history
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms

ROWS, FEATURES, K = 24, 40, 3
NEW = {
    "topk": TopK(features=FEATURES, k=K),
    "jumprelu": JumpReLU(features=FEATURES, l0=K, bandwidth=0.4),
    "matryoshka": Matryoshka(features=FEATURES, k=K, levels=(0.1, 0.5, 1)),
    "tsae": TSAE(features=FEATURES, k=K),
    "tsae-inner": TSAE(features=FEATURES, k=K, similarity="inner", temperature=2.0, alpha=0.3),
}


def exact(arm: ArmConfig, seed: int = 0) -> Dictionary:
    """A float64 dictionary with every weight away from its start."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = arm.make(WIDTH, LENGTH, generator).double()
    dictionary.encoder_dtype = torch.float64
    for bias in (dictionary.encoder_bias, dictionary.decoder_bias):
        bias.data = 0.3 * torch.randn(bias.shape, generator=generator, dtype=torch.float64)
    if isinstance(arm, JumpReLU):
        dictionary.threshold.data = 0.5 + torch.rand(FEATURES, generator=generator, dtype=torch.float64)
    return dictionary


def batch(seed: int = 1, rows: int = ROWS) -> tuple[Tensor, Tensor, Previous]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    before = x + torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    return (
        x,
        (torch.arange(rows) * LENGTH) // rows,
        Previous(before, torch.rand(rows, generator=generator) < 0.7, torch.zeros(rows, dtype=torch.int64)),
    )


def dense_pre(d: Dictionary, x: Tensor) -> Tensor:
    return (x - d.decoder_bias) @ d.encoder.T + d.encoder_bias


def batch_topk(d: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    codes = dense_pre(d, x).relu()
    smallest = codes.detach().flatten().sort(descending=True).values[K * len(x) - 1]
    return codes * (codes.detach() >= smallest), smallest


def error(d: Dictionary, x: Tensor, codes: Tensor, first: int = FEATURES) -> Tensor:
    return (x - codes[:, :first] @ d.decoder[:first] - d.decoder_bias).square().sum(1).mean()


def reference(arm: ArmConfig, d: Dictionary, x: Tensor, previous: Previous) -> Tensor:
    """The whole loss as the papers write it, dense."""
    if isinstance(arm, TopK):
        codes = dense_pre(d, x).relu()
        return error(d, x, codes * (codes >= codes.detach().sort(1, descending=True).values[:, [K - 1]]))
    if isinstance(arm, JumpReLU):
        pre, theta, fixed = dense_pre(d, x), d.threshold, d.threshold.detach()
        near = ((pre.detach() - fixed).abs() < arm.bandwidth / 2).double() / arm.bandwidth
        step = (pre.detach() > fixed).double()
        codes = pre * step - near * fixed * (theta - fixed)
        in_use = step - near * (theta - fixed)
        return error(d, x, codes) + arm.weight * WIDTH * (in_use.sum(1).mean() / arm.l0 - 1).square()
    codes, smallest = batch_topk(d, x)
    if isinstance(arm, Matryoshka):
        return sum(error(d, x, codes, round(share * FEATURES)) for share in arm.levels)
    high = round(0.2 * FEATURES)
    now, before = codes[previous.paired, :high], dense_pre(d, previous.x)[previous.paired, :high]
    before = before * (before.detach() > smallest)
    if arm.similarity == "cosine":
        now, before = functional.normalize(now, dim=1), functional.normalize(before, dim=1)
    logits, own = now @ before.T / arm.temperature, torch.arange(len(now))
    contrast = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
    return error(d, x, codes, high) + error(d, x, codes) + arm.alpha * contrast


def loss_of(d: Dictionary, forward: Forward, x: Tensor) -> Tensor:
    return ((x - forward.reconstruction).square().sum(1) + (0 if forward.extra is None else forward.extra)).mean()


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_are_those_of_the_dense_float64_reference(name, seed):
    arm = NEW[name]
    dictionary = exact(arm, seed)
    x, positions, previous = batch(seed + 10)
    found = loss_of(dictionary, dictionary.training_forward(x, positions, previous), x)
    expected = reference(arm, dictionary, x, previous)
    torch.testing.assert_close(found, expected)
    weights = dict(dictionary.named_parameters())
    gradients = torch.autograd.grad(found, weights.values()), torch.autograd.grad(expected, weights.values())
    for weight, left, right in zip(weights, *gradients, strict=True):
        assert right.abs().max() > 0, weight
        torch.testing.assert_close(left, right, msg=lambda text, weight=weight: f"{weight}: {text}")


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_auxk_gradient_agrees_with_finite_differences(name):
    dictionary = exact(NEW[name])
    x, _, _ = batch(rows=5)
    dead = Dead(torch.tensor([0, 2, 3, 5]), torch.ones(4, dtype=torch.float64))
    encoder = dictionary.encoder.detach()[:8].clone().requires_grad_()
    rest = dictionary.encoder.detach()[8:]
    del dictionary._parameters["encoder"]

    def loss(changed: Tensor) -> Tensor:
        dictionary.encoder = torch.cat([changed, rest])
        return dictionary.auxiliary(x, torch.ones(5, dtype=torch.int64), x, dead).sum()

    assert torch.autograd.gradcheck(loss, (encoder,))
    loss(encoder).backward()
    assert encoder.grad[dead.features].abs().sum(1).all()


def whole_numbers(rows: int, features: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-3, 4, shape, generator=generator).float() for shape in ((rows, 4), (features, 4), (features,)))


@given(
    rows=st.integers(1, 12),
    features=st.integers(1, 40),
    k=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_topk_takes_each_rows_largest_whatever_the_dtype_and_the_ties(rows, features, k, dtype, seed):
    k = min(k, features)
    x, encoder, bias = whole_numbers(rows, features, seed)
    dense = (x @ encoder.T + bias).relu()
    expected = dense.sort(1, descending=True).values[:, :k]
    for select in (largest_of_rows, largest_of_rows_static):
        pattern, values = select(x, encoder, bias, k, dtype)
        assert torch.equal(dense[pattern.row, pattern.feature], values)
        flat = pattern.row * features + pattern.feature
        assert torch.equal(flat, flat.unique())
        found = torch.zeros(rows, features).index_put((pattern.row, pattern.feature), values)
        assert torch.equal(found.sort(1, descending=True).values[:, :k], expected)


@pytest.mark.parametrize("spread", [1.0, 0.003])
def test_a_bfloat16_product_nominates_and_float32_decides(spread):
    """With a small spread bfloat16 cannot tell the entries of a row apart: rows are multiplied again, and the choice is exact still."""
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(200, 32, generator=generator), spread * torch.randn(500, 32, generator=generator)
    bias = torch.ones(500)
    pattern, values = largest_of_rows(x, encoder, bias, 6, torch.bfloat16)
    expected = torch.addmm(bias, x, encoder.T).topk(6, dim=1)
    found = torch.zeros(200, 500).index_put((pattern.row, pattern.feature), values)
    chosen = torch.zeros(200, 500).scatter(1, expected.indices, expected.values)
    torch.testing.assert_close(found, chosen)


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_codes_with_and_without_gradients_are_the_same(name):
    dictionary = exact(NEW[name]).float()
    x = batch(rows=100)[0].float()
    with torch.no_grad():
        sparse = dictionary.encode(x)
    torch.testing.assert_close(sparse, dictionary.encode(x).detach())
    assert (sparse >= 0).all()
    if name == "topk":
        assert torch.equal((sparse > 0).sum(1), (dictionary.pre_activations(x) > 0).sum(1).clamp(max=K))


def test_inner_levels_are_measured_in_common_units_where_the_arm_is_centred_by_position():
    arm = Matryoshka(features=FEATURES, k=K, levels=(0.5, 1), centre="position")
    dictionary = exact(arm)
    x, positions, _ = batch()
    plain = dictionary.training_forward(x, positions).extra
    dictionary.centre_by_position(torch.zeros(LENGTH, WIDTH).double(), torch.full((LENGTH,), 2.0).double())
    torch.testing.assert_close(dictionary.training_forward(x, positions).extra, plain / 4)


def test_contrast_is_laid_on_the_rows_that_have_a_token_before_them():
    dictionary = exact(NEW["tsae"])
    x, positions, previous = batch()
    alone = dictionary.training_forward(x, positions).extra
    added = dictionary.training_forward(x, positions, previous).extra - alone
    assert not added[~previous.paired].any()
    assert (added[previous.paired] > 0).all()
    none = previous._replace(paired=torch.zeros(ROWS, dtype=torch.bool))
    assert torch.equal(dictionary.training_forward(x, positions, none).extra, alone)


def test_a_large_batch_is_contrasted_in_groups(monkeypatch):
    monkeypatch.setattr(tsae, "CONTRASTED", 5)
    dictionary = exact(NEW["tsae"])
    now, before = torch.rand(12, 8).double(), torch.rand(12, 8).double()
    losses = dictionary._contrast(Codes(pattern_of(torch.arange(96), 12, 8), now.view(-1), now.view(-1)), before)
    assert len(losses) == 12
    for group in range(3):  # 12 pairs in 3 groups of at most 5
        left, right = functional.normalize(now[group::3], dim=1), functional.normalize(before[group::3], dim=1)
        logits, own = left @ right.T, torch.arange(4)
        expected = functional.cross_entropy(logits, own, reduction="none") + functional.cross_entropy(logits.T, own, reduction="none")
        torch.testing.assert_close(losses[group::3], expected)


def test_the_weight_of_the_l0_loss_rises_and_thresholds_stay_positive():
    arm = NEW["jumprelu"]
    dictionary = exact(arm)
    x, positions, _ = batch()
    losses = []
    for step in (0, 5, 10, 99):
        dictionary.advance(Progress(step, 100))
        losses.append(float(dictionary.training_forward(x, positions).extra.detach().mean()))
    assert losses == pytest.approx([0, losses[3] / 2, losses[3], losses[3]])
    dictionary.threshold.data[0] = -1
    dictionary.advance(Progress(1, 100))
    assert dictionary.threshold[0] > 0


def test_thresholds_start_where_random_features_fire_as_often_as_wanted():
    dictionary = JumpReLU(features=1000, l0=30).make(64, LENGTH, torch.Generator().manual_seed(0))
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    assert float((dictionary.encode(x) > 0).sum(1).float().mean()) == pytest.approx(30, rel=0.1)


@pytest.fixture(scope="module")
def ours(store, tmp_path_factory):
    arms = {
        "batchtopk": BatchTopK(features=64, k=4),
        "topk": TopK(features=64, k=4),
        "jumprelu": JumpReLU(features=64, l0=4),
        "matryoshka": Matryoshka(features=64, k=4, levels=(0.25, 0.5, 1)),
        "tsae": TSAE(features=64, k=4),
    }
    runs = [ArmRun(name, arm, 0) for name, arm in arms.items()]
    trained = train_arms(store, runs, POLICY, tmp_path_factory.mktemp("literature"))
    held_out = store.split(POLICY.held_out, POLICY.data_seed).held_out
    return {name: (run, evaluate_reconstruction(run.dictionary, store, held_out, run.summary["scale"])) for name, run in trained.items()}


@pytest.mark.parametrize(("name", "below"), [("topk", 0.05), ("jumprelu", 0.05), ("matryoshka", 0.12), ("tsae", 0.12)])
def test_each_arm_learns_about_as_well_as_batchtopk_at_about_the_same_l0(ours, name, below):
    baseline, scores = ours["batchtopk"][1], ours[name][1]
    assert baseline.fve > 0.5
    assert scores.fve > baseline.fve - below
    assert scores.l0 == pytest.approx(4, rel=0.15)
    history = load_history(ours[name][0].folder / "history.safetensors")
    assert history["mse_loss"][-1] < 0.7 * history["mse_loss"][0]


def test_the_first_features_of_a_matryoshka_carry_more_than_those_of_batchtopk(ours, store):
    def prefix_error(dictionary: Dictionary) -> float:
        rows = store.read(np.arange(store.sequences))
        kept = rows.x[rows.excluded == 0]
        with torch.no_grad():
            codes = dictionary.encode(kept)
            codes[:, 16:] = 0
            return float((kept - dictionary.decode(codes)).square().sum(1).mean())

    errors = {name: prefix_error(run.dictionary) for name, (run, _) in ours.items()}
    assert errors["matryoshka"] < 0.9 * errors["batchtopk"]
    assert errors["tsae"] < errors["batchtopk"]


def test_contrast_brings_high_level_codes_of_adjacent_tokens_together(tmp_path):
    """Half of the true features stay for a whole sequence, half change with every token."""
    generator = np.random.default_rng(0)
    slow = np.repeat(generator.random((120, 1, 12)) < 0.15, 12, axis=1)
    present = np.concatenate([slow, generator.random((120, 12, 12)) < 0.15], axis=2)
    x = ((present * (0.5 + generator.random(present.shape))) @ generator.normal(size=(24, 16))).astype(np.float32)
    store = ActivationStore.from_arrays(x, tmp_path / "store", exclude_first=False)
    arms = {"with": TSAE(features=40, k=4, alpha=30.0, temperature=0.2), "without": TSAE(features=40, k=4, alpha=0.0)}
    policy = POLICY.model_copy(update={"steps": 80})
    trained = train_arms(store, [ArmRun(name, arm, 0) for name, arm in arms.items()], policy, tmp_path / "arms")

    def contrast(dictionary: Dictionary) -> float:
        """InfoNCE of the sixth tokens with those before them."""
        with torch.no_grad():
            high = functional.normalize(dictionary.encode(torch.from_numpy(x[:, 4:6]))[..., :8], dim=2)
        return float(functional.cross_entropy(high[:, 1] @ high[:, 0].T / 0.2, torch.arange(120)))

    assert contrast(trained["with"].dictionary) < contrast(trained["without"].dictionary) - 0.1


def test_an_interrupted_run_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    policy = POLICY.model_copy(update={"steps": 24, "checkpoint_every": 10})
    runs = [ArmRun("jumprelu", JumpReLU(features=64, l0=4), 0), ArmRun("tsae", TSAE(features=64, k=4), 0)]
    whole = train_arms(store, runs, policy, tmp_path / "whole")
    original = Trainee.step

    def failing(self, view, progress):
        if progress.step == 15:
            raise MemoryError
        return original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    with pytest.raises(MemoryError):
        train_arms(store, runs, policy, tmp_path / "cut")
    monkeypatch.setattr(Trainee, "step", original)
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    for name, run in train_arms(store, runs, policy, tmp_path / "cut").items():
        weights = (run.folder / "sae_weights.safetensors").read_bytes()
        assert weights == (whole[name].folder / "sae_weights.safetensors").read_bytes(), name


@pytest.mark.parametrize("name", NEW)
def test_a_saved_dictionary_is_read_back_bit_for_bit(name, folder):
    arm = NEW[name]
    dictionary = exact(arm).float()
    if name != "topk":
        dictionary.threshold.data.fill_(0.3)
    save_dictionary(dictionary, folder, arm, LENGTH)
    back = load_dictionary(folder)
    assert back.state_dict().keys() == dictionary.state_dict().keys()
    for key, tensor in dictionary.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    x = batch(rows=30)[0].float()
    assert torch.equal(back.encode(x), dictionary.encode(x))
    layout, weights = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    pre = (x.numpy() - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    if name == "topk":
        assert layout["architecture"] == "topk"
        assert set(weights) == {"W_enc", "b_enc", "W_dec", "b_dec"}
        codes = np.maximum(pre, 0) * (pre >= np.sort(pre, 1)[:, [-K]])
    else:
        assert layout["architecture"] == "jumprelu"
        assert weights["threshold"].shape == (FEATURES,)
        codes = pre * (pre > weights["threshold"])
    np.testing.assert_allclose(back.encode(x).detach().numpy(), codes, atol=1e-5)


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_folding_moves_a_dictionary_into_raw_units(name):
    dictionary, raw = exact(NEW[name]), exact(NEW[name])
    centre, scale = torch.randn(WIDTH).double(), 0.3
    raw.fold(centre, scale)
    x = 5 * batch()[0] + centre
    torch.testing.assert_close(raw(x), dictionary((x - centre) * scale) / scale + centre)


@pytest.mark.parametrize(
    ("arm", "options", "sentence"),
    [
        (TopK, {"features": 8, "k": 9}, "k = 9 codes per token cannot come from 8 features"),
        (Matryoshka, {"features": 8, "k": 9}, "k = 9 codes per token"),
        (Matryoshka, {"levels": (0.5, 0.25, 1)}, "a level must hold more than the one before"),
        (Matryoshka, {"levels": (0.25, 0.5)}, "do not end in 1"),
        (Matryoshka, {"levels": ()}, "do not end in 1"),
        (Matryoshka, {"levels": (0.0, 1)}, "greater than 0"),
        (Matryoshka, {"levels": (0.01, 0.02, 1), "features": 40}, "hold \\[0, 1, 40\\] of them"),
        (TSAE, {"share": 0.0}, "greater than 0"),
        (TSAE, {"share": 1.0}, "less than 1"),
        (TSAE, {"share": 0.01, "features": 40}, "leaves 0 high-level"),
        (TSAE, {"temperature": 0.0}, "greater than 0"),
        (TSAE, {"similarity": "euclid"}, "'cosine' or 'inner'"),
        (JumpReLU, {"features": 8, "l0": 9}, "l0 = 9.0 codes per token cannot come from 8 features"),
        (JumpReLU, {"bandwidth": 0.0}, "greater than 0"),
    ],
)
def test_arms_that_contradict_themselves_are_refused(arm, options, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        arm(**options)


@pytest.mark.parametrize(("name", "level"), [("topk", "k"), ("jumprelu", "l0"), ("matryoshka", "k"), ("tsae", "k")])
def test_a_level_is_varied_by_its_field(name, level):
    assert NEW[name].level == level
    varied = NEW[name].at_level(5)
    assert getattr(varied, level) == 5
    assert varied.model_copy(update={level: getattr(NEW[name], level)}) == NEW[name]
