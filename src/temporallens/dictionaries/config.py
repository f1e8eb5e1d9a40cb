"""What every arm's settings have: width, centring, weighing, what is known beforehand, and what the arm is for in a study.

`base.ArmConfig` adds that an arm builds its dictionary.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.errors import TemporalLensError
from temporallens.processes import count
from temporallens.settings import Settings, not_asked

Role = Literal["ordinary", "baseline", "fallback", "control", "positional", "temporal"]
"""What an arm is for in a study.

`ordinary`: knows nothing of position; what others gain on order and probing tasks is over the first of these in a study.
`baseline`: what every other arm is compared with at equal L0.
`fallback`: stands in where a study has no baseline.
`control`: under a mask that no training found: what a learned one must beat.
`positional`: learns at which positions each feature is open; the headline picture is of one.
`temporal`: knows of time or order in another way.
"""


class ArmSettings(Settings):
    """What every arm's configuration has; each arm adds its own fields, `kind` among them."""

    if TYPE_CHECKING:  # each arm has it after what it inherits, which is the order in which studies are written
        kind: str

    roles: ClassVar[tuple[Role, ...]] = ()
    """What the arm is for in a study; it may be of no such use."""

    trained: ClassVar[bool] = True
    """Whether a study trains it; one that is not comes from a file, and once for all seeds."""

    wants_weights: ClassVar[bool] = False
    """Whether the adaptive position weights are followed for its dictionary's `follow_weights`, even where no loss is weighed by them."""

    wants_sequences: ClassVar[bool] = False
    """Whether its dictionary reads whole rows of text: a training gives it such batches only under `batches: rows`."""

    open_loop: ClassVar[bool] = False
    """Whether reconstructions need more than codes, positions and tokens: its dictionary sees activations of the row while it decodes, and
    has no `decode`. Its numbers are marked wherever they stand."""

    version: ClassVar[int] = 1
    """Raised when training gives other weights for the same settings: dictionaries of a study are then trained again."""

    level: ClassVar[str | None] = None
    """Name of the field that sets how many codes are in use; a study's `levels` varies it."""

    features: int = Field(2304, ge=1, le=1 << 24)
    """Width of the dictionary; the lab notes use 2304."""

    centre: Literal["pooled", "position", "position_scaled"] = "pooled"
    """What inputs lose and get back afterwards: the mean of all positions, that of their own position, or its mean and scale."""

    position_weights: bool = False
    """Weigh each position's reconstruction by how hard it has been (lab notes, Run 5)."""

    learning_rate: float | None = Field(None, gt=0, exclude_if=not_asked)
    """Its own, in place of that of `training`; a study's `tuning` finds it."""

    expectation: ExpectationPolicy | None = Field(None, exclude_if=not_asked)
    """What inputs lose beforehand, and get back, because the tokens say it; written only where it is asked for."""

    permuted: bool = False
    """A control: in training, position labels are permuted over the tokens of a batch, so that they mean nothing."""

    @model_validator(mode="after")
    def _labels_and_scales_agree(self) -> "ArmSettings":
        if self.permuted and self.centre == "position_scaled":
            raise ValueError(
                "permuted and centre: position_scaled contradict each other: errors are scaled by true positions, "
                "which the arm is not told; give centre: position or pooled"
            )
        return self

    @property
    def looks_back(self) -> bool:
        """Whether its dictionary's codes of a row depend on those before it."""
        return self.wants_sequences or (self.expectation is not None and bool(self.expectation.past))

    def check(self, positions: int) -> None:
        """Raise TemporalLensError where this arm does not fit a clock of so many positions."""

    def check_training(self, batches: str) -> None:
        """Raise TemporalLensError where this arm cannot learn from such batches."""
        if self.wants_sequences and batches != "rows":
            raise TemporalLensError(
                f"arms of kind '{self.kind}' read whole rows of text: give training.batches: rows, for all arms, so that they see the same"
            )

    def check_sharing(self) -> None:
        """Raise TemporalLensError where there are processes that this arm's batches cannot be shared among."""
        if self.mixes_rows and count() > 1:
            raise TemporalLensError(
                f"arms of kind '{self.kind}' compare the rows of a batch with each other, so that {count()} processes cannot share it: "
                "train them with one process"
            )

    @property
    def mixes_rows(self) -> bool:
        """Whether a row's loss depends on what else is in its batch, beyond which codes are chosen: then no processes can share one."""
        return False

    @property
    def penalty(self) -> float:
        """Weight of the L1 penalty in the objective; 0 where the arm chooses its codes by number."""
        return 0.0
