"""How well a dictionary reconstructs held-out documents: overall, within positions, and at every position.

FVE is `1 - sum of squared errors / sum of squares about the mean`, both sums pooled over tokens and kept in float64 (averaging
ratios of batches, or squares about zero, is how explained variance is usually got wrong). Rows that a rule excludes (position 0,
sinks, special tokens) are in no headline number; the first position is reported on its own.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.moments import Moments
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import WorthlessError
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut


class Reconstruction(NamedTuple):
    """Held-out results of one dictionary; lists have one entry per position, None where there was no token."""

    fve: float
    fve_within_position: float  # about the mean of each position: what position alone predicts counts for nothing
    fve_first: float | None  # position 0 alone, about the pooled mean
    l0: float
    dead_features: int  # features that never fire on the held-out documents
    openness: float | None  # mean gate over tokens and features, None where nothing is masked
    openness_by_position: list[float] | None
    position_loss: list[float | None]  # squared error per token in the units of training (inputs of mean norm sqrt(D))
    position_fve: list[float | None]  # about the mean of that position
    position_l0: list[float | None]
    position_count: list[int]
    held_out_tokens: int


@own_defaults()
def evaluate_reconstruction(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], scale: float, cache: Path | None = None
) -> Reconstruction:
    """How well `dictionary` reconstructs the held-out sequences, whose encoding is kept in `cache`; `scale` is that of its training inputs,
    for losses in the same units.

    Raises TemporalLensError when there is no usable row, when codes are constant, or when widths differ.
    """
    documents = HeldOut(store, held_out, cache)
    encoded = documents.encoded(dictionary)
    firings, variation = encoded.firings, documents.variation
    if not _varies(firings):
        raise WorthlessError("the dictionary's codes are constant on held-out documents: it was never trained, or its weights did not load")
    moments, tokens = variation.moments, len(encoded.error)
    error, active = (_by_position(firings, values) for values in (encoded.error, np.bincount(firings.row, minlength=tokens)))
    total, within = float(moments.pooled_variance()) * tokens, float(moments.within_variance()) * tokens
    spread = (moments.second_moment - moments.mean.square()).sum(1) * moments.count
    openness = dictionary.openness()
    return Reconstruction(
        fve=1 - float(error.sum()) / total,
        fve_within_position=1 - float(error.sum()) / within,
        fve_first=_first_fve(encoded.first_error, variation.first, moments.pooled_mean()),
        l0=float(active.sum()) / tokens,
        dead_features=int((firings.counts == 0).sum()),
        openness=None if openness is None else float((openness.double() * moments.count).sum() / tokens),
        openness_by_position=None if openness is None else [float(value) for value in openness],
        position_loss=_ratios(error * scale**2, moments.count),
        position_fve=[None if ratio is None else 1 - ratio for ratio in _ratios(error, spread)],
        position_l0=_ratios(active, moments.count),
        position_count=moments.count.tolist(),
        held_out_tokens=tokens,
    )


def _varies(firings: Firings) -> bool:
    """Whether the code of any feature does."""
    rows, counts = len(firings.position), firings.counts
    steady = counts == rows
    if ((counts > 0) & ~steady).any():
        return True
    return any(np.ptp(firings.value[firings.feature == feature]) > 0 for feature in np.flatnonzero(steady))


def _by_position(firings: Firings, values: np.ndarray) -> Float[Tensor, " P"]:
    """Sums of values of rows."""
    return torch.from_numpy(np.bincount(firings.position, weights=values, minlength=firings.positions))


def _first_fve(error: float, first: Moments, centre: Float[Tensor, " D"]) -> float | None:
    count = int(first.count[0])
    if count == 0:
        return None
    square = first.second_moment[0].sum() - 2 * (first.mean[0] * centre).sum() + centre.square().sum()
    return 1 - error / float(square * count)


def _ratios(numerator: Float[Tensor, " P"], denominator: Tensor) -> list[float | None]:
    return [n / d if d > 0 else None for n, d in zip(numerator.tolist(), denominator.tolist(), strict=True)]
