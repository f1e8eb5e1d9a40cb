"""What is settled of a dictionary with an expectation when training is over: the maps of the past, and thresholds as inference needs them.

Maps of the past are a ridge regression. With the dictionary as it is, training sequences are walked in closed loop, and what codes have to
say of each row is regressed on what earlier reconstructions of its sequence offer. The reconstructions then change, so this is done again.
A map that predicts well from reconstructions that it is no part of may still run away once it feeds on its own: the penalty is that which
leaves the least error in closed loop, on training documents that the map was not fitted on; where none does better than no map, there is
none. Codes were learnt without the past, so a map has to help them as they are.

Thresholds are measured on documents of which the tables know nothing, as they know nothing of other texts: a row that is left out alone
still has the rest of its document in them, so that less is left for its codes. The tables that serve here are fitted on the others.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.context import Context, context_of
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.expectations.tables import Expectation
from temporallens.progress import progress
from temporallens.training.objective import Inputs
from temporallens.training.views import without_itself

SEQUENCES = 512
"""Sequences that maps are fitted on, and thresholds measured: 65,000 rows of 128, for maps of a few hundred thousand numbers that ridge
keeps in bounds."""

ROUNDS = 2
"""Of walking and fitting: the second sees reconstructions that the first one's maps are part of."""

PENALTIES = tuple(10.0**power for power in range(-3, 3))
"""Of the ridge, as shares of the mean square of what maps read."""

EVERY = 10
"""One training document in so many is left out of the tables that thresholds are measured with."""


class _Chunk(NamedTuple):
    """Whole sequences."""

    x: Float[Tensor, "N D"]
    position: Int[Tensor, " N"]
    context: Context
    kept: Bool[Tensor, " N"]


def left_out(store: ActivationStore, train: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which entries thresholds are measured on; none where there is one document only."""
    document = np.unique(store.documents_of(train), return_inverse=True)[1]
    return (document % EVERY == EVERY - 1) if document.max() >= EVERY else (document == 1)


@torch.no_grad()
def measure_thresholds(
    dictionary: Dictionary,
    store: ActivationStore,
    entries: Int[np.ndarray, " n"],
    inputs: Inputs,
    others: Expectation | None,
    batch_size: int,
) -> None:
    """Measure the thresholds of a dictionary in the units of training on documents that `others`, like its tables but fitted without
    these, know nothing of; in batches that mix them, as those of training do."""
    own, dictionary.expectation = dictionary.expectation, others
    left, position = [], []
    for rows in sequential(store, _spread(entries)):
        chunk = _on(inputs, rows)
        left.append(dictionary.prepared(chunk.x, chunk.position, chunk.context)[chunk.kept])
        position.append(chunk.position[chunk.kept])
    x, at = torch.cat(left), torch.cat(position)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    for batch in mixed.split(batch_size)[: max(1, len(mixed) // batch_size)]:
        ordered = batch[at[batch].argsort(stable=True)]
        dictionary.finish(x[ordered], at[ordered])
    dictionary.finished()
    dictionary.expectation = own


def _spread(entries: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """At most so many entries as bound time and memory, evenly spaced."""
    return entries[np.linspace(0, len(entries) - 1, min(SEQUENCES, len(entries)), dtype=np.int64)]


@torch.no_grad()
def fit_past(dictionary: Dictionary, store: ActivationStore, train: Int[np.ndarray, " n"], inputs: Inputs) -> None:
    """Fit the maps of a dictionary in the units of training."""
    assert dictionary.past_map is not None
    chosen = _spread(train)
    apart = left_out(store, chosen)
    tried = list(_chunks(dictionary, store, chosen[apart] if apart.any() else chosen, inputs))
    least, best = _error(dictionary, tried), dictionary.past_map.clone()
    for _ in range(ROUNDS):
        for candidate in list(_solved(dictionary, _chunks(dictionary, store, chosen[~apart], inputs))):
            dictionary.past_map.copy_(candidate)
            error = _error(dictionary, tried)
            if error < least:
                least, best = error, candidate
        dictionary.past_map.copy_(best)


def _error(dictionary: Dictionary, chunks: Sequence[_Chunk]) -> float:
    """Squared error of reconstructions in closed loop; NaN where the maps run away."""
    total = 0.0
    for chunk in chunks:
        found = dictionary.walked(chunk.x, chunk.position, chunk.context)
        total += float((found.left - dictionary.reconstruct(found.codes))[chunk.kept].double().square().sum())
    return total


def _solved(dictionary: Dictionary, chunks: Iterator[_Chunk]) -> Iterator[Float[Tensor, "JD D"]]:
    """Maps that say most of these rows, from the strictest to the freest."""
    assert dictionary.past_map is not None
    width = len(dictionary.past_map)
    gram = torch.zeros(width, width, dtype=torch.float64, device=dictionary.past_map.device)
    target = gram.new_zeros(width, dictionary.width)
    for chunk in chunks:
        found = dictionary.walked(chunk.x, chunk.position, chunk.context, keep=True)
        assert found.features is not None
        offered, wanted = found.features[chunk.kept], chunk.x[chunk.kept]
        gram += offered.T @ offered  # of a few thousand rows in float32, of all of them in float64: products in float64 take long
        target += offered.T @ wanted
    unit = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for penalty in reversed(PENALTIES):
        ridge = gram + penalty * unit * torch.eye(width, dtype=gram.dtype, device=gram.device)
        yield torch.linalg.solve(ridge, target).to(dictionary.past_map.dtype)


def _chunks(dictionary: Dictionary, store: ActivationStore, entries: Int[np.ndarray, " n"], inputs: Inputs) -> Iterator[_Chunk]:
    with progress("fitting the past", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for rows in sequential(store, entries):
            chunk = _on(inputs, rows)
            yield chunk._replace(x=without_itself(dictionary, chunk.x, chunk.position, chunk.context))
            advance(len(rows.x))


def _on(inputs: Inputs, rows: Rows) -> _Chunk:
    """Rows of a store where the dictionary is, normalised."""
    device = inputs.centre.device
    x = inputs.normalise(rows.x.float().to(device))
    return _Chunk(x, rows.position.long().to(device), context_of(rows).to(device), (rows.excluded == 0).to(device))
