"""A batch as the arms see it: rows in order of position, normalised, and centred where arms are centred by position; each view is
made once for all arms that share it.

For arms with `permuted: true` labels are permuted over the rows, by a generator that depends on the data seed and the step alone.
Since the labels of a batch stay the same and rows stand in their order, that is to permute the rows and leave the labels where they are.
What is taken off a row by position is measured, not learned, and follows its true position: the control is about the labels that
the arm is given.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens import processes
from temporallens.activations.context import Context
from temporallens.activations.loader import Batch
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.steps import Previous
from temporallens.training.objective import Inputs

PERMUTING = 0x7065726D
"""Tells the stream of permutations from those that order the data by the same seed."""


class View(NamedTuple):
    """What one arm sees of a batch."""

    x: Float[Tensor, "N D"]  # normalised and centred
    label: Int[Tensor, " N"]  # positions that the arm is given, ascending
    position: Int[Tensor, " N"]  # true positions
    previous: Previous | None  # the token before each row, centred at its own position
    context: Context | None = None  # tokens, where they are known


class Views:
    """The views of one batch, or of this process's share of it; `step` counts the batches of the training stream."""

    def __init__(self, batch: Batch, inputs: Inputs, seed: int, step: int) -> None:
        order = torch.argsort(batch.position, stable=True)
        self._order, self._own = order, _share(batch, order)
        self._batch, self._inputs, self._seed, self._step = batch, inputs, seed, step
        self._made: dict[tuple[str, bool, ExpectationPolicy | None], View] = {}

    def of(self, arm: ArmConfig, dictionary: Dictionary) -> View:
        """What `arm` sees; dictionaries that are centred alike, by position and by what tokens say, share it."""
        kind = (arm.centre, arm.permuted, arm.expectation)
        if kind not in self._made:
            self._made[kind] = _centred(self._permuted_view if arm.permuted else self._plain, dictionary)
        return self._made[kind]

    @cached_property
    def _plain(self) -> View:
        return self._of_rows(self._order[self._own])

    @cached_property
    def _permuted_view(self) -> View:
        chosen = np.random.default_rng((PERMUTING, self._seed, self._step)).permutation(len(self._order))
        return self._of_rows(self._order[torch.from_numpy(chosen)][self._own])

    def _of_rows(self, chosen: Int[Tensor, " n"]) -> View:
        """These rows of the batch, under the labels of those of this process in order."""
        batch, normalise, device = self._batch, self._inputs.normalise, self._inputs.centre.device
        usable = None if batch.before is None else torch.ones_like(batch.before, dtype=torch.bool)
        context = Context(batch.token, batch.token_before, batch.before, usable).reordered(chosen).to(device)
        previous = None
        if batch.previous is not None and batch.paired is not None and batch.previous_position is not None:
            before = normalise(batch.previous[chosen].to(device))
            previous = Previous(before, batch.paired[chosen].to(device), batch.previous_position[chosen].to(device))
        label = batch.position[self._order[self._own]].to(device)
        return View(normalise(batch.x[chosen].to(device)), label, batch.position[chosen].to(device), previous, context)


def _share(batch: Batch, order: Int[Tensor, " N"]) -> Tensor | slice:
    """Which of a batch's rows in this order are those of this process: rows are dealt out in turn, so that all get rows of every position,
    and rows of text are dealt out whole where arms may read them."""
    if batch.before is None:
        return slice(processes.rank(), None, processes.count())
    return torch.unique(batch.sequence, return_inverse=True)[1][order] % processes.count() == processes.rank()


def _centred(view: View, dictionary: Dictionary) -> View:
    previous = view.previous
    if previous is not None:
        before = None if view.context is None else view.context.of_before()
        previous = previous._replace(x=without_itself(dictionary, previous.x, previous.position, before))
    return view._replace(x=without_itself(dictionary, view.x, view.position, view.context), previous=previous)


def without_itself(
    dictionary: Dictionary, x: Float[Tensor, "N D"], position: Int[Tensor, " N"], tokens: Context | None
) -> Float[Tensor, "N D"]:
    """Training rows as the encoder sees them: none is part of what tokens are known to say of it."""
    known = dictionary.expectation
    if known is None or tokens is None:
        return dictionary.centre(x, position)
    return dictionary.centre(x, position, known.left_out(dictionary.offset(x, position), tokens))
