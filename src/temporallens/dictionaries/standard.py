"""The standard sparse autoencoder: ReLU codes under an L1 penalty, unit-norm decoder rows (lab notes, Run 0)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.base import ArmConfig, Dictionary, Forward, Previous


class Standard(ArmConfig):
    """ReLU + L1. Inputs are scaled to mean norm sqrt(D), so `sparsity` means the same for every model."""

    level: ClassVar[str | None] = "sparsity"
    kind: Literal["standard"] = "standard"

    sparsity: float = Field(0.04, ge=0)
    """Weight of the L1 penalty, summed over features and averaged over tokens; the lab notes use 0.04."""

    @property
    def penalty(self) -> float:
        return self.sparsity

    def build(self, width: int, positions: int, generator: torch.Generator) -> "StandardDictionary":
        return StandardDictionary(width, self.features, generator)


class StandardDictionary(Dictionary):
    """Dense ReLU codes; position-blind."""

    kind = "standard"
    architecture = "standard"

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        return self.pre_activations(x).relu_()

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.pre_activations(x).relu()
        in_use = codes > 0
        return Forward(self.reconstruct(codes), codes.sum(1), in_use.sum(1).float(), in_use.sum(0).float())
