"""One pass of a dictionary over held-out documents, from which every section, score and picture of it is made.

What the pass gives (which codes are in use on which row, and the squared error of each row) is kept in a study's `passes/heldout/`, under a
key made of the dictionary's and the store's content and the documents; whatever is missing or damaged is made again. Beside it are kept how
the activations themselves vary, which is the same for every dictionary, and, where something asks for it, what a masked dictionary would
do if its mask were open everywhere. Codes are never held for more than a few thousand rows at a time.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.activations.context import Context, context_of
from temporallens.activations.loader import CHUNK_ROWS, sequential, with_targets
from temporallens.activations.moments import FIRST, Moments, MomentSums
from temporallens.activations.store import ActivationStore, SequenceTable
from temporallens.activations.writer import TARGET, Rows
from temporallens.cache import Cache
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError, WorthlessError
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.firings import ROW_COLUMNS, Firings
from temporallens.evaluation.identity import dictionary_fingerprint, store_fingerprint
from temporallens.progress import progress

FORMAT = "temporallens.heldout/1"

CODES = 1 << 26
"""Codes, those that are 0 included, that a pass holds at a time: of dictionaries beyond 8,192 features, fewer rows than of others."""

ROUNDING = 1e-6
"""Of a sequence, by which shares of it that make it up may fall short of 1."""

Tensors = dict[str, Tensor]


class Encoded(NamedTuple):
    """What one dictionary makes of N usable rows."""

    firings: Firings
    error: Float64[np.ndarray, " N"]  # squared, of the reconstruction
    first_error: float  # sum over the first rows of sequences, which are not usable


class Variation(NamedTuple):
    """How what is to be given back varies over D documents, whatever the dictionary: sums over usable rows by document and position."""

    moments: Moments  # of usable rows
    first: Moments  # of first rows, as one position
    tokens: Float64[np.ndarray, "D P"]
    square: Float64[np.ndarray, "D P"]  # about the mean of all usable rows
    square_within: Float64[np.ndarray, "D P"]  # about the mean of the position


class Ungated(NamedTuple):
    """What a masked dictionary would do if its mask were open everywhere."""

    fired: Float64[np.ndarray, "P F"]  # rows at each position on which each feature would fire
    closed_mass: float | None  # share of that activation that the mask removes, 0 where it does nothing; None where nothing would fire


class HeldOut:
    """Documents to measure dictionaries on: entries of the sequence table of a store. With a folder `cache`, what is made of them is kept
    there and read again."""

    def __init__(self, store: ActivationStore, entries: Int[np.ndarray, " n"], cache: Path | None = None) -> None:
        self.store, self.entries = store, entries
        self._files = None if cache is None else Cache(cache / "heldout", FORMAT)

    @own_defaults()
    def encoded(self, dictionary: Dictionary) -> Encoded:
        """What `dictionary` makes of the rows that no rule excludes.

        Raises TemporalLensError where no row is left, where nothing fires, and where the dictionary gives back something else than what
        the store has for it.
        """
        check_target(dictionary, self.store)
        found = self._cached("codes", dictionary, lambda: _encode(dictionary, self.store, self.entries))
        if not len(found["value"]):
            raise WorthlessError(
                f"no feature fires on these documents of {self.store.folder}, so that codes are constant: the dictionary was never "
                "trained, or its weights did not load"
            )
        row = torch.repeat_interleave(torch.arange(len(found["active"]), dtype=torch.int32), found["active"])
        columns = {name: found[name].numpy() for name in ("feature", "value", *ROW_COLUMNS)}
        firings = Firings(row=row.numpy(), **columns, features=dictionary.features, positions=self.store.positions)
        return Encoded(firings, found["error"].numpy(), float(found["first_error"]))

    @own_defaults()
    def ungated(self, dictionary: Dictionary) -> Ungated | None:
        """The same with the mask open; None where nothing is masked."""
        gates = dictionary.gates_by_position()
        if gates is None:
            return None
        found = self._cached("ungated", dictionary, lambda: _open(dictionary, gates, self.store, self.entries))
        removed, whole = float(found["removed"]), float(found["whole"])
        return Ungated(found["fired"].double().numpy(), removed / whole if whole > 0 else None)

    def errors(self, encoded: Encoded) -> DocumentErrors:
        """The errors of what was encoded, by document and position. Raises TemporalLensError for packed rows of an earlier version."""
        variation, cell = self.variation, self._cell(encoded.firings.sequence, encoded.firings.position)
        active = np.bincount(encoded.firings.row, minlength=len(encoded.error))
        error, in_use = (
            np.bincount(cell, weights=values, minlength=variation.tokens.size).reshape(variation.tokens.shape)
            for values in (encoded.error, active)
        )
        return DocumentErrors(variation.tokens, error, variation.square, variation.square_within, in_use)

    @cached_property
    def variation(self) -> Variation:
        """Of these documents. Raises TemporalLensError where no row is left."""
        found = self._cached("variation", None, self._vary)
        usable, first = (Moments(**{name: found[f"{which}.{name}"] for name in Moments._fields}) for which in ("kept", "first"))
        return Variation(usable, first, *(found[name].numpy() for name in ("tokens", "square", "square_within")))

    def _cached(self, what: str, dictionary: Dictionary | None, make: Callable[[], Tensors]) -> Tensors:
        if self._files is None:
            return make()
        key = self._key | {"what": what, "dictionary": None if dictionary is None else dictionary_fingerprint(dictionary)}
        found = self._files.tensors(key)
        if found is None:
            found = make()
            self._files.put_tensors(key, found)
        return found

    @cached_property
    def _key(self) -> dict[str, Any]:
        return {"store": store_fingerprint(self.store), "entries": self.entries.tolist()}

    def _cell(self, entry: Int[np.ndarray, " N"], position: Int[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Where each row falls in a flattened table of documents by positions."""
        number = np.zeros(self.store.sequences, dtype=np.int64)
        number[self.entries] = np.unique(self.store.documents_of(self.entries), return_inverse=True)[1]
        return number[entry] * self.store.positions + position

    @torch.inference_mode()
    def _vary(self) -> Tensors:
        store, entries = self.store, self.entries
        usable, first = store.given.moments_of(entries), MomentSums(1, store.given.width)
        _refuse_none(int(usable.count.sum()), store)
        pooled = usable.pooled_mean()
        shape = len(np.unique(store.documents_of(entries))), store.positions
        sums = torch.zeros(3, shape[0] * shape[1], dtype=torch.float64)
        owner, read = np.repeat(entries, store.sequence_table.length[entries]), 0
        for rows, wanted in with_targets(store, entries):
            used, begins = rows.excluded == 0, (rows.excluded & FIRST) > 0
            x, position = wanted[used].double(), rows.position[used].long()
            cell = self._cell(owner[read : read + len(rows.x)][used.numpy()], position.numpy())
            about = [torch.ones(len(x), dtype=torch.float64), (x - pooled).square().sum(1), (x - usable.mean[position]).square().sum(1)]
            sums.index_add_(1, torch.from_numpy(cell), torch.stack(about))
            first.add(wanted[begins], *torch.zeros(2, int(begins.sum()), dtype=torch.int64))
            read += len(rows.x)
        tables = dict(zip(("tokens", "square", "square_within"), sums.view(3, *shape), strict=True))
        moments = {"kept": usable, "first": first.moments()}
        return tables | {f"{which}.{name}": value for which, sums in moments.items() for name, value in sums._asdict().items()}


