"""What is known of each position before any training, from the moments of the training documents: its mean and scale, which
arms that are centred by position take off, and its variance, by which adaptive weights judge its loss.

Statistics of a position with few tokens are mostly noise, so they are drawn towards those of all positions by empirical Bayes:
by the share `n_p / (n_p + within / between)`, where `within` is the variance of activations about the mean of their position and
`between` that of the true means among positions (James and Stein 1961; Efron and Morris 1973).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from temporallens.activations.moments import Moments
from temporallens.training.objective import Inputs


class PositionScales(NamedTuple):
    """By position, in the units of normalised inputs."""

    share: Float[Tensor, " P"]  # of the training tokens, float64
    variance: Float[Tensor, " P"]  # mean squared distance from the position's mean, float64; positive
    offset: Float[Tensor, "P D"]  # of the position's mean from that of all; 0 where there are no tokens
    gain: Float[Tensor, " P"]  # brings what is left at a position to the scale of all; 1 where there are no tokens

    def to(self, device: torch.device) -> "PositionScales":
        return PositionScales(*(column.to(device) for column in self))


def position_scales(moments: Moments, inputs: Inputs) -> PositionScales:
    """Measure every position."""
    count = moments.count.double()
    share = count / count.sum()
    within = moments.within_variance() * inputs.scale**2
    deviation = torch.where(count[:, None] > 0, (moments.mean - moments.pooled_mean()) * inputs.scale, 0.0)
    trusted = _trusted(count, deviation.square().sum(1), within)
    by_position = (moments.second_moment - moments.mean.square()).sum(1).clamp(min=0) * inputs.scale**2
    variance = torch.lerp(within.expand_as(by_position), by_position, trusted).clamp(min=torch.finfo(torch.float32).tiny)
    offset = deviation * trusted[:, None]
    left = variance + (deviation - offset).square().sum(1)
    gain = torch.where(count > 0, (share @ left / left).sqrt(), 1.0)
    return PositionScales(share, variance, offset.float(), gain.float())


def _trusted(count: Float[Tensor, " P"], distance: Float[Tensor, " P"], within: Float[Tensor, ""]) -> Float[Tensor, " P"]:
    """How much of a position's own statistics is kept; nothing where the means differ by no more than their sampling noise."""
    seen, rows = int((count > 0).sum()), count.sum()
    between = (count @ distance - (seen - 1) * within) / rows
    if float(between) <= 0:
        return torch.zeros_like(count)
    return torch.where(count > 0, count * between / (count * between + within), 0.0)


def flat_scales(positions: int, width: int) -> PositionScales:
    """Positions of which nothing is known: all alike."""
    ones = torch.ones(positions, dtype=torch.float64)
    return PositionScales(ones / positions, ones, torch.zeros(positions, width, dtype=torch.float32), ones.float())
