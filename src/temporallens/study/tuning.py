"""Equal tuning: every arm that chooses its codes by number is trained at each learning rate of a grid, on data and seeds that the study's
own comparison does not have, and the study then trains it at its best one.

The grid is a study of its own in the run's folder `tuning/`, with the same training and the middle one of each arm's levels, where an
arm at a rate is an arm. Best is the highest FVE on the held-out documents there, in the mean over entries and seeds; a rate at which a
training diverges, or leaves nothing that can be measured, is worse than all others, and the grid goes on without it. Of other arms
(`standard`) L0 follows the rate, so that FVE at different rates compares nothing: they keep that of `training`.
"""

from pathlib import Path

from temporallens.dictionaries.kinds import Arm
from temporallens.errors import DivergedError, TemporalLensError
from temporallens.evaluation.results import Results, Tuned, load_results
from temporallens.evaluation.statistics import mean_of
from temporallens.layout import RunFolder
from temporallens.study.config import Study, rate_name, tuned_families, tuning_of
from temporallens.study.pins import pinned_study, read_pins
from temporallens.study.stages import KINDS, Kind, Records, stages_of

GRID = "tuning/"
"""What the stages of a grid are called by, before their own names."""
LAST: Kind = "evaluate"
"""The last kind of stages that a grid needs."""
UP_TO_LAST = KINDS[: KINDS.index(LAST) + 1]


def studies_in(study: Study) -> tuple[Study, ...]:
    """The study, and its grid where it has one: what is to be checked before anything is done."""
    return (study,) if study.tuning is None else (study, tuning_of(study))


def grid_in(study: Study, text: str, folder: Path) -> tuple[Study, Path]:
    """The grid of a study that has one, as the run in `folder` reads its texts, without what is known to diverge; and its own folder.
    Raises TemporalLensError where no rate is left of an arm."""
    assert study.tuning
    own = RunFolder(folder).tuning
    grid, records = pinned_study(tuning_of(study), read_pins(own)), Records(own)
    diverged = {stage.run.arm for stage in stages_of(grid, text) if stage.run and records.diverged(stage)}
    for family in tuned_families(study):
        if diverged.issuperset(rate_name(family, rate) for rate in study.tuning.learning_rates):
            raise TemporalLensError(f"'{family}' diverges at every one of tuning.learning_rates: add lower ones")
    return grid.model_copy(update={"arms": {name: arm for name, arm in grid.arms.items() if name not in diverged}}), own


def give_up(study: Study, text: str, folder: Path, error: DivergedError) -> None:
    """Remember the training of a grid that diverged."""
    grid, own = grid_in(study, text, folder)
    for stage in stages_of(grid, text):
        if stage.kind == "train" and stage.run and stage.run.name == error.run:
            Records(own).give_up(stage, str(error))


def tuned_before(study: Study, text: str, folder: Path) -> Study:
    """The study at the rates that a finished grid of it found, else the study as it is."""
    if study.tuning is None:
        return study
    grid, own = grid_in(study, text, folder)
    stages = [stage for stage in stages_of(grid, text) if stage.kind in UP_TO_LAST]
    if not all(map(Records(own).finished, stages)):
        return study
    return at_best_rates(study, grid_of(study, load_results(own)))


def grid_of(study: Study, results: Results) -> dict[str, Tuned]:
    """What the grid found of each arm that it tunes, from its results."""
    assert study.tuning
    found = {}
    for family in tuned_families(study):
        fve: dict[float, float] = {}
        for rate in study.tuning.learning_rates:
            if explained := [run.fve for run in results.runs if run.family == rate_name(family, rate)]:
                fve[rate] = mean_of(explained).value
        by_rate = {f"{rate:g}": fve.get(rate) for rate in study.tuning.learning_rates}
        found[family] = Tuned(fve=by_rate, learning_rate=max(fve, key=lambda rate: fve[rate]))
    return found


def at_best_rates(study: Study, grid: dict[str, Tuned]) -> Study:
    """The study with each tuned arm at its best rate."""
    arms: dict[str, Arm] = {
        family: arm.model_copy(update={"learning_rate": grid[family].learning_rate}) if family in grid else arm
        for family, arm in study.arms.items()
    }
    return study.model_copy(update={"arms": arms})