def check_target(dictionary: Dictionary, store: ActivationStore) -> None:
    """Raise TemporalLensError for a transcoder on a store without what it should give, and for any other dictionary on one with it."""
    if dictionary.transcodes and store.target is None:
        raise TemporalLensError(
            f"this dictionary is a transcoder, which gives activations of another point than it takes, and {store.folder} holds those of "
            "one point: harvest with a target"
        )
    if store.target is not None and not dictionary.transcodes:
        target = store.manifest.description.policies[TARGET]
        raise TemporalLensError(
            f"{store.folder} has the target {target}, which a '{dictionary.kind}' dictionary does not give: it gives back what it takes; "
            "harvest without a target"
        )
    if dictionary.output_width != store.given.width:
        raise TemporalLensError(
            f"this dictionary gives activations of width {dictionary.output_width}, and those of {store.given.folder} have width "
            f"{store.given.width}"
        )


def find_firings(dictionary: Dictionary, store: ActivationStore, sequences: Int[np.ndarray, " n"], cache: Path | None = None) -> Firings:
    """What `dictionary` does on the rows of these entries of the sequence table that no rule excludes.

    Raises TemporalLensError where no row is left, or where nothing fires.
    """
    return HeldOut(store, sequences, cache).encoded(dictionary).firings


def errors_by_document(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], cache: Path | None = None
) -> DocumentErrors:
    """How well `dictionary` reconstructs these entries of the sequence table. Raises TemporalLensError where no row is left."""
    documents = HeldOut(store, held_out, cache)
    return documents.errors(documents.encoded(dictionary))


