"""The report's tables of arms, one group per activations entry: the matched comparison, what is known by construction, every run.

A cell that rests on one seed says so; a mean of several carries its 95 % interval as `±`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from temporallens.evaluation.statistics import mean_of
from temporallens.figures.style import number
from temporallens.report.answers import UNKNOWN, average, fixed, known, whence

ONE_SEED = "one seed"
NOTE = "earlier records"
"""Heading of the column of a study's notes."""
Columns = tuple[tuple[str, str], ...]
WORLD: Columns = (
    ("MCC", "mcc"),
    ("features matched", "matched"),
    ("mask F1", "mask.matched.f1"),
    ("of classes that end", "mask.limited.f1"),
    ("truly open, closed", "mask.matched.false_closed"),
    ("mask AUROC", "mask.matched.auroc"),
    ("calibration error", "mask.matched.calibration"),
    ("closed mass", "closed_mass"),
    ("window centre, octaves off", "mask.windows.centre_octaves"),
    ("window width, octaves off", "mask.windows.width_octaves"),
    ("F1 of a post-hoc mask, cut .05", "posthoc.positions.fixed.matched.f1"),
    ("the same, best cut", "posthoc.positions.best.matched.f1"),
    ("best cut in groups", "posthoc.groups.best.matched.f1"),
    ("truly open, closed post hoc", "posthoc.positions.best.matched.false_closed"),
    ("FVE of the truth", "truth_fve"),
)
"""Column and place of a score in a run's `world`."""
FIELDS: Columns = (
    ("features that fire", "live_features"),
    ("columns of a feature", "columns_per_feature"),
    ("precision", "mean_precision"),
    ("recall", "mean_recall"),
    ("F1", "mean_f1"),
    ("F1 of reordered layouts", "null_mean_f1"),
    ("p", "mean_f1_p_value"),
)
"""The same in its `fields`."""
SCORES: dict[str, tuple[str, Columns]] = {
    "world": ("against the known truth of this world", WORLD),
    "fields": ("against the known layout of the records", FIELDS),
}


class Row(NamedTuple):
    """A line of a table whose columns the template knows."""

    head: str
    cells: list[str]
    summary: bool = False


class Table(NamedTuple):
    """A table with its columns; the first column heads the rows."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""


class Arms(NamedTuple):
    """The tables of one activations entry."""

    title: str
    tables: list[Table]


Runs = Sequence[Mapping[str, Any]]


def section(name: str, entry: Mapping[str, Any], runs: Runs, comparison: Mapping[str, Any], notes: Mapping[str, str]) -> Arms:
    """All tables of one activations entry."""
    title = f"{name}: {whence(entry)}" if whence(entry) else name
    tables = [
        *comparison_tables(name, runs, comparison),
        openness_table(name, runs),
        *score_tables(name, runs),
        dictionaries_table(name, runs, notes),
    ]
    return Arms(title, [table for table in tables if table.rows])


# The matched comparison


def comparison_tables(name: str, runs: Runs, comparison: Mapping[str, Any]) -> list[Table]:
    """What each arm reaches at the common L0 values, and how far it stands from each baseline there."""
    if not comparison.get("l0"):
        return []
    return [reached_table(name, runs, comparison), *(against_table(name, comparison, baseline) for baseline in comparison["baselines"])]


def reached_table(name: str, runs: Runs, comparison: Mapping[str, Any]) -> Table:
    """One row per arm: its seeds, FVE and FVE within position at each common L0, and openness."""
    levels = comparison["l0"]
    reached = {(row["family"], row["l0"]): row for row in comparison["reached"]}
    columns = [f"{title} at L0 {fixed_l0(l0)}" for title in ("FVE", "within position") for l0 in levels]
    rows = []
    for family in dict.fromkeys(str(run.get("family")) for run in runs):
        own = [run for run in runs if run.get("family") == family]
        there = [reached.get((family, l0)) for l0 in levels]
        cells = [mean_cell(_part(row, key), 4) for key in ("fve", "fve_within_position") for row in there]
        rows.append(Row(family, [seeds_of(own), *cells, fixed(average(own, "openness"), 3)]))
    varied = any(run.get("level") is not None for run in runs)
    how = "arms at equal L0, read from each arm's own curve" if varied else "arms of one level each, where their L0 agree within 5 %"
    return Table(f"{name}: {how}", ["arm", "seeds", *columns, "openness"], rows)


def against_table(name: str, comparison: Mapping[str, Any], baseline: str) -> Table:
    """One row per arm: its FVE less the baseline's at each common L0, and what it leaves unexplained as a share of what that leaves."""
    levels = comparison["l0"]
    against = {(row["family"], row["l0"]): row for row in comparison["against"] if row["baseline"] == baseline}
    columns = [f"{title} at L0 {fixed_l0(l0)}" for title in ("FVE difference", "unexplained, share") for l0 in levels]
    rows = []
    for family in dict.fromkeys(family for family, _ in against):
        there = [against.get((family, l0)) for l0 in levels]
        cells = [*(difference_cell(_part(row, "fve")) for row in there), *(mean_cell(_part(row, "unexplained"), 3) for row in there)]
        rows.append(Row(family, cells))
    return Table(f"{name}: against {baseline}, paired by seed", ["arm", *columns], rows)


