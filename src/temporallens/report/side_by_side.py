"""One page for several runs (`temporallens report RUN RUN ...`): their answers, what differs in their settings, their arms side by side.

Numbers of different runs are paired nowhere: their seeds may have seen other tokens. So the page puts them beside each other with
their intervals and claims no difference between runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from temporallens.files import write_text
from temporallens.report.answers import UNKNOWN, Answer, answer, average, fixed, text
from temporallens.report.page import Picture, comparison_of, environment, own_runs, read_picture, script
from temporallens.report.tables import Row, Table, fixed_l0, mean_cell, seeds_of

WITHOUT = ("notes", "name")
"""Parts of a study that change no number."""


class Compared(NamedTuple):
    """One finished run."""

    title: str
    results: Mapping[str, Any]
    figures: Mapping[str, Path]  # those of the run that the page shows, by caption


class RunAnswers(NamedTuple):
    """What one run found."""

    title: str
    answers: list[Answer]


def write_side_by_side(runs: Sequence[Compared], out: Path) -> None:
    """Write the page to `out`. Raises TemporalLensError when a figure cannot be read."""
    code, code_hash = script()
    answers = [
        RunAnswers(
            run.title,
            [
                answer(name, entry, own_runs(run.results, name), comparison_of(run.results, name))
                for name, entry in run.results["activations"].items()
            ],
        )
        for run in runs
    ]
    pictures: list[Picture] = [read_picture(f"{run.title}: {caption}", path) for run in runs for caption, path in run.figures.items()]
    page = environment().get_template("side_by_side.html.j2")
    write_text(
        out,
        page.render(
            name=" · ".join(run.title for run in runs),
            runs=answers,
            arms=arms_table(runs),
            settings=settings_table(runs),
            pictures=pictures,
            script=code,
            script_hash=code_hash,
        ),
    )


def arms_table(runs: Sequence[Compared]) -> Table:
    """One row for each arm of each activations entry of each run: FVE at the L0 values that any run compares at."""
    levels = sorted({l0 for run in runs for comparison in run.results["comparison"].values() for l0 in comparison.get("l0") or []})
    rows = []
    for run in runs:
        for name in run.results["activations"]:
            own, comparison = own_runs(run.results, name), comparison_of(run.results, name)
            reached = {(row["family"], row["l0"]): row["fve"] for row in comparison.get("reached") or []}
            for family in dict.fromkeys(str(result["family"]) for result in own):
                alike = [result for result in own if result["family"] == family]
                cells = [mean_cell(reached.get((family, l0)), 4) for l0 in levels]
                shown = [fixed(average(alike, key), digits) for key, digits in (("openness", 3), ("features", 0), ("training_steps", 0))]
                rows.append(Row(f"{run.title}, {name}: {family}", [seeds_of(alike), *cells, *shown]))
    columns = ["run, activations: arm", "seeds", *(f"FVE at L0 {fixed_l0(l0)}" for l0 in levels), "openness", "features", "steps"]
    return Table("Arms of all runs", columns, rows)


def settings_table(runs: Sequence[Compared]) -> Table:
    """The settings in which the runs differ; no row where they do not."""
    flat = [_flat({key: value for key, value in run.results["study"].items() if key not in WITHOUT}) for run in runs]
    rows = []
    for key in dict.fromkeys(key for own in flat for key in own):
        values = [text(own[key]) if key in own else UNKNOWN for own in flat]
        if len(set(values)) > 1:
            rows.append(Row(key, values))
    return Table("", ["setting", *(run.title for run in runs)], rows)


def _flat(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found
