"""Position masks: for each group of positions, how open each feature is (lab notes, Runs 1 and 2).

A mask is a table of logits `l[g, f]`, one row per group of positions: free for every group, or on a smooth basis,
`l[p, f] = sum_k B_k(u) c[k, f]` with `u = log(1 + p) / log(1 + P)`. Its gate is `sigmoid(l / T)`, or `min(1, 2 sigmoid(l / T))`
where logits of 0 are to be fully open, as they are once hard (`full`); the temperature T falls through training and sharpens it, and a
hardened mask is exactly 0 or 1. Logits start at 0, and a logit that no gradient ever moved hardens to open, so that a mask closes an entry
only on evidence. What gates do to codes stands in `arms/positional.py`.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from temporallens.activations.clocks import at_positions
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.sparse import Block, Floor
from temporallens.dictionaries.steps import Progress
from temporallens.errors import TemporalLensError

CLOSED = 0.01
"""A soft gate below this is treated as closed: its feature would need a hundred times the threshold to be selected."""

GATHER_ROWS = 32
"""Rows of encoder product that are taken to cost as much as gathering the open columns of an encoder."""

COLUMNS = 64
"""Products have a multiple of so many columns: a shape that was not seen before costs a kernel, and masks change as they learn."""

Groups = int | Literal["positions", "smooth"]


class MaskConfig(ArmConfig):
    """What the arms with a learnable position mask have in common: its shape and its schedule."""

    groups: Groups = 8
    """Log-spaced groups of positions that share a mask entry; 'positions' for a free table of one entry per position; 'smooth' for a
    smooth function of the position."""

    bumps: int = Field(12, ge=2, le=4096)
    """Bumps of a smooth mask, evenly spaced on a logarithmic axis: how sharp a window can be."""

    length: int | None = Field(None, ge=2, le=1 << 20)
    """Positions that the mask knows, by default all of the store's; at later ones it is what it is at its last."""

    strictness: Literal["hard", "soft", "straight_through"] = "hard"
    """Soft gates that harden; soft gates to the end; or gates that are exactly 0 or 1 from the end of the warm-up on."""

    temperature_start: float = Field(5.0, gt=0)
    """Temperature of the mask's sigmoid when it begins to learn."""

    temperature_end: float = Field(0.1, gt=0)
    """Temperature when the mask hardens."""

    mask_warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps for which the mask stays equally open everywhere, so that features form before anything closes."""

    harden_at: float = Field(0.8, gt=0, le=1)
    """Share of the steps after which the temperature stays where it is, and a mask of strictness 'hard' is exactly 0 or 1."""

    mask_rate: float = Field(5.0, gt=0)
    """Learning rate of the mask's logits, as a multiple of the dictionary's."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.temperature_end > self.temperature_start:
            raise ValueError(
                f"temperature_end = {self.temperature_end} is above temperature_start = {self.temperature_start}; "
                "annealing sharpens a mask, so give a lower end"
            )
        if self.mask_warmup >= self.harden_at:
            raise ValueError(
                f"mask_warmup = {self.mask_warmup} is not below harden_at = {self.harden_at}; the mask would harden before it learned"
            )

    def check(self, positions: int) -> None:
        if self.length is not None and self.length < positions and self.groups == "positions":
            raise TemporalLensError(
                f"length = {self.length} is below the data's {positions} positions, of which a free table must know each; "
                f"give at least {positions}, or groups: smooth"
            )
        group_starts(self.length or positions, self.groups)


def group_starts(positions: int, groups: Groups) -> list[int]:
    """First position of each group: log-spaced from position 1 on, position 0 with the first; or one group per position."""
    if isinstance(groups, str):
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
    return torch.from_numpy(np.searchsorted(group_starts(positions, groups), np.arange(positions), side="right") - 1)


def smooth_basis(positions: int, bumps: int) -> Float[Tensor, "P K"]:
    """A constant and raised cosines on the axis `log(1 + p)`, each overlapping its two neighbours on either side."""
    axis = torch.log1p(torch.arange(positions, dtype=torch.float32)) / math.log1p(positions)
    distance = (axis[:, None] - torch.linspace(0, 1, bumps, dtype=torch.float32, device=axis.device)) * (bumps - 1)
    raised = torch.where(distance.abs() < 2, 0.5 + 0.5 * torch.cos(math.pi / 2 * distance), 0.0)
    return torch.cat([torch.ones(positions, 1, dtype=torch.float32), raised], 1)


