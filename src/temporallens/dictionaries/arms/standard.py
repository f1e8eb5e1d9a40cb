"""The standard sparse autoencoder: ReLU codes under an L1 penalty, unit-norm decoder rows (lab notes, Run 0).

z = relu(pre),  loss = |x - x_hat|^2 + sparsity * sum_f z
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.steps import Forward, Previous


class L1Config(ArmConfig):
    """What the arms with an L1 penalty have in common. Inputs are scaled to mean norm sqrt(D), so that `sparsity` means the same
    for every model."""

    level: ClassVar[str | None] = "sparsity"

    sparsity: float = Field(0.04, ge=0)
    """Weight of the L1 penalty, summed over features and averaged over tokens; the lab notes use 0.04."""

    position_sparsity: Literal["uniform", "shared", "own"] = "uniform"
    """Whether the penalty is the same at every position, follows the weights of the reconstruction (lab notes, Run 6), or weights
    of its own that follow how large each position's codes are."""

    def model_post_init(self, _context: object) -> None:
        if self.position_sparsity == "shared" and not self.position_weights:
            raise ValueError(
                "position_sparsity = 'shared' shares the weights of the reconstruction, which position_weights = false switches off; "
                "set position_weights to true, or position_sparsity to 'own' or 'uniform'"
            )

    @property
    def penalty(self) -> float:
        return self.sparsity


class Standard(L1Config):
    """ReLU + L1."""

    roles: ClassVar[tuple[Role, ...]] = ("ordinary", "fallback")
    kind: Literal["standard"] = "standard"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "StandardDictionary":
        return StandardDictionary(width, self, generator)


class StandardDictionary(Dictionary):
    """Dense ReLU codes; position-blind."""

    architecture = "standard"

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        return self.pre_activations(x).relu_()

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.pre_activations(x).relu()
        in_use = codes > 0
        return Forward(self.reconstruct(codes), codes.sum(1), in_use.sum(1).float(), in_use.sum(0).float())
