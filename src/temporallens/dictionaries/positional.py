"""The positional dictionary: features that know where in the sequence they live (lab notes, Runs 1 and 2).

`codes = BatchTopK(sigmoid(l[g(p), f] / T) * relu(pre))`: each feature is modulated by a learnable mask over groups of
positions, and masked codes compete for the k places, so that a closed feature takes none. The temperature falls exponentially from
5.0 to 0.1 (Run 2); at `harden_at` of the steps the mask becomes exactly 0 or 1 and the dictionary is fine-tuned under it,
because a soft mask that is rounded only after training costs reconstruction that nothing wins back.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from temporallens.dictionaries.base import Progress
from temporallens.dictionaries.batchtopk import BatchTopKDictionary, TopKConfig
from temporallens.dictionaries.masks import Groups, PositionMask, gated_blocks, group_starts
from temporallens.dictionaries.sparse import Block, Pattern


class Positional(TopKConfig):
    """BatchTopK under a learnable multiplicative position mask with temperature annealing."""

    kind: Literal["positional"] = "positional"

    groups: Groups = 8
    """Log-spaced groups of positions that share a mask entry, or 'positions' for a free table of one entry per position."""

    temperature_start: float = Field(5.0, gt=0)
    """Temperature of the mask's sigmoid at the first step."""

    temperature_end: float = Field(0.1, gt=0)
    """Temperature when the mask hardens."""

    harden_at: float = Field(0.8, gt=0, le=1)
    """Share of the steps after which the mask is exactly 0 or 1; 1 keeps it soft to the end."""

    mask_rate: float = Field(5.0, gt=0)
    """Learning rate of the mask's logits, as a multiple of the dictionary's."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.temperature_end > self.temperature_start:
            raise ValueError(
                f"temperature_end = {self.temperature_end} is above temperature_start = {self.temperature_start}; "
                "annealing sharpens a mask, so give a lower end"
            )

    def check(self, positions: int) -> None:
        group_starts(positions, self.groups)

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PositionalDictionary":
        return PositionalDictionary(width, positions, self, generator)


class PositionalDictionary(BatchTopKDictionary):
    """BatchTopK codes modulated by a position mask."""

    kind = "positional"
    architecture = "temporallens_positional"
    masked = True

    def __init__(self, width: int, positions: int, config: Positional, generator: torch.Generator) -> None:
        super().__init__(width, config.features, config.k, generator)
        self.config = config
        self.mask = PositionMask(positions, config.features, config.groups, config.temperature_start)

    def advance(self, progress: Progress) -> None:
        config = self.config
        annealed = min(1.0, progress.share / config.harden_at)
        self.mask.temperature.fill_(config.temperature_start * (config.temperature_end / config.temperature_start) ** annealed)
        self.mask.hard = progress.share >= config.harden_at

    @property
    def temperature(self) -> float:
        return 0.0 if self.mask.hard else float(self.mask.temperature)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        weights = [parameter for parameter in self.parameters() if parameter is not self.mask.logits]
        return [(weights, 1.0), ([self.mask.logits], self.config.mask_rate)]

    def blocks(self, positions: Int[Tensor, " N"], floor: float) -> list[Block]:
        return gated_blocks(self.mask.gates().detach(), self.mask.groups(positions), floor)

    def scale(self, raw: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        if self.mask.hard and not raw.is_cuda:  # closed entries were never candidates
            return raw
        first = self.mask.groups(positions) * self.features  # of each row's entries in the flattened table of gates
        return raw * self.mask.gates().view(-1).index_select(0, first.index_select(0, pattern.row).add_(pattern.feature))

    def modulate(self, pre: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        gates = self.mask.gates()
        chosen = gates[self.mask.group_of].mean(0) if positions is None else gates[self.mask.groups(positions)]
        return pre.relu() * chosen

    def gates_by_position(self) -> Float[Tensor, "P F"]:
        return self.mask.gates().detach()[self.mask.group_of]

    def record(self) -> dict[str, Any]:
        return {"mask_hard": self.mask.hard}

    def restore_record(self, record: dict[str, Any]) -> None:
        self.mask.hard = bool(record["mask_hard"])
