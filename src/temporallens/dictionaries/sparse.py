"""Sparse codes: after the encoder product, a TopK-like step touches only the k features of each row that are in use.

The codes of a batch are kept as (row, feature, value) in row order. Decoding, the gradient of the codes and the gradients of
both weight matrices then cost k rows per activation instead of F. Gradients are exact: `sparse_encode` and `sparse_decode`
are ordinary differentiable functions whose backward passes were derived by hand and are tested against the dense ones.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which features each row uses, in row order, of a dense matrix of `rows` by `features`."""

    row: Int[Tensor, " M"]
    feature: Int[Tensor, " M"]
    offsets: Int[Tensor, " O"]  # row n owns entries offsets[n] to offsets[n + 1]
    rows: int
    features: int

    def per_row(self) -> Int[Tensor, " N"]:
        return self.offsets.diff()

    def row_sum(self, values: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        return torch.zeros(self.rows, dtype=values.dtype, device=values.device).index_add(0, self.row, values)

    def feature_count(self) -> Int[Tensor, " F"]:
        return torch.bincount(self.feature, minlength=self.features)

    def combine(self, values: Float[Tensor, " M"], table: Float[Tensor, "F D"]) -> Float[Tensor, "N D"]:
        """Row n of the result is the sum of table rows of n's features, weighted by the values."""
        return functional.embedding_bag(self.feature, table, self.offsets[:-1], mode="sum", per_sample_weights=values)

    @cached_property
    def by_feature(self) -> tuple["Pattern", Int[Tensor, " M"]]:
        """The same entries in feature order (rows and features change places), and the permutation that brings values there."""
        order = torch.argsort(self.feature, stable=True)
        return Pattern(self.feature[order], self.row[order], _offsets(self.feature_count()), self.features, self.rows), order

    def combine_by_feature(self, values: Float[Tensor, " M"], table: Float[Tensor, "N D"]) -> Float[Tensor, "F D"]:
        """Row f of the result is the sum of table rows of the rows that use f, weighted by the values."""
        transposed, order = self.by_feature
        return transposed.combine(values[order], table)

    def inner(self, left: Float[Tensor, "N D"], right: Float[Tensor, "F D"]) -> Float[Tensor, " M"]:
        """Inner products of left rows with right rows, at the pattern's entries only."""
        with warnings.catch_warnings():  # the layout is announced as beta once per process
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
            zeros = torch.sparse_csr_tensor(
                self.offsets, self.feature, left.new_zeros(len(self.feature)), (self.rows, self.features), check_invariants=False
            )
            return torch.sparse.sampled_addmm(zeros, left, right.T, beta=0.0).values()


def _offsets(counts: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    return functional.pad(counts.cumsum(0), (1, 0))


def pattern_of(flat: Int[Tensor, " M"], rows: int, features: int) -> Pattern:
    """Pattern of ascending indices into a flattened `[rows, features]` matrix."""
    row = torch.div(flat, features, rounding_mode="floor")
    return Pattern(row, flat - row * features, _offsets(torch.bincount(row, minlength=rows)), rows, features)


def select_largest(values: Float[Tensor, "N F"], count: int, guess: float) -> tuple[Pattern, Float[Tensor, " M"]]:
    """The `count` largest strictly positive entries of `values` (all positive ones when there are fewer), and their values.

    `guess` is a lower bound to try for the smallest of them, taken from earlier batches: one comparison pass then leaves few
    candidates, among which the selection is exact. When the guess was too high, every positive entry is a candidate. Of
    entries tied at the threshold the earliest are taken, so the result does not depend on the guess.
    """
    flat = values.reshape(-1)
    candidates = (flat > max(guess, 0.0)).nonzero()[:, 0]
    if guess > 0 and len(candidates) < count:
        candidates = (flat > 0).nonzero()[:, 0]
    found = flat.index_select(0, candidates)
    if len(candidates) > count:
        threshold = found.kthvalue(len(found) - count + 1).values
        above, tied = found > threshold, found == threshold
        keep = above | (tied & (tied.cumsum(0) <= count - above.sum()))
        candidates, found = candidates[keep], found[keep]
    return pattern_of(candidates, *values.shape), found.float()


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, encoder: Tensor, encoder_bias: Tensor, decoder_bias: Tensor, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(x, encoder)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, encoder = ctx.saved_tensors
        encoder_gradient = ctx.pattern.combine_by_feature(gradient, x)
        bias_gradient = torch.bincount(ctx.pattern.feature, weights=gradient, minlength=len(encoder)).to(gradient.dtype)
        return None, None, encoder_gradient, bias_gradient, -(bias_gradient @ encoder), None


def sparse_encode(
    values: Float[Tensor, " M"],
    x: Float[Tensor, "N D"],
    encoder: Float[Tensor, "F D"],
    encoder_bias: Float[Tensor, " F"],
    decoder_bias: Float[Tensor, " D"],
    pattern: Pattern,
) -> Float[Tensor, " M"]:
    """Make `values`, the entries of `x @ encoder.T + encoder_bias` at the pattern, differentiable.

    `x` is already centred on `decoder_bias`, which gets its gradient here; `x` itself gets none.
    """
    return _SparseEncode.apply(values, x, encoder, encoder_bias, decoder_bias, pattern)


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.pattern = pattern
        return pattern.combine(values, decoder)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        values, decoder = ctx.saved_tensors
        return ctx.pattern.inner(gradient, decoder), ctx.pattern.combine_by_feature(values, gradient), None


def sparse_decode(values: Float[Tensor, " M"], decoder: Float[Tensor, "F D"], pattern: Pattern) -> Float[Tensor, "N D"]:
    """`codes @ decoder` for sparse codes; differentiable in both."""
    return _SparseDecode.apply(values, decoder, pattern)
