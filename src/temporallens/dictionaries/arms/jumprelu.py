"""JumpReLU (Rajamanoharan et al. 2024): a code stays where it exceeds its feature's own threshold, which is learned.

    z = pre * [pre > theta_f],  own loss  weight * D * (L0 / l0 - 1)^2
    dL/dtheta_f = -1 / bandwidth * sum over n with |pre - theta_f| < bandwidth / 2 of (theta_f dL/dz + dL/dL0)

The loss is the variant of their appendix that aims at a stated L0, which is over the batch. Thresholds get gradients from
reconstruction and from L0 through a rectangle kernel (straight-through estimators): pre-activations within half a bandwidth of the
threshold tell what moving it would change. The paper's numbers are for inputs of unit mean squared norm; ours have D, so thresholds
and bandwidths are sqrt(D) times, and squared errors and the weight of the L0 loss D times, as large. The threshold itself is learned,
kept positive, not its logarithm: Adam's steps then suit thresholds, which are of order 1 here (`docs/method.md`).
"""

from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from temporallens.dictionaries.arms.batchtopk import auxk, summed_up
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import (
    BFLOAT16_MARGIN,
    Block,
    Codes,
    Entries,
    Floor,
    measured_above,
    sparse_decode,
    sparse_encode,
)
from temporallens.dictionaries.steps import Dead, Forward, Previous, Progress
from temporallens.processes import summed, total

LOWEST = 1e-3
"""Of a threshold while it is learned."""


class JumpReLU(ArmConfig):
    """JumpReLU with learned thresholds that aim at a number of codes per token."""

    roles: ClassVar[tuple[Role, ...]] = ("ordinary",)
    level: ClassVar[str | None] = "l0"
    kind: Literal["jumprelu"] = "jumprelu"

    l0: float = Field(32.0, gt=0)
    """Codes per token to aim at, on average over a batch."""

    weight: float = Field(10.0, gt=0)
    """Of the L0 loss, in units of the inputs' mean squared norm."""

    bandwidth: float = Field(0.1, gt=0)
    """Width of the kernel, in the units of inputs of mean norm sqrt(D), where a random direction has variance 1."""

    threshold_rate: float = Field(10.0, gt=0)
    """Learning rate of the thresholds, as a multiple of the dictionary's."""

    ramp: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the weight of the L0 loss rises from zero."""

    def model_post_init(self, _context: object) -> None:
        if self.l0 > self.features:
            raise ValueError(f"l0 = {self.l0} codes per token cannot come from {self.features} features; give l0 at most {self.features}")

    def build(self, width: int, positions: int, generator: torch.Generator) -> "JumpReLUDictionary":
        return JumpReLUDictionary(width, self, generator)


class _Jump(torch.autograd.Function):
    """Codes and whether they are in use, from pre-activations and their thresholds."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(raw, threshold)
        ctx.bandwidth = bandwidth
        in_use = (raw > threshold).to(raw.dtype)
        return raw * in_use, in_use

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_value, of_use = gradients
        raw, threshold = ctx.saved_tensors
        near = ((raw - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return of_value * (raw > threshold), -near * (threshold * of_value + of_use), None


class JumpReLUDictionary(Dictionary):
    """Sparse codes above learned thresholds; position-blind."""

    architecture = "jumprelu"
    config: JumpReLU

    def __init__(self, width: int, config: JumpReLU, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        expected = NormalDist().inv_cdf(1 - min(config.l0 / config.features, 0.5))
        self.threshold = nn.Parameter(torch.full((config.features,), max(expected, LOWEST), dtype=torch.float32))
        self._share = 1.0

    def advance(self, progress: Progress) -> None:
        self._share = min(1.0, progress.share / self.config.ramp) if self.config.ramp else 1.0
        with torch.no_grad():
            self.threshold.clamp_(min=LOWEST)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        weights = [parameter for parameter in self.parameters() if parameter is not self.threshold]
        return [(weights, 1.0), ([self.threshold], self.config.threshold_rate)]

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        pre = self.pre_activations(x)
        return pre * (pre > self.threshold)

    @torch.no_grad()
    def _near(self, centred: Float[Tensor, "N D"]) -> Entries:
        """Pre-activations that are in use or within the kernel's reach; the others have no part in a step."""
        lowest, dtype = self.threshold - self.config.bandwidth / 2, self.encoder_dtype
        floor = lowest if dtype == torch.float32 else lowest - lowest.abs() * BFLOAT16_MARGIN
        blocks = [Block(None, [Floor(0, len(centred), floor)])]
        return measured_above(centred, self.encoder, self.encoder_bias, blocks, dtype)

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        centred = x - self.decoder_bias.detach()
        pattern, raw = self._near(centred)
        raw = sparse_encode(raw, centred, self.encoder, self.encoder_bias, self.decoder_bias, pattern)
        values, in_use = _Jump.apply(raw, self.threshold.index_select(0, pattern.feature), self.config.bandwidth)
        excess = summed(in_use.sum()) / total(len(x)) / self.config.l0 - 1
        extra = (self._share * self.config.weight * self.width * excess.square()).expand(len(x))
        return summed_up(sparse_decode(values, self.decoder, pattern) + self.decoder_bias, Codes(pattern, raw, values), extra)

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"]:
        return auxk(self, x, residual, dead)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.threshold.clamp_(min=LOWEST).div_(scale)
