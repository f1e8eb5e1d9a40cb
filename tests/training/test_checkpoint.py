"""A training goes on from a checkpoint of the same settings and the same code alone."""

from pathlib import Path

import numpy as np
import pytest

import temporallens as tl
from temporallens.training.checkpoint import checkpoint_file, training_settings
from temporallens.training.policy import TrainingPolicy


def test_an_arm_whose_code_has_changed_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32)
    store, policy = tl.ActivationStore.from_arrays(x, tmp_path / "store"), TrainingPolicy(steps=1, batch_size=8)
    arms = [("a", tl.Positional(features=8, k=2), 0)]
    before = checkpoint_file(tmp_path, training_settings(store, arms, policy))
    assert checkpoint_file(tmp_path, training_settings(store, arms, policy)) == before
    monkeypatch.setattr(tl.Positional, "version", tl.Positional.version + 1)
    assert checkpoint_file(tmp_path, training_settings(store, arms, policy)) != before