@torch.inference_mode()
def _encode(dictionary: Dictionary, store: ActivationStore, entries: Int[np.ndarray, " n"]) -> Tensors:
    """The pass."""
    table = store.sequence_table
    first_error, parts = torch.zeros((), dtype=torch.float64), []
    with progress("encoding", int(table.length[entries].sum()), "tokens") as advance:
        for rows, wanted in with_targets(store, entries, rows_at_once(dictionary)):
            part, error = _encode_chunk(dictionary, rows, wanted)
            first_error += error[(rows.excluded & FIRST) > 0].sum()
            parts.append(part)
            advance(len(rows.x))
    whole = (
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {"usable": torch.zeros(0, dtype=torch.bool)}
    )
    _refuse_none(int(whole["usable"].sum()), store)
    usable = whole.pop("usable").numpy()
    owners = {"sequence": entries, "stretch": _stretches(table, entries)}
    owned = {name: torch.from_numpy(np.repeat(owner, table.length[entries])[usable].astype(np.int32)) for name, owner in owners.items()}
    return whole | owned | {"first_error": first_error}


def _encode_chunk(dictionary: Dictionary, rows: Rows, wanted: Float[Tensor, "N D"]) -> tuple[Tensors, Tensor]:
    """Codes in use and errors of the usable rows of a chunk, and the errors of all its rows."""
    x, position, usable = rows.x.float(), rows.position.long(), rows.excluded == 0
    context = context_of(rows)
    codes, found = dictionary.reconstructed(x, position, context)
    error = (wanted.float() - found).square().sum(1, dtype=torch.float64)
    row, feature = (codes > 0).nonzero(as_tuple=True)
    counted = usable[row]
    row, feature = row[counted], feature[counted]
    columns = {name: getattr(rows, name)[usable].to(torch.int32) for name in ("position", "index", "document", "token")}
    active = torch.bincount(row, minlength=len(x))[usable].to(torch.int32)
    part = {"usable": usable, "active": active, "feature": feature.to(torch.int32), "value": codes[row, feature], "error": error[usable]}
    return part | columns, error


def _stretches(table: SequenceTable, entries: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number of the stretch that each entry is of: entries that are whole sequences are one each; of packed sequences, whose documents are
    on both sides of a split, parts are joined until they make up a sequence, for one alone may hardly cover different positions."""
    share = table.length / np.bincount(table.whole, weights=table.length)[table.whole]
    start = np.cumsum(share[entries]) - share[entries]
    return np.floor(start + ROUNDING).astype(np.int64)


@torch.inference_mode()
def _open(dictionary: Dictionary, gates: Tensor, store: ActivationStore, entries: Int[np.ndarray, " n"]) -> Tensors:
    """Where a masked dictionary would fire, how much activation that would be, and how much of it the mask removes."""
    removed, whole = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    fired = torch.zeros(store.positions * dictionary.features, dtype=torch.int64)
    for rows in sequential(store, entries, rows_at_once(dictionary)):
        position = rows.position[rows.excluded == 0].long()
        codes = codes_of_usable(dictionary, rows, dictionary.ungated)
        whole += codes.sum(dtype=torch.float64)
        removed += (codes * (1 - at_positions(gates, position))).sum(dtype=torch.float64)
        row, feature = (codes > 0).nonzero(as_tuple=True)
        fired += torch.bincount(position[row] * dictionary.features + feature, minlength=len(fired))
    return {"removed": removed, "whole": whole, "fired": fired.view(store.positions, dictionary.features)}


def rows_at_once(dictionary: Dictionary) -> int:
    """Rows that are encoded at a time."""
    return max(1, min(CHUNK_ROWS, CODES // dictionary.features))


def codes_of_usable(dictionary: Dictionary, rows: Rows, encode: Callable[[Tensor, Tensor, Context], Tensor]) -> Float[Tensor, "N F"]:
    """Codes of the rows that no rule excludes."""
    return codes_of(dictionary, rows, rows.excluded == 0, encode)


def codes_of(
    dictionary: Dictionary, rows: Rows, chosen: Bool[Tensor, " n"], encode: Callable[[Tensor, Tensor, Context], Tensor]
) -> Float[Tensor, "N F"]:
    """Codes of chosen rows; where a past is walked, it goes through all of them."""
    x, position, context = rows.x, rows.position, context_of(rows)
    if dictionary.config.looks_back:
        return encode(x.float(), position.long(), context)[chosen]
    return encode(x[chosen].float(), position[chosen].long(), context.rows(chosen))


def without_codes(dictionary: Dictionary, rows: Rows, context: Context | None = None) -> Float[Tensor, "N D"]:
    """What is decoded where no code is in use: what is known beforehand, of all that stands in the rows or of a `context` of them."""
    nothing = torch.zeros(len(rows.x), dictionary.features, dtype=torch.float32)
    return dictionary.decode(nothing, rows.position.long(), context_of(rows) if context is None else context)


def _refuse_none(usable: int, store: ActivationStore) -> None:
    if usable == 0:
        raise TemporalLensError(f"the held-out documents of {store.folder} hold no usable row: nothing can be evaluated")
