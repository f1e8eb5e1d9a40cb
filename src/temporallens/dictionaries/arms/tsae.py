"""T-SAE (Bhalla et al., arXiv 2511.05541): high-level features that stay the same from one token to the next.

    own loss = alpha / n * sum_i (-log softmax_j(s(h_i, h'_j))_i - log softmax_j(s(h_j, h'_i))_i)
    h, h' = high-level codes of a token and of the token before it;  s = cosine / temperature

A Matryoshka of two levels, of which the first, a fifth of the features, is high-level. Beside both reconstruction losses, symmetric
InfoNCE asks that a token's high-level codes resemble those of the token before it more than those of other tokens, averaged over the
n pairs, with the cosine for s and temperature 1 as in the paper (the released code takes the inner product). Negatives are the other
pairs of the batch, at most 1,023 of them.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.dictionaries.arms.matryoshka import MatryoshkaDictionary, level_bounds
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import Codes, entries_above, pattern_of, sparse_decode, sparse_encode, whole
from temporallens.dictionaries.steps import Forward, Previous

CONTRASTED = 1024
"""Pairs that are contrasted with each other: a larger batch is dealt out into groups, whose cost does not grow with its square."""

SHORTEST = 1e-3
"""Norm below which codes have no direction."""


class TSAE(TopKConfig):
    """BatchTopK with a high-level block that is contrasted between adjacent tokens."""

    roles: ClassVar[tuple[Role, ...]] = ("temporal",)
    kind: Literal["tsae"] = "tsae"

    share: float = Field(0.2, gt=0, lt=1)
    """Share of the features, the first ones, that is high-level."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the contrastive loss."""

    similarity: Literal["cosine", "inner"] = "cosine"
    """Of high-level codes: the paper's cosine, or the inner product of the released code."""

    temperature: float = Field(1.0, gt=0)
    """Divides similarities; the paper has none."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        high = level_bounds(self.features, (self.share,))[0]
        if not 0 < high < self.features:
            raise ValueError(
                f"share = {self.share} of {self.features} features leaves {high} high-level ones; give it at least one, and not all"
            )

    @property
    def mixes_rows(self) -> bool:
        return True

    def build(self, width: int, positions: int, generator: torch.Generator) -> "TSAEDictionary":
        return TSAEDictionary(width, self, generator)


class TSAEDictionary(MatryoshkaDictionary):
    """Matryoshka of two levels whose first is contrasted between adjacent tokens; position-blind."""

    config: TSAE
    wants_previous: ClassVar[bool] = True

    def __init__(self, width: int, config: TSAE, generator: torch.Generator) -> None:
        super().__init__(width, config, level_bounds(config.features, (config.share, 1.0)), generator)

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.training_codes(x, positions)
        forward = self.nested_forward(x, positions, codes)
        if previous is None or forward.extra is None:
            return forward
        rows = previous.paired.nonzero()[:, 0]
        if len(rows) < 2:  # nothing to contrast with
            return forward
        now = self._high(codes, rows)
        pairs = self._contrast(now, self._high_before(previous.x.index_select(0, rows), codes))
        spread = x.new_zeros(len(x)).index_copy(0, rows, pairs * (self.config.alpha * len(x) / len(rows)))
        return forward._replace(extra=forward.extra + spread)

    def _high(self, codes: Codes, rows: Int[Tensor, " n"]) -> Codes:
        """High-level codes of the pairs' later tokens, which stand in these rows."""
        pattern, high = codes.pattern, self.bounds[0]
        pair = torch.full((pattern.rows,), -1, device=rows.device).index_copy_(0, rows, torch.arange(len(rows), device=rows.device))
        owner = pair.index_select(0, pattern.row)
        chosen = ((pattern.feature < high) & (owner >= 0)).nonzero()[:, 0]
        flat = owner.index_select(0, chosen) * high + pattern.feature.index_select(0, chosen)
        return Codes(pattern_of(flat, len(rows), high), codes.raw.index_select(0, chosen), codes.values.index_select(0, chosen))

    def _high_before(self, x: Float[Tensor, "n D"], codes: Codes) -> Float[Tensor, "n h"]:
        """High-level codes of the tokens before: those that reach the smallest code which the batch itself selected. (The released
        code selects over these tokens too; so many of one kind have nearly the same threshold, and four fifths of a product are saved.)
        """
        high, centred = self.bounds[0], x - self.decoder_bias.detach()
        encoder, bias = self.encoder[:high], self.encoder_bias[:high]
        with torch.no_grad():
            smallest = float(codes.values.min()) if len(codes.values) else 0.0
            pattern, raw = entries_above(centred, encoder, bias, whole(len(x), smallest))
        values = sparse_encode(raw, centred, encoder, bias, self.decoder_bias, pattern)
        return values.new_zeros(len(x) * high).scatter(0, pattern.flat(), values).view(len(x), high)

    def _contrast(self, now: Codes, before: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
        """Symmetric InfoNCE of each pair, within groups of at most `CONTRASTED`; neighbours in the batch are dealt to different ones,
        so that a group has tokens from all positions. Similarities cost a sum of as many columns as a token has high-level codes."""
        (row, feature), values, pairs = (now.pattern.row, now.pattern.feature), now.values, len(before)
        if self.config.similarity == "cosine":
            length = now.pattern.row_sum(values.square()).clamp(min=SHORTEST**2).sqrt()
            values, before = values / length.index_select(0, row), functional.normalize(before, dim=1, eps=SHORTEST)
        losses, groups = values.new_zeros(pairs), -(-pairs // CONTRASTED)
        for group in range(groups):
            members = torch.arange(group, pairs, groups, device=row.device)
            chosen = (row % groups == group).nonzero()[:, 0]
            flat = row.index_select(0, chosen) // groups * before.shape[1] + feature.index_select(0, chosen)
            pattern = pattern_of(flat, len(members), before.shape[1])
            logits = sparse_decode(values.index_select(0, chosen), before[group::groups].T.contiguous(), pattern) / self.config.temperature
            losses = losses.index_copy(0, members, logits.logsumexp(1) + logits.logsumexp(0) - 2 * logits.diagonal())
        return losses
