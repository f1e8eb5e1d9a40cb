"""A batch as the arms see it: rows in order of position, normalised, and centred where arms are centred by position; each view is
made once for all arms that share it.

For arms with `permuted: true` labels are permuted over the rows, by a generator that depends on the data seed and the step alone.
Since the labels of a batch stay the same and rows stand in their order, that is to permute the rows and leave the labels where they are.
What is taken off a row by position is measured, not learned, and follows its true position: the control is about the labels that
the arm is given.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    """The views of one batch; `step` counts the batches of the training stream."""

    def __init__(self, batch: Batch, inputs: Inputs, seed: int, step: int) -> None:
        device = inputs.centre.device
        order = torch.argsort(batch.position, stable=True)
        x = inputs.normalise(batch.x[order].to(device))
        position = batch.position[order].to(device)
        usable = None if batch.before is None else torch.ones_like(batch.before, dtype=torch.bool)
        context = Context(batch.token, batch.token_before, batch.before, usable).reordered(order).to(device)
        previous = None
        if batch.previous is not None and batch.paired is not None and batch.previous_position is not None:
            before = inputs.normalise(batch.previous[order].to(device))
            previous = Previous(before, batch.paired[order].to(device), batch.previous_position[order].to(device))
        self._plain = View(x, position, position, previous, context)
        self._seed, self._step = seed, step
        self._made: dict[tuple[str, bool, ExpectationPolicy | None], View] = {}

    def of(self, arm: ArmConfig, dictionary: Dictionary) -> View:
        """What `arm` sees; dictionaries that are centred alike, by position and by what tokens say, share it."""
        kind = (arm.centre, arm.permuted, arm.expectation)
        if kind not in self._made:
            view = _permuted(self._plain, self._seed, self._step) if arm.permuted else self._plain
            self._made[kind] = _centred(view, dictionary)
        return self._made[kind]


def _permuted(view: View, seed: int, step: int) -> View:
    rows = np.random.default_rng((PERMUTING, seed, step)).permutation(len(view.x))
    chosen = torch.from_numpy(rows).to(view.x.device)
    previous = None if view.previous is None else Previous(*(column[chosen] for column in view.previous))
    context = None if view.context is None else view.context.reordered(chosen)
    return View(view.x[chosen], view.label, view.position[chosen], previous, context)


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
