"""The report's tables of what a study measured beyond reconstruction: each section of `evaluation:` makes its own.

A cell is an estimate with its 95 % interval in parentheses; how many things it rests on stands in the first columns. What an interval
does not tell from chance is called so, and what was not measured has no table.
"""

from collections.abc import Sequence

from temporallens.evaluation.results import Results, RunResult, marked
from temporallens.evaluation.sections import SECTIONS
from temporallens.report.tables import Arms
from temporallens.serial import from_json
from temporallens.wording import Table


def measured_sections(results: Results) -> list[Arms]:
    """The tables of every activations entry of which something was measured."""
    found = []
    for name in results.activations:
        tables = [*_tables([run for run in results.runs if run.activations == name]), *_gains_tables(name, results)]
        if tables:
            found.append(Arms(name, tables))
    return found


def _tables(runs: Sequence[RunResult]) -> list[Table]:
    made = []
    for name, section in SECTIONS.items():
        measured = {marked(f"{run.arm}, seed {run.seed}", run): section.read(run.measures[name]) for run in runs if name in run.measures}
        if measured and section.tables:
            made += section.tables(measured)
    return made


def _gains_tables(name: str, results: Results) -> list[Table]:
    """What each dictionary's probes have over those of an ordinary one that is pooled by position bins."""
    if name not in results.gains:
        return []
    content = results.gains[name]
    partners = sorted(set(content["against"].values()))
    against = partners[0] if len(partners) == 1 else "the ordinary dictionary of the same level and seed"
    made = []
    for gains, by_run in ((section.gains, content[name]) for name, section in SECTIONS.items() if name in content):
        if gains:
            made.append(gains.table(against, {run: [from_json(gains.kind, gain) for gain in found] for run, found in by_run.items()}))
    return [table._replace(title=f"{name}: {table.title}") for table in made if table.rows]
