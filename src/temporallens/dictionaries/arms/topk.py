"""TopK (Gao et al. 2024): of every token, the k largest codes stay, in training and at inference alike.

    z[n] = the k largest of relu(pre[n]), 0 elsewhere

The step is the sparse one: of the product with the encoder, taken over chunks of rows, only what can be among a row's k largest is
kept. Where that product is bfloat16 it nominates more than k, float32 decides among them, and a row whose nominees might lack one
of its k largest is multiplied again in float32. Dead features are revived with AuxK.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.dictionaries.arms.batchtopk import TopKConfig, auxk, summed_up
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import (
    BFLOAT16_MARGIN,
    Codes,
    Entries,
    Scratch,
    chunk_rows,
    dense_of,
    pattern_of,
    plain_product,
    sparse_decode,
    sparse_encode,
)
from temporallens.dictionaries.steps import Dead, Forward, Previous

SPARE = 8
"""Nominees beyond half as many again as are wanted; fewer would send more rows through the product twice."""


class TopK(TopKConfig):
    """The k largest codes of every token."""

    roles: ClassVar[tuple[Role, ...]] = ("ordinary",)
    kind: Literal["topk"] = "topk"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "TopKDictionary":
        return TopKDictionary(width, self, generator)


class TopKDictionary(Dictionary):
    """Sparse codes selected within each row; position-blind."""

    architecture = "topk"
    config: TopKConfig

    def layout(self) -> dict[str, Any]:
        return {"k": self.config.k}

    @torch.no_grad()
    def _select(self, centred: Float[Tensor, "N D"], dtype: torch.dtype) -> Entries:
        if centred.is_cuda:
            return largest_of_rows_static(centred, self.encoder, self.encoder_bias, self.config.k, dtype)
        return largest_of_rows(centred, self.encoder, self.encoder_bias, self.config.k, dtype)

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        sparse = self.sparse_codes(x, positions)
        if sparse is not None:
            return dense_of(*sparse)
        largest = self.pre_activations(x).relu().topk(self.config.k, dim=1, sorted=False)
        return x.new_zeros(len(x), self.features).scatter(1, largest.indices, largest.values)

    def sparse_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Entries | None:
        if torch.is_grad_enabled() or x.is_cuda:
            return None
        return self._select(x - self.decoder_bias, torch.float32)

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        centred = x - self.decoder_bias.detach()
        pattern, raw = self._select(centred, self.encoder_dtype)
        values = sparse_encode(raw, centred, self.encoder, self.encoder_bias, self.decoder_bias, pattern)
        return summed_up(sparse_decode(values, self.decoder, pattern) + self.decoder_bias, Codes(pattern, raw, values))

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"]:
        return auxk(self, x, residual, dead)


def largest_of_rows(
    x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], k: int, dtype: torch.dtype
) -> Entries:
    """The k largest positive entries of each row of `x @ encoder.T + bias` (all positive ones where there are fewer), exactly.

    The product in `dtype` nominates; the values are float32. Among entries that tie for the last of the k any may be taken.
    """
    if dtype == torch.float32:
        values, feature = _nominate(x, encoder, bias, k)
    else:
        values, feature = _nominated_in(dtype, x, encoder, bias, k)
    feature, order = feature.sort(1)
    flat, values = _flattened(feature, len(encoder)), values.gather(1, order).view(-1)
    positive = (values > 0).nonzero()[:, 0]
    return Entries(pattern_of(flat.index_select(0, positive), len(x), len(encoder)), values.index_select(0, positive))


def largest_of_rows_static(
    x: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], bias: Float[Tensor, " F"], k: int, dtype: torch.dtype
) -> Entries:
    """The same in shapes that do not depend on the data, for devices that a program must not wait for: the product in `dtype`
    decides, and where fewer than k are positive the rest are codes of value 0."""
    pre = torch.addmm(bias.to(dtype), x.to(dtype), encoder.to(dtype).T)
    feature = pre.topk(k, dim=1, sorted=False).indices.sort(1).values
    return Entries(pattern_of(_flattened(feature, len(encoder)), *pre.shape), pre.gather(1, feature).float().relu().view(-1))


def _nominate(x: Tensor, encoder: Tensor, bias: Tensor, count: int) -> tuple[Float[Tensor, "N c"], Int[Tensor, "N c"]]:
    """Values and features of the `count` largest entries of each row, in no order."""
    memory = Scratch(x)
    parts = [plain_product(rows, encoder, bias, memory).topk(count, dim=1, sorted=False) for rows in x.split(chunk_rows(len(encoder)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _nominated_in(dtype: torch.dtype, x: Tensor, encoder: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, whose nominees a product in a coarser `dtype` found."""
    features = len(encoder)
    count = min(features, k + k // 2 + SPARE)
    rough, feature = _nominate(x.to(dtype), encoder.to(dtype), bias.to(dtype), count)
    feature = feature.sort(1).values
    pattern = pattern_of(_flattened(feature, features), len(x), features)
    exact = (pattern.inner(x, encoder) + bias.index_select(0, pattern.feature)).view(len(x), count)
    values, column = exact.topk(k, dim=1, sorted=False)
    feature = feature.gather(1, column)
    missed = rough.amin(1).float().clamp_(min=0) * (1 + BFLOAT16_MARGIN)  # what an entry that was not nominated can have
    again = ((values.amin(1) < missed) & (count < features)).nonzero()[:, 0]
    if len(again):
        values[again], feature[again] = _nominate(x.index_select(0, again), encoder, bias, k)
    return values, feature


def _flattened(feature: Int[Tensor, "N c"], features: int) -> Int[Tensor, " M"]:
    """Indices of entries of a `[N, features]` matrix, given by row."""
    return (feature + torch.arange(len(feature), device=feature.device)[:, None] * features).view(-1)
