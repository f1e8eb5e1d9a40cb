"""Position masks: for each group of positions, how open each feature is (lab notes, Runs 1 and 2).

A mask is a table of logits `l[g, f]`, one row per group of positions. Its gate is `sigmoid(l / T)`; the temperature T falls
through training and sharpens it, and a hardened mask is exactly 0 or 1. Logits start at 0: what starts open never closes
(`docs/method.md`). A logit that no gradient ever moved stays at 0 and hardens to open, so that a mask closes an entry only on evidence.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from temporallens.errors import TemporalLensError

Groups = int | Literal["positions"]


def group_starts(positions: int, groups: Groups) -> list[int]:
    """First position of each group: log-spaced from position 1 on, position 0 with the first; or one group per position."""
    if groups == "positions":
        return list(range(positions))
    if not 1 <= groups <= max(1, positions - 1):
        raise TemporalLensError(f"{groups} groups cannot divide {positions} positions: give 1 to {max(1, positions - 1)}, or 'positions'")
    starts = [0]
    for edge in np.geomspace(1, positions, groups + 1)[1:-1]:
        starts.append(max(starts[-1] + 1 + (len(starts) == 1), math.ceil(edge)))
    overshoot = starts[-1] - (positions - 1)
    return starts if overshoot <= 0 else [0, *range(positions - groups + 1, positions)]


def group_of_position(positions: int, groups: Groups) -> Int[Tensor, " P"]:
    """Group of each position, ascending."""
    starts = torch.tensor(group_starts(positions, groups))
    return torch.bucketize(torch.arange(positions), starts, right=True) - 1


class PositionMask(nn.Module):
    """Logits `[G, F]` over groups of positions; positions beyond those known belong to the last group."""

    group_of: Tensor
    temperature: Tensor

    def __init__(self, positions: int, features: int, groups: Groups, temperature: float) -> None:
        super().__init__()
        group_of = group_of_position(positions, groups)
        self.logits = nn.Parameter(torch.zeros(int(group_of[-1]) + 1, features))
        self.register_buffer("group_of", group_of)
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))
        self.hard = False

    def gates(self) -> Float[Tensor, "G F"]:
        """How open each feature is in each group, 0 to 1."""
        if self.hard:
            return (self.logits >= 0).float()
        return torch.sigmoid(self.logits / self.temperature)

    def groups(self, positions: Int[Tensor, " *shape"]) -> Int[Tensor, " *shape"]:
        return self.group_of[positions.long().clamp(max=len(self.group_of) - 1)]

    def openness(self) -> Float[Tensor, " P"]:
        """Mean gate over features, by position."""
        with torch.no_grad():
            return self.gates().mean(1)[self.group_of]


def scale_groups_(values: Float[Tensor, "N F"], gates: Float[Tensor, "G F"], groups: Int[Tensor, " N"]) -> Float[Tensor, "N F"]:
    """Multiply each row by its group's gates, in place. Rows sorted by group cost one pass, and no `[N, F]` copy of the gates."""
    ordered, sizes = torch.unique_consecutive(groups, return_counts=True)
    if len(ordered) > len(gates):  # not sorted: the runs are too short for slices to pay
        return values.mul_(gates[groups])
    first = 0
    for group, size in zip(ordered.tolist(), sizes.tolist(), strict=True):
        values[first : first + size].mul_(gates[group])
        first += size
    return values
