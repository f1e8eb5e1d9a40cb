"""What a study file may say: frozen models, one per section, that refuse what they do not know.

The sections that belong to lower floors are those floors' own models (`HarvestPolicy`, the arms, `TrainingPolicy`), so a
study, the command line and the Python functions cannot drift apart. `reading.py` turns a YAML file into a `Study`.
"""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from temporallens.activations.clocks import CLOCKS
from temporallens.activations.harvest import HarvestPolicy
from temporallens.dictionaries.arms import Arm, Positional
from temporallens.dictionaries.masks import group_starts
from temporallens.errors import TemporalLensError
from temporallens.evaluation.scan import ScanPolicy
from temporallens.training.policy import TrainingPolicy

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""Names become folder names, so they hold nothing that a path could misread."""


def as_file_name(text: str) -> str:
    """`text` with everything that a file name should not hold replaced by a dash: `google/gemma-2-2b` -> `google-gemma-2-2b`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Study(Section):
    """A whole study. Every arm is trained on every entry of `activations`, once for each seed."""

    name: Name
    """An output folder belongs to one study; this name says to which."""
    scans: tuple[ScanPolicy, ...] = ()
    """Models whose every layer is scanned for position before any training."""
    activations: dict[Name, HarvestPolicy] = Field(min_length=1)
    """What to harvest. Entries that differ in nothing but the layer are harvested in one pass."""
    arms: dict[Name, Arm] = Field(min_length=1)
    """The dictionaries to compare."""
    training: TrainingPolicy
    """How every arm is trained."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """One training run per seed and arm; one seed supports no comparison."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of every stage; fixed threads give the same bits every time, null leaves the number to PyTorch."""

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands here twice, which would train the same dictionary twice")
        return seeds

    @model_validator(mode="after")
    def _distinct_scans(self) -> "Study":
        names = [as_file_name(scan.model) for scan in self.scans]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the model '{twice[0]}' is scanned twice; one scan per model")
        return self

    @model_validator(mode="after")
    def _groups_fit_positions(self) -> "Study":
        """A mask of more groups than there are positions is found here, and not after the harvest."""
        for entry, policy in self.activations.items():
            positions = CLOCKS[policy.clock].size(policy.context_length)
            for name, arm in self.arms.items():
                if isinstance(arm, Positional):
                    try:
                        group_starts(positions, arm.groups)
                    except TemporalLensError as error:
                        raise ValueError(f"arms.{name} does not fit activations.{entry}: {error}") from error
        return self

    def with_model(self, model: str) -> "Study":
        """The same study of another model: `model` in every activations entry, and in one scan where there was any."""
        return self.model_copy(
            update={
                "scans": tuple(scan.model_copy(update={"model": model}) for scan in self.scans[:1]),
                "activations": {
                    name: policy.model_copy(update={"model": model, "revision": None}) for name, policy in self.activations.items()
                },
            }
        )
