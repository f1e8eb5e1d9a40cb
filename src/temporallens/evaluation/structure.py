"""How much of what centring leaves depends on position: the share of the covariance's structure, which masks can use and means cannot.

Rows less the mean of their clock value, at norm one, are u. With C_g the mean of u uᵀ over the n_g of n rows in the group g of values,

    share = 1 - |C|² / Σ_g (n_g / n) |C_g|²,      C = Σ_g (n_g / n) C_g

in Frobenius norms: 0 where rows of all groups vary in the same directions, 1 - Σ_g (n_g / n)² where those of different groups share none.
|C_g|² is the mean of (u u')² over pairs of different rows, and |C|² over all such pairs, so that neither grows with noise; the floor, the
same with the clock's values taken from other rows, says what is left of it.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from temporallens.evaluation.bins import profile_starts

GROUPS = 16
"""Of clock values, spaced evenly along the logarithm; each is one of its own where there are no more than twice as many."""

ROWS = 8192
"""Rows that are drawn at most. What noise is left in the share, its floor says."""


class Structure(NamedTuple):
    """Of one clock, by layer."""

    share: list[float | None]
    floor: list[float | None]  # the same under a shuffled clock


def structure_share(x: Float[Tensor, "N D"], value: Int[np.ndarray, " N"]) -> float | None:
    """The share for rows of these clock values, groups of a single row left out; None where fewer than two are left, or nothing varies."""
    group = _groups(value)
    alone = (torch.bincount(group) < 2)[group]
    if alone.any():
        return structure_share(x[~alone], value[~alone.numpy()])
    counts = torch.bincount(group)
    if len(counts) < 2:
        return None
    u = _directions(x, torch.from_numpy(np.unique(value, return_inverse=True)[1]))
    order = group.argsort(stable=True)
    pooled, within, rows = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64), 0.0, len(u)
    for own in u[order].split(counts.tolist()):
        products = (own.T @ own).double()
        pooled += products
        within += len(own) / rows * _pairs(products, own)
    return 1 - _pairs(pooled, u) / within if within > 0 else None


def drawn(rows: int, seed: int) -> Int64[np.ndarray, " n"]:
    """At most ROWS of the numbers of rows, at random: evenly spaced ones would miss positions, which come around evenly too."""
    return np.sort(np.random.default_rng((seed, rows)).permutation(rows)[:ROWS])


def _pairs(products: Float[Tensor, "D D"], u: Float32[Tensor, "n D"]) -> float:
    """Mean of (u u')² over pairs of different rows, from the sum of u uᵀ."""
    own = u.double().square().sum(1).square().sum()  # of a row with itself: 1, or 0 where nothing was left of it
    return float((products.square().sum() - own) / (len(u) * (len(u) - 1)))


def _groups(value: Int[np.ndarray, " N"]) -> Int64[Tensor, " N"]:
    """Numbers of the groups that rows are of, none of them empty."""
    values, number = np.unique(value, return_inverse=True)
    if len(values) > 2 * GROUPS:
        starts = profile_starts(int(values[0]), int(values[-1]), GROUPS + 1)
        number = np.unique(np.searchsorted(starts, value, side="right"), return_inverse=True)[1]
    return torch.from_numpy(number.astype(np.int64))


def _directions(x: Float[Tensor, "N D"], number: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
    """Rows less the mean of their clock value, at norm one."""
    x = x.float()
    count = torch.bincount(number).clamp(min=1)[:, None]
    mean = torch.zeros(len(count), x.shape[1], dtype=torch.float32).index_add_(0, number, x) / count
    return torch.nn.functional.normalize(x - mean[number], dim=1)
