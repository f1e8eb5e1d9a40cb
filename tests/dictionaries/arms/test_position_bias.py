"""A bias by position is an encoder that is told a one-hot position: gradients, saving, folding, and what it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.position_bias import PositionBiasDictionary
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.kinds import PositionBias
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

WIDTH, FEATURES, K, LENGTH, ROWS = 8, 24, 3, 16, 48
ARM = PositionBias(features=FEATURES, k=K)


def made(seed: int = 0) -> PositionBiasDictionary:
    generator = torch.Generator().manual_seed(seed)
    dictionary = ARM.make(WIDTH, LENGTH, generator)
    assert isinstance(dictionary, PositionBiasDictionary)
    for bias in (dictionary.encoder_bias, dictionary.decoder_bias, dictionary.position_bias):
        bias.data = 0.5 * torch.randn(bias.shape, generator=generator)
    return dictionary


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)), torch.arange(ROWS) * LENGTH // ROWS


def dense(d: PositionBiasDictionary, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    told = torch.nn.functional.one_hot(positions, LENGTH).float()
    return torch.cat([x - d.decoder_bias, told], 1) @ torch.cat([d.encoder, d.position_bias.T], 1).T + d.encoder_bias


def test_every_gradient_is_that_of_a_one_hot_position_beside_the_input() -> None:
    x, positions = batch()
    ours, theirs = made(), made()
    (ours.training_forward(x, positions).reconstruction - x).square().sum().backward()
    codes = dense(theirs, x, positions).relu()
    codes = codes * (codes >= codes.detach().flatten().sort(descending=True).values[K * ROWS - 1])
    (codes @ theirs.decoder + theirs.decoder_bias - x).square().sum().backward()
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert ours.position_bias.grad is not None and ours.position_bias.grad.abs().sum() > 0


def test_codes_at_inference_are_those_above_the_threshold_in_any_order_of_rows() -> None:
    d, (x, positions) = made(), batch()
    d.threshold.fill_(0.8)
    pre = dense(d, x, positions).relu()
    expected = pre * (pre > 0.8)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(d.encode(x[order], positions[order]), expected[order])
        late = d.encode(x[:1], torch.tensor([LENGTH + 5]))
        torch.testing.assert_close(late, d.encode(x[:1], torch.tensor([LENGTH - 1])))
    torch.testing.assert_close(d.encode(x, positions), expected)


def test_folded_it_reconstructs_in_raw_units() -> None:
    d, (x, positions) = made(), batch()
    d.threshold.fill_(0.8)
    before = d(x, positions).detach()
    d.fold(torch.zeros(WIDTH), 4.0)
    torch.testing.assert_close(d(x / 4, positions) * 4, before, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dictionary]:
    folder = tmp_path_factory.mktemp("position-bias")
    policy = TrainingPolicy(steps=60, batch_size=128, learning_rate=0.01, held_out=0.25)
    train_arms(store, [ArmRun("biased", PositionBias(features=32, k=4), 0)], policy, folder)
    dictionary = load_dictionary(folder / "biased")
    return folder / "biased", dictionary


def test_it_trains_and_is_saved_and_loaded(store: ActivationStore, trained: tuple[Path, Dictionary]) -> None:
    folder, dictionary = trained
    assert isinstance(dictionary, PositionBiasDictionary) and float(dictionary.position_bias.detach().abs().max()) > 0
    loaded = load_dictionary(folder)
    rows = store.read(np.arange(4))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.encode(rows.x.float(), rows.position), dictionary.encode(rows.x.float(), rows.position), rtol=0, atol=0
        )
    found = evaluate_reconstruction(loaded, store, store.split(0.25, 0).held_out, 1.0)
    assert 0 < found.fve < 1 and found.openness is None
