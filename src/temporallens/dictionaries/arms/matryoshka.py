"""Matryoshka BatchTopK (Bussmann et al. 2025): every prefix of the dictionary has to reconstruct by itself.

    loss = sum_m |x - (z[:m] @ decoder[:m] + decoder_bias)|^2,  m = shares of the features; z as in BatchTopK

The codes are those of BatchTopK, chosen once over all features. For each level m the loss has the squared error of
`codes[:m] @ decoder[:m] + decoder_bias`; as in the paper the levels are summed, unweighted. The order of features is the
hierarchy: the first are general, the last specific. Inference is that of BatchTopK.
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, TopKConfig, summed_up
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import Codes, pattern_of, sparse_decode
from temporallens.dictionaries.steps import Forward, Previous


class Matryoshka(TopKConfig):
    """BatchTopK with nested prefixes that each reconstruct."""

    roles: ClassVar[tuple[Role, ...]] = ("ordinary",)
    kind: Literal["matryoshka"] = "matryoshka"

    levels: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Shares of the features in each prefix, ascending; the last is 1."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not self.levels or self.levels[-1] != 1:
            raise ValueError(f"levels = {self.levels} do not end in 1: the last level is the whole dictionary")
        bounds = [0, *level_bounds(self.features, self.levels)]
        if any(later <= earlier for earlier, later in pairwise(bounds)):
            raise ValueError(
                f"levels = {self.levels} of {self.features} features hold {bounds[1:]} of them: a level must hold more than the one before"
            )

    def build(self, width: int, positions: int, generator: torch.Generator) -> "MatryoshkaDictionary":
        return MatryoshkaDictionary(width, self, level_bounds(self.features, self.levels), generator)


def level_bounds(features: int, levels: tuple[float, ...]) -> list[int]:
    """Number of features in each prefix."""
    return [round(share * features) for share in levels]


class MatryoshkaDictionary(BatchTopKDictionary):
    """BatchTopK codes under nested reconstruction losses; position-blind."""

    _starts: Tensor

    def __init__(self, width: int, config: TopKConfig, bounds: list[int], generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.bounds = bounds
        self.register_buffer("_starts", torch.tensor(bounds[:-1]), persistent=False)

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        return self.nested_forward(x, positions, self.training_codes(x, positions))

    def nested_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], codes: Codes) -> Forward:
        """Reconstruction by the whole dictionary, and the squared errors of the smaller prefixes, in the units of the objective's."""
        parts = self._increments(codes).unbind(1)
        reconstruction, inner = parts[0] + self.decoder_bias, x.new_zeros(len(x))
        for part in parts[1:]:
            inner = inner + (x - reconstruction).square().sum(1)
            reconstruction = reconstruction + part
        gain = self.gain(positions)
        return summed_up(reconstruction, codes, inner if gain is None else inner / gain.square())

    def _increments(self, codes: Codes) -> Float[Tensor, "N L D"]:
        """What each level adds to the prefix before it: every code is decoded once, with the level that its feature enters at."""
        pattern, levels = codes.pattern, len(self.bounds)
        owner = pattern.row * levels + torch.bucketize(pattern.feature, self._starts, right=True)
        flat = owner * self.features + pattern.feature  # ascending: features are, within a row
        parts = pattern_of(flat, pattern.rows * levels, self.features)
        return sparse_decode(codes.values, self.decoder, parts).view(pattern.rows, levels, self.width)
