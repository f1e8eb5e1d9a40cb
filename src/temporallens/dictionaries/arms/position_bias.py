"""A bias of the encoder for each position and feature, on per-position mean and scale: what telling the encoder the position buys.

    pre = ((x - mu_p) * g_p - decoder_bias) @ encoder.T + encoder_bias + b[p],  z = BatchTopK(pre)

`b [P, F]` is exactly the weights of a one-hot position beside the encoder's input, and nearly a threshold by position: the strongest simple
baseline of masks, for a feature can be made likelier or rarer at a position and closed nowhere. So it is computed: rows are widened by
their position, and features by their biases. The bias starts at zero. Dead features are revived as if it were.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from temporallens.activations.clocks import at_positions
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, Multiplied, TopKConfig
from temporallens.dictionaries.config import Role


class PositionBias(TopKConfig):
    """BatchTopK on activations that lost mean and scale of their position, with a bias by position."""

    roles: ClassVar[tuple[Role, ...]] = ("baseline",)
    kind: Literal["position_bias"] = "position_bias"

    centre: Literal["position", "position_scaled"] = "position_scaled"
    """By position always: without it the bias would spend itself on the means."""

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PositionBiasDictionary":
        return PositionBiasDictionary(width, positions, self, generator)


class PositionBiasDictionary(BatchTopKDictionary):
    """BatchTopK codes of an encoder that is told the position."""

    architecture = None  # no ordinary SAE has these codes

    def __init__(self, width: int, positions: int, config: TopKConfig, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.position_bias = nn.Parameter(torch.zeros(positions, config.features, dtype=torch.float32))

    def multiplied(self, centred: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Multiplied:
        known = len(self.position_bias)
        told = nn.functional.one_hot(positions.long().clamp(max=known - 1), known).to(centred.dtype)
        return Multiplied(
            torch.cat([centred, told], 1),
            torch.cat([self.encoder, self.position_bias.T], 1),
            torch.cat([self.decoder_bias, self.decoder_bias.new_zeros(known)]),
        )

    def _dense_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        codes = (self.pre_activations(x) + self._bias(positions)).relu()
        return codes * (codes > self.threshold)

    def _bias(self, positions: Int[Tensor, " N"] | None) -> Float[Tensor, "_ F"]:
        """Of every row; under the policy `mean`, without positions, that of a position in the mean."""
        return self.position_bias.mean(0, keepdim=True) if positions is None else at_positions(self.position_bias, positions)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.position_bias.div_(scale)