def openness_table(name: str, runs: Runs) -> Table:
    """One row per masked arm, at the middle one of its levels: mean openness in octaves of positions, over seeds."""
    masked = [run for run in runs if run.get("openness_by_position")]
    octaves = octaves_of(max((len(run["openness_by_position"]) for run in masked), default=0))
    rows = []
    for family in dict.fromkeys(str(run.get("family")) for run in masked):
        own = [run for run in masked if run.get("family") == family]
        arms = list(dict.fromkeys(str(run.get("arm")) for run in own))
        own = [run for run in own if run.get("arm") == arms[len(arms) // 2]]
        means = [[average_of(run["openness_by_position"][first:last]) for run in own] for first, last in octaves]
        rows.append(Row(arms[len(arms) // 2], [seeds_of(own), *(mean_score(values, 3) for values in means)]))
    columns = [str(first) if last == first + 1 else f"{first} to {last - 1}" for first, last in octaves]
    return Table(f"{name}: openness by position", ["arm", "seeds", *columns], rows)


def octaves_of(positions: int) -> list[tuple[int, int]]:
    """Runs of positions (first, end) from 1 on, each twice as long as the one before."""
    starts = [2**power for power in range(positions.bit_length()) if 2**power < positions]
    return list(zip(starts, [*starts[1:], positions], strict=True)) if starts else []


def average_of(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values if known(value)]
    return sum(found) / len(found) if found else None


def _part(row: Mapping[str, Any] | None, key: str) -> Mapping[str, Any] | None:
    return None if row is None else row.get(key)


def fixed_l0(l0: float) -> str:
    """`32`, or `32.8` where it is a measured one."""
    return f"{l0:.1f}".removesuffix(".0")


def seeds_of(runs: Runs) -> str:
    count = len({run.get("seed") for run in runs})
    return ONE_SEED if count == 1 else str(count)


def mean_cell(mean: Mapping[str, Any] | None, digits: int) -> str:
    """`0.8012 ± 0.0010`, or the value marked as one seed's; an interval that is not symmetric is written out."""
    if mean is None or not known(mean.get("value")):
        return UNKNOWN
    value, low, high = mean["value"], mean.get("low"), mean.get("high")
    if not known(low) or not known(high):
        return f"{fixed(value, digits)} ({ONE_SEED})"
    if abs((high - value) - (value - low)) < 1e-9 * max(abs(value), 1):
        return f"{fixed(value, digits)} ± {fixed(high - value, digits)}"
    return f"{fixed(value, digits)} ({fixed(low, digits)} to {fixed(high, digits)})"


def difference_cell(difference: Mapping[str, Any] | None) -> str:
    """`+0.0081 ± 0.0010: above`."""
    if difference is None or not known(difference.get("value")):
        return UNKNOWN
    sign, value = "+" if difference["value"] > 0 else "", mean_cell(difference, 4)
    verdict = str(difference.get("verdict"))
    return f"{sign}{value}" + ("" if verdict == ONE_SEED else f": {verdict}")


# What is known by construction


def score_tables(name: str, runs: Runs) -> list[Table]:
    """For worlds and records: one row per arm, the mean of its seeds, one column per score that any run has."""
    tables = []
    for key, (title, known_columns) in SCORES.items():
        scored = [run for run in runs if run.get(key)]
        columns = [(column, path) for column, path in known_columns if any(known(score_at(run[key], path)) for run in scored)]
        rows = []
        for arm in dict.fromkeys(str(run.get("arm")) for run in scored):
            own = [run for run in scored if run.get("arm") == arm]
            rows.append(Row(arm, [seeds_of(own), *(mean_score([score_at(run[key], path) for run in own]) for _, path in columns)]))
        if rows:
            tables.append(Table(f"{name}: {title}", ["arm", "seeds", *(column for column, _ in columns)], rows))
    return [*tables, *_field_tables(name, [run for run in runs if run.get("fields")])]


def _field_tables(name: str, runs: Runs) -> list[Table]:
    """One row per arm, one column per field: how much of its group lies in its columns, and how much of them is its group's."""
    fields = list(dict.fromkeys(field for run in runs for field in run["fields"].get("precision") or {}))
    rows = []
    for arm in dict.fromkeys(str(run.get("arm")) for run in runs):
        own = [run for run in runs if run.get("arm") == arm]
        means = {
            (key, field): average([run["fields"].get(key) or {} for run in own], field)
            for key in ("precision", "recall")
            for field in fields
        }
        cells = [f"{fixed(means['precision', field], 2)} / {fixed(means['recall', field], 2)}" for field in fields]
        rows.append(Row(arm, [seeds_of(own), *cells]))
    return [Table(f"{name}: precision / recall of each field of the records", ["arm", "seeds", *fields], rows)] if fields else []


def score_at(scores: Any, path: str) -> Any:
    """The score at a path of keys; None where there is none."""
    for key in path.split("."):
        scores = scores.get(key) if isinstance(scores, Mapping) else None
    return scores


def mean_score(values: Iterable[Any], digits: int = 4) -> str:
    """The mean of what is known, with its interval where there are several."""
    found = [float(value) for value in values if known(value)]
    if not found:
        return UNKNOWN
    mean = mean_of(found)
    return mean_cell(mean.model_dump(), digits if abs(mean.value) < 10 else 1).removesuffix(f" ({ONE_SEED})")


# Every run

MEASURES: tuple[tuple[str, str, int], ...] = (
    ("FVE", "fve", 4),
    ("FVE within position", "fve_within_position", 4),
    ("FVE at index 0 alone", "fve_first", 4),
    ("L0", "l0", 1),
    ("dead features", "dead_features", 0),
    ("openness", "openness", 3),
    ("final loss", "final_loss", -1),
    ("steps", "training_steps", 0),
    ("tokens", "tokens_seen", 0),
    ("seconds", "seconds", 0),
)
"""Column, key in a run, digits (-1: three significant ones)."""


def dictionaries_table(name: str, runs: Runs, notes: Mapping[str, str] | None = None) -> Table:
    """One row per dictionary, the mean of an arm's seeds where there are several, and what earlier records said of it."""
    notes = notes or {}
    several = len({run.get("seed") for run in runs}) > 1
    measures = [measure for measure in MEASURES if any(measure[1] in run for run in runs)]
    noted = any(_note(run, notes) for run in runs)
    rows = []
    for arm in dict.fromkeys(run.get("arm") for run in runs):
        own = [run for run in runs if run.get("arm") == arm]
        for run in own:
            cells = [_measure(run, key, digits) for _, key, digits in measures]
            head = f"{arm}, seed {run.get('seed')}" if several else str(arm)
            rows.append(Row(head, [*cells, _note(run, notes) or UNKNOWN] if noted else cells))
        if len(own) > 1:
            means = {key: average(own, key) for _, key, _ in measures}
            cells = [_measure(means, key, digits) for _, key, digits in measures]
            rows.append(Row(f"{arm}, mean of {len(own)}", [*cells, UNKNOWN] if noted else cells, summary=True))
    columns = ["arm", *(column for column, _, _ in measures), *([NOTE] if noted else [])]
    return Table(f"{name}: every dictionary{'' if several else f', {ONE_SEED}'}", columns, rows)


def _note(run: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    return notes.get(str(run.get("family")), "")


def _measure(run: Mapping[str, Any], key: str, digits: int) -> str:
    value = run.get(key)
    if digits < 0:
        return number(value).replace("-", "−") if known(value) and value is not None else UNKNOWN
    shown = fixed(value, digits)
    if key == "dead_features" and known(value) and known(run.get("features")) and run["features"]:
        return f"{shown} of {run['features']:,}"
    return shown
