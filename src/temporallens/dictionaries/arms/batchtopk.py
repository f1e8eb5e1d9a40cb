"""BatchTopK (Bussmann, Leask and Nanda 2024): of all codes of a batch, the k per token that are largest stay.

    training    z = the k N largest of relu(pre), over all N rows of the batch; 0 elsewhere
    inference   z = pre * [pre > threshold]

Training selects exactly; at inference a code stays when it exceeds `threshold`, the mean over batches of the smallest code that is
selected, so that a token's codes do not depend on its neighbours. A running mean serves while weights still move; at the end it is
measured anew with the final ones. Dead features are revived with AuxK (Gao et al. 2024).
"""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import (
    Block,
    Codes,
    Entries,
    Pattern,
    chunk_rows,
    dense_of,
    entries_above,
    select_largest,
    select_largest_static,
    sparse_decode,
    sparse_encode,
    whole,
)
from temporallens.dictionaries.steps import Dead, Forward, Previous
from temporallens.processes import smallest, total

THRESHOLD_DECAY = 0.99
"""Running mean over about 100 batches; the first batch starts it."""

ROUNDING = 1e-4
"""Share by which the floor for candidates lies below the threshold, so that rounding loses none."""


class Multiplied(NamedTuple):
    """The factors of `rows @ weights.T`."""

    rows: Float[Tensor, "N E"]
    weights: Float[Tensor, "F E"]
    taken_off: Float[Tensor, " E"]  # of the rows, which learns through them


class TopKConfig(ArmConfig):
    """What the arms that keep k codes per token have in common."""

    level: ClassVar[str | None] = "k"

    k: int = Field(32, ge=1)
    """Codes per token, on average over a batch."""

    def model_post_init(self, _context: object) -> None:
        if self.k > self.features:
            raise ValueError(f"k = {self.k} codes per token cannot come from {self.features} features; give k at most {self.features}")


class BatchTopK(TopKConfig):
    """The k largest codes per token, chosen over the batch."""

    roles: ClassVar[tuple[Role, ...]] = ("ordinary", "baseline")
    kind: Literal["batchtopk"] = "batchtopk"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "BatchTopKDictionary":
        return BatchTopKDictionary(width, self, generator)


