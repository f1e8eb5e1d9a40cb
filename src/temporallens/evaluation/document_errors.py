"""Reconstruction errors by document and position: what bootstraps over documents and correlations over positions are made of.

FVE and L0 are those of `reconstruction`: sums pooled in float64, excluded rows left out.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.statistics import quotient
from temporallens.progress import progress


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


@torch.inference_mode()
def errors_by_document(dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"]) -> DocumentErrors:
    """Run `dictionary` over the held-out sequences. Raises TemporalLensError where no row is left."""
    moments = store.moments_of(held_out)
    if int(moments.count.sum()) == 0:
        raise TemporalLensError(f"the held-out documents of {store.folder} hold no usable row: nothing can be evaluated")
    pooled, of_position = moments.pooled_mean(), moments.mean
    documents, document = np.unique(store.documents_of(held_out), return_inverse=True)
    of_row = torch.from_numpy(np.repeat(document, store.sequence_table.length[held_out]))
    sums = torch.zeros(len(DocumentErrors._fields), len(documents) * store.positions, dtype=torch.float64)
    read = 0
    with progress("errors by document", len(of_row), "tokens") as advance:
        for rows in sequential(store, held_out):
            kept = rows.excluded == 0
            x, position = rows.x[kept].float(), rows.position[kept].long()
            codes: Tensor = dictionary.encode(x, position)
            exact = x.double()
            parts = [
                torch.ones(len(x), dtype=torch.float64),
                (x - dictionary.decode(codes, position)).square().sum(1, dtype=torch.float64),
                (exact - pooled).square().sum(1),
                (exact - of_position[position]).square().sum(1),
                (codes > 0).sum(1).double(),
            ]
            cell = of_row[read : read + len(rows.x)][kept] * store.positions + position
            sums.index_add_(1, cell, torch.stack(parts))
            read += len(rows.x)
            advance(len(rows.x))
    return DocumentErrors(*sums.view(-1, len(documents), store.positions).numpy())
