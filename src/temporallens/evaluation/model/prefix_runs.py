"""What a dictionary does on rows of a store as they are, or behind a prefix, token by token: firings, errors, and the spread of the
activations that errors are measured against. Tokens are named by the row and by their index in the unshifted row, so that the same
token has the same name whatever stands before it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.context import Context, context_of
from temporallens.activations.loader import CHUNK_ROWS, with_targets
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.heldout import HeldOut, rows_at_once


class PrefixRun(NamedTuple):
    """The chosen rows as they are, or behind a prefix; R rows (of packed ones, each document's part is counted as one) of at most S
    tokens, K firings."""

    store: ActivationStore
    entry: Int[np.ndarray, " R"]  # of each chosen row in this store; -1 where the prefix has pushed it out
    shift: int
    usable: Bool[np.ndarray, "R S"]  # by the index of a token in the unshifted row: whether no rule excludes it, and it is text
    row: Int[np.ndarray, " K"]  # of the firings on those tokens
    text_index: Int[np.ndarray, " K"]  # index in the unshifted row
    feature: Int[np.ndarray, " K"]
    value: Float[np.ndarray, " K"]
    error: Float[np.ndarray, "R S"]  # squared, of the reconstruction of usable tokens; 0 elsewhere

    @property
    def there(self) -> Int[np.ndarray, " r"]:
        """The rows of which this store has something."""
        return np.flatnonzero(self.entry >= 0)


class Spread(NamedTuple):
    """What FVE is measured against, of M documents and S indices."""

    tokens: Float[np.ndarray, " M"]
    total: Float[np.ndarray, "M D"]
    square: Float[np.ndarray, " M"]
    index_tokens: Float[np.ndarray, " S"]
    index_total: Float[np.ndarray, "S D"]
    index_square: Float[np.ndarray, " S"]


class _Tokens(NamedTuple):
    """Some tokens of a run."""

    x: Float[Tensor, "n D"]
    wanted: Float[Tensor, "n D"]  # what is to be given back of them
    position: Int[Tensor, " n"]  # what the clock says
    row: Int[np.ndarray, " n"]
    text_index: Int[np.ndarray, " n"]  # index in the unshifted row
    context: Context


def observe(
    dictionary: Dictionary, store: ActivationStore, entry: Int[np.ndarray, " R"], shift: int, opening: int, indices: int
) -> PrefixRun:
    """Encode the chosen rows, whose tokens stand at so many indices; `entry` says where in `store` they are, -1 where they are not."""
    there = np.flatnonzero(entry >= 0)
    encoded = HeldOut(store, entry[there]).encoded(dictionary)
    firings = encoded.firings
    number = np.zeros(store.sequences, dtype=np.int64)
    number[entry[there]] = there
    row, index = number[firings.sequence], firings.index.astype(np.int64) - shift
    text = firings.index >= opening + shift
    usable = np.zeros((len(entry), indices), dtype=bool)
    usable[row[text], index[text]] = True
    error = np.zeros(usable.shape)
    error[row[text], index[text]] = encoded.error[text]
    of_text = text[firings.row]
    fired = firings.row[of_text]
    feature, value = firings.feature[of_text].astype(np.int64), firings.value[of_text]
    return PrefixRun(store, entry, shift, usable, row[fired], index[fired], feature, value, error)


def _tokens(run: PrefixRun, chosen: Bool[np.ndarray, "R S"], chunk_rows: int = CHUNK_ROWS) -> Iterator[_Tokens]:
    """The chosen tokens of a run, a few thousand at a time."""
    entry, first = run.entry[run.there], 0
    number = np.repeat(run.there, run.store.sequence_table.length[entry])
    for rows, wanted in with_targets(run.store, entry, chunk_rows):
        row, index = number[first : first + len(rows.x)], rows.index.numpy() - run.shift
        found = (index >= 0) & chosen[row, np.maximum(index, 0)]
        context = context_of(rows).rows(torch.from_numpy(found))
        yield _Tokens(rows.x[found].float(), wanted[found].float(), rows.position[found].long(), row[found], index[found], context)
        first += len(rows.x)


@torch.inference_mode()
def squared_errors(dictionary: Dictionary, run: PrefixRun) -> list[Float[np.ndarray, "R S"]]:
    """Squared error of every usable token, as the dictionary is and, where it has a mask, with that open."""
    if dictionary.gates_by_position() is None:
        return [run.error]
    open_error = np.zeros(run.usable.shape)
    for tokens in _tokens(run, run.usable, rows_at_once(dictionary)):
        codes = dictionary.ungated(tokens.x, tokens.position, tokens.context)
        difference = tokens.wanted - dictionary.decode(codes, tokens.position, tokens.context)
        open_error[tokens.row, tokens.text_index] = difference.square().sum(1, dtype=torch.float64).numpy()
    return [run.error, open_error]


def spread_of(run: PrefixRun, chosen: Bool[np.ndarray, "R S"], documents: Int[np.ndarray, " R"]) -> Spread:
    """Counts, sums and squares of what is to be given back of the chosen tokens, by document and by index."""
    width, groups = run.store.given.width, (int(documents.max()) + 1, chosen.shape[1])
    sums = [(torch.zeros(size, width, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)) for size in groups]
    for tokens in _tokens(run, chosen):
        x = tokens.wanted.double()
        norm = x.square().sum(1)
        for (rows, squares), number in zip(sums, map(torch.from_numpy, (documents[tokens.row], tokens.text_index)), strict=True):
            rows.index_add_(0, number.long(), x)
            squares.index_add_(0, number.long(), norm)
    (total, square), (index_total, index_square) = ([part.numpy() for part in pair] for pair in sums)
    tokens_of = np.bincount(documents, weights=chosen.sum(1))
    return Spread(tokens_of, total, square, chosen.sum(0).astype(np.float64), index_total, index_square)


def events_of(run: PrefixRun, chosen: Bool[np.ndarray, "R S"], features: int) -> Int[np.ndarray, " E"]:
    """The firings on the chosen tokens, each as one number: `(row * S + index) * F + feature`."""
    of_chosen = chosen[run.row, run.text_index]
    return (run.row[of_chosen] * chosen.shape[1] + run.text_index[of_chosen]) * features + run.feature[of_chosen]
