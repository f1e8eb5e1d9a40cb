"""One page for several runs (`temporallens report RUN RUN ...`): their answers, what differs in their settings, their arms side by side.

Numbers of different runs are paired nowhere: their seeds may have seen other tokens. So the page puts them beside each other with
their intervals and claims no difference between runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from temporallens.evaluation.results import TimedResults, by_family
from temporallens.files import write_text
from temporallens.report.answers import Answer, answers
from temporallens.report.page import environment, read_picture, script
from temporallens.report.tables import fixed_l0, mean_cell, seeds_of
from temporallens.wording import UNKNOWN, Row, Table, average, ends, fixed, setting

WITHOUT = ("notes", "name")
"""Parts of a study that change no number."""


class Compared(NamedTuple):
    """One finished run."""

    title: str
    results: TimedResults
    figures: Mapping[str, Path]  # those of the run that the page shows, by caption


class RunAnswers(NamedTuple):
    """What one run found."""

    title: str
    answers: list[Answer]


def write_side_by_side(runs: Sequence[Compared], out: Path) -> None:
    """Write the page to `out`. Raises TemporalLensError when a figure cannot be read."""
    code, code_hash = script()
    pictures = [read_picture(f"{run.title}: {caption}", path) for run in runs for caption, path in run.figures.items()]
    page = environment().get_template("side_by_side.html.j2")
    write_text(
        out,
        page.render(
            name=" · ".join(run.title for run in runs),
            runs=[RunAnswers(run.title, answers(run.results)) for run in runs],
            arms=arms_table(runs),
            settings=settings_table(runs),
            pictures=pictures,
            script=code,
            script_hash=code_hash,
        ),
    )


def arms_table(runs: Sequence[Compared]) -> Table:
    """One row for each arm of each activations entry of each run: its own L0 and FVE, and its FVE at the L0 values that several runs
    reach."""
    levels = _shared_levels(runs)
    rows = []
    for run in runs:
        for name, comparison in run.results.comparison.items():
            reached = {(row.family, row.l0): row.fve for row in comparison.reached}
            for family, alike in by_family(run.results.runs_of(name)).items():
                cells = [
                    seeds_of(alike),
                    ends([result.l0 for result in alike], 1),
                    ends([result.fve for result in alike], 4),
                    *(mean_cell(reached.get((family, l0))) for l0 in levels),
                    fixed(average(result.openness for result in alike), 3),
                    fixed(average(result.features for result in alike), 0),
                    fixed(average(result.training_steps for result in alike), 0),
                ]
                rows.append(Row(f"{run.title}, {name}: {family}", cells))
    columns = [
        "run, activations: arm",
        "seeds",
        "L0",
        "FVE",
        *(f"FVE at L0 {fixed_l0(l0)}" for l0 in levels),
        "openness",
        "features",
        "steps",
    ]
    return Table("Arms of all runs", columns, rows)


def _shared_levels(runs: Sequence[Compared]) -> list[float]:
    """L0 values at which arms of two runs, at least, are compared."""
    reached = [{row.l0 for comparison in run.results.comparison.values() for row in comparison.reached} for run in runs]
    return sorted(l0 for l0 in set().union(*reached) if sum(l0 in own for own in reached) > 1)


def settings_table(runs: Sequence[Compared]) -> Table:
    """The settings in which the runs differ; no row where they do not."""
    flat = [_flat({key: value for key, value in run.results.study.whole.items() if key not in WITHOUT}) for run in runs]
    rows = []
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = [setting(settings[key]) if key in settings else UNKNOWN for settings in flat]
        if len(set(values)) > 1:
            rows.append(Row(key, values))
    return Table("", ["setting", *(run.title for run in runs)], rows)


def _flat(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found
