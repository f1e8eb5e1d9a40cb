"""The comparator that a learned mask must beat: an ordinary BatchTopK dictionary, masked after training wherever its own firing rate is
low (`docs/method.md`).

    z = BatchTopK(x) * m[g(p), f],  m = [rate[g, f] >= cut * max_g rate[g, f]]

Training is BatchTopK's to the bit; the batches after it give the firing profile."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.dictionaries.arms.masked import FixedMaskDictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.masks import group_of_position, group_starts
from temporallens.processes import summed


class PostHoc(TopKConfig):
    """BatchTopK, masked by its own firing profile."""

    roles: ClassVar[tuple[Role, ...]] = ("control",)
    kind: Literal["posthoc"] = "posthoc"

    groups: int | Literal["positions"] = 8
    """Log-spaced groups of positions, or 'positions' for one per position."""

    cut: float = Field(0.05, gt=0, lt=1)
    """A feature closes where it fires at less than this share of its highest rate."""

    def check(self, positions: int) -> None:
        group_starts(positions, self.groups)

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PostHocDictionary":
        return PostHocDictionary(width, positions, self, generator)


class PostHocDictionary(FixedMaskDictionary):
    """Open everywhere until training is over."""

    config: PostHoc

    def __init__(self, width: int, positions: int, config: PostHoc, generator: torch.Generator) -> None:
        groups = len(group_starts(positions, config.groups))
        everywhere = torch.ones(groups, config.features, dtype=torch.bool)
        super().__init__(width, config, group_of_position(positions, config.groups), everywhere, generator)
        self._fired: Tensor = torch.zeros(groups * config.features, dtype=torch.float32)
        self._seen: Tensor = torch.zeros(groups, dtype=torch.float32)

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> None:
        codes = self.selected(x, positions)
        self._note_threshold(codes.values)
        if not len(codes.values):
            return
        entries, groups = self.entries(codes.pattern, positions).cpu(), self.groups(positions).cpu()
        self._fired.index_add_(0, entries, (codes.values > 0).float().cpu())
        self._seen.index_add_(0, groups, torch.ones(len(groups), dtype=torch.float32))

    def finished(self) -> None:
        super().finished()
        fired, seen = summed(self._fired), summed(self._seen)
        rate = fired.view(len(seen), -1) / seen.clamp(min=1)[:, None]
        unseen = (seen == 0)[:, None]  # groups of which nothing is known stay open, as do features that never fired
        self.open.copy_((rate >= self.config.cut * rate.amax(0)) | unseen)
