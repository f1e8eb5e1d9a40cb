"""Reconstruction errors by document and position: what bootstraps over documents and correlations over positions are made of.

FVE and L0 are those of `reconstruction`: sums pooled in float64, excluded rows left out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from temporallens.evaluation.statistics import quotient


class DocumentErrors(NamedTuple):
    """Sums over the kept rows of each of the D documents at each position."""

    tokens: Float64[np.ndarray, "D P"]
    error: Float64[np.ndarray, "D P"]  # squared, of the reconstruction
    square: Float64[np.ndarray, "D P"]  # about the mean of all held-out rows
    square_within: Float64[np.ndarray, "D P"]  # about the held-out mean of the position
    active: Float64[np.ndarray, "D P"]  # codes in use

    def fve(self, times: Int[np.ndarray, "B D"] | None = None) -> Float64[np.ndarray, " B"]:
        """FVE when each document counts so many times; by default, once. Means stay those of the documents as they are."""
        return 1 - self._total(self.error, times) / self._total(self.square, times)

    def l0(self, times: Int[np.ndarray, "B D"] | None = None) -> Float64[np.ndarray, " B"]:
        return self._total(self.active, times) / self._total(self.tokens, times)

    def loss_by_position(self, times: Int[np.ndarray, "B D"] | None = None) -> Float64[np.ndarray, "B P"]:
        """Squared error per token; NaN where a position has no token."""
        return quotient(self._sums(self.error, times), self._sums(self.tokens, times))

    def unexplained_by_position(self, times: Int[np.ndarray, "B D"] | None = None) -> Float64[np.ndarray, "B P"]:
        """Share of the variance within each position that is not explained; NaN where nothing varies."""
        return quotient(self._sums(self.error, times), self._sums(self.square_within, times))

    def _sums(self, values: Float64[np.ndarray, "D P"], times: Int[np.ndarray, "B D"] | None) -> Float64[np.ndarray, "B P"]:
        return values.sum(0, keepdims=True) if times is None else times @ values

    def _total(self, values: Float64[np.ndarray, "D P"], times: Int[np.ndarray, "B D"] | None) -> Float64[np.ndarray, " B"]:
        return self._sums(values, times).sum(1)
