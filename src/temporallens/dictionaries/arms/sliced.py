"""Static slicing, the lab notes' comparator (experiment step 3): every group of positions has features of its own, fixed before
training, beside a shared block that is open everywhere.

    z = the k N largest of m[g(p), f] * relu(pre),  m[g, f] = [f shared, or in slice g]
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.dictionaries.arms.masked import FixedMaskDictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.masks import group_of_position, group_starts
from temporallens.errors import TemporalLensError


class Sliced(TopKConfig):
    """BatchTopK under a fixed mask: features dealt out to groups of positions."""

    roles: ClassVar[tuple[Role, ...]] = ("control",)
    kind: Literal["sliced"] = "sliced"

    groups: int | Literal["positions"] = 8
    """Log-spaced groups of positions, or 'positions' for one per position."""

    shared: float = Field(0.5, ge=0, le=1)
    """Share of the features that are open everywhere; 0 is pure static slicing, 1 an ordinary dictionary."""

    def check(self, positions: int) -> None:
        groups, divided = len(group_starts(positions, self.groups)), self.features - self.shared_features
        if 0 < divided < groups:
            raise TemporalLensError(
                f"{divided} features cannot be dealt out to {groups} groups: give more features, fewer groups or another share"
            )
        most = self.shared_features + -(-divided // groups)
        if self.k > most:
            raise TemporalLensError(f"k = {self.k} codes per token cannot come from the {most} features that are open at a position")

    @property
    def shared_features(self) -> int:
        return round(self.shared * self.features)

    def build(self, width: int, positions: int, generator: torch.Generator) -> FixedMaskDictionary:
        groups = len(group_starts(positions, self.groups))
        return FixedMaskDictionary(width, self, group_of_position(positions, self.groups), self._slices(groups), generator)

    def _slices(self, groups: int) -> Bool[Tensor, "G F"]:
        """The shared block first, then equal slices in order of position."""
        feature = torch.arange(self.features)
        divided = max(1, self.features - self.shared_features)
        owner = torch.div((feature - self.shared_features) * groups, divided, rounding_mode="floor")
        return (feature < self.shared_features) | (owner == torch.arange(groups)[:, None])
