"""What a training step minimises: reconstruction, sparsity where the arm has it, and the revival of dead features.

Everything is summed over dimensions and features and averaged over tokens, in float32, on inputs of mean norm sqrt(D)
(`docs/method.md`). Squared errors are in these common units whatever the arm scales its inputs by, so that arms can be compared.
Rows may be weighed by position (lab notes, Runs 5 and 6); the parts are reported unweighted beside the sum that is minimised.
Masks learn from the squared error that a code saves (`arms/positional.py`): another measure of reconstruction has to change that too.
Of several processes each has a share of the rows; losses, and so gradients, are their parts of the batch's, which add up to them.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens import processes
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.steps import Dead, Forward


class Losses(NamedTuple):
    """The parts of one batch's loss, as far as they come from this process's rows; scalars unless said otherwise."""

    loss: Float[Tensor, ""]  # what is minimised
    mse: Float[Tensor, ""]  # squared error per token, summed over dimensions
    sparsity: Float[Tensor, ""]  # sum of codes per token, unweighted
    per_row: Float[Tensor, " N"]  # squared error of each token
    residual: Float[Tensor, "N D"]  # what the reconstruction misses, in the units of the arm's inputs


class RowWeights(NamedTuple):
    """What each row of a batch counts; None where all count 1."""

    gain: Float[Tensor, " N"] | None = None  # by which the arm scaled its inputs: squared errors are divided by its square
    reconstruction: Float[Tensor, " N"] | None = None  # w_p of the squared error and of the arm's further loss
    sparsity: Float[Tensor, " N"] | None = None  # w_p of the L1 penalty


ALIKE = RowWeights()
"""Every row counts the same."""


def objective(
    dictionary: Dictionary,
    forward: Forward,
    x: Float[Tensor, "N D"],
    positions: Int[Tensor, " N"],
    sparsity: float,
    auxiliary: float,
    dead: Dead | None,
    weights: RowWeights = ALIKE,
) -> Losses:
    """Loss of one batch at these positions. `sparsity` weighs the arm's L1 penalty; `dead` are features for AuxK to revive."""
    per_row, residual = squared_errors(forward.reconstruction, x)
    units = None if weights.gain is None else weights.gain.square().reciprocal()
    per_row = _times(per_row, units)
    fitted = per_row if forward.extra is None else per_row + forward.extra
    loss = _mean(_times(fitted, weights.reconstruction))
    if sparsity:
        loss = loss + sparsity * _mean(_times(forward.magnitude, weights.sparsity))
    revival = dictionary.auxiliary(x, positions, residual, dead) if auxiliary and dead is not None else None
    if revival is not None:
        loss = loss + auxiliary * _mean(_times(revival, units))
    per_row = per_row.detach()
    return Losses(loss, _mean(per_row), _mean(forward.magnitude.detach()), per_row, residual)


def _mean(rows: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """What this process's rows add to the mean over all rows of the batch."""
    return rows.sum() / processes.total(len(rows))


def _times(rows: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None) -> Float[Tensor, " N"]:
    return rows if weights is None else rows * weights


class _SquaredErrors(torch.autograd.Function):
    """Two passes over `[N, D]` forward, one backward; autograd takes seven."""

    @staticmethod
    def forward(ctx: Any, reconstruction: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = x - reconstruction
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)  # the residual's would be zeros, as large as the batch
        ctx.save_for_backward(residual)
        return torch.linalg.vector_norm(residual, dim=1).square_(), residual

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (residual,), by_row = ctx.saved_tensors, gradients[0]
        return None if by_row is None else residual * by_row.mul(-2)[:, None], None


def squared_errors(reconstruction: Float[Tensor, "N D"], x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N D"]]:
    """Squared error of each row, differentiable in the reconstruction, and the residual `x - reconstruction`, which is not."""
    return _SquaredErrors.apply(reconstruction, x)


class Inputs(NamedTuple):
    """How activations are centred and scaled before any dictionary sees them: `(x - centre) * scale`."""

    centre: Float[Tensor, " D"]
    scale: float

    def to(self, device: torch.device) -> "Inputs":
        return self._replace(centre=self.centre.to(device))

    def normalise(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return (x - self.centre).mul_(self.scale)


def inputs_for(mean: Float[Tensor, " D"], variance: Float[Tensor, ""]) -> Inputs:
    """Centre on the mean and scale the root mean square norm of what is left to sqrt(D)."""
    return Inputs(mean.float(), float(torch.sqrt(len(mean) / variance)))
