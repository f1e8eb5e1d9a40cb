"""The history of activations: how far those of a row of text follow from the earlier ones of the same row, before any dictionary.

With y the activations less their mean, zero where they are left out, and t counting the tokens of a row:

    autocorrelation  rho(k) = mean of y_t . y_(t-k) / mean of |y_t|^2
    effective rank   of y_1 .. y_t: (tr K)^2 / tr K^2, K their Gram matrix: the participation ratio of its eigenvalues

Each stands beside its null: y_(t-k) from another row of text at the same index; y_1 .. y_t each from a row drawn for its index.
After the history statistics of Lubana et al. 2025 (arXiv 2511.01836), who measure 1 / mean cos^2 of unit activations in place of the ratio.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from temporallens.evaluation.bins import log_edges

LAGS, LENGTHS = 14, 14
"""At most so many are looked at, evenly along the logarithm."""
BLOCK_BYTES = 64 << 20
"""Of Gram matrices that are held at a time."""


@dataclass(frozen=True)
class History:
    """Of every layer; `L` layers, `K` lags, `T` lengths. None where no row is so long."""

    lags: list[int]  # [K] in tokens
    autocorrelation: list[list[float | None]]  # [L][K]
    other_rows: list[list[float | None]]  # [L][K] the same against another row of text
    lengths: list[int]  # [T] tokens
    rank: list[list[float | None]]  # [L][T] effective rank of the first so many tokens of a row, mean over rows
    shuffled_rank: list[list[float | None]]  # [L][T] the same of tokens of as many rows


class LayerHistory(NamedTuple):
    """Of one layer."""

    autocorrelation: Float64[np.ndarray, " K"]
    other_rows: Float64[np.ndarray, " K"]
    rank: Float64[np.ndarray, " T"]
    shuffled_rank: Float64[np.ndarray, " T"]


def looked_at(length: int) -> tuple[list[int], list[int]]:
    """Lags and lengths in rows of so many tokens, the first of which is left out."""
    return log_edges(max(length - 2, 1), LAGS).tolist(), log_edges(max(length - 1, 1), LENGTHS).tolist()


def earlier(y: Float[Tensor, "R S k"], kept: Bool[Tensor, "R S"], decay: float | None = None) -> Float[Tensor, "R S k"]:
    """The mean of the kept earlier activations of every row, or with `decay` their exponential mean; zeros before the first."""
    step = torch.arange(y.shape[1], device=y.device)
    behind = step[:, None] - step
    if decay is not None:
        weights = torch.where(behind > 0, (1 - decay) * decay ** (behind - 1).clamp(min=0).double(), 0.0)
        return weights.to(y.dtype) @ y
    counted = kept.cumsum(1) - kept.long()
    return (behind > 0).to(y.dtype) @ y / counted.clamp(min=1)[..., None].to(y.dtype)


def history_of(y: Float[Tensor, "R S D"], kept: Bool[Tensor, "R S"], generator: torch.Generator) -> LayerHistory:
    """Of rows whose left-out tokens are zero."""
    rows, length = kept.shape
    lags, lengths = looked_at(length)
    own = _Grams(lags, lengths)
    other, mixed = _Grams(lags, lengths), _Grams(lags, lengths)
    drawn = torch.stack([torch.randperm(rows, generator=generator) for _ in range(length)], 1)
    step, size = torch.arange(length), max(1, BLOCK_BYTES // (4 * length * max(length, y.shape[2])))
    for first in range(0, rows, size):
        block = slice(first, first + size)
        partner = (torch.arange(rows)[block] + rows // 2) % rows  # far on in the text: of another document where there are several
        own.add(y[block], y[block], kept[block], kept[block])
        other.add(y[block], y[partner], kept[block], kept[partner])
        mix = y[drawn[block], step]
        mixed.add(mix, mix, kept[drawn[block], step], kept[drawn[block], step])
    variance = own.square / max(own.tokens, 1)
    return LayerHistory(own.correlation(variance), other.correlation(variance), own.ranks(), mixed.ranks())


class _Grams:
    """Sums over products of the activations of rows."""

    def __init__(self, lags: list[int], lengths: list[int]) -> None:
        self._lags, self._lengths = lags, lengths
        self._products, self._pairs = np.zeros(len(lags)), np.zeros(len(lags))
        self._ranks, self._ranked = np.zeros(len(lengths)), np.zeros(len(lengths))
        self.square, self.tokens = 0.0, 0

    def add(
        self, y: Float[Tensor, "R S D"], other: Float[Tensor, "R S D"], kept: Bool[Tensor, "R S"], kept_other: Bool[Tensor, "R S"]
    ) -> None:
        gram = y @ other.transpose(1, 2)
        both = kept[:, :, None] & kept_other[:, None, :]
        self.square += float(gram.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64))
        self.tokens += int(both.diagonal(dim1=1, dim2=2).sum())
        for place, lag in enumerate(self._lags):
            self._products[place] += float(gram.diagonal(-lag, 1, 2).sum(dtype=torch.float64))
            self._pairs[place] += int(both.diagonal(-lag, 1, 2).sum())
        traces = gram.diagonal(dim1=1, dim2=2).cumsum(1)
        squares = gram.square().cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)
        counted = kept.cumsum(1)
        for place, count in enumerate(self._lengths):  # where a row has so many tokens
            reached, end = (counted == count).long().max(1)
            whole = (reached > 0) & (squares.gather(1, end[:, None])[:, 0] > 0)
            ratio = traces.gather(1, end[:, None])[:, 0].square() / squares.gather(1, end[:, None])[:, 0]
            self._ranks[place] += float(ratio[whole].sum())
            self._ranked[place] += int(whole.sum())

    def correlation(self, variance: float) -> Float64[np.ndarray, " K"]:
        return _mean(self._products, self._pairs) / (variance or np.nan)

    def ranks(self) -> Float64[np.ndarray, " T"]:
        return _mean(self._ranks, self._ranked)


def _mean(total: Float64[np.ndarray, " n"], count: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