class PositionMask(nn.Module):
    """A learnable mask; positions beyond those known belong to the last group."""

    group_of: Tensor
    temperature: Tensor
    basis: Tensor | None

    def __init__(self, positions: int, config: MaskConfig, full: bool = False) -> None:
        """`full`: gates are 1, and not one half, at logits of 0 and more, as they will be once they are hard."""
        super().__init__()
        self._config, self._full = config, full
        known = config.length or positions
        group_of = group_of_position(known, config.groups)
        basis = smooth_basis(known, config.bumps) if config.groups == "smooth" else None
        rows = len(group_starts(known, config.groups)) if basis is None else basis.shape[1]
        self.logits = nn.Parameter(torch.zeros(rows, config.features, dtype=torch.float32))  # of a smooth mask, coefficients
        self.register_buffer("group_of", group_of)
        self.register_buffer("basis", basis)
        self.register_buffer("temperature", torch.tensor(config.temperature_start, dtype=torch.float32))
        self.hard = False

    def advance(self, progress: Progress) -> None:
        """Follow the schedule: warm-up, exponential annealing (lab notes, Run 2), hardening."""
        config, annealed = self._config, self._annealed(progress)
        ratio = config.temperature_end / config.temperature_start
        self.temperature.fill_(config.temperature_start * ratio ** min(1.0, max(0.0, annealed)))
        hardened = config.strictness == "hard" and annealed >= 1
        self.hard = hardened or (config.strictness == "straight_through" and annealed >= 0)
        self.logits.requires_grad_(annealed >= 0 and not hardened)

    def _annealed(self, progress: Progress) -> float:
        """Share of the annealing that is done; negative during warm-up."""
        return (progress.share - self._config.mask_warmup) / (self._config.harden_at - self._config.mask_warmup)

    def hardens_at(self, steps: int) -> int | None:
        """After how many of so many steps the mask becomes exactly 0 or 1; None where it stays as it is."""
        if self._config.strictness != "hard":
            return None
        return next((step for step in range(steps) if self._annealed(Progress(step, steps)) >= 1), None)

    def table(self) -> Float[Tensor, "G F"]:
        """Logits of every group."""
        return self.logits if self.basis is None else self.basis @ self.logits

    def open(self) -> Bool[Tensor, "G F"]:
        """The hard mask: logits of 0 or more, or, straight through, gates that are not as good as closed. Every feature stays open at
        least where it is most open: closed everywhere it could never come back."""
        table = self.table().detach()
        least = math.log(CLOSED) * self.temperature if self._config.strictness == "straight_through" else 0.0
        return (table >= least) | (table >= table.amax(0))

    def gates(self) -> Float[Tensor, "G F"]:
        """How open each feature is in each group, 0 to 1."""
        if self.hard:
            return self.open().float()
        gates = torch.sigmoid(self.table() / self.temperature)
        return (2 * gates).clamp(max=1) if self._full else gates

    def groups(self, positions: Int[Tensor, " *shape"]) -> Int[Tensor, " *shape"]:
        return at_positions(self.group_of, positions)


class LearnsMask(Dictionary):
    """What the dictionaries with a learnable mask do with it, whatever their codes are."""

    masked = True
    mask: PositionMask
    config: MaskConfig

    def advance(self, progress: Progress) -> None:
        self.mask.advance(progress)

    def hardens_at(self, steps: int) -> int | None:
        return self.mask.hardens_at(steps)

    @property
    def temperature(self) -> float:
        return 0.0 if self.mask.hard and self.config.strictness == "hard" else float(self.mask.temperature)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        weights = [parameter for parameter in self.parameters() if parameter is not self.mask.logits]
        return [(weights, 1.0), ([self.mask.logits], self.config.mask_rate)]

    def record(self) -> dict[str, Any]:
        return {"mask_hard": self.mask.hard}

    def restore_record(self, record: dict[str, Any]) -> None:
        self.mask.hard = bool(record["mask_hard"])
        self.mask.logits.requires_grad_(False)


def gated_blocks(gates: Float[Tensor, "G F"], groups: Int[Tensor, " N"], floor: float) -> list[Block]:
    """Blocks of rows in ascending order of group: which features are open to them, and how large a pre-activation must be for
    its gated value to exceed `floor`. Where most of a group is closed, only its open columns are multiplied; neighbouring groups
    of which that cannot be said share one product."""
    ordered, sizes = torch.unique_consecutive(groups, return_counts=True)
    is_open = gates > CLOSED
    floors, counts = torch.where(is_open, floor / gates, torch.inf), is_open.sum(1).tolist()
    blocks: list[Block] = []
    first = 0
    for group, rows in zip(ordered.tolist(), sizes.tolist(), strict=True):
        gate, last = gates[group], first + rows
        columns = -(-counts[group] // COLUMNS) * COLUMNS
        if columns * (rows + GATHER_ROWS) < len(gate) * rows:
            features = gate.topk(columns).indices.sort().values
            blocks.append(Block(features, [Floor(first, last, floors[group].index_select(0, features))]))
        else:
            if not blocks or blocks[-1].features is not None:
                blocks.append(Block(None, []))
            blocks[-1].floors.append(Floor(first, last, floors[group]))
        first = last
    return [block for block in blocks if block.features is None or len(block.features)]
