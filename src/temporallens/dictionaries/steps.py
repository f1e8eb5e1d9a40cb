"""What a dictionary is given for one training step, and what it hands back."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.dictionaries.sparse import Codes


class Forward(NamedTuple):
    """What a dictionary hands to the objective for one batch."""

    reconstruction: Float[Tensor, "N D"]
    magnitude: Float[Tensor, " N"]  # sum of |code| over features: what L1 penalises
    active: Float[Tensor, " N"]  # codes in use
    fired: Float[Tensor, " F"]  # rows in which each feature is in use
    extra: Float[Tensor, " N"] | None = None  # further loss of the arm, by row
    codes: Codes | None = None  # of the arms that keep few per row


class Previous(NamedTuple):
    """The activation of the token before each row, in its sequence."""

    x: Float[Tensor, "N D"]
    paired: Bool[Tensor, " N"]  # whether there is one
    position: Int[Tensor, " N"]  # its own; the row's where there is none


class Dead(NamedTuple):
    """Features to revive."""

    features: Int[Tensor, " A"]
    certain: Float[Tensor, " A"]  # 1, or 0 for one that fired after the list was drawn up


class Progress(NamedTuple):
    """Where training is, for whatever follows a schedule."""

    step: int
    steps: int

    @property
    def share(self) -> float:
        return self.step / self.steps
