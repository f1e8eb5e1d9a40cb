"""TFA: the published computation in float64, what each setting may see, training on whole rows of text, and what a saved one refuses."""

import math

import numpy as np
import pytest
import torch
from tests.conftest import LENGTH, POLICY, WIDTH
from torch import Tensor

from temporallens.activations.context import context_of
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.tfa import TFADictionary
from temporallens.dictionaries.kinds import TFA, TSAE, BatchTopK, PositionMean
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms

FEATURES, K, HEADS, ROWS, PLACES = 32, 3, 2, 3, 6
ARM = TFA(features=FEATURES, k=K, heads=HEADS, bottleneck=4)
VARIANTS = {
    "published": ARM,
    "past": ARM.model_copy(update={"query": "past", "scale": "learned"}),
    "other": ARM.model_copy(update={"context": "other"}),
    "positions": ARM.model_copy(update={"positions": True}),
    "topk": ARM.model_copy(update={"novel": "topk"}),
}
WHOLE = POLICY.model_copy(update={"batches": "rows", "steps": 60})


def exact(arm: TFA, seed: int = 0) -> TFADictionary:
    """A float64 dictionary with every weight away from its start."""
    generator = torch.Generator().manual_seed(seed)
    d = arm.make(WIDTH, LENGTH, generator).double()
    d.decoder_bias.data = 0.3 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    d.tied_gain.data = 0.2 + 0.3 * torch.rand(FEATURES, generator=generator, dtype=torch.float64)
    d.predicted_scale.data.fill_(0.7)
    d.out_bias.data = 0.1 * torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    d.normalise_decoder()
    d.threshold.fill_(0.2)
    return d


