"""Which activations count, and the first and second moments by position of those that do, accumulated in float64 so that they can
be summed over shards, processes and interruptions and still give the same bits."""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from temporallens.errors import TemporalLensWarning

FIRST, NORM, SPECIAL = 1, 2, 4
"""Why a row is left out of training and of headline metrics: first of its row, norm rule, special token."""


def beyond_norm(norms: Float[Tensor, " N"], counts: Bool[Tensor, " N"], norm_multiple: float) -> Bool[Tensor, " N"]:
    """The norm rule: which norms are more than `norm_multiple` times the median of those that count. Where that is 0, as in
    activations behind a ReLU, every norm is infinitely many times as large: then none is left out, and a warning says so."""
    typical = (norms[counts] if bool(counts.any()) else norms).median()
    if float(typical) == 0 and bool((norms > 0).any()):
        warnings.warn(
            f"more than half of the activations are 0, so {norm_multiple:g} times their median norm tells no sinks: the norm rule "
            "leaves none out here",
            TemporalLensWarning,
            stacklevel=2,
        )
        return torch.zeros_like(norms, dtype=torch.bool)
    return norms > norm_multiple * typical


class Moments(NamedTuple):
    """What a store knows about each position before any training; "kept" rows are those that no rule excludes."""

    count: Int[Tensor, " P"]  # type: ignore[assignment]  # kept rows (shadows a method of tuples)
    mean: Float[Tensor, "P D"]  # mean activation of kept rows, zeros where there are none
    second_moment: Float[Tensor, "P D"]  # mean square of each dimension over kept rows
    norm: Float[Tensor, " P"]  # mean norm of kept rows
    all_count: Int[Tensor, " P"]  # all rows
    all_norm: Float[Tensor, " P"]  # mean norm of all rows, sinks included
    excluded_first: Int[Tensor, " P"]  # each excluded row counts once: first of its row, else special token, else norm rule
    excluded_norm: Int[Tensor, " P"]
    excluded_special: Int[Tensor, " P"]

    def pooled_mean(self) -> Float[Tensor, " D"]:
        """Mean over all kept rows."""
        return (self.count[:, None] * self.mean).sum(0) / self.count.sum()

    def pooled_variance(self) -> Float[Tensor, ""]:
        """Mean squared distance of kept rows from their pooled mean, summed over dimensions."""
        weights = self.count.double()
        square = (weights @ self.second_moment).sum() / weights.sum()
        return square - self.pooled_mean().square().sum()

    def within_variance(self) -> Float[Tensor, ""]:
        """Mean squared distance of kept rows from the mean of their own position, summed over dimensions."""
        weights = self.count.double()
        return (weights @ (self.second_moment - self.mean.square())).sum() / weights.sum()

    def position_share(self) -> tuple[float, float]:
        """eta^2 of position and its noise floor: the share of variance that the position means explain, and the share that
        as many random groups of the same sizes would (each position adds its own sampling noise)."""
        total = self.pooled_variance()
        rows, groups = int(self.count.sum()), int((self.count > 0).sum())
        if rows <= groups or total <= 0:
            return 0.0, 0.0
        return float(1 - self.within_variance() / total), (groups - 1) / (rows - 1)


class MomentSums:
    """Running sums behind `Moments`; `tensors` and `load` carry them through an interruption exactly."""

    def __init__(self, positions: int, width: int) -> None:
        vectors = torch.zeros(positions, width, dtype=torch.float64, device="cpu")
        scalars = vectors.new_zeros(positions)
        self.tensors: dict[str, Tensor] = {
            "sum": vectors,
            "square": vectors.clone(),
            "norm": scalars,
            "all_norm": scalars.clone(),
            **{name: scalars.long() for name in ("count", "all_count", "first", "norm_rule", "special")},
        }

    def add(self, x: Float[Tensor, "N D"], position: Int[Tensor, " N"], excluded: Integer[Tensor, " N"]) -> None:
        """Take rows into the sums; each excluded one is counted once, by its first reason."""
        tensors, position, excluded = self.tensors, position.long(), excluded.long()
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        tensors["all_norm"].index_add_(0, position, norm)
        tensors["all_count"] += self._count(position)
        for name, flag in (("first", FIRST), ("special", SPECIAL), ("norm_rule", NORM)):
            applies = (excluded & flag) > 0
            tensors[name] += self._count(position[applies])
            excluded = torch.where(applies, flag, excluded)  # a row counts once, under the first reason
        included = excluded == 0
        position, rows = position[included], x[included].double()
        tensors["norm"].index_add_(0, position, norm[included])
        tensors["count"] += self._count(position)
        tensors["sum"].index_add_(0, position, rows)
        tensors["square"].index_add_(0, position, rows.square_())

    def _count(self, position: Int[Tensor, " N"]) -> Int[Tensor, " P"]:
        return torch.bincount(position, minlength=len(self.tensors["count"]))

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def moments(self) -> Moments:
        """The sums so far as means; zeros where a position had no row."""
        t = self.tensors
        count, all_count = t["count"].clamp(min=1), t["all_count"].clamp(min=1)
        return Moments(
            count=t["count"].clone(),
            mean=t["sum"] / count[:, None],
            second_moment=t["square"] / count[:, None],
            norm=t["norm"] / count,
            all_count=t["all_count"].clone(),
            all_norm=t["all_norm"] / all_count,
            excluded_first=t["first"].clone(),
            excluded_norm=t["norm_rule"].clone(),
            excluded_special=t["special"].clone(),
        )
