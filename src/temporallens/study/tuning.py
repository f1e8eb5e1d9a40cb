"""Equal tuning: every arm that chooses its codes by number is trained at each learning rate of a grid, on data and seeds that the study's
own comparison does not have, and the study then trains it at its best one.

The grid is a study of its own in the run's folder `tuning/`, with the same training and the middle one of each arm's levels, where an
arm at a rate is an arm. Best is the highest FVE on the held-out documents there, in the mean over entries and seeds. Of other arms
(`standard`) L0 follows the rate, so that FVE at different rates compares nothing: they keep that of `training`.
"""

from pathlib import Path

from temporallens.dictionaries.kinds import Arm
from temporallens.evaluation.results import Results, Tuned, load_results
from temporallens.evaluation.statistics import mean_of
from temporallens.layout import RunFolder
from temporallens.study.config import Study, rate_name, tuned_families, tuning_of
from temporallens.study.stages import KINDS, Kind, Records, stages_of

LAST: Kind = "evaluate"
"""The last kind of stages that a grid needs."""
UP_TO_LAST = KINDS[: KINDS.index(LAST) + 1]


def tuned_before(study: Study, text: str, folder: Path) -> Study:
    """The study at the rates that a finished grid of it found, else the study as it is."""
    if study.tuning is None:
        return study
    paths = RunFolder(RunFolder(folder).tuning)
    stages = [stage for stage in stages_of(tuning_of(study), text) if stage.kind in UP_TO_LAST]
    if not all(map(Records(paths.root).finished, stages)):
        return study
    return at_best_rates(study, grid_of(study, load_results(paths.root)))


def grid_of(study: Study, results: Results) -> dict[str, Tuned]:
    """What the grid found of each arm that it tunes, from its results."""
    assert study.tuning
    found = {}
    for family in tuned_families(study):
        fve = {
            rate: mean_of([run.fve for run in results.runs if run.family == rate_name(family, rate)]).value
            for rate in study.tuning.learning_rates
        }
        found[family] = Tuned(fve={f"{rate:g}": value for rate, value in fve.items()}, learning_rate=max(fve, key=lambda rate: fve[rate]))
    return found


def at_best_rates(study: Study, grid: dict[str, Tuned]) -> Study:
    """The study with each tuned arm at its best rate."""
    arms: dict[str, Arm] = {
        family: arm.model_copy(update={"learning_rate": grid[family].learning_rate}) if family in grid else arm
        for family, arm in study.arms.items()
    }
    return study.model_copy(update={"arms": arms})
