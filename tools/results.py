"""The documented results of finished studies.

    python -m tools.results RUN [RUN ...]

For each run's folder, writes `docs/results/<study>.json` (the comparison and every dictionary's numbers, without the lists by
position) and `docs/results/<study>.md`: what the study asks, by the comment at the head of its file, and its tables, those of its
sections among them. `docs/results.md`, which says what was found, is written by hand.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import RunResult, TimedResults, TimedRun, by_arm, load_results
from temporallens.evaluation.statistics import mean_of
from temporallens.files import write_text
from temporallens.report.measured import measured_sections
from temporallens.report.tables import (
    FIELDS,
    WORLD,
    comparison_tables,
    dictionaries_table,
    openness_table,
    paired_tables,
    score_at,
    score_tables,
    tuning_table,
)
from temporallens.wording import Table

ROOT = Path(__file__).parents[1]
DIGITS = 6
"""Significant digits of what is kept: far below what seeds differ by."""
BY_FIELD = ("precision", "recall", "f1", "null_f1", "f1_p_value")
LISTS = {"openness_by_position", "position_loss", "position_fve", "position_l0", "position_count"}
BACK = "What was found: [Results](../results.md)."


def short(value: Any) -> Any:
    """The same value with its numbers rounded."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: short(entry) for key, entry in value.items()}
    return [short(entry) for entry in value] if isinstance(value, list) else value


# The numbers


def scalars_of(run: TimedRun) -> dict[str, Any]:
    """One dictionary without its lists by position; of what is known by construction, what the tables show."""
    shown = run.model_dump(mode="json", exclude=LISTS)
    if run.world is not None:
        paths = [path for _, path in WORLD] + [f"mcc_by_class.{name}" for name in score_at(run.world, "mcc_by_class") or {}]
        shown["world"] = {path: score_at(run.world, path) for path in paths}
    if run.fields is not None:
        shown["fields"] = {key: run.fields.get(key) for key in (*(path for _, path in FIELDS), *BY_FIELD)}
    return {key: value for key, value in shown.items() if value is not None}


def openness_of(runs: Sequence[RunResult]) -> dict[str, dict[str, list[float | None]]]:
    """Of each masked arm, openness by position: mean over seeds, and the ends of its interval where there are several."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for arm, seeds in by_arm(run for run in runs if run.openness_by_position is not None).items():
        means = [mean_of(column) for column in zip(*(run.openness_by_position or [] for run in seeds), strict=True)]
        found[arm] = {end: [getattr(mean, end) for mean in means] for end in ("value", "low", "high")}
    return found


def compact(results: TimedResults) -> dict[str, Any]:
    """What is kept of a study's results."""
    content = results.model_dump(mode="json", include={"study_fingerprint", "environment", "comparison", "tuning"})
    return short(
        {
            "study": results.name,
            **content,
            "openness_by_position": {entry: openness_of(results.runs_of(entry)) for entry in results.activations},
            "runs": [scalars_of(run) for run in results.runs],
        }
    )


def as_lines(content: Mapping[str, Any]) -> str:
    """JSON with one line for each part of a part, so that a change shows where it is."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            inner = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            parts.append(f"{json.dumps(key)}: [\n{inner}\n ]")
        elif isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{inner}\n }}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


# The tables


def tables_of(results: TimedResults, entry: str) -> list[Table]:
    """The tables of one activations entry; every dictionary on its own only where there is one of each arm."""
    runs = results.runs_of(entry)
    comparison, described = results.comparison[entry], results.activations[entry]
    paired = paired_tables(entry, runs, comparison, results.paired.get(entry, ()), described.position_names)
    tables = [*comparison_tables(entry, runs, comparison), *paired, openness_table(entry, runs, described), *score_tables(entry, runs)]
    if len({run.family for run in runs}) == len(runs):
        tables.append(dictionaries_table(entry, runs, results.study.notes))
    return [table for table in tables if table.rows]


def markdown(table: Table) -> str:
    """A table as GitHub shows it, under its title."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    rows = [line([row.head, *row.cells]) for row in table.rows]
    return "\n".join([f"**{table.title}**", "", line(table.columns), "|" + "---|" * len(table.columns), *rows])


def study_file(name: str) -> Path:
    """Where the study of that name stands."""
    return next(ROOT.glob(f"*/{name}.yaml"), ROOT / "studies" / f"{name}.yaml")


def purpose(study: Path) -> str:
    """What a study says of itself: the comment at the head of its file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), study.read_text("utf-8").splitlines() if study.exists() else ())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def page(results: TimedResults) -> str:
    """All tables of a study, under what it asks and the command that they come from."""
    name, where, study = results.name, results.environment, study_file(results.name)
    command = f"`temporallens run {study.relative_to(ROOT).as_posix()} --out runs/{name} && python -m tools.results runs/{name}`"
    machine = f"Python {where['python']}, PyTorch {where['torch']}, {where['cores']} cores, {where['threads']} threads, {where['device']}"
    origin = f"{command} ({machine}; study `{results.study_fingerprint[:12]}`, [numbers]({name}.json))"
    parts = [f"# {name}", *filter(None, [purpose(study)]), BACK, origin]
    if results.tuning:
        parts.append(markdown(tuning_table(results.tuning)))
    measured = {arms.title: arms.tables for arms in measured_sections(results)}
    for entry in results.activations:
        parts.append(f"## {entry}")
        tables = [*tables_of(results, entry), *(table for table in measured.get(entry, ()) if table.rows)]
        parts += [markdown(table._replace(title=table.title.removeprefix(f"{entry}: "))) for table in tables]
    return "\n\n".join(parts) + "\n"


def write_docs(folder: Path, docs: Path) -> list[Path]:
    """Write what is documented of the finished study in `folder`; returns the files."""
    results = load_results(folder)
    numbers, tables = (docs / "results" / f"{results.name}.{kind}" for kind in ("json", "md"))
    write_text(numbers, as_lines(compact(results)))
    write_text(tables, page(results))
    return [numbers, tables]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished study")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    for folder in chosen.runs:
        try:
            print(*write_docs(folder, chosen.docs), sep="\n")
        except TemporalLensError as error:
            parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
