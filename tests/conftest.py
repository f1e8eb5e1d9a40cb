"""Fixtures that several tests share: a small store with known structure, and dictionaries trained on it."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.standard import Standard
from temporallens.training.finishing import TrainedArm
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms
from tiny_models import tiny_model
from tiny_studies import VALID, documents

SEQUENCES, LENGTH, WIDTH, TRUE_FEATURES, DOCUMENTS = 240, 16, 24, 48, 24

torch.set_num_threads(1)
settings.register_profile("unhurried", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("unhurried")
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script, shells let processes ignore it


def sparse_world(seed: int = 0) -> np.ndarray:
    """`[N, S, D]` activations of sparse features of which every other one lives in the first half of the sequence only,
    with a sink of 100 times the norm at position 0."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(TRUE_FEATURES, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = (generator.random((SEQUENCES, LENGTH, TRUE_FEATURES)) < 0.08) * (0.5 + generator.random((SEQUENCES, LENGTH, TRUE_FEATURES)))
    codes[:, LENGTH // 2 :, ::2] = 0
    x = codes @ directions
    x[:, 0] = 100 * directions[0] + 0.01 * generator.normal(size=(SEQUENCES, WIDTH))
    return x.astype(np.float32)


@pytest.fixture(scope="session")
def world() -> np.ndarray:
    return sparse_world()


@pytest.fixture(scope="session")
def store(world: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore.from_arrays(world, tmp_path_factory.mktemp("store") / "store", documents=np.arange(SEQUENCES) % DOCUMENTS)


ARMS = {
    "standard": Standard(features=64, sparsity=1.0),
    "batchtopk": BatchTopK(features=64, k=4),
    "positional": Positional(features=64, k=4, groups=4),
}
POLICY = TrainingPolicy(steps=120, batch_size=128, learning_rate=3e-3, log_every=10, checkpoint_every=40, dead_after=4000)


@pytest.fixture(scope="session")
def trained(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedArm]:
    runs = [ArmRun(name, arm, 0) for name, arm in ARMS.items()]
    return train_arms(store, runs, POLICY, tmp_path_factory.mktemp("arms"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model and a tiny text."""
    folder = tmp_path_factory.mktemp("sources")
    text = folder / "text.jsonl"
    text.write_text(documents(12))
    return {"model": tiny_model("llama", folder / "llama"), "text": text}


@pytest.fixture
def write(tmp_path: Path, sources: dict[str, Path]) -> Callable[..., Path]:
    """Writes the valid study with some of its text replaced."""

    def write_study(*replacements: tuple[str, str]) -> Path:
        text = VALID.format(**sources)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write_study
