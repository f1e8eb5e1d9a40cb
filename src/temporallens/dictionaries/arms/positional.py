"""The positional dictionary: features that know where in the sequence they live (lab notes, Runs 1 and 2).

    multiplicative   z = the k N largest of m[g(p), f] * relu(pre),  m = min(1, 2 sigmoid(l / T))
    log              z = the k N largest of relu(pre + tau * (log sigmoid(l / T) - max_g log sigmoid(l / T)))
    hard             m = [l >= 0, or l the largest of its feature]

The log gate leaves a feature's amplitude alone where it is most open and equals a threshold that depends on position; under
`mask_gradient: derivative` the multiplicative one is `sigmoid(l / T)`. Gated codes compete for the k, so that a closed feature takes
none. The temperature falls exponentially; then the mask becomes exactly 0 or 1 and the dictionary is fine-tuned under it.

What the logits learn from. A gate is meant to end at 0 or 1, and the gradient of the expected loss with respect to the probability
that a gate is open is a difference: the loss without the code less the loss with it (`docs/method.md`, "Learning a mask"). The
derivative of the loss by a soft gate is not: it vanishes on every feature whose amplitude is right, and noise then decides. So each
code in use earns its entry the squared error that it saves, `z^2 + 2 z d . r`, and an entry stays open as long as its share of the
feature's gain is at least `least_share` of its share of the tokens. It is not pressed to close before a few firings were to be expected
of it: of a position that is one token in a hundred, features have mostly not been seen yet. A closed entry receives no gradient; every
`reopen_every` steps those that would have earned their place are opened again.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from temporallens.dictionaries.arms.batchtopk import TopKConfig
from temporallens.dictionaries.arms.masked import MaskedDictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.masks import CLOSED, LearnsMask, MaskConfig, PositionMask, gated_blocks, group_starts
from temporallens.dictionaries.sparse import Block, Codes, Floor, Pattern, entries_above
from temporallens.dictionaries.steps import Forward, Progress
from temporallens.processes import count, summed, total

REOPENING_ROWS = 1024
"""Rows of a batch that are searched for closed entries worth reopening."""

REOPENING_MEMORY = 0.96
"""Of the evidence of one search, what is left at the next: one batch holds too few firings to judge by."""

JUDGED_FIRINGS = 3
"""An entry at which fewer firings than this were to be expected is not closed, and errors saved by fewer open nothing."""


class Positional(MaskConfig, TopKConfig):
    """BatchTopK under a learnable position mask with temperature annealing."""

    roles: ClassVar[tuple[Role, ...]] = ("positional",)
    version: ClassVar[int] = 2  # 1 closed entries at which nothing was to be expected yet
    kind: Literal["positional"] = "positional"

    gate: Literal["multiplicative", "log"] = "multiplicative"
    """Whether a mask scales codes, or lowers pre-activations by `tau` times its logarithm."""

    tau: float = Field(2.0, gt=0)
    """Strength of the log gate."""

    mask_gradient: Literal["difference", "derivative"] = "difference"
    """What logits learn from: the error that a code saves, or the derivative of the loss by a soft gate (lab notes)."""

    least_share: float = Field(0.1, ge=0, lt=1)
    """An entry closes when a token there brings less than this share of what a token brings its feature on average."""

    reopen_every: int = Field(10, ge=1)
    """Steps from one search for closed entries worth reopening to the next."""

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.gate == "log" and self.mask_gradient == "derivative":
            raise ValueError("a log gate learns by difference only; give gate: multiplicative or mask_gradient: difference")
        if self.strictness == "straight_through" and self.mask_gradient == "derivative":
            raise ValueError("a straight-through mask learns by difference only: a gate of 0 or 1 has no derivative")

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PositionalDictionary":
        return PositionalDictionary(width, positions, self, generator)


class PositionalDictionary(LearnsMask, MaskedDictionary):
    """BatchTopK codes under a mask that learns."""

    config: Positional
    missed: Tensor
    earned: Tensor
    firings: Tensor
    searched: Tensor

    def __init__(self, width: int, positions: int, config: Positional, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        self.mask = PositionMask(positions, config, full=config.mask_gradient == "difference")
        groups = len(group_starts(config.length or positions, config.groups))
        # error that closed entries would have saved
        self.register_buffer("missed", torch.zeros(groups, config.features, dtype=torch.float32))
        self.register_buffer("earned", torch.zeros(config.features, dtype=torch.float32))  # error that open ones did save
        self.register_buffer("firings", torch.zeros(config.features, dtype=torch.float32))  # in which they saved it
        self.register_buffer("searched", torch.zeros(groups, dtype=torch.float32))  # tokens

    @property
    def group_of(self) -> Tensor:
        return self.mask.group_of

    def gates(self) -> Float[Tensor, "G F"]:
        """Of a soft log gate, relative to where a feature is most open, as its codes are."""
        with torch.no_grad():
            return torch.exp(self._penalty() / self.config.tau) if self._adds else self.mask.gates()

    @property
    def _adds(self) -> bool:
        """Whether gates are added to pre-activations just now: a hard log gate is an ordinary hard mask."""
        return self.config.gate == "log" and not self.mask.hard

    def _penalty(self) -> Float[Tensor, "G F"]:
        """What a log gate adds to pre-activations: nothing where a feature is most open."""
        with torch.no_grad():
            openness = functional.logsigmoid(self.mask.table() / self.mask.temperature)
            return self.config.tau * (openness - openness.amax(0))

    def blocks(self, positions: Int[Tensor, " N"], floor: float) -> list[Block]:
        if not self._adds:
            return super().blocks(positions, floor)
        ordered, sizes = torch.unique_consecutive(self.groups(positions), return_counts=True)
        floors = floor - self._penalty()
        lasts = sizes.cumsum(0).tolist()
        groups = zip(ordered.tolist(), sizes.tolist(), lasts, strict=True)
        return [Block(None, [Floor(last - rows, last, floors[group]) for group, rows, last in groups])]

    @property
    def scales(self) -> bool:
        return not self.mask.hard

    def scale(self, raw: Float[Tensor, " M"], pattern: Pattern, positions: Int[Tensor, " N"]) -> Float[Tensor, " M"]:
        """Gated codes; while the mask learns, its logits learn from them."""
        config, learning = self.config, self.mask.logits.requires_grad
        if self.mask.hard and not learning:
            return super().scale(raw, pattern, positions)
        entry, groups = self.entries(pattern, positions), self.groups(positions)
        if config.mask_gradient == "derivative":
            return raw * self.mask.gates().view(-1).index_select(0, entry)
        if self._adds:
            values = (raw.detach() + self._penalty().view(-1).index_select(0, entry)).relu_()
            slope = (values > 0).to(values.dtype)
        else:
            slope = self.gates().view(-1).index_select(0, entry)
            values = raw.detach() * slope
        tokens = summed(self.missed.new_zeros(len(self.missed)).index_add_(0, groups, torch.ones_like(groups, dtype=self.missed.dtype)))
        gain = self.gain(positions)
        unit = None if gain is None else gain.square().index_select(0, pattern.row)
        return _Gated.apply(raw, self.mask.table(), values, slope, entry, tokens, unit, self._judged(), config.least_share)

    @torch.no_grad()
    def _judged(self) -> Bool[Tensor, "G F"] | None:
        """Entries at which, at their feature's own rate, enough firings were to be expected to miss them; None for a smooth mask, whose
        entries are not judged one by one."""
        if self.mask.basis is not None:
            return None
        share = self.searched / self.searched.sum().clamp(min=1)
        return share[:, None] * self.firings >= JUDGED_FIRINGS

    def modulate(self, pre: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        if not self._adds:
            return super().modulate(pre, positions)
        penalty = self._penalty()
        return (pre + (penalty[self.group_of].mean(0) if positions is None else penalty[self.groups(positions)])).relu()

    @torch.no_grad()
    def observe(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], forward: Forward, residual: Float[Tensor, "N D"], progress: Progress
    ) -> None:
        """Every so often, open again what would have earned its place (masked gradient updates made reversible)."""
        if self.mask.basis is not None or (progress.step + 1) % self.config.reopen_every or progress.share < self.config.mask_warmup:
            return  # what a smooth mask closes still learns from its neighbours
        assert forward.codes is not None
        rows = torch.arange(0, len(x), max(1, total(len(x)) // REOPENING_ROWS), device=x.device)
        looked = _Looked(x[rows] - self.decoder_bias, positions[rows], residual[rows], self.gates() <= CLOSED)
        self._weigh(looked, forward.codes.of_rows(rows))
        share = (self.searched / self.searched.sum())[:, None]
        mean = self.earned.clamp(min=0)
        due = torch.maximum(self.config.least_share * share * mean, JUDGED_FIRINGS * mean / self.firings.clamp(min=1))
        worth = looked.closed & (self.missed > due)
        self.mask.logits.masked_fill_(worth, 0.0)
        self.missed.masked_fill_(worth, 0.0)

    def _weigh(self, looked: "_Looked", used: Codes) -> None:
        """Add to the evidence what closed entries would have saved of the residual, and what the codes in use did."""
        groups = self.groups(looked.positions)
        closed = self._closed_codes(looked, groups)
        missed = torch.zeros_like(self.missed).view(-1)
        missed.index_add_(0, self.entries(closed.pattern, looked.positions), self._saved(closed, looked, -1))
        earned, firings = used.pattern.feature_sum(self._saved(used, looked, 1)), used.pattern.feature_sum(torch.ones_like(used.values))
        tokens = torch.zeros_like(self.searched).index_add_(0, groups, torch.ones_like(groups, dtype=self.searched.dtype))
        new = (missed.view_as(self.missed), earned, firings, tokens)
        for memory, evidence in zip((self.missed, self.earned, self.firings, self.searched), new, strict=True):
            memory.mul_(REOPENING_MEMORY).add_(summed(evidence))

    def _closed_codes(self, looked: "_Looked", groups: Int[Tensor, " N"]) -> Codes:
        """What closed entries would have had; only their columns are multiplied."""
        blocks = gated_blocks(looked.closed.float(), groups, float(self.threshold))
        product = [tensor.to(self.encoder_dtype) for tensor in (looked.x, self.encoder, self.encoder_bias)]
        pattern, values = entries_above(product[0], product[1], product[2], blocks)
        return Codes(pattern, values.float(), values.float())

    def _saved(self, codes: Codes, looked: "_Looked", sign: int) -> Float[Tensor, " M"]:
        """Squared error, in common units, that codes save: `2 z d . r + z^2` of those in use, `2 z d . r - z^2` of those that are not."""
        saved = codes.values * (2 * codes.pattern.inner(looked.residual, self.decoder) + sign * codes.values)
        gain = self.gain(looked.positions)
        return saved if gain is None else saved / gain.square().index_select(0, codes.pattern.row)


class _Looked(NamedTuple):
    """Rows of a batch that are searched."""

    x: Float[Tensor, "n D"]  # less the decoder's bias
    positions: Int[Tensor, " n"]
    residual: Float[Tensor, "n D"]
    closed: Bool[Tensor, "G F"]


class _Gated(torch.autograd.Function):
    """Gated codes; backward, pre-activations get the derivative, logits the difference that a code makes."""

    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        logits: Tensor,
        values: Tensor,
        slope: Tensor,
        entry: Tensor,
        tokens: Tensor,
        unit: Tensor | None,  # of squared errors, by code: those of arms with a scale by position are divided by its square
        judged: Tensor | None,  # entries of which gain is expected; None for all
        least_share: float,
    ) -> Tensor:
        ctx.save_for_backward(values, slope, entry, tokens, unit, judged)
        ctx.shape, ctx.least_share = logits.shape, least_share
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, slope, entry, tokens, unit, judged = ctx.saved_tensors
        rows = tokens.sum()
        per_token = values / rows if unit is None else values / (rows * unit)
        saved = values * (per_token - gradient)  # z^2 + 2 z d . r, over rows: position weights, which are near 1, are left out of z^2
        earned = saved.new_zeros(ctx.shape.numel()).index_add_(0, entry, saved).view(ctx.shape)
        expected = (tokens / rows)[:, None] * summed(earned.sum(0)).clamp(min=0)  # over the batch; the gradients of all processes add up
        if judged is not None:
            expected = expected * judged
        return gradient * slope, ctx.least_share / count() * expected - earned, None, None, None, None, None, None, None