def sequences(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, PLACES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(d: TFADictionary, rows: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """s U and codes before any are chosen, token by token, with published decoder rows of norm sqrt(4 D g) and lambda = 1 / 4D."""
    arm = d.config
    norm = (4 * WIDTH * d.tied_gain).sqrt()
    D, lam = norm[:, None] * d.decoder, 1 / (4 * WIDTH)
    W_q, W_k, W_v = d.query_weight * norm, d.key_weight * norm, d.value_weight * norm
    W_o, b_o = d.out_weight / norm[:, None], d.out_bias / norm
    x = rows - d.decoder_bias
    z = (lam * x @ D.T).relu()
    said, novel = torch.zeros_like(x), torch.zeros(*x.shape[:2], FEATURES, dtype=x.dtype)
    narrow, wide = FEATURES // arm.bottleneck // HEADS, FEATURES // HEADS

    def wave(t: int) -> Tensor:
        angles = [(t / 10_000 ** (2 * (i // 2) / FEATURES), i % 2) for i in range(FEATURES)]
        return torch.tensor([math.cos(a) if odd else math.sin(a) for a, odd in angles], dtype=x.dtype) / norm

    for b in range(ROWS):
        of = (b - ROWS // 2) % ROWS if arm.context == "other" else b
        for t in range(PLACES):
            earlier = [j for j in range(t) if usable[of, j]]
            own = [j for j in range(t) if usable[b, j]]
            asking = z[b, t] if arm.query == "current" else (z[b, own[-1]] if own else torch.zeros(FEATURES, dtype=x.dtype))
            shift = {j: wave(j) if arm.positions else 0.0 for j in [*earlier, t]}
            q = W_q @ (asking + shift[t]) + d.query_bias
            keys = [d.key_bias, *(W_k @ (z[of, j] + shift[j]) + d.key_bias for j in earlier)]
            values = [d.value_bias, *(W_v @ z[of, j] + d.value_bias for j in earlier)]
            heads = []
            for h in range(HEADS):
                part, wider = slice(h * narrow, (h + 1) * narrow), slice(h * wide, (h + 1) * wide)
                weights = torch.stack([q[part] @ k[part] / math.sqrt(narrow) for k in keys]).softmax(0)
                heads.append(sum(w * v[wider] for w, v in zip(weights, values, strict=True)))
            u = (W_o @ torch.cat(heads) + b_o).relu() @ D
            s = u @ x[b, t] / (u.norm() + 1e-6) ** 2 if arm.scale == "projection" else d.predicted_scale
            said[b, t] = s * u
            novel[b, t] = norm * (lam * D @ (x[b, t] - s * u)).relu()
    return said, novel


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_reconstructions_are_those_of_the_published_computation_in_float64(name: str) -> None:
    d = exact(VARIANTS[name])
    rows = sequences()
    usable = torch.arange(PLACES) != 0  # as of every [B, S, D]
    said, novel = reference(d, rows, usable.expand(ROWS, -1))
    codes = novel * (novel > d.threshold)
    if name == "topk":
        codes = novel * (novel >= novel.sort(2, descending=True).values[..., [K - 1]])
    found = d.reconstructed(rows)
    torch.testing.assert_close(found.codes, codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.x, codes @ d.decoder + said + d.decoder_bias, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(d(rows), found.x)
    torch.testing.assert_close(d.all_codes(rows) @ d.decoder + d.decoder_bias, found.x)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_computes_the_same_whatever_the_order_of_rows(name: str) -> None:
    d = exact(VARIANTS[name])
    rows = sequences()
    context = d.context(rows, None)
    context = context._replace(usable=torch.ones_like(context.usable))
    position = torch.arange(PLACES).repeat(ROWS)
    flat = rows.view(-1, WIDTH)
    said, novel = reference(d, rows, torch.ones(ROWS, PLACES, dtype=torch.bool))
    novel = novel.view(-1, FEATURES)
    if name == "topk":
        codes = novel * (novel >= novel.detach().sort(1, descending=True).values[:, [K - 1]])
    else:
        codes = novel * (novel >= novel.detach().flatten().sort(descending=True).values[K * len(flat) - 1])
    expected = codes @ d.decoder + said.view(-1, WIDTH) + d.decoder_bias
    order = torch.argsort(position, stable=True)
    found = d.learn(flat[order], position[order], None, context.reordered(order)).reconstruction
    torch.testing.assert_close(found, expected[order], atol=1e-6, rtol=1e-6)
    weights = {key: value for key, value in d.named_parameters() if value.requires_grad}
    left, right = (torch.autograd.grad((y - x).square().sum(), weights.values()) for y, x in ((found, flat[order]), (expected, flat)))
    for key, one, two in zip(weights, left, right, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def said_by(d: TFADictionary, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return d._split(*d.seen(rows, None, None), d.encoder).reconstruction.view(rows.shape)


@pytest.mark.parametrize(("name", "sees"), [("published", True), ("past", False)])
def test_only_a_query_of_the_past_with_a_learned_scale_does_not_see_the_current_token(name: str, sees: bool) -> None:
    d, rows = exact(VARIANTS[name]), sequences()
    other = rows.clone()
    other[:, 3] = 5 * torch.randn(ROWS, WIDTH, dtype=torch.float64)
    before, after = said_by(d, rows), said_by(d, other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert torch.equal(before[:, 3], after[:, 3]) is not sees
    assert not torch.equal(before[:, 4], after[:, 4])


def test_context_of_another_row_comes_from_there() -> None:
    d, rows = exact(VARIANTS["other"].model_copy(update={"query": "past", "scale": "learned"})), sequences()
    own, others = rows.clone(), rows.clone()
    own[0, 1] += 1
    others[2, 1] += 1
    assert not torch.equal(said_by(d, others)[0, 2:], said_by(d, rows)[0, 2:])  # row 0 looks at row 2
    assert torch.equal(said_by(d, own)[0, 3:], said_by(d, rows)[0, 3:])  # and asks with its own token before alone
    assert torch.equal(said_by(d, rows[:1])[0, 1], said_by(d, rows[:1])[0, 0])  # alone it sees nothing


def test_excluded_rows_are_not_looked_at(store: ActivationStore) -> None:
    d = exact(VARIANTS["past"]).float()
    rows = store.read(np.arange(4))
    sinks = rows.x.clone()
    sinks[rows.excluded != 0] *= -3
    context = context_of(rows)
    kept = rows.excluded == 0
    with torch.no_grad():
        before, after = (d.all_codes(x, rows.position.long(), context)[kept] for x in (rows.x, sinks))
    assert torch.equal(before, after)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    arms = {
        "batchtopk": BatchTopK(features=64, k=4),
        "tfa": TFA(features=64, k=4),
        "past": TFA(features=64, k=4, query="past", scale="learned", positions=True),
        "centred": TFA(features=64, k=4, novel="topk", centre="position", permuted=True),
    }
    return train_arms(store, [ArmRun(name, arm, 0) for name, arm in arms.items()], WHOLE, tmp_path_factory.mktemp("tfa"))


@pytest.mark.parametrize("name", ["tfa", "past", "centred"])
def test_it_learns_on_whole_rows_and_is_measured_in_open_loop(trained, store, name):
    held_out = store.split(WHOLE.held_out, WHOLE.data_seed).held_out
    run = trained[name]
    scores = evaluate_reconstruction(run.dictionary, store, held_out, run.summary["scale"])
    assert scores.fve > 0.4
    assert scores.l0 == pytest.approx(4, rel=0.3)
    assert run.dictionary.config.open_loop
    encoded = HeldOut(store, held_out).encoded(run.dictionary)
    rows = store.read(held_out)
    with torch.no_grad():
        found = run.dictionary(rows.x, rows.position.long(), context_of(rows))
    error = (rows.x - found).square().sum(1)[rows.excluded == 0]
    np.testing.assert_allclose(encoded.error, error.numpy(), rtol=1e-3, atol=1e-5)


def test_folding_moves_it_into_raw_units():
    for arm in VARIANTS.values():
        d, raw = exact(arm), exact(arm)
        centre, scale = torch.randn(WIDTH).double(), 0.3
        raw.fold(centre, scale)
        x = 5 * sequences() + centre
        with torch.no_grad():
            torch.testing.assert_close(raw(x), d((x - centre) * scale) / scale + centre)


def test_a_saved_one_is_read_back_and_refuses_what_it_cannot_do(trained, folder):
    d = trained["past"].dictionary
    save_dictionary(d, folder, d.config, LENGTH)
    back, rows = load_dictionary(folder), sequences().float()
    assert torch.equal(back(rows), d(rows))
    assert torch.equal(back.encoder, back.tied_gain[:, None] * back.decoder)
    with pytest.raises(TemporalLensError, match="cannot reconstruct from codes alone"):
        back.decode(back.encode(rows))
    for codes in (lambda: back.encode(rows[0], torch.arange(PLACES)), lambda: back.codes(rows[0], torch.arange(PLACES))):
        with pytest.raises(TemporalLensError, match=r"reads whole .*\[B, S, D\]"):
            codes()


def test_an_interrupted_run_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    policy = WHOLE.model_copy(update={"steps": 24, "checkpoint_every": 10, "snapshots": 1})
    runs = [
        ArmRun("tfa", TFA(features=64, k=4), 0),
        ArmRun("tsae", TSAE(features=64, k=4), 0),
        ArmRun("mean", PositionMean(features=64, k=4), 0),
    ]
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
    for name, run in train_arms(store, runs, policy, tmp_path / "cut").items():
        for file in ("sae_weights.safetensors", "snapshots/step-000012/sae_weights.safetensors"):
            assert (run.folder / file).read_bytes() == (whole[name].folder / file).read_bytes(), name


def test_what_makes_it_diverge_is_said(store, tmp_path, monkeypatch):
    monkeypatch.setattr(TFADictionary, "normalise_decoder", lambda self: self.decoder.data.mul_(1e30))
    with pytest.raises(
        TemporalLensError, match=r"became NaN or infinite at step .*; give batches of 32 rows of text or more .training.batch_size is 128"
    ):
        train_arms(store, [ArmRun("tfa", TFA(features=64, k=4), 0)], WHOLE, tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": 36}, "36 features do not divide into 4 heads behind a bottleneck of 8: give features as a multiple of 32"),
        ({"expectation": {}}, "a tfa arm predicts by itself"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        TFA(**options)


def test_it_is_not_trained_on_shuffled_tokens(store, tmp_path):
    with pytest.raises(TemporalLensError, match=r"'tfa' read whole rows of text: give training.batches: rows"):
        train_arms(store, [ArmRun("tfa", ARM, 0)], POLICY, tmp_path)
