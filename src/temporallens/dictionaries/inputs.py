"""What users give a dictionary, as it is read: positions and tokens in their many forms, and rows that have to fit.

Everything here either gives the checked form or raises in one sentence.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.context import Context
from temporallens.activations.importing import is_dense
from temporallens.errors import TemporalLensError, WorthlessError

Positions = Tensor | np.ndarray | np.number | Sequence[Any] | int | float
"""What stands for positions where users give them: anything that holds whole numbers."""

Tokens = Context | Tensor | np.ndarray | Sequence[Any]
"""What stands for tokens: whole numbers in the shape of the activations without their width, or what is known of rows already."""


def whole_positions(given: Positions) -> Int[Tensor, "*batch"]:
    """Positions as int64. Raises TemporalLensError for what is no whole number, and below 0."""
    numbers = given.detach() if isinstance(given, Tensor) else _tensor_of(given)
    if numbers is None or numbers.dtype == torch.bool or numbers.is_complex():
        raise TemporalLensError(f"positions should be whole numbers; these are {_described(given)}")
    found = numbers.long()
    if numbers.is_floating_point() and not bool((found == numbers).all()):
        raise TemporalLensError(f"positions should be whole numbers; one of these is {float(numbers[found != numbers][0]):g}")
    if bool((found < 0).any()):
        raise TemporalLensError(f"positions start at 0; the smallest of these is {int(found.min())}")
    return found


def _tensor_of(given: Any) -> Tensor | None:
    """The numbers of an array or list, whatever their type; None where they are none, or beyond int64."""
    try:
        array = np.asanyarray(given)
    except ValueError as error:
        raise TemporalLensError("positions should be whole numbers; these are lists of different lengths") from error
    if np.ma.is_masked(array):
        raise TemporalLensError("some of the positions are masked: give the position of every row")
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "u" and array.size and array.max() >= 1 << 63):
        return None
    return torch.from_numpy(np.array(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64))


def known_policy(given: Any) -> int | Literal["mean"] | None:
    """A `position_policy`. Raises TemporalLensError for what is neither a position nor 'mean' nor None."""
    if given is None:
        return None
    if isinstance(given, str) and given == "mean":
        return "mean"
    try:
        return int(whole_positions(given).reshape(()))
    except (TemporalLensError, RuntimeError) as error:
        raise TemporalLensError(f"the position_policy is {given!r}: it should be a position (a whole number from 0) or 'mean'") from error


def refuse_unfit(rows: Any, width: int, what: str, wanted: str) -> None:
    """Raise TemporalLensError unless `rows` is a tensor of numbers of this width."""
    if not isinstance(rows, Tensor) or rows.is_complex():
        raise TemporalLensError(f"{what} should be a tensor of real numbers; these are {_described(rows)}")
    if not is_dense(rows):
        raise TemporalLensError(f"{what} should be an ordinary dense tensor; this one has no values, or is sparse, nested or quantised")
    if rows.ndim == 0 or rows.shape[-1] != width:
        found = f"of width {rows.shape[-1]}" if rows.ndim else "without a width"
        raise TemporalLensError(f"{what} {found} do not fit this dictionary of {wanted}")


@torch.no_grad()
def refuse_non_finite(x: Float[Tensor, "N D"], shape: Sequence[int], what: str) -> None:
    """Raise TemporalLensError where a row of `x`, whose rows have this shape, holds NaN, infinity, or numbers whose squares float32
    has none for: an encoder's product with them would be nothing. One sum where all is well."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if bool(torch.isfinite(torch.linalg.vector_norm(x, dtype=wide))):
        return
    wrong = (~torch.isfinite(torch.linalg.vector_norm(x, dim=1, dtype=wide))).nonzero()[:, 0].tolist()
    if wrong:
        index = ", ".join(str(int(number)) for number in np.unravel_index(wrong[0], tuple(shape)))
        raise TemporalLensError(f"{what} NaN or infinity, or numbers too large to be squared in float32, in row {index}")


def refuse_worthless(found: Float[Tensor, "N D"], shape: Sequence[int], what: str) -> None:
    """The same of what a dictionary gives back: it is the dictionary that is wrong then, and no input."""
    try:
        refuse_non_finite(found, shape, what)
    except TemporalLensError as error:
        raise WorthlessError(str(error)) from error


def _described(value: Any) -> str:
    """The type of what was given, in a word or two."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} in {'a tensor' if isinstance(value, Tensor) else 'an array'}"
    return f"a {type(value).__name__}" if not isinstance(value, list | tuple) else f"a list that holds {np.asarray(value).dtype}"
