"""BatchTopK under a mask that is exactly open or closed: what the learned mask is once it has hardened, and what the arms with a
fixed mask are from the start.

    z = the k N largest of m[g(p), f] * relu(pre),  m 0 or 1

A closed feature takes none of the k, and its column of the encoder is not multiplied.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, TopKConfig, auxk
from temporallens.dictionaries.inputs import Tokens, refuse_non_finite
from temporallens.dictionaries.masks import gated_blocks
from temporallens.dictionaries.sparse import Block, Pattern
from temporallens.dictionaries.steps import Dead


class MaskedDictionary(BatchTopKDictionary):
    """BatchTopK codes where `gates` are open; subclasses say which are."""

    masked = True

    @property
    @abstractmethod
    def group_of(self) -> Int[Tensor, " P"]:
        """Group of each position that the mask knows; later ones belong to the last."""

    @abstractmethod
    def gates(self) -> Float[Tensor, "G F"]:
        """How open each feature is in each group, 0 to 1, without gradients."""

    def groups(self, positions: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return at_positions(self.group_of, positions)

    def blocks(self, positions: Int[Tensor, " N"], floor: float) -> list[Block]:
        return gated_blocks(self.gates(), self.groups(positions), floor)

    def scale(self, raw: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        if not raw.is_cuda:  # closed entries were never candidates
            return raw
        return raw * self.gates().view(-1).index_select(0, self.entries(pattern, positions))

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"]:
        with torch.no_grad():  # a mask has nothing to learn from codes that are not in use
            gates = self.gates().index_select(1, dead.features).index_select(0, self.groups(positions))
        return auxk(self, x, residual, dead, gates)

    def entries(self, pattern: Pattern, positions: Int[Tensor, " N"]) -> Int[Tensor, " M"]:
        """Place of each code's gate in the flattened table."""
        first = self.groups(positions) * self.features
        return first.index_select(0, pattern.row).add_(pattern.feature)

    def modulate(self, pre: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        gates = self.gates()
        chosen = gates[self.group_of].mean(0) if positions is None else gates[self.groups(positions)]
        return pre.relu() * chosen

    def ungated(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], tokens: Tokens | None = None) -> Float[Tensor, "N F"]:
        refuse_non_finite(x, x.shape[:1], "the activations hold")
        codes = self.pre_activations(self.prepared(x, positions, tokens)).relu_()
        return codes * (codes > self.threshold)

    def gates_by_position(self) -> Float[Tensor, "P F"]:
        return self.gates()[self.group_of]


class FixedMaskDictionary(MaskedDictionary):
    """A mask that no gradient moves."""

    open: Tensor
    position_groups: Tensor

    def __init__(
        self,
        width: int,
        config: TopKConfig,
        group_of: Int[Tensor, " P"],
        open_entries: Bool[Tensor, "G F"],
        generator: torch.Generator,
    ) -> None:
        super().__init__(width, config, generator)
        self.register_buffer("position_groups", group_of)
        self.register_buffer("open", open_entries)

    @property
    def group_of(self) -> Int[Tensor, " P"]:
        return self.position_groups

    def gates(self) -> Float[Tensor, "G F"]:
        return self.open.float()
