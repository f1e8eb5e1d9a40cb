"""What a dictionary does on held-out documents, as sparse arrays: which feature fires on which row, and how strongly.

Every measurement of features starts here (profiles, nulls, clusters, contexts), so that a dictionary reads its documents once.
Rows that a rule excludes (position 0, sinks, special tokens) are left out, as they are of every headline number.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Int32, Int64

from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore, SequenceTable
from temporallens.activations.writer import Rows
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.progress import progress

ROUNDING = 1e-6
"""Of a sequence, by which shares of it that make it up may fall short of 1."""


class Firings(NamedTuple):
    """Codes in use on N rows of held-out documents, K of them; a firing is a code above zero."""

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


OWN_COLUMNS = ("position", "index", "document", "token")
ROW_COLUMNS = (*OWN_COLUMNS, "sequence", "stretch")


@own_defaults()
@torch.inference_mode()
def find_firings(dictionary: Dictionary, store: ActivationStore, sequences: Int[np.ndarray, " n"]) -> Firings:
    """Encode the rows of these entries of the sequence table that no rule excludes.

    Raises TemporalLensError where no row is left, or where nothing fires.
    """
    table = store.sequence_table
    entry = np.repeat(sequences, table.length[sequences]).astype(np.int32)
    stretch = np.repeat(_stretches(table, sequences), table.length[sequences]).astype(np.int32)
    parts: list[dict[str, np.ndarray]] = []
    read = kept = 0
    with progress("encoding", len(entry), "tokens") as advance:
        for rows in sequential(store, sequences):
            part = _fire(dictionary, rows)
            part["row"] += np.int32(kept)
            own = read + np.flatnonzero(rows.excluded.numpy() == 0)
            parts.append(part | {"sequence": entry[own], "stretch": stretch[own]})
            read, kept = read + len(rows.x), kept + len(part["position"])
            advance(len(rows.x))
    if kept == 0:
        raise TemporalLensError(f"these documents of {store.folder} hold no usable row: there is nothing to encode")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if len(whole["row"]) == 0:
        raise TemporalLensError(
            f"no feature fires on these documents of {store.folder}: the dictionary was never trained, or its weights did not load"
        )
    return Firings(**whole, features=dictionary.features, positions=store.positions)


def _stretches(table: SequenceTable, entries: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number of the stretch that each entry is of: entries that are whole sequences are one each; of packed sequences, whose documents are
    on both sides of a split, parts are joined until they make up a sequence, for one alone may hardly cover different positions."""
    share = table.length / np.bincount(table.whole, weights=table.length)[table.whole]
    start = np.cumsum(share[entries]) - share[entries]
    return np.floor(start + ROUNDING).astype(np.int64)


def _fire(dictionary: Dictionary, rows: Rows) -> dict[str, np.ndarray]:
    """Firings and columns of one chunk, its kept rows numbered from 0."""
    kept = rows.excluded == 0
    codes = dictionary.encode(rows.x[kept].float(), rows.position[kept].long())
    row, feature = (codes > 0).nonzero(as_tuple=True)
    columns = {name: getattr(rows, name)[kept].to(torch.int32).numpy() for name in OWN_COLUMNS}
    value = codes[row, feature].numpy()
    return {"row": row.to(torch.int32).numpy(), "feature": feature.to(torch.int32).numpy(), "value": value} | columns


def profile(firings: Firings) -> Profile:
    """How often and how strongly each feature fires at each position."""
    count = np.bincount(firings.position, minlength=firings.positions)
    cell = firings.position[firings.row].astype(np.int64) * firings.features + firings.feature
    size, shape = firings.positions * firings.features, (firings.positions, firings.features)
    rows = np.maximum(count, 1)[:, None]
    return Profile(
        rate=np.bincount(cell, minlength=size).reshape(shape) / rows,
        mean=np.bincount(cell, weights=firings.value, minlength=size).reshape(shape) / rows,
        count=count,
        firings=firings.counts,
    )
