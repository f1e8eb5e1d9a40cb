"""BatchTopK (Bussmann, Leask and Nanda 2024): of all codes of a batch, the k per token that are largest stay.

Training selects exactly; at inference a code stays when it exceeds `threshold`, the mean over batches of the smallest code that is
selected, so that a token's codes do not depend on its neighbours. A running mean serves while weights still move; at the end it is
measured anew with the final ones. Dead features are revived with AuxK (Gao et al. 2024).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.base import ArmConfig, Dictionary, Forward
from temporallens.dictionaries.sparse import Pattern, select_largest, sparse_decode, sparse_encode

THRESHOLD_DECAY = 0.99
"""Running mean over about 100 batches; the first batch starts it."""

GUESS = 0.9
"""Share of the running threshold above which candidates are collected; lower only costs time, higher may cost a second pass."""


class TopKConfig(ArmConfig):
    """What the arms that keep k codes per token have in common."""

    k: int = Field(32, ge=1)
    """Codes per token, on average over a batch."""

    def model_post_init(self, _context: object) -> None:
        if self.k > self.features:
            raise ValueError(f"k = {self.k} codes per token cannot come from {self.features} features; give k at most {self.features}")


class BatchTopK(TopKConfig):
    """The k largest codes per token, chosen over the batch."""

    kind: Literal["batchtopk"] = "batchtopk"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "BatchTopKDictionary":
        return BatchTopKDictionary(width, self.features, self.k, generator)


class BatchTopKDictionary(Dictionary):
    """Sparse codes selected over the batch in training and by a threshold at inference."""

    kind = "batchtopk"
    threshold: Tensor

    def __init__(self, width: int, features: int, k: int, generator: torch.Generator) -> None:
        super().__init__(width, features, generator)
        self.k = k
        self.register_buffer("threshold", torch.tensor(0.0, dtype=torch.float32))

    def scale_dense_(self, values: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """What an arm does to non-negative pre-activations before codes are selected, in place; nothing here."""
        return values

    def scale_entries(self, values: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        """The same at the selected entries, differentiably."""
        return values

    def unscaled(self, values: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        """Undo `scale_dense_` at the selected entries."""
        return values

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        values = self.scale_dense_(self.pre_activations(x).relu_(), positions)
        return values.mul_(values > self.threshold)

    @torch.no_grad()
    def _select(self, centred: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> tuple[Pattern, Float[Tensor, " M"]]:
        dense = torch.addmm(self.encoder_bias, centred, self.encoder.T).relu_()
        return select_largest(self.scale_dense_(dense, positions), self.k * len(centred), GUESS * float(self.threshold))

    def batch_threshold(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Tensor:
        _, selected = self._select(x - self.decoder_bias.detach(), positions)
        return selected.min() if len(selected) else self.threshold

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Forward:
        centred = x - self.decoder_bias.detach()
        pattern, selected = self._select(centred, positions)
        with torch.no_grad():
            self._follow_threshold(selected)
            raw = self.unscaled(selected, pattern, positions)
        values = sparse_encode(raw, centred, self.encoder, self.encoder_bias, self.decoder_bias, pattern)
        values = self.scale_entries(values, pattern, positions)
        reconstruction = sparse_decode(values, self.decoder, pattern) + self.decoder_bias
        return Forward(reconstruction, pattern.row_sum(values.detach()), pattern.per_row(), pattern.feature_count())

    def _follow_threshold(self, selected: Float[Tensor, " M"]) -> None:
        smallest = selected.min() if len(selected) else self.threshold
        started = self.threshold > 0
        self.threshold.copy_(torch.where(started, torch.lerp(smallest, self.threshold, THRESHOLD_DECAY), smallest))

    def auxiliary(self, x: Float[Tensor, "N D"], residual: Float[Tensor, "N D"], dead: Tensor) -> Tensor | None:
        """AuxK: the dead features that would fire most reconstruct what the living ones leave; squared error per row."""
        chosen = dead.nonzero()[:, 0]
        if len(chosen) == 0:
            return None
        encoder, decoder = self.encoder[chosen], self.decoder[chosen]
        pre = torch.addmm(self.encoder_bias[chosen], x - self.decoder_bias.detach(), encoder.T)
        largest = pre.topk(min(self.width // 2, len(chosen)), dim=1, sorted=False)
        codes = torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())
        return (residual - codes @ decoder).square().sum(1)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.threshold /= scale
