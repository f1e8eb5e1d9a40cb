"""How a stream is changed, and what a change is compared with.

    features     x + decode(z') - decode(z),     z' being z with chosen features ablated, clamped, or added to
    means        x - (mu_p - mu)                 the mean of its position in place of which every row has the mean of all

Three controls ask whether it matters *what* is changed. `turned`: the same change in other directions, by one random rotation of the
whole space: as large at every row, and as alike from row to row. `matched`: other features instead, each as active in all as the one it
stands for; of means, those of other positions, permuted.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.activations.context import context_of
from temporallens.activations.moments import Moments
from temporallens.activations.writer import Rows
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.firings import Firings

How = Literal["ablate", "clamp", "add"]
NEAREST = 8
"""Features alike, one of which stands for a chosen one in a draw."""

Change = Callable[[Rows], Float[Tensor, "N D"]]
"""What is added to the stream at some rows."""


class Doing(NamedTuple):
    """What is done to chosen features."""

    how: How
    amount: float  # in mean activations of a feature while it fires: what it is clamped to, or what is added


def feature_change(dictionary: Dictionary, features: Int[np.ndarray, " f"], doing: Doing, strength: Float[np.ndarray, " F"]) -> Change:
    """`strength` is the mean activation of each feature while it fires."""
    chosen = torch.from_numpy(features.astype(np.int64))
    amount = torch.from_numpy(doing.amount * strength[features]).float()

    def change(rows: Rows) -> Float[Tensor, "N D"]:
        x, position, context = rows.x.float(), rows.position.long(), context_of(rows)
        codes = dictionary.encode(x, position, context)
        changed = codes.clone()
        if doing.how == "ablate":
            changed[:, chosen] = 0.0
        elif doing.how == "clamp":
            changed[:, chosen] = amount.to(codes.dtype)
        else:
            changed[:, chosen] += amount.to(codes.dtype)
        return dictionary.decode(changed, position, context) - dictionary.decode(codes, position, context)

    return change


def mean_change(moments: Moments, order: Int[np.ndarray, " P"] | None = None) -> Change:
    """Take off what position says; with `order`, what other positions say."""
    deviation = (moments.mean - moments.pooled_mean()) * (moments.count > 0)[:, None]
    if order is not None:
        deviation = deviation[torch.from_numpy(order)]
    return lambda rows: -at_positions(deviation.float(), rows.position)


def turned(change: Change, width: int, generator: np.random.Generator) -> Change:
    """The same change in other directions."""
    rotation = torch.from_numpy(np.linalg.qr(generator.standard_normal((width, width)))[0]).float()
    return lambda rows: change(rows) @ rotation


def within(change: Change, first: int, last: int | None) -> Change:
    """The change at indices `first` to `last` of a sequence alone."""

    def limited(rows: Rows) -> Float[Tensor, "N D"]:
        own = (rows.index >= first) & (rows.index <= (last if last is not None else rows.index.max()))
        return change(rows) * own[:, None]

    return limited


def activity(firings: Firings) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """Mean square activation of each feature over rows, and its mean activation while it fires."""
    value = firings.value.astype(np.float64)
    total, square = (np.bincount(firings.feature, weights=values, minlength=firings.features) for values in (value, value**2))
    return square / max(1, len(firings.position)), total / np.maximum(firings.counts, 1)


def matched(chosen: Int[np.ndarray, " f"], power: Float[np.ndarray, " F"], generator: np.random.Generator) -> Int[np.ndarray, " g"]:
    """Others that are as active, one for each of the chosen as long as there are any: at random among the nearest that are left."""
    free: Bool[np.ndarray, " F"] = power > 0
    free[chosen] = False
    others = np.flatnonzero(free)
    others = others[np.argsort(power[others])]
    height = np.log(power[others])
    taken = np.zeros(len(others), dtype=bool)
    found = []
    for feature in generator.permutation(chosen[power[chosen] > 0]):
        left = np.flatnonzero(~taken)
        if not len(left):
            break
        nearest = left[np.argsort(np.abs(height[left] - np.log(power[feature])), kind="stable")[:NEAREST]]
        place = int(generator.choice(nearest))
        taken[place] = True
        found.append(int(others[place]))
    return np.array(sorted(found), dtype=np.int64)
