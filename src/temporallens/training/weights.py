"""Adaptive position weights (lab notes, Runs 5 and 6): positions that are hard count more.

Each position's loss, divided by its variance so that a loud position is not taken for a hard one, is followed by an
exponential moving average that moves only where a batch has tokens and is corrected for its start. Weights are the averages times
the one factor for which, clipped to `LOWEST` and `HIGHEST`, their mean over tokens is 1 (`docs/method.md`). Before a position
has any evidence its weight is 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens import processes
from temporallens.dictionaries.arms.standard import L1Config
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.training.objective import RowWeights
from temporallens.training.scales import PositionScales

DECAY = 0.99
"""Of the moving average, per step in which a position has tokens."""

LOWEST, HIGHEST = 0.5, 2.0
"""Weights are clipped to these, so that following the loss cannot run away with one position."""

SMALLEST = 1e-4
"""Averages count as at least this share of the largest; clipped weights differ four times at most."""


class PositionWeights:
    """Averages and weights by position; tensors on the device, and no step waits for them."""

    def __init__(self, share: Float[Tensor, " P"], variance: Float[Tensor, " P"]) -> None:
        self._share, self._variance = share.double(), variance.double()
        self._average = torch.zeros_like(self._variance)
        self._evidence = torch.zeros_like(self._variance)  # what the average of a loss of 1 would be: the correction for its start
        self.weights: Float[Tensor, " P"] = torch.ones_like(self._variance, dtype=torch.float32)

    @torch.no_grad()
    def follow(self, losses: Float[Tensor, " N"], positions: Int[Tensor, " N"], count: Float[Tensor, " P"]) -> None:
        """Take in the losses of a batch's rows; `count` is how many of them each position has."""
        sums = processes.summed(torch.zeros_like(self._average).index_add_(0, positions, losses.double()))
        count = processes.summed(count)
        rate = (1 - DECAY) * (count > 0)
        self._average.add_(rate * (sums / count.clamp(min=1) / self._variance - self._average))
        self._evidence.add_(rate * (1 - self._evidence))
        known = self._evidence > 0
        self.weights = torch.where(known, _settled(self._average / self._evidence, self._share * known), 1.0).float()

    def of(self, positions: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        return self.weights.index_select(0, positions)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"average": self._average, "evidence": self._evidence, "weights": self.weights}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self._average.copy_(tensors["average"])
        self._evidence.copy_(tensors["evidence"])
        self.weights = tensors["weights"].to(self.weights.device)


class Adaptive(NamedTuple):
    """What an arm weighs by position; None for what it does not."""

    by_loss: PositionWeights | None  # follow the normalised loss
    by_magnitude: PositionWeights | None  # follow the sum of codes
    reconstruction: PositionWeights | None  # the one of these that weighs the reconstruction
    sparsity: PositionWeights | None  # the one that weighs the L1 penalty

    def of_rows(self, positions: Int[Tensor, " N"]) -> RowWeights:
        reconstruction, sparsity = (None if weights is None else weights.of(positions) for weights in (self.reconstruction, self.sparsity))
        return RowWeights(reconstruction=reconstruction, sparsity=sparsity)

    def follow(
        self, losses: Float[Tensor, " N"], magnitude: Float[Tensor, " N"], positions: Int[Tensor, " N"], count: Float[Tensor, " P"]
    ) -> None:
        """Take in a batch's rows, of which each position has `count`."""
        if self.by_loss is not None:
            self.by_loss.follow(losses, positions, count)
        if self.by_magnitude is not None:
            self.by_magnitude.follow(magnitude, positions, count)

    def _followed(self) -> dict[str, PositionWeights]:
        named = {"loss": self.by_loss, "magnitude": self.by_magnitude}
        return {name: weights for name, weights in named.items() if weights is not None}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {f"{name}/{part}": tensor for name, weights in self._followed().items() for part, tensor in weights.tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, weights in self._followed().items():
            weights.restore({part: tensors[f"{name}/{part}"] for part in weights.tensors()})


def adaptive_weights(arm: ArmConfig, dictionary: Dictionary, scales: PositionScales) -> Adaptive:
    """The weights that an arm follows. Permuted labels have no variance of their own to divide a loss by."""
    alike = torch.ones_like(scales.variance)
    sparsity = arm.position_sparsity if isinstance(arm, L1Config) else "uniform"
    wanted = arm.position_weights or arm.wants_weights
    by_loss = PositionWeights(scales.share, alike if arm.permuted else scales.variance) if wanted else None
    by_magnitude = PositionWeights(scales.share, alike) if sparsity == "own" else None
    chosen = {"uniform": None, "shared": by_loss, "own": by_magnitude}[sparsity]
    return Adaptive(by_loss, by_magnitude, by_loss if arm.position_weights else None, chosen)


def _settled(average: Float[Tensor, " P"], share: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """`clip(c * average)` for the factor c that makes its mean over tokens 1; NaN averages belong to positions of no share.

    That mean grows with c along straight lines, which bend where a position leaves its lower bound and where it meets its upper
    one: sorting these points finds the line that crosses 1.
    """
    average, share = average.nan_to_num(0.0), share / share.sum()
    average = average.clamp(min=(SMALLEST * average.max()).clamp(min=torch.finfo(torch.float32).tiny))
    bends, order = torch.cat([LOWEST / average, HIGHEST / average]).sort()
    slopes = torch.cat([share * average, -share * average])[order].cumsum(0)
    means = LOWEST + torch.cat([slopes.new_zeros(1), (slopes[:-1] * bends.diff()).cumsum(0)])
    before = (torch.searchsorted(means, 1.0, right=True) - 1).clamp(max=len(bends) - 2)
    factor = (bends[before] + (1 - means[before]) / slopes[before]).clamp(bends[before], bends[before + 1])
    return (average * factor).clamp(LOWEST, HIGHEST)
