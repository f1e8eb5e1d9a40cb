"""An arm that does not come with the package: trained, snapshotted, saved and loaded like any other."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.saving import load_dictionary
from temporallens.dictionaries.steps import Forward, Previous
from temporallens.errors import TemporalLensError
from temporallens.training.trainer import train


class Shrunk(ArmConfig):
    """Codes less a fixed amount: `relu(pre - shrinkage)`, under no penalty."""

    roles: ClassVar[tuple[Role, ...]] = ("control",)
    kind: Literal["shrunk"] = "shrunk"
    shrinkage: float = Field(0.5, ge=0)

    def build(self, width: int, positions: int, generator: torch.Generator) -> "ShrunkDictionary":
        return ShrunkDictionary(width, self, generator)


class ShrunkDictionary(Dictionary):
    config: Shrunk

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        return (self.pre_activations(x) - self.config.shrinkage).relu()

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.codes(x, positions)
        used = (codes > 0).float()
        return Forward(self.reconstruct(codes), codes.sum(1), used.sum(1), used.sum(0))


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    x = np.random.default_rng(0).normal(size=(40, 12, 8)).astype(np.float32)
    return ActivationStore.from_arrays(x, tmp_path / "store")


def test_an_own_arm_is_trained_saved_and_loaded_by_its_class(store: ActivationStore, tmp_path: Path) -> None:
    run = train(store, Shrunk(features=16, centre="position"), 20, tmp_path / "run", batch_size=64, snapshots=1)
    assert run.summary["arm"]["kind"] == "shrunk"
    loaded = load_dictionary(tmp_path / "run", arm=Shrunk)
    assert isinstance(loaded, ShrunkDictionary) and loaded.config == Shrunk(features=16, centre="position")
    x, positions = torch.randn(5, 8), torch.arange(5)
    assert torch.equal(loaded.encode(x, positions), run.dictionary.encode(x, positions))
    assert load_dictionary(tmp_path / "run" / "snapshots" / "step-000010", arm=Shrunk).kind == "shrunk"


def test_an_own_arm_is_asked_for_by_its_class(store: ActivationStore, tmp_path: Path) -> None:
    train(store, Shrunk(features=16), 5, tmp_path / "run", batch_size=64)
    with pytest.raises(TemporalLensError, match=r"but one of kind 'shrunk'.*name its class: load_dictionary\(folder, arm=...\)"):
        load_dictionary(tmp_path / "run")
