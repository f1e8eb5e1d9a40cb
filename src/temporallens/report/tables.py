"""The report's tables of arms, one group per activations entry: the matched comparison, what is known by construction, every run.

A cell that rests on one seed says so; a mean of several carries its 95 % interval as `±`.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.evaluation.bins import bands
from temporallens.evaluation.bits.section import POSITION, SECTION as BITS, BitsMeasures, Saved
from temporallens.evaluation.comparison import Comparison
from temporallens.evaluation.paired import Interval, Paired
from temporallens.evaluation.results import ActivationsResult, RunResult, TimedRun, Tuned, by_arm, by_family, marked
from temporallens.evaluation.statistics import Difference, Mean, mean_of
from temporallens.report.answers import model_and_layer
from temporallens.wording import ONE_SEED, UNKNOWN, Row, Table, average, estimated, fixed, known, minus, number, plus, plus_minus, span

NOTE = "earlier records"
"""Heading of the column of a study's notes."""
LEAST_P = 1e-4
"""p below this is told as that: normal tails say no more."""
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
"""Column and path of a score in a run's `world`."""
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


def tuning_table(tuning: Mapping[str, Tuned]) -> Table:
    """What the study's grid of learning rates found."""
    rates = list(next(iter(tuning.values())).fve) if tuning else []
    rows = []
    for family, tuned in tuning.items():
        here = f"{tuned.learning_rate:g}{', the edge' if tuned.at_the_edge else ''}"
        rows.append(Row(family, [*("diverged" if (fve := tuned.fve[rate]) is None else number(1 - fve) for rate in rates), here]))
    title = "learning rates, tuned on data and seeds that are compared nowhere below: what each leaves unexplained, and the one used here"
    return Table(title, ["arm", *rates, "here"], rows)


class Arms(NamedTuple):
    """The tables of one activations entry."""

    title: str
    tables: list[Table]


Runs = Sequence[RunResult]


def section(
    name: str,
    entry: ActivationsResult,
    runs: Sequence[TimedRun],
    comparison: Comparison,
    notes: Mapping[str, str],
    paired: Sequence[Paired] = (),
) -> Arms:
    """All tables of one activations entry."""
    title = f"{name}: {model_and_layer(entry)}" if entry.model is not None else name
    tables = [
        *comparison_tables(name, runs, comparison),
        *paired_tables(name, runs, comparison, paired, entry.position_names),
        openness_table(name, runs, entry),
        named_table(name, runs, entry.position_names),
        *score_tables(name, runs),
        dictionaries_table(name, runs, notes),
    ]
    return Arms(title, [table for table in tables if table.rows])


# The matched comparison


def comparison_tables(name: str, runs: Runs, comparison: Comparison) -> list[Table]:
    """What each arm reaches at the common L0 values, and how far it stands from each baseline there."""
    if not comparison.l0:
        return []
    return [reached_table(name, runs, comparison), *(against_table(name, runs, comparison, baseline) for baseline in comparison.baselines)]


def reached_table(name: str, runs: Runs, comparison: Comparison) -> Table:
    """One row per arm: its seeds, FVE and FVE within position at each common L0, and openness."""
    levels = comparison.l0
    fve = {(row.family, row.l0): row.fve for row in comparison.reached}
    within = {(row.family, row.l0): row.fve_within_position for row in comparison.reached}
    columns = [f"{title} at L0 {fixed_l0(l0)}" for title in ("FVE", "within position") for l0 in levels]
    rows, bits = [], _bits_column(runs)
    for family, alike in by_family(runs).items():
        cells = [mean_cell(means.get((family, l0))) for means in (fve, within) for l0 in levels]
        masked = [fixed(average(run.openness for run in alike), 3), *(_position_bits(alike) for _ in bits)]
        rows.append(Row(marked(family, alike[0]), [seeds_of(alike), *cells, *masked]))
    varied = any(run.level is not None for run in runs)
    how = "arms at equal L0, read from each arm's own curve" if varied else "arms of one level each, where their L0 agree within 1 %"
    return Table(f"{name}: {how}", ["arm", "seeds", *columns, "openness", *bits], rows)


