"""Fitting what the past says, when training is over: linear maps of reconstructions as inference makes them, by ridge regression.

With the dictionary as it is, training sequences are walked in closed loop, and what codes have to say of each row is regressed on what
earlier reconstructions of its sequence offer. The reconstructions then change, so this is done again; thresholds are measured anew on
what is left. Training rows are left out of what tokens say of them, as in training.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.context import Context, context_of
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.progress import progress
from temporallens.training.objective import Inputs
from temporallens.training.views import without_itself

SEQUENCES = 512
"""Training sequences that maps are fitted on: 65,000 rows of 128, for maps of a few hundred thousand numbers that ridge keeps in bounds."""

ROUNDS = 2
"""Of walking and fitting: the second sees reconstructions that the first one's maps are part of."""

RIDGE = 1e-3
"""As a share of the mean square of what maps read."""


class _Chunk(NamedTuple):
    """Whole sequences as the encoder sees them but for the past."""

    x: Float[Tensor, "N D"]
    position: Int[Tensor, " N"]
    context: Context
    kept: Bool[Tensor, " N"]


@torch.no_grad()
def fit_past(dictionary: Dictionary, store: ActivationStore, train: Int[np.ndarray, " n"], inputs: Inputs) -> None:
    """Fit the maps of a dictionary in the units of training, and measure its thresholds with them."""
    assert dictionary.past_map is not None
    chosen = train[np.linspace(0, len(train) - 1, min(SEQUENCES, len(train)), dtype=np.int64)]
    width = len(dictionary.past_map)
    for _ in range(ROUNDS):
        gram = torch.zeros(width, width, dtype=torch.float64, device=dictionary.past_map.device)
        target = gram.new_zeros(width, dictionary.width)
        for chunk in _chunks(dictionary, store, chosen, inputs):
            found = dictionary.walked(chunk.x, chunk.position, chunk.context, keep=True)
            assert found.features is not None
            offered, wanted = found.features[chunk.kept].double(), chunk.x[chunk.kept].double()
            gram += offered.T @ offered
            target += offered.T @ wanted
        penalty = (RIDGE * gram.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
        dictionary.past_map.copy_(torch.linalg.solve(gram + penalty * torch.eye(width, dtype=gram.dtype, device=gram.device), target))
    for chunk in _chunks(dictionary, store, chosen, inputs):
        left = dictionary.walked(chunk.x, chunk.position, chunk.context).left
        order = chunk.position[chunk.kept].argsort(stable=True)
        dictionary.finish(left[chunk.kept][order], chunk.position[chunk.kept][order])
    dictionary.finished()


def _chunks(dictionary: Dictionary, store: ActivationStore, entries: Int[np.ndarray, " n"], inputs: Inputs) -> Iterator[_Chunk]:
    device = dictionary.encoder.device
    with progress("fitting the past", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for rows in sequential(store, entries):
            context, position = context_of(rows).to(device), rows.position.long().to(device)
            x = without_itself(dictionary, inputs.normalise(rows.x.float().to(device)), position, context)
            yield _Chunk(x, position, context, (rows.excluded == 0).to(device))
            advance(len(rows.x))
