"""What a training step minimises: reconstruction, sparsity where the arm has it, and the revival of dead features.

Everything is summed over dimensions and features and averaged over tokens, in float32, on inputs of mean norm sqrt(D)
(`docs/method.md`). The parts are reported unweighted beside their sum.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from temporallens.dictionaries.base import Dead, Dictionary, Forward


class Losses(NamedTuple):
    """The parts of one batch's loss; scalars unless said otherwise."""

    loss: Float[Tensor, ""]  # what is minimised
    mse: Float[Tensor, ""]  # squared error per token, summed over dimensions
    sparsity: Float[Tensor, ""]  # sum of codes per token, unweighted
    per_row: Float[Tensor, " N"]  # squared error of each token


def objective(
    dictionary: Dictionary,
    forward: Forward,
    x: Float[Tensor, "N D"],
    sparsity: float,
    auxiliary: float,
    dead: Dead | None,
) -> Losses:
    """Loss of one batch. `sparsity` weighs the arm's L1 penalty; `dead` are features for AuxK to revive."""
    residual = x - forward.reconstruction
    per_row = residual.square().sum(1)
    mse, magnitude = per_row.mean(), forward.magnitude.mean()
    loss = mse + sparsity * magnitude if sparsity else mse
    revival = dictionary.auxiliary(x, residual.detach(), dead) if auxiliary and dead is not None else None
    if revival is not None:
        loss = loss + auxiliary * revival.mean()
    return Losses(loss, mse.detach(), magnitude.detach(), per_row.detach())


class Inputs(NamedTuple):
    """How activations are centred and scaled before any dictionary sees them: `(x - centre) * scale`."""

    centre: Float[Tensor, " D"]
    scale: float

    def normalise(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return (x - self.centre).mul_(self.scale)


def inputs_for(mean: Float[Tensor, " D"], variance: Float[Tensor, ""]) -> Inputs:
    """Centre on the mean and scale the root mean square norm of what is left to sqrt(D)."""
    return Inputs(mean.float(), float(torch.sqrt(len(mean) / variance)))