def against_table(name: str, runs: Runs, comparison: Comparison, baseline: str) -> Table:
    """One row per arm: its FVE less the baseline's at each common L0, and what it leaves unexplained as a share of what that leaves."""
    levels = comparison.l0
    against = [row for row in comparison.against if row.baseline == baseline]
    fve = {(row.family, row.l0): row.fve for row in against}
    unexplained = {(row.family, row.l0): row.unexplained for row in against}
    columns = [f"{title} at L0 {fixed_l0(l0)}" for title in ("FVE difference", "unexplained, share") for l0 in levels]
    rows, first = [], {family: alike[0] for family, alike in by_family(runs).items()}
    for family in dict.fromkeys(row.family for row in against):
        differences = [difference_cell(fve.get((family, l0))) for l0 in levels]
        rows.append(Row(marked(family, first[family]), [*differences, *(mean_cell(unexplained.get((family, l0)), 3) for l0 in levels)]))
    return Table(f"{name}: against {baseline}, paired by seed", ["arm", *columns], rows)


def paired_tables(
    name: str, runs: Runs, comparison: Comparison, paired: Sequence[Paired], names: Mapping[int, str] = MappingProxyType({})
) -> list[Table]:
    """What each arm explains more than each baseline on the same tokens, in all and in bands of positions, at the middle common L0."""
    if not paired:
        return []
    middle = comparison.l0[len(comparison.l0) // 2]
    return [_paired_table(name, runs, middle, rows, names) for baseline in comparison.baselines if (rows := _of(paired, baseline, middle))]


def _of(paired: Sequence[Paired], baseline: str, l0: float) -> list[Paired]:
    return [one for one in paired if (one.baseline, one.l0) == (baseline, l0)]


def _p(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return number(value) if value >= LEAST_P else f"below {LEAST_P:.4f}"


def _paired_table(name: str, runs: Runs, l0: float, paired: Sequence[Paired], names: Mapping[int, str]) -> Table:
    first = {family: alike[0] for family, alike in by_family(runs).items()}
    rows = []
    for one in paired:
        differences = [_signed(band.fve, 4) for band in one.bands]
        rows.append(
            Row(
                marked(one.family, first[one.family]),
                [_signed(one.fve, 4), _p(one.p_holm), one.verdict, *differences, _signed(one.bands[0].l0, 1)],
            )
        )
    at = [_called(band.first, band.last, names) for band in paired[0].bands]
    columns = ["arm", "FVE difference", "p after Holm", "verdict", *(f"at {where}" for where in at), f"codes more at {at[0]}"]
    note = (
        "Paired on the same held-out tokens; intervals are over documents and seeds together, of one seed over documents. Verdicts hold "
        "after Holm's correction over all comparisons of these activations. L0 is equal over all positions together: the last column says "
        "by how much it differs at the first ones."
    )
    return Table(f"{name}: against {paired[0].baseline} by position, at L0 {fixed_l0(l0)}", columns, rows, note)


def _signed(interval: Interval, digits: int) -> str:
    if interval.value is None:
        return UNKNOWN
    return plus(interval.value, plus_minus(interval, digits))


def openness_table(name: str, runs: Runs, entry: ActivationsResult) -> Table:
    """One row per masked arm, at the middle one of its levels: mean openness in octaves of positions, over seeds."""
    masked = by_family(run for run in runs if run.openness_by_position is not None)
    names = entry.position_names
    positions = max((len(run.position_count) for alike in masked.values() for run in alike), default=0)
    apart = bands(positions, entry.first_position, bool(names))
    rows, bits = [], _bits_column(run for alike in masked.values() for run in alike)
    for alike in masked.values():
        arms = list(by_arm(alike).items())
        arm, seeds = arms[len(arms) // 2]
        means = [mean_score(average((run.openness_by_position or [])[first:end]) for run in seeds) for first, end in apart]
        rows.append(Row(arm, [seeds_of(seeds), *means, *(_position_bits(alike) for _ in bits)]))
    return Table(f"{name}: openness by position", ["arm", "seeds", *(_called(first, end - 1, names) for first, end in apart), *bits], rows)


def _called(first: int, last: int, names: Mapping[int, str]) -> str:
    """A run of positions, or the name of one that has one."""
    return names[first] if first == last and first in names else span(first, last)


def _bits_column(runs: Iterable[RunResult]) -> list[str]:
    """The heading of what positions say of which features fire, where any run was measured for it."""
    return ["bits known by position"] if any(BITS.name in run.measures for run in runs) else []


def _position_bits(runs: Runs) -> str:
    """The share of these bits that a row's position saves, less its null: over documents, or over seeds where there are several."""
    saved = [known.over_null for run in runs if (known := _saved_by_position(run)) is not None]
    if len(saved) == 1:
        return estimated(saved[0], 2, 100, " %")
    values = [100 * estimate.value for estimate in saved if estimate.value is not None]
    return f"{plus_minus(mean_of(values), 2)} %" if values else UNKNOWN


def _saved_by_position(run: RunResult) -> Saved | None:
    measured: BitsMeasures | None = BITS.read(run.measures[BITS.name]) if BITS.name in run.measures else None
    return None if measured is None else measured.saved.get(POSITION)


def named_table(name: str, runs: Runs, names: Mapping[int, str]) -> Table:
    """One row per named position: its held-out tokens, and the FVE and L0 there of each arm at the middle one of its levels, over seeds."""
    chosen = {family: list(by_arm(alike).values()) for family, alike in by_family(runs).items()}
    middle = {family: arms[len(arms) // 2] for family, arms in chosen.items()}
    rows = []
    for position, written in sorted(names.items()):
        count = next((run.position_count[position] for run in runs if position < len(run.position_count)), 0)
        if count:
            cells = [
                mean_score(values[position] for run in seeds if position < len(values := of(run)))
                for seeds in middle.values()
                for of in (_position_fve, _position_l0)
            ]
            rows.append(Row(written, [f"{count:,}", *cells]))
    columns = [f"{family}: {what}" for family in middle for what in ("FVE", "L0")]
    return Table(f"{name}: by position", ["position", "tokens", *columns], rows)


def _position_fve(run: RunResult) -> list[float | None]:
    return run.position_fve


def _position_l0(run: RunResult) -> list[float | None]:
    return run.position_l0


def fixed_l0(l0: float) -> str:
    """`32`, or `32.8` where it is a measured one."""
    return f"{l0:.1f}".removesuffix(".0")


def seeds_of(runs: Runs) -> str:
    count = len({run.seed for run in runs})
    return ONE_SEED if count == 1 else str(count)


def mean_cell(mean: Mean | None, digits: int = 4) -> str:
    """`0.8012 ± 0.0010`, or the value marked as one seed's."""
    return plus_minus(mean, digits) + (f" ({ONE_SEED})" if mean is not None and mean.low is None else "")


def difference_cell(difference: Difference | None) -> str:
    """`+0.0081 ± 0.0010: above`."""
    if difference is None:
        return UNKNOWN
    verdict = "" if difference.verdict == ONE_SEED else f": {difference.verdict}"
    return plus(difference.value, mean_cell(difference)) + verdict


# What is known by construction


def score_tables(name: str, runs: Runs) -> list[Table]:
    """For worlds and records: one row per arm, the mean of its seeds, one column per score that any run has."""
    tables = []
    for key, (title, known_columns) in SCORES.items():
        scored = [run for run in runs if getattr(run, key)]
        columns = [(column, path) for column, path in known_columns if any(known(score_at(getattr(run, key), path)) for run in scored)]
        rows = []
        for arm, alike in by_arm(scored).items():
            means = [mean_score((score_at(getattr(run, key), path) for run in alike), 4) for _, path in columns]
            rows.append(Row(arm, [seeds_of(alike), *means]))
        if rows:
            tables.append(Table(f"{name}: {title}", ["arm", "seeds", *(column for column, _ in columns)], rows))
    return [*tables, *_field_tables(name, [run for run in runs if run.fields])]


def _field_tables(name: str, runs: Runs) -> list[Table]:
    """One row per arm, one column per field: how much of its group lies in its columns, and how much of them is its group's."""
    fields = list(dict.fromkeys(field for run in runs for field in score_at(run.fields, "precision")))
    rows = []
    for arm, alike in by_arm(runs).items():
        shares = [[average(score_at(run.fields, key)[field] for run in alike) for key in ("precision", "recall")] for field in fields]
        rows.append(Row(arm, [seeds_of(alike), *(f"{fixed(precision, 2)} / {fixed(recall, 2)}" for precision, recall in shares)]))
    return [Table(f"{name}: precision / recall of each field of the records", ["arm", "seeds", *fields], rows)] if fields else []


def score_at(scores: Any, path: str) -> Any:
    """The score at a path of keys, out of JSON whose keys depend on the world; None where there is none."""
    for key in path.split("."):
        scores = scores.get(key) if isinstance(scores, Mapping) else None
    return scores


def mean_score(values: Iterable[Any], digits: int = 3) -> str:
    """The mean of what is known, with its interval where there are several."""
    found = [float(value) for value in values if known(value)]
    mean = mean_of(found) if found else None
    return plus_minus(mean, digits if mean is None or abs(mean.value) < 10 else 1)


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
"""Column, field of a run, digits (-1: three significant ones)."""
OF_TRAINING = ("final_loss", "training_steps", "tokens_seen", "seconds")
"""Fields that dictionaries which were trained elsewhere have nothing to say of."""


def measures_of(runs: Runs) -> list[tuple[str, str, int]]:
    """Those of `MEASURES` that any of these dictionaries has."""
    trained = any(run.kind not in UNTRAINED for run in runs)
    known = [measure for measure in MEASURES if trained or measure[1] not in OF_TRAINING]
    return [measure for measure in known if measure[1] != "fve_first" or any(run.fve_first is not None for run in runs)]


def dictionaries_table(name: str, runs: Sequence[TimedRun], notes: Mapping[str, str]) -> Table:
    """One row per dictionary, the mean of an arm's seeds where there are several, and what earlier records said of it."""
    several, measures = len({run.seed for run in runs}) > 1, measures_of(runs)
    noted, dead = any(run.family in notes for run in runs), [field for _, field, _ in measures].index("dead_features")
    rows = []
    for arm, alike in by_arm(runs).items():
        for run in alike:
            cells = [measure_cell(getattr(run, field), digits) for _, field, digits in measures]
            cells[dead] += f" of {run.features:,}"
            head = marked(f"{arm}, seed {run.seed}" if several else arm, run)
            rows.append(Row(head, [*cells, notes.get(run.family, UNKNOWN)] if noted else cells))
        if len(alike) > 1:
            cells = [measure_cell(average(getattr(run, field) for run in alike), digits) for _, field, digits in measures]
            rows.append(Row(marked(f"{arm}, mean of {len(alike)}", alike[0]), [*cells, UNKNOWN] if noted else cells, summary=True))
    columns = ["arm", *(column for column, _, _ in measures), *([NOTE] if noted else [])]
    one_seed = "" if several or all(run.kind in UNTRAINED for run in runs) else f", {ONE_SEED}"
    return Table(f"{name}: every dictionary{one_seed}", columns, rows)


def measure_cell(value: float | None, digits: int) -> str:
    if digits < 0:
        return UNKNOWN if value is None else minus(number(value))
    return fixed(value, digits)
