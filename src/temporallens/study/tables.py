"""What the command line prints at the end of its work, for a terminal: tables of results and of a scan, and what results say; and
the same numbers as JSON values. Those of a plan are in `plan_tables`, which has more to import."""

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as Printed

from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.evaluation.beforehand import INDEX, LADDER, PAST, TOKEN, Beforehand
from temporallens.evaluation.results import TimedResults, TimedRun, by_family, marked
from temporallens.evaluation.scan import Scan, structure_of
from temporallens.report.answers import answers
from temporallens.report.tables import MEASURES, NOTE, measure_cell, measures_of, seeds_of
from temporallens.serial import as_json
from temporallens.wording import ONE_SEED, UNKNOWN, Row, Table, fixed, number, plus, plus_minus

VERDICTS = {
    "above": "above {baseline}",
    "below": "below {baseline}",
    "no difference": "not told apart from {baseline}",
    "one seed": "one seed, against {baseline}",
}


WIDE = ("fve_first", "tokens_seen")
"""Measures that a terminal has no room for."""


def printed(table: Table, words: Collection[str]) -> Printed:
    """For a terminal; columns of `words` may be folded, the others hold numbers."""
    shown = Printed(title=table.title, title_justify="left", box=SIMPLE_HEAD)
    for name in table.columns:
        if name in words:
            shown.add_column(name, overflow="fold")
        else:
            shown.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(row.head, *row.cells)
    return shown


def list_table(title: str, lines: Mapping[str, str]) -> Printed:
    """One row for each name that a study can use."""
    return printed(Table(title, ["name", ""], [Row(name, [line]) for name, line in lines.items()]), ["name", ""])


def results_table(results: TimedResults) -> Printed:
    """On held-out documents, positions 1 and later: one row per arm at equal L0 where the study has levels, else per dictionary."""
    matched = results.study.levels and any(comparison.l0 for comparison in results.comparison.values())
    return comparison_table(results) if matched else dictionaries_table(results)


def dictionaries_table(results: TimedResults) -> Printed:
    """One row per dictionary, with what earlier records said of its arm."""
    measures = [measure for measure in measures_of(results.runs) if measure[1] not in WIDE]
    notes = results.study.notes

    def cells(run: TimedRun) -> list[str]:
        shown = [measure_cell(getattr(run, field), digits) for _, field, digits in measures]
        return [marked(run.arm, run), str(run.seed), *shown, *([notes.get(run.family, "")] if notes else [])]

    names = ["activations", "arm", "seed"]
    headings = [*names, *("\n".join(textwrap.wrap(column, 10)) for column, _, _ in measures), *([NOTE] if notes else [])]
    rows = [Row(run.activations, cells(run)) for run in results.runs]
    return printed(Table(_title(results), headings, rows), [*names, NOTE])


