"""What a dictionary does on documents, as sparse arrays: which feature fires on which row, and how strongly.

Every measurement of features starts from these (profiles, nulls, clusters, contexts); `heldout` makes them. Rows that a rule excludes
(position 0, sinks, special tokens) are left out, as they are of every headline number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64


class Firings(NamedTuple):
    """Codes in use on N kept rows of documents, K of them; a firing is a code above zero."""

    row: Int32[np.ndarray, " K"]  # which of the rows below, ascending
    feature: Int32[np.ndarray, " K"]  # ascending within a row
    value: Float32[np.ndarray, " K"]
    position: Int32[np.ndarray, " N"]  # what the store's clock says of each row
    index: Int32[np.ndarray, " N"]  # type: ignore[assignment]  # index in its sequence (shadows a method of tuples)
    sequence: Int32[np.ndarray, " N"]  # its entry in the store's sequence table
    stretch: Int32[np.ndarray, " N"]  # what `shifts` turn in a circle as one: the sequence; of packed ones, parts that make up one
    document: Int32[np.ndarray, " N"]
    token: Int32[np.ndarray, " N"]
    features: int
    positions: int

    @property
    def counts(self) -> Int64[np.ndarray, " F"]:
        """Firings of each feature."""
        return np.bincount(self.feature, minlength=self.features)

    @property
    def cell(self) -> Int64[np.ndarray, " K"]:
        """Where each firing falls in a flattened `[P, F]` table."""
        return self.position[self.row].astype(np.int64) * self.features + self.feature

    @property
    def counts_by_position(self) -> Int64[np.ndarray, "P F"]:
        """Firings of each feature at each position."""
        return np.bincount(self.cell, minlength=self.positions * self.features).reshape(self.positions, self.features)

    def of_rows(self, rows: Int[np.ndarray, " n"]) -> "Firings":
        """Those of the given rows (ascending, each once), which are numbered anew: a half, or the documents of one side."""
        number = np.full(len(self.position), -1, dtype=np.int32)
        number[rows] = np.arange(len(rows), dtype=np.int32)
        kept = number[self.row] >= 0
        columns = {name: getattr(self, name)[rows] for name in ROW_COLUMNS}
        return self._replace(row=number[self.row[kept]], feature=self.feature[kept], value=self.value[kept], **columns)


class Profile(NamedTuple):
    """Features by position."""

    rate: Float64[np.ndarray, "P F"]  # share of the position's rows on which the feature fires; 0 where there is no row
    mean: Float64[np.ndarray, "P F"]  # mean activation over those rows, zeros included
    count: Int64[np.ndarray, " P"]  # type: ignore[assignment]  # rows (shadows a method of tuples)
    firings: Int64[np.ndarray, " F"]


ROW_COLUMNS = ("position", "index", "document", "token", "sequence", "stretch")


def profile(firings: Firings) -> Profile:
    """How often and how strongly each feature fires at each position."""
    count = np.bincount(firings.position, minlength=firings.positions)
    size, shape = firings.positions * firings.features, (firings.positions, firings.features)
    rows = np.maximum(count, 1)[:, None]
    return Profile(
        rate=firings.counts_by_position / rows,
        mean=np.bincount(firings.cell, weights=firings.value, minlength=size).reshape(shape) / rows,
        count=count,
        firings=firings.counts,
    )
