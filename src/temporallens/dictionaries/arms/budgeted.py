"""BatchTopK with a budget of codes per position: the analogue, where codes are chosen by number, of a sparsity penalty that
depends on position (lab notes, Run 6).

    training    z = at each position p, the k w_p N_p largest of relu(pre) over its N_p rows
    inference   z = pre * [pre > threshold_p]

Position p gets `k_p = k w_p` codes per token, with the adaptive weights `w_p` of mean 1: positions that are hard to reconstruct
get more, and L0 over all stays k. Training selects exactly, the largest codes of each position of a batch; at inference a code stays when
it exceeds its position's threshold, and the mean threshold where training had no tokens.
"""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, Multiplied, TopKConfig
from temporallens.dictionaries.budgets import apportioned, blocks_of_rows, largest_by_position, rows_at
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import (
    BFLOAT16_MARGIN,
    Codes,
    Entries,
    Pattern,
    entries_above,
    measured_above,
    pattern_of,
    select_largest,
    whole,
)
from temporallens.processes import smallest, summed, total

FOLLOWED = 0.9
"""Running mean of a position's threshold, over about 10 batches: where to look for the next, which changes no result."""

GUESS = 0.85
"""Share of a position's threshold above which candidates are collected; a position has few tokens in a batch, so it varies."""

SAMPLED = 4
"""Times the codes that are wanted, from which a first batch's floor is taken: budgets differ four times at most."""


class Budgeted(TopKConfig):
    """BatchTopK whose codes per token follow how hard a position is; `k` is their mean."""

    roles: ClassVar[tuple[Role, ...]] = ("temporal",)
    wants_weights: ClassVar[bool] = True
    kind: Literal["budgeted"] = "budgeted"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "BudgetedDictionary":
        return BudgetedDictionary(width, positions, self, generator)


class BudgetedDictionary(BatchTopKDictionary):
    """Sparse codes selected at each position of a batch in training, and by that position's threshold at inference."""

    masked = True
    thresholds: Tensor
    weights: Tensor

    def __init__(self, width: int, positions: int, config: Budgeted, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        # 0 where there were no tokens; `threshold` is the mean of others
        self.register_buffer("thresholds", torch.zeros(positions, dtype=torch.float32))
        self.register_buffer("weights", torch.ones(positions, dtype=torch.float32), persistent=False)
        self._smallest = torch.zeros(positions, dtype=torch.float32)  # code that the last batch selected, by position
        self._measured: list[Tensor] = []

    def follow_weights(self, weights: Float[Tensor, " P"]) -> None:
        self.weights.copy_(weights)

    @torch.no_grad()
    def _select(self, factors: Multiplied, positions: Int[Tensor, " N"]) -> Codes:
        centred = factors.rows
        budgets = apportioned(self.weights, summed(rows_at(positions, len(self.weights))), self.config.k)
        codes = self._candidates(centred, GUESS * self._expected_thresholds(centred).index_select(0, positions))
        found = summed(rows_at(positions.index_select(0, codes.pattern.row), len(budgets)))
        missed = (found < budgets).index_select(0, positions)
        if bool(missed.any()):
            codes = self._with_all_of(missed, codes, centred)
        chosen, self._smallest = largest_by_position(codes, positions, budgets)
        return codes.keep(chosen)

    def _expected_thresholds(self, centred: Float[Tensor, "N D"]) -> Float[Tensor, " P"]:
        """Where to look at each position: its running threshold, or the lowest one, or for a first batch one that surely is low."""
        known = self.thresholds > 0
        if bool(known.any()):
            return torch.where(known, self.thresholds, self.thresholds[known].min())
        count = SAMPLED * self.config.k * total(len(centred))
        blocks = partial(whole, len(centred))
        largest = select_largest(centred, self.encoder, self.encoder_bias, count, 0.0, blocks, _unscaled, self.encoder_dtype)
        lowest = float(smallest(largest.values))
        return torch.full_like(self.thresholds, lowest if math.isfinite(lowest) else 0.0)

    def _candidates(self, centred: Float[Tensor, "N D"], floors: Float[Tensor, " N"]) -> Codes:
        """All pre-activations above the floors of their rows, or, where bfloat16 nominates them, above a margin over the floors."""
        pattern, raw = measured_above(centred, self.encoder, self.encoder_bias, blocks_of_rows(floors), self.encoder_dtype)
        found = Codes(pattern, raw, raw)
        if self.encoder_dtype == torch.float32:
            return found
        return found.keep(raw > floors.index_select(0, pattern.row) * (1 + BFLOAT16_MARGIN))

    def _with_all_of(self, missed: Bool[Tensor, " N"], codes: Codes, centred: Float[Tensor, "N D"]) -> Codes:
        """The same candidates, but of the missed rows every positive pre-activation."""
        rows, others = missed.nonzero()[:, 0], codes.keep(~missed.index_select(0, codes.pattern.row))
        within, values = entries_above(centred.index_select(0, rows), self.encoder, self.encoder_bias, whole(len(rows), 0.0))
        positive = replace(within, row=rows.index_select(0, within.row), rows=len(centred))
        joined = torch.cat([others.pattern.flat(), positive.flat()]).sort()
        values = torch.cat([others.values, values]).index_select(0, joined.indices)
        return Codes(pattern_of(joined.values, len(centred), self.features), values, values)

    def _follow_threshold(self, selected: Float[Tensor, " M"]) -> None:
        """Follow the smallest code of each position, 0 where there was none."""
        followed = torch.where(self.thresholds > 0, torch.lerp(self._smallest, self.thresholds, FOLLOWED), self._smallest)
        self._settle(torch.where(self._smallest > 0, followed, self.thresholds))

    def _settle(self, thresholds: Float[Tensor, " P"]) -> None:
        self.thresholds.copy_(thresholds)
        self.threshold.copy_(thresholds.sum() / (thresholds > 0).sum().clamp(min=1))

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> None:
        self.selected(x, positions)
        self._measured.append(self._smallest)

    def finished(self) -> None:
        if self._measured:
            measured = torch.stack(self._measured)
            self._settle(measured.sum(0) / (measured > 0).sum(0).clamp(min=1))

    def _limits(self, positions: Int[Tensor, " N"] | None) -> Tensor:
        """The threshold of each row `[N]`; under the policy `mean` one for all."""
        if positions is None:
            return self.threshold
        limits = at_positions(self.thresholds, positions)
        return torch.where(limits > 0, limits, self.threshold)

    def _dense_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        values = self.pre_activations(x).relu()
        return values * (values > self._limits(positions)[..., None])

    @torch.no_grad()
    def entries_in_use(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Entries:
        return entries_above(x - self.decoder_bias, self.encoder, self.encoder_bias, blocks_of_rows(self._limits(positions)))

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.thresholds /= scale


def _unscaled(raw: Float[Tensor, " M"], pattern: Pattern) -> Float[Tensor, " M"]:
    return raw
