"""Tokenized SAEs: the formula, where the look-up starts, training, saving, and what has no tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import LENGTH, POLICY

from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.tokenized import TokenizedDictionary
from temporallens.dictionaries.kinds import BatchTopK, Tokenized
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms

WIDTH, TOKENS = 24, 40
ARM = Tokenized(features=64, k=3, rows=32, start="mean")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Activations that are mostly their token's."""
    generator = np.random.default_rng(0)
    token = np.minimum(generator.geometric(0.1, size=(120, LENGTH)) - 1, TOKENS - 1)
    x = 2 * generator.normal(size=(TOKENS, WIDTH))[token] + generator.normal(size=(120, LENGTH, WIDTH))
    folder = tmp_path_factory.mktemp("tokens") / "store"
    return ActivationStore.from_arrays(x.astype(np.float32), folder, tokens=token, exclude_first=False)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    runs = [ArmRun("plain", BatchTopK(features=64, k=3), 0), ArmRun("tokenized", ARM, 0)]
    return train_arms(store, runs, POLICY, tmp_path_factory.mktemp("tokenized"))


def test_the_look_up_starts_at_half_of_the_means_of_the_commonest_tokens(store):
    d = ARM.make(WIDTH, LENGTH, torch.Generator().manual_seed(0))
    assert torch.equal(d.encoder, 0.5 * d.decoder)
    entries, centre = np.arange(90), torch.randn(WIDTH)
    d.begin(store, entries, centre, 0.7)
    rows = store.read(entries)
    count = torch.bincount(rows.token, minlength=TOKENS)
    assert d.token.tolist() == sorted(count.argsort(descending=True, stable=True)[:32].tolist())
    for row in (0, 31):
        mean = rows.x[rows.token == d.token[row]].mean(0)
        torch.testing.assert_close(d.lookup[row].detach(), 0.5 * 0.7 * (mean - centre))
    few = Tokenized(features=64, k=3, rows=100, start="mean").make(WIDTH, LENGTH, torch.Generator())
    few.begin(store, entries, centre, 1.0)
    assert few.token[: 100 - TOKENS].unique().tolist() == [-1]
    assert not few.lookup[: 100 - TOKENS].any()


def test_the_token_is_added_to_what_codes_decode_to(trained):
    d = trained["tokenized"].dictionary
    x, unknown = torch.randn(4, WIDTH), int(torch.isin(torch.arange(TOKENS + 1), d.token, invert=True).nonzero()[-1])
    tokens = torch.tensor([int(d.token[5]), int(d.token[0]), unknown, -1])
    with torch.no_grad():
        z = d.encode(x)
        pre = (x - d.decoder_bias) @ d.encoder.T + d.encoder_bias
        torch.testing.assert_close(z, pre * (pre > d.threshold))
        said = torch.stack([d.lookup[5], d.lookup[0], torch.zeros(WIDTH), torch.zeros(WIDTH)])
        torch.testing.assert_close(d.decode(z, tokens=tokens), z @ d.decoder + d.decoder_bias + said)
        torch.testing.assert_close(d(x, tokens=tokens), d.decode(z, tokens=tokens))
        with pytest.raises(TemporalLensError, match="pass tokens, their ids in the shape of the codes"):
            d.decode(z)


def test_a_step_learns_the_look_up_and_the_rest_as_batchtopk_does():
    d = ARM.make(WIDTH, LENGTH, torch.Generator().manual_seed(0)).double()
    d.encoder_dtype = torch.float64
    d.token[:] = torch.arange(32)
    d.lookup.data = torch.randn(32, WIDTH, dtype=torch.float64)
    x, tokens = torch.randn(20, WIDTH, dtype=torch.float64), torch.arange(20) + 20
    context = d.context(x, tokens)
    found = d.learn(x, torch.zeros(20, dtype=torch.int64), None, context).reconstruction
    pre = ((x - d.decoder_bias) @ d.encoder.T + d.encoder_bias).relu()
    z = pre * (pre >= pre.detach().flatten().sort(descending=True).values[3 * 20 - 1])
    expected = z @ d.decoder + d.decoder_bias + torch.cat([d.lookup[20:], d.lookup.new_zeros(8, WIDTH)])
    torch.testing.assert_close(found, expected)
    weights = dict(d.named_parameters())
    left, right = (torch.autograd.grad((x - y).square().sum(), weights.values()) for y in (found, expected))
    for name, one, two in zip(weights, left, right, strict=True):
        torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}")


def test_it_reconstructs_better_at_the_same_l0_where_activations_are_their_tokens(trained, store):
    held_out = store.split(POLICY.held_out, POLICY.data_seed).held_out
    scores = {name: evaluate_reconstruction(run.dictionary, store, held_out, run.summary["scale"]) for name, run in trained.items()}
    assert scores["tokenized"].l0 == pytest.approx(3, rel=0.3)
    assert scores["tokenized"].fve > scores["plain"].fve + 0.02


def test_it_is_saved_and_resumed_to_the_bit(trained, store, tmp_path, monkeypatch):
    run = trained["tokenized"]
    back = load_dictionary(run.folder)
    for name, tensor in run.dictionary.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    policy = POLICY.model_copy(update={"steps": 24, "checkpoint_every": 10})
    whole = train_arms(store, [ArmRun("one", ARM, 0)], policy, tmp_path / "whole")["one"]
    original = Trainee.step

    def failing(self, view, progress):
        if progress.step == 15:
            raise MemoryError
        return original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    with pytest.raises(MemoryError):
        train_arms(store, [ArmRun("one", ARM, 0)], policy, tmp_path / "cut")
    monkeypatch.setattr(Trainee, "step", original)
    monkeypatch.setattr(TokenizedDictionary, "begin", lambda *_args, **_options: pytest.fail("begins once"))
    cut = train_arms(store, [ArmRun("one", ARM, 0)], policy, tmp_path / "cut")["one"]
    name = "sae_weights.safetensors"
    assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_the_published_start_is_the_model_on_each_token_alone(sources: dict[str, Path], tmp_path: Path):
    store = harvest(str(sources["model"]), 1, str(sources["text"]), out=tmp_path / "store", context_length=16, dtype="float32")
    arm = Tokenized(features=16, k=2, rows=4096)
    d = arm.make(store.width, store.positions, torch.Generator().manual_seed(0))
    centre = store.moments.pooled_mean().float()
    d.begin(store, np.arange(store.sequences), centre, 2.0)
    model = LanguageModel.load(str(sources["model"]), up_to=1, dtype="float32")
    token = d.token[-1]
    pair = torch.tensor([[model.bos, int(token)]])
    alone = model.residuals(pair, torch.ones_like(pair, dtype=torch.bool), [1])[1][0, 1]
    torch.testing.assert_close(d.lookup[-1].detach(), 0.5 * 2.0 * (alone - centre), atol=1e-5, rtol=1e-4)


def test_activations_without_a_model_or_tokens_are_refused(store, tmp_path):
    d = Tokenized(features=16, k=2).make(WIDTH, LENGTH, torch.Generator())
    with pytest.raises(TemporalLensError, match=r"not harvested from a language model, .*: give start: mean"):
        d.begin(store, np.arange(5), torch.zeros(WIDTH), 1.0)
    nameless = ActivationStore.from_arrays(np.ones((4, LENGTH, WIDTH), dtype=np.float32), tmp_path / "store")
    with pytest.raises(TemporalLensError, match="does not say which tokens"):
        d.begin(nameless, np.arange(4), torch.zeros(WIDTH), 1.0)
    with pytest.raises(TemporalLensError, match="leave its expectation out"):
        Tokenized(expectation={})
