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

from temporallens.dictionaries.sparse import Block, Floor
from temporallens.errors import TemporalLensError

CLOSED = 0.01
"""A soft gate below this is treated as closed: its feature would need a hundred times the threshold to be selected."""

GATHER_ROWS = 32
"""Rows of encoder product that are taken to cost as much as gathering the open columns of an encoder."""

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


def gated_blocks(gates: Float[Tensor, "G F"], groups: Int[Tensor, " N"], floor: float) -> list[Block]:
    """Blocks of rows in ascending order of group: which features are open to them, and how large a pre-activation must be for
    its gated value to exceed `floor`. Where most of a group is closed, only its open columns are multiplied; neighbouring groups
    of which that cannot be said share one product."""
    ordered, sizes = torch.unique_consecutive(groups, return_counts=True)
    blocks: list[Block] = []
    first = 0
    for group, rows in zip(ordered.tolist(), sizes.tolist(), strict=True):
        gate, last = gates[group], first + rows
        features = (gate > CLOSED).nonzero()[:, 0]
        if len(features) * (rows + GATHER_ROWS) < len(gate) * rows:
            blocks.append(Block(features, [Floor(first, last, floor / gate[features])]))
        else:
            if not blocks or blocks[-1].features is not None:
                blocks.append(Block(None, []))
            blocks[-1].floors.append(Floor(first, last, torch.where(gate > CLOSED, floor / gate, torch.inf)))
        first = last
    return [block for block in blocks if block.features is None or len(block.features)]
