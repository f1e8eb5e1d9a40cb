"""What to do after reading a report: three commands that go on from this very run, each with the question that it answers."""

import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from temporallens.dictionaries.kinds import ARMS
from temporallens.evaluation.features import SECTION as FEATURES
from temporallens.evaluation.interventions.section import SECTION as INTERVENTIONS
from temporallens.evaluation.positions.section import SECTION as POSITIONS
from temporallens.evaluation.results import TimedResults
from temporallens.evaluation.section import Section
from temporallens.report.verdict import worse_than_the_mean

STEPS = 3
LEVELS = (0.75, 1.25)
"""Times the k of arms of one level, of two that make curves of them."""
LONGER = 4
"""Times the steps of a training that is asked whether more of them change the answer."""


class Step(NamedTuple):
    """A question that the run leaves open, and the command that answers it."""

    question: str
    command: str


def next_steps(results: TimedResults, folder: Path) -> list[Step]:
    """The first few that suit the run in `folder`, as its user calls that folder."""
    return list(islice(_steps(results, shlex.quote(str(folder))), STEPS))


def _steps(results: TimedResults, run: str) -> Iterator[Step]:
    study, trained = results.study, any(result.training_steps for result in results.runs)
    longer = _longer(study.training.steps, run)
    if trained and worse_than_the_mean(results.runs):
        yield longer._replace(question="What are these dictionaries worth when they are trained? " + longer.question)
    if levels := _levels(results):
        yield Step(
            "Which arm is better at equal L0? These are not at one; at two levels of k each is a curve, and curves are read at one L0.",
            f"temporallens run {run} --set 'levels={{k: [{', '.join(map(str, levels))}]}}'",
        )
    if trained and len(study.seeds) == 1:
        seeds = ",".join(str(study.seeds[0] + more) for more in range(3))
        yield Step(
            "Is a difference between arms more than luck? Two more seeds give it an interval; what is trained is not trained again.",
            f"temporallens run {run} --set 'seeds=[{seeds}]'",
        )
    for section, question in (
        (POSITIONS, "Which features depend on position?"),
        (FEATURES, "What does each feature fire on? The feature browser of this page shows it."),
    ):
        if not _asked(section, results):
            yield Step(question, f"temporallens run {run} --set 'evaluation.{section.name}={{}}'")
    if _has_blocks_above(results) and not _asked(INTERVENTIONS, results):
        yield Step(
            "Does the model use what it knows of position? Its stream is changed, and what that does to its predictions is measured.",
            f"temporallens run {run} --set 'evaluation.{INTERVENTIONS.name}={{}}'",
        )
    if trained:
        yield longer
    yield Step("The pictures as vectors, for a paper.", f"temporallens figures {run} --format pdf")
    yield Step("The tables and sentences of this page in the terminal, or with --json for a program.", f"temporallens show {run}")


def _longer(steps: int, run: str) -> Step:
    return Step(
        f"Do the answers stay when training is {LONGER} times as long? It goes into a folder of its own.",
        f"temporallens run {run} --set training.steps={LONGER * steps} --out {run}-longer",
    )


def _levels(results: TimedResults) -> list[int]:
    """Levels of k that would make curves of arms which are not compared, as their single L0 are not equal; none where they are, or where
    levels do not go by k."""
    ks = {arm.k for arm in results.study.arms.values() if arm.k is not None}
    if len(ks) != 1 or results.study.levels or all(_all_compared(name, results) for name in results.comparison):
        return []
    levels = [round(share * k) for share in LEVELS for k in ks]
    return levels if 0 < levels[0] < levels[1] else []


def _all_compared(name: str, results: TimedResults) -> bool:
    """Whether every family of an activations entry that has a k is compared with its first baseline, or is it."""
    first = results.comparison[name].baselines[:1]
    compared = {row.family for row in results.comparison[name].against if [row.baseline] == first}
    with_k = {family for family, arm in results.study.arms.items() if arm.k is not None}
    return {run.family for run in results.runs_of(name)} & with_k <= compared | set(first)


def _has_blocks_above(results: TimedResults) -> bool:
    """Whether every entry is the stream after a block of a model, and every dictionary decodes from codes: what interventions need."""
    streams = all(entry.model and isinstance(entry.layer, int) for entry in results.activations.values())
    return streams and not any(result.kind in ARMS and ARMS[result.kind].open_loop for result in results.runs)


def _asked(section: Section, results: TimedResults) -> bool:
    """Whether the study asked for a section; of some there is nothing in `results.json`."""
    evaluation = results.study.whole.get("evaluation")
    return isinstance(evaluation, dict) and evaluation.get(section.name) is not None
