"""Dictionaries kept along the way: which, in what state, and that keeping them changes nothing."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.saving import load_dictionary
from temporallens.dictionaries.steps import Progress
from temporallens.training.policy import TrainingPolicy
from temporallens.training.snapshots import snapshot_steps, snapshots_of, soft_of
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

STEPS = 40
MASKED = Positional(features=32, k=3, groups=4)
ARMS = [ArmRun("masked", MASKED, 0), ArmRun("plain", BatchTopK(features=32, k=3), 0)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    x = torch.randn(200, 12, 10, generator=torch.Generator().manual_seed(0))
    x[:, :4, :5] += 2
    return ActivationStore.from_arrays(x.numpy(), out=tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    policy = TrainingPolicy(steps=STEPS, batch_size=128, snapshots=3, learning_rate=3e-3)
    return {run.folder.name: run for run in train_arms(store, ARMS, policy, folder / "kept").values()}, folder, policy


def test_the_dictionary_before_hardening_is_soft_and_the_final_one_hard(trained):
    arms, _, _ = trained
    soft, hard = load_dictionary(soft_of(arms["masked"].folder)), arms["masked"].dictionary
    gates = soft.gates_by_position()
    assert not soft.mask.hard
    assert ((gates > 0) & (gates < 1)).any()
    assert hard.mask.hard
    assert set(hard.gates_by_position().unique().tolist()) <= {0.0, 1.0}
    assert float(soft.threshold) > 0
    assert soft_of(arms["plain"].folder) is None


def test_snapshots_stand_at_equal_distances_and_are_calibrated(trained, store):
    arms, _, _ = trained
    for arm in arms.values():
        found = snapshots_of(arm.folder)
        assert list(found) == [10, 20, 30]
        rows = store.read(np.arange(3))
        for path in found.values():
            codes = load_dictionary(path).encode(rows.x, rows.position)
            assert 1 < float((codes > 0).sum(1).float().mean()) < 9  # k = 3


def test_keeping_snapshots_changes_nothing(trained, store):
    arms, folder, policy = trained
    plain = train_arms(store, ARMS, policy.model_copy(update={"snapshots": 0}), folder / "plain")
    for name, arm in arms.items():
        kept, without = (load_file(run.folder / "sae_weights.safetensors") for run in (arm, plain[name]))
        assert all(torch.equal(kept[key], without[key]) for key in kept)
    assert not list((folder / "kept").glob("checkpoint-*"))


@pytest.mark.parametrize("steps", [1, 7, 35, 300])
@pytest.mark.parametrize("harden_at", [0.3, 0.8, 1.0])
def test_the_last_soft_step_is_the_one_before_the_first_hard_one(steps, harden_at):
    dictionary = Positional(features=8, k=2, groups=2, harden_at=harden_at).make(4, 8, torch.Generator())
    kept = snapshot_steps(dictionary, TrainingPolicy(steps=steps))
    soft = [taken for taken, folders in kept.items() if "soft" in folders]
    hard = []
    for step in range(steps):
        dictionary.advance(Progress(step, steps))
        hard.append(dictionary.mask.hard)
    assert soft == ([hard.index(True)] if any(hard) else [])
