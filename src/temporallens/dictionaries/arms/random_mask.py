"""A control for learned masks: BatchTopK under a random mask of a given openness, fixed before training (`docs/method.md`).

z = the k N largest of m[g(p), f] * relu(pre),  m[g] = 1 for openness[g] * F features drawn at random
"""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.dictionaries.arms.masked import FixedMaskDictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.masks import group_of_position, group_starts
from temporallens.errors import TemporalLensError

Share = Annotated[float, Field(gt=0, le=1)]


class RandomMask(TopKConfig):
    """BatchTopK under a random mask."""

    roles: ClassVar[tuple[Role, ...]] = ("control",)
    kind: Literal["random_mask"] = "random_mask"

    groups: int | Literal["positions"] = 8
    """Log-spaced groups of positions, or 'positions' for one per position."""

    openness: Share | tuple[Share, ...] = 0.5
    """Share of the features that is open, in every group or group by group: that of the learned mask it is compared with."""

    def check(self, positions: int) -> None:
        groups = len(group_starts(positions, self.groups))
        if isinstance(self.openness, tuple) and len(self.openness) != groups:
            raise TemporalLensError(
                f"openness has {len(self.openness)} values for {groups} groups of positions; give one for each, or one number"
            )
        most = max(1, round(max(self.openness if isinstance(self.openness, tuple) else (self.openness,)) * self.features))
        if self.k > most:
            raise TemporalLensError(f"k = {self.k} codes per token cannot come from the {most} features that are open at a position")

    def build(self, width: int, positions: int, generator: torch.Generator) -> FixedMaskDictionary:
        groups = len(group_starts(positions, self.groups))
        return FixedMaskDictionary(width, self, group_of_position(positions, self.groups), self._draw(groups), generator)

    def _draw(self, groups: int) -> Bool[Tensor, "G F"]:
        """So many features of each group, by a generator of its own: the weights start as every other arm's do."""
        shares = torch.tensor(self.openness, dtype=torch.float32).expand(groups)
        rank = torch.rand(groups, self.features, generator=torch.Generator().manual_seed(0), dtype=torch.float32).argsort(1).argsort(1)
        return rank < (shares * self.features).round().clamp(min=1)[:, None]
