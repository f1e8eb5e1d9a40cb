"""The lab notes' own positional dictionary (Runs 1 to 9): ReLU codes under an L1 penalty, scaled by a mask that learns.

    z = sigmoid(l[g(p), f] / T) * relu(pre),  loss = |x - x_hat|^2 + sparsity * sum_f z

The penalty falls on the masked codes, and logits learn from the derivative of the loss, as the notes have it; `docs/method.md` says what
that costs. `positional` is the arm to use.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.dictionaries.arms.standard import L1Config
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.inputs import Tokens, refuse_non_finite
from temporallens.dictionaries.masks import LearnsMask, MaskConfig, PositionMask
from temporallens.dictionaries.steps import Forward, Previous


class PositionalReLU(MaskConfig, L1Config):
    """ReLU + L1 under a learnable position mask."""

    roles: ClassVar[tuple[Role, ...]] = ("positional",)
    kind: Literal["positional_relu"] = "positional_relu"

    strictness: Literal["hard", "soft"] = "hard"
    """Soft gates that harden, or soft gates to the end: these logits learn by derivative, and a gate of 0 or 1 has none."""

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PositionalReLUDictionary":
        return PositionalReLUDictionary(width, positions, self, generator)


class PositionalReLUDictionary(LearnsMask, Dictionary):
    """Dense codes modulated by a mask that learns."""

    config: PositionalReLU

    def __init__(self, width: int, positions: int, config: PositionalReLU, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.mask = PositionMask(positions, config)

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        gates = self.mask.gates()
        chosen = gates[self.mask.group_of].mean(0) if positions is None else gates[self.mask.groups(positions)]
        return self.pre_activations(x).relu() * chosen

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.codes(x, positions)
        in_use = codes > 0
        return Forward(self.reconstruct(codes), codes.sum(1), in_use.sum(1).float(), in_use.sum(0).float())

    def gates_by_position(self) -> Float[Tensor, "P F"]:
        return self.mask.gates().detach()[self.mask.group_of]

    def ungated(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], tokens: Tokens | None = None) -> Float[Tensor, "N F"]:
        refuse_non_finite(x, x.shape[:1], "the activations hold")
        return self.pre_activations(self.prepared(x, positions, tokens)).relu_()