def comparison_table(results: TimedResults) -> Printed:
    """One row per arm and store: FVE at the common L0 values, and the difference from the first baseline at the middle one."""
    levels = sorted({l0 for comparison in results.comparison.values() for l0 in comparison.l0})
    middle = levels[len(levels) // 2]
    names = ["activations", "arm", "seeds"]
    headings = [*names, *(f"FVE at\nL0 {l0:g}" for l0 in levels), f"against baseline\nat L0 {middle:g}", "verdict"]
    rows = []
    for name, comparison in results.comparison.items():
        for family, alike in by_family(results.runs_of(name)).items():
            reached = {row.l0: row.fve for row in comparison.reached if row.family == family}
            first = next((row for row in comparison.against if (row.family, row.l0) == (family, middle)), None)
            difference, verdict = UNKNOWN, UNKNOWN
            if first is not None:
                difference = plus(first.fve.value, plus_minus(first.fve, 4))
                verdict = VERDICTS[first.fve.verdict].format(baseline=first.baseline)
            cells = [seeds_of(alike), *(plus_minus(reached.get(l0), 4) for l0 in levels), difference, verdict]
            rows.append(Row(name, [marked(family, alike[0]), *cells]))
    return printed(Table(_title(results), headings, rows), names)


def results_data(results: TimedResults) -> dict[str, Any]:
    """What is measured of every dictionary, how they compare at equal L0, and what the report's first screen says of it."""
    runs = [{**run.id._asdict(), **{field: getattr(run, field) for _, field, _ in MEASURES}} for run in results.runs]
    comparison = {name: one.model_dump(mode="json") for name, one in results.comparison.items()}
    return {"name": results.name, "runs": runs, "comparison": comparison, "answers": as_json(answers(results))}


def verdict(results: TimedResults) -> Iterator[str]:
    """The report's answers, line by line: on each activations entry what was found in words, then the numbers, and what they rest on."""
    for answer in answers(results):
        yield f"{answer.name}: {answer.source}"
        yield from answer.verdict
        yield answer.sentence
        yield from (f"- {finding}" for finding in answer.findings)
        yield from answer.remarks
        yield from (f"- {asked.question} {line}" for asked in answer.asked for line in asked.answers)


def _title(results: TimedResults) -> str:
    one_seed = len({run.seed for run in results.runs}) == 1 and any(run.kind not in UNTRAINED for run in results.runs)
    apart = any(entry.first_position or entry.excluded.get("first", 0) for entry in results.activations.values())
    return f"{results.name}: held-out documents{', position 0 apart' if apart else ''}{f', {ONE_SEED}' if one_seed else ''}"


def scan_table(scan: Scan) -> Printed:
    """One row per layer: eta^2 of each clock above its noise floor, its share of the structure where that is known, and the mean norm at
    position 0 and beyond."""
    rows = []
    for depth, layer in enumerate(scan.layers):
        first, *norms = (value for value in scan.norm[depth] if value is not None)
        beyond = sum(norms) / max(1, len(norms))
        shares = [fixed(_excess(clock.eta2[depth], clock.floor[depth]), 3) for clock in scan.clocks.values()]
        structure = [fixed(_excess(*both), 3) for clock in scan.clocks.values() if (both := structure_of(clock, depth)) is not None]
        rows.append(Row(layer, [*shares, *structure, number(first), number(beyond)]))
    title = f"{scan.model}: eta² of position above its noise floor, and the share of what that leaves whose structure depends on position"
    names = [f"structure:\n{name}" for name, clock in scan.clocks.items() if clock.structure]
    return printed(Table(title, ["layer", *scan.clocks, *names, "norm at 0", "norm beyond"], rows), ["layer"])


def scan_words(scan: Scan) -> str:
    """What was read, and what the columns mean."""
    return (
        f"{scan.sequences:,} rows of up to {scan.context_length} tokens of {scan.text}. index: place in the row; document, sentence, "
        "newline: tokens since one began. structure: what masks could use once the mean of each position is taken off. norm: mean length "
        "of the vectors. docs/glossary.md has all words."
    )


def beforehand_table(model: str, layers: Sequence[str], found: Beforehand) -> Printed:
    """One row per layer: what is explained alone, what each adds to what is told before it, and all together."""
    own = {f"+ {name}": found.added[name] for name in LADDER[1:]}
    columns = {TOKEN: found.alone[TOKEN], INDEX: found.alone[INDEX], "sentence": found.alone["sentence"], PAST: found.alone[PAST]}
    columns |= {**own, "together": found.together[PAST]}
    rows = [Row(layer, [fixed(one.share[depth], 3) for one in columns.values()]) for depth, layer in enumerate(layers)]
    return printed(Table(f"{model}: variance of held-out documents that is known beforehand", ["layer", *columns], rows), ["layer"])


def probing_table(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Printed:
    """Of each dictionary, by its name, what `METRICS` of SAEBench's JSON holds: test accuracies of probes on a few features, and on all,
    and the same of the model's own dimensions."""
    metrics = next(iter(found.values()))["llm"]
    probes = {name: _probe(name) for name, value in metrics.items() if value is not None}
    rows = []
    for dictionary, both in found.items():
        for what, title in (("sae", f"features of {dictionary}"), ("llm", "dimensions of the model, beside them")):
            values = {name.removeprefix(f"{what}_"): value for name, value in both[what].items()}
            rows.append(Row(title, [fixed(values[name.removeprefix("llm_")], 3) for name in probes]))
    title = "Test accuracy of probes on the best k, mean over sets and classes (chance .5)"
    return printed(Table(title, ["", *probes.values()], rows), [""])


def _probe(metric: str) -> str:
    """`k = 5` of `llm_top_5_test_accuracy`, and `all` of `llm_test_accuracy`."""
    parts = metric.split("_")
    return f"k = {parts[2]}" if parts[1] == "top" else "all"


def _excess(share: float | None, floor: float | None) -> float | None:
    """A share above its noise floor, not below zero; None where the layer has no variance to explain."""
    return None if share is None or floor is None else max(0.0, share - floor)
