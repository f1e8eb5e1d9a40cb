"""How well a dictionary reconstructs held-out documents: overall, within positions, and at every position.

FVE is `1 - sum of squared errors / sum of squares about the mean`, both sums pooled over tokens and kept in float64 (averaging
ratios of batches, or squares about zero, is how explained variance is usually got wrong). Rows that a rule excludes (position 0,
sinks, special tokens) are in no headline number; the first position is reported on its own.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.loader import sequential
from temporallens.activations.moments import FIRST, MomentSums
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.progress import progress


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


class _Sums:
    """Running sums over held-out rows."""

    def __init__(self, positions: int, width: int, features: int) -> None:
        self.moments = MomentSums(positions, width)
        self.first = MomentSums(1, width)
        self.error = torch.zeros(positions, dtype=torch.float64)
        self.first_error = torch.zeros((), dtype=torch.float64)
        self.active = torch.zeros(positions, dtype=torch.float64)
        self.fired = torch.zeros(features, dtype=torch.int64)
        self.largest_spread = 0.0

    def add(self, dictionary: Dictionary, rows: Rows) -> None:
        """Count one chunk of rows in."""
        x, position = rows.x.float(), rows.position.long()
        codes = dictionary.encode(x, position)
        error = (x - dictionary.decode(codes, position)).square().sum(1, dtype=torch.float64)
        kept, first = rows.excluded == 0, (rows.excluded & FIRST) > 0
        self.moments.add(x[kept], position[kept], rows.excluded[kept])
        self.error.index_add_(0, position[kept], error[kept])
        codes = codes[kept]
        in_use = codes > 0
        self.active.index_add_(0, position[kept], in_use.sum(1).double())
        self.fired += in_use.sum(0)
        if len(codes) and self.largest_spread == 0:  # one code that varies is enough
            self.largest_spread = float((codes.amax(0) - codes.amin(0)).max())
        if bool(first.any()):
            self.first.add(x[first], torch.zeros(int(first.sum()), dtype=torch.int64), torch.zeros(int(first.sum()), dtype=torch.uint8))
            self.first_error += error[first].sum()


@own_defaults()
@torch.inference_mode()
def evaluate_reconstruction(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], scale: float
) -> Reconstruction:
    """Run `dictionary` over the held-out sequences; `scale` is that of its training inputs, for losses in the same units.

    Raises TemporalLensError when there is no usable row, when codes are constant, or when widths differ.
    """
    sums = _Sums(store.positions, store.width, dictionary.features)
    with progress("evaluating", int(store.sequence_table.length[held_out].sum()), "tokens") as advance:
        for rows in sequential(store, held_out):
            sums.add(dictionary, rows)
            advance(len(rows.x))
    tokens = int(sums.moments.tensors["count"].sum())
    if tokens == 0:
        raise TemporalLensError(f"the held-out documents of {store.folder} hold no usable row: nothing can be evaluated")
    if sums.largest_spread == 0:
        raise TemporalLensError(
            "the dictionary's codes are constant on held-out documents: it was never trained, or its weights did not load"
        )
    return _summarise(dictionary, sums, scale, tokens)


def _summarise(dictionary: Dictionary, sums: _Sums, scale: float, tokens: int) -> Reconstruction:
    moments = sums.moments.moments()
    total, within = float(moments.pooled_variance()) * tokens, float(moments.within_variance()) * tokens
    error = float(sums.error.sum())
    spread = (moments.second_moment - moments.mean.square()).sum(1) * moments.count
    openness = dictionary.openness()
    return Reconstruction(
        fve=1 - error / total,
        fve_within_position=1 - error / within,
        fve_first=_first_fve(sums, moments.pooled_mean()),
        l0=float(sums.active.sum()) / tokens,
        dead_features=int((sums.fired == 0).sum()),
        openness=None if openness is None else float((openness.double() * moments.count).sum() / tokens),
        openness_by_position=None if openness is None else [float(value) for value in openness],
        position_loss=_ratios(sums.error * scale**2, moments.count),
        position_fve=[None if ratio is None else 1 - ratio for ratio in _ratios(sums.error, spread)],
        position_l0=_ratios(sums.active, moments.count),
        position_count=moments.count.tolist(),
        held_out_tokens=tokens,
    )


def _first_fve(sums: _Sums, centre: Float[Tensor, " D"]) -> float | None:
    first = sums.first.moments()
    count = int(first.count[0])
    if count == 0:
        return None
    square = first.second_moment[0].sum() - 2 * (first.mean[0] * centre).sum() + centre.square().sum()
    return float(1 - sums.first_error / (square * count))


def _ratios(numerator: Float[Tensor, " P"], denominator: Tensor) -> list[float | None]:
    return [n / d if d > 0 else None for n, d in zip(numerator.tolist(), denominator.tolist(), strict=True)]