class BatchTopKDictionary(Dictionary):
    """Sparse codes selected over the batch in training and by a threshold at inference."""

    architecture: ClassVar[str | None] = "jumprelu"  # whose codes these are at inference
    config: TopKConfig
    threshold: Tensor

    def __init__(self, width: int, config: TopKConfig, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.register_buffer("threshold", torch.tensor(0.0, dtype=torch.float32))
        self._expected = 0.0  # the last batch's threshold: where to look for the next, which changes no result
        self._thresholds: list[Tensor] = []  # of the batches after training

    def blocks(self, positions: Int[Tensor, " N"], floor: float) -> list[Block]:
        """Rows, in order of position, to which the same features are open; `floor` is one for codes."""
        return whole(len(positions), floor)

    @property
    def scales(self) -> bool:
        """Whether codes are just now anything but the pre-activations of what is open."""
        return False

    def scale(self, raw: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        """What the arm makes of positive pre-activations: the codes; differentiable."""
        return raw

    def modulate(self, pre: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """The same for whole rows of pre-activations, 0 where there is no code; under the policy `mean` without positions."""
        return pre.relu()

    def multiplied(self, centred: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Multiplied:
        """What gives the pre-activations: rows, each feature's weights for them, and the decoder's bias that was taken off the rows."""
        return Multiplied(centred, self.encoder, self.decoder_bias)

    def selected(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Codes:
        """The codes that a batch selects, without gradients."""
        return self._select(self.multiplied(x - self.decoder_bias, positions), positions)

    @torch.no_grad()
    def _select(self, factors: Multiplied, positions: Int[Tensor, " N"]) -> Codes:
        centred, encoder, _ = factors
        count = self.config.k * total(len(centred))
        if centred.is_cuda:
            parts = self._parts(centred, encoder, positions)
            return select_largest_static(parts, count, partial(self.scale, positions=positions))
        return select_largest(
            centred,
            encoder,
            self.encoder_bias,
            count,
            self._expected or float(self.threshold),
            partial(self.blocks, positions),
            partial(self.scale, positions=positions),
            self.encoder_dtype,
        )

    def _parts(
        self, centred: Float[Tensor, "N D"], encoder: Float[Tensor, "F D"], positions: Int[Tensor, " N"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pre-activations and codes of some rows after the other."""
        bias, weights = self.encoder_bias.to(self.encoder_dtype), encoder.T.to(self.encoder_dtype)
        rows = chunk_rows(self.features)
        for x, at in zip(centred.to(self.encoder_dtype).split(rows), positions.split(rows), strict=True):
            pre = torch.addmm(bias, x, weights)
            yield pre, self.modulate(pre, at)

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        sparse = self.sparse_codes(x, positions)
        return self._dense_codes(x, positions) if sparse is None else dense_of(*sparse)

    def sparse_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Entries | None:
        if torch.is_grad_enabled() or x.is_cuda or (positions is None and self.position_aware):
            return None
        row = None
        if positions is None:
            positions = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        elif bool((positions.diff() < 0).any()):
            row = torch.argsort(positions, stable=True)
            x, positions = x.index_select(0, row), positions.index_select(0, row)
        pattern, values = self.entries_in_use(x, positions)
        if row is None:
            return Entries(pattern, values)
        own = row.index_select(0, pattern.row)
        order = torch.argsort(own, stable=True)
        pattern = Pattern(own.index_select(0, order), pattern.feature.index_select(0, order), pattern.rows, pattern.features)
        return Entries(pattern, values.index_select(0, order))

    def _dense_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """The same codes, differentiably in activations and weights, or where one dense pass is quicker."""
        values = self.modulate(self.pre_activations(x), positions)
        return values * (values > self.threshold)

    @torch.no_grad()
    def entries_in_use(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Entries:
        """Codes at inference of rows in order of position: what closed features would cost is not paid."""
        threshold, (centred, encoder, _) = float(self.threshold), self.multiplied(x - self.decoder_bias, positions)
        if not self.scales:
            return entries_above(centred, encoder, self.encoder_bias, self.blocks(positions, threshold))
        blocks = self.blocks(positions, threshold * (1 - ROUNDING))
        pattern, raw = entries_above(centred, encoder, self.encoder_bias, blocks)
        codes = Codes(pattern, raw, self.scale(raw, pattern, positions)).above(threshold)
        return Entries(codes.pattern, codes.values)

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> None:
        self._note_threshold(self.selected(x, positions).values)

    def _note_threshold(self, selected: Float[Tensor, " M"]) -> None:
        threshold = smallest(selected)
        if threshold.is_cuda or bool(threshold.isfinite()):
            self._thresholds.append(threshold)

    def finished(self) -> None:
        if self._thresholds:
            self.threshold.copy_(torch.stack(self._thresholds).mean())

    def training_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Codes:
        """The codes that a batch selects, differentiable in the weights."""
        factors = self.multiplied(x - self.decoder_bias.detach(), positions)
        pattern, raw, selected = self._select(factors, positions)
        self._follow_threshold(selected)
        values = sparse_encode(raw, factors.rows, factors.weights, self.encoder_bias, factors.taken_off, pattern)
        return Codes(pattern, raw, self.scale(values, pattern, positions))

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        codes = self.training_codes(x, positions)
        return summed_up(sparse_decode(codes.values, self.decoder, codes.pattern) + self.decoder_bias, codes)

    def _follow_threshold(self, selected: Float[Tensor, " M"]) -> None:
        last = smallest(selected)
        if last.is_cuda or bool(last.isfinite()):  # a GPU's program does not wait to learn that, for it always selects some
            self._expected = 0.0 if last.is_cuda else float(last)
            followed = torch.lerp(last, self.threshold, THRESHOLD_DECAY)
            self.threshold.copy_(torch.where(self.threshold > 0, followed, last))

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"] | None:
        return auxk(self, x, residual, dead)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        self.threshold /= scale


def summed_up(reconstruction: Float[Tensor, "N D"], codes: Codes, extra: Float[Tensor, " N"] | None = None) -> Forward:
    """What the objective wants to know about a batch's codes."""
    values, pattern = codes.values.detach(), codes.pattern
    in_use = (values > 0).float()
    return Forward(reconstruction, pattern.row_sum(values), pattern.row_sum(in_use), pattern.feature_sum(in_use), extra, codes)


def auxk(
    dictionary: Dictionary,
    x: Float[Tensor, "N D"],
    residual: Float[Tensor, "N D"],
    dead: Dead,
    gates: Float[Tensor, "N A"] | None = None,
) -> Float[Tensor, " N"]:
    """AuxK: the dead features that would fire most reconstruct what the others leave unexplained; squared error per row. `gates` say how
    open the dead features are to each row: where one is closed it learns nothing."""
    encoder, decoder = dictionary.encoder.index_select(0, dead.features), dictionary.decoder.index_select(0, dead.features)
    bias = dictionary.encoder_bias.index_select(0, dead.features)
    codes = torch.addmm(bias, x - dictionary.decoder_bias.detach(), encoder.T).relu() * dead.certain
    if gates is not None:
        codes = codes * gates
    most = dictionary.width // 2
    if len(dead.features) > most:
        largest = codes.topk(most, dim=1, sorted=False)
        codes = torch.zeros_like(codes).scatter(1, largest.indices, largest.values)
    return (residual - codes @ decoder).square().sum(1)
