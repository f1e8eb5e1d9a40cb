"""The sentences of a report, made from the numbers in `results.json`, and no more than the numbers bear.

A gain is claimed only at equal L0 (`evaluation/comparison.py`), over several seeds, when its interval leaves out zero; position
counts only above its noise floor; what was not measured is said not to have been.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.evaluation.comparison import EQUAL, Against, Comparison
from temporallens.evaluation.paired import Paired, PairedBand
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionsPolicy
from temporallens.evaluation.results import ActivationsResult, Results, RunResult, TimedResults, by_family
from temporallens.evaluation.scan import Scan
from temporallens.evaluation.statistics import Difference
from temporallens.report.closed import NOTHING_CLOSED, best_first, closed_by
from temporallens.report.inspected import Asked, asked
from temporallens.report.verdict import verdict_on
from temporallens.wording import ONE_SEED, at_positions, average, capital, counted, ends, fixed, listed, percent, plus

MASKS_NAMED, ARMS_NAMED = 2, 6
"""Arms that a sentence names, at most; the tables hold all."""
VERDICTS = {
    "above": "{family} reconstructs better than {baseline}",
    "no difference": "no reconstruction gain of {family} over {baseline} is shown",
    "below": "no reconstruction gain of {family} over {baseline}, but a loss",
    "one seed, higher": "{family} stands above {baseline}, but one seed has no interval: no gain is claimed",
    "one seed, lower": "no reconstruction gain of {family} over {baseline}, in one seed",
}


class Answer(NamedTuple):
    """What the study found on one activations entry."""

    name: str
    source: str
    verdict: list[str]  # sentences that need no number to be understood
    sentence: str
    findings: list[str]  # what each arm that knows positions gains over each baseline
    remarks: list[str]
    asked: Sequence[Asked] = ()  # what is asked of dictionaries that were trained elsewhere


Runs = Sequence[RunResult]


# Words


def after(layer: int | str | None) -> str:
    """Where in a model a layer's activations are."""
    if isinstance(layer, str) and layer != "embed" and not layer.isdigit():  # the name of a hook
        return f"at {layer}"
    return "of the embedding" if layer == "embed" else f"after layer {layer}"


def model_and_layer(entry: ActivationsResult) -> str:
    """Nothing for activations that came as arrays."""
    if entry.model is None:
        return ""
    target = entry.policies.get("target")
    given = f", and what it gives {after(target)}" if isinstance(target, int | str) else ""
    return entry.model if entry.layer is None else f"{entry.model} {after(entry.layer)}{given}"


def source(entry: ActivationsResult) -> str:
    """Where the activations come from, in a few words."""
    counts = (
        (entry.width, "dimensions"),
        (entry.rows, "activations"),
        (entry.documents, "documents"),
        (entry.held_out_documents, "of them held out"),
    )
    parts = [model_and_layer(entry), *(f"{count:,} {unit}" for count, unit in counts)]
    return " · ".join(part for part in parts if part)


def question(results: Results) -> str:
    """The question of the study and what was done, in one paragraph."""
    study, entries = results.study, results.activations
    names, training, seeds = list(by_family(results.runs)), study.training, len(study.seeds)
    sources = [model_and_layer(entry) or name for name, entry in entries.items()]
    opening = (
        f"How much of the activations of {listed(sources)} depends on where in the sequence a token stands, and does a sparse dictionary "
        "that knows the position reconstruct them better, or as well with fewer open features?"
    )
    length = f" for {training.steps:,} steps of {training.batch_size:,} activations"
    each = " on each" if len(entries) > 1 else ""
    were = "was" if len(names) == 1 else "were"
    arms = f"{counted(len(names), 'arm', 'arms')} ({listed(names)})"
    levels = max((len(values) for values in study.levels.values()), default=1)
    at = f" at {counted(levels, 'level', 'levels')} of sparsity" if levels > 1 else ""
    alone = [*study.one_seed.arms, *study.one_seed.activations]
    but = f" ({listed(alone)} with one)" if alone and seeds > 1 else ""
    trained = f"{arms} {were} trained{each}{at}{length}, with {counted(seeds, 'seed', 'seeds')}{but}."
    share = f" ({percent(training.held_out)} of them)"
    if {run.kind for run in results.runs} <= UNTRAINED:
        opening = f"What do dictionaries that others trained make of position, in the activations of {listed(sources)}?"
        found = f"{arms} {were} trained elsewhere, and {were} taken as found."
        return (
            f"{opening} {found} Everything is measured on one part of the documents ({percent(training.held_out)} of them), "
            f"{left_out(entries)} left out where nothing else is said; whether their own training saw them is not known."
        )
    measured = f"Reconstruction is measured on documents held out from training{share}, {left_out(entries)} apart."
    return f"{opening} {trained} {measured}"


def left_out(entries: Mapping[str, ActivationsResult]) -> str:
    """What no number counts where nothing else is said."""
    first = any(entry.excluded["first"] for entry in entries.values())
    return "index 0 and other sinks" if first else "sinks"


# Answers


def answers(results: TimedResults) -> list[Answer]:
    """One for each activations entry."""
    policy = results.study.policy_of(POSITIONS)
    return [
        answer(name, entry, results.runs_of(name), results.comparison[name], results.paired.get(name, ()), policy)._replace(
            asked=asked(results, name)
        )
        for name, entry in results.activations.items()
    ]


def answer(
    name: str,
    entry: ActivationsResult,
    runs: Runs,
    comparison: Comparison,
    paired: Sequence[Paired] = (),
    policy: PositionsPolicy | None = None,
) -> Answer:
    """One sentence on one activations entry, what each arm that knows positions gains, and what must be kept in mind with it; `policy` is
    that by which `positions` were measured."""
    families = by_family(runs)
    masked = by_family(run for run in runs if run.openness is not None)
    clauses = [
        _position_clause(entry),
        *(clause for family in best_first(masked)[:MASKS_NAMED] if (clause := _mask_clause(family, masked[family], entry.position_names))),
        _reconstruction_clause(families, comparison),
    ]
    knowing = [*masked, *(family for family in comparison.baselines[1:] if family not in masked)]
    findings = [finding for family in knowing for finding in _findings(family, families, comparison)]
    findings += [sentence for family in knowing if (sentence := _where_it_loses(family, comparison, paired, entry.position_names))]
    alone = [family for family, alike in families.items() if _seeds(alike) == 1 and alike[0].kind not in UNTRAINED]
    remarks = []
    if len(alone) == len(families) > 1:
        remarks.append("One seed: no interval, so no difference between arms is established.")
    elif alone:
        remarks.append(f"One seed only, so nothing is established, for {listed(alone)}.")
    sentence = "; ".join(clauses)
    return Answer(
        name, source(entry), verdict_on(entry, runs, comparison, policy or PositionsPolicy()), capital(sentence) + ".", findings, remarks
    )


def _seeds(runs: Runs) -> int:
    return len({run.seed for run in runs})


def _position_clause(entry: ActivationsResult) -> str:
    share, floor = percent(entry.eta2), percent(entry.eta2_floor)
    if entry.eta2 <= entry.eta2_floor:
        return f"position ({entry.clock_name} clock) explains no more of the variance than noise would ({share}, noise floor {floor})"
    excess = percent(entry.eta2 - entry.eta2_floor)
    return f"position ({entry.clock_name} clock) explains {excess} of the variance above its noise floor of {floor}"


def _mask_clause(arm: str, masked: Runs, names: Mapping[int, str]) -> str:
    segments = closed_by(masked)
    if not segments:
        return ""
    if len(segments) == 1:
        share = segments[0].share
        if share < NOTHING_CLOSED:
            return f"the masks of {arm} stay open everywhere: they do nothing here"
        return f"the masks of {arm} close {percent(share)} of the dictionary, and as much at every position"
    parts = []
    for order, (first, last, share) in enumerate(segments):
        where = f"from position {first} on" if order == len(segments) - 1 else f"at {at_positions(first, last, names)}"
        parts.append(f"{percent(share)} {'of the dictionary ' if order == 0 else ''}{where}")
    return f"the masks of {arm} close {listed(parts)}"


LEAST_LOSS = 0.003
"""Of FVE in a band of positions: what is worth a sentence."""


def _reconstruction_clause(families: Mapping[str, Runs], comparison: Comparison) -> str:
    """How much the best arms explain: at the middle one of the common L0 that any arm reaches, or as measured where there is none."""
    levels = sorted({reached.l0 for reached in comparison.reached})
    if len(comparison.l0) < 2 or not levels:
        return f"on held-out documents {listed(_measured_parts(families))}{_others_less(len(families))}"
    l0 = levels[len(levels) // 2]
    ranked = sorted((reached for reached in comparison.reached if reached.l0 == l0), key=lambda reached: -reached.fve.value)
    parts = [
        f"{reached.family}{f' ({ONE_SEED})' if reached.fve.seeds == 1 else ''} {fixed(reached.fve.value, 4)}"
        for reached in ranked[:ARMS_NAMED]
    ]
    return f"on held-out documents, at L0 {l0:g}, the fraction of the variance explained is, of {listed(parts)}{_others_less(len(ranked))}"


def _others_less(arms: int) -> str:
    return f"; {counted(arms - ARMS_NAMED, 'other arm', 'other arms')} less" if arms > ARMS_NAMED else ""


def _measured_parts(families: Mapping[str, Runs]) -> list[str]:
    parts = []
    for order, family in enumerate(best_first(families)[:ARMS_NAMED]):
        runs = families[family]
        seeds = f", mean of {_seeds(runs)} seeds" if _seeds(runs) > 1 else ""
        verb = " explains a fraction of" if order == 0 else ""
        fve, l0 = fixed(average(run.fve for run in runs), 3), fixed(average(run.l0 for run in runs), 1)
        parts.append(f"{family}{verb} {fve} (L0 {l0}{seeds})")
    return parts


def _findings(family: str, families: Mapping[str, Runs], comparison: Comparison) -> list[str]:
    """What `family` gains over each baseline at equal L0, in one sentence each; claims no more than the intervals bear."""
    findings = []
    for baseline in comparison.baselines:
        rows = [row for row in comparison.against if (row.family, row.baseline) == (family, baseline)]
        for verdict in dict.fromkeys(_verdict(row.fve) for row in rows):
            alike = "; ".join(_at(row) for row in rows if _verdict(row.fve) == verdict)
            findings.append(f"{VERDICTS[verdict].format(family=family, baseline=baseline)} ({alike}).")
        if not rows and baseline != family and not _mirrored(family, baseline, comparison.baselines):
            findings.append(_not_compared(family, baseline, families, comparison.l0))
    return findings


def _not_compared(family: str, baseline: str, families: Mapping[str, Runs], common: Sequence[float]) -> str:
    """Why two arms are not, where arms are compared at the L0 `common`."""
    ours, theirs = families[family], families[baseline]
    if not {run.seed for run in ours} & {run.seed for run in theirs}:
        return f"{family} and {baseline} have no seed in common, so they are not compared."
    both = f"{family} ({_l0s(ours)}) and {baseline} ({_l0s(theirs)}) are not compared"
    if common and any(run.level is not None for run in (*ours, *theirs)):
        return f"{both}: their curves do not both reach any L0 at which arms are compared ({listed([f'{l0:.4g}' for l0 in common])})."
    return (
        f"{both}: L0 are equal within {percent(EQUAL)}, and theirs are not. At several levels of k each is a curve, and curves are read at "
        "one L0."
    )


def _l0s(runs: Runs) -> str:
    """L0 of an arm, over levels and seeds."""
    return f"L0 {ends([run.l0 for run in runs], 1)}"


def _where_it_loses(family: str, comparison: Comparison, paired: Sequence[Paired], names: Mapping[int, str]) -> str:
    """Where along the row `family` explains less than the strongest baseline at the middle common L0, whatever a pooled number says."""
    rows = [one for one in paired if one.family == family and one.l0 == comparison.l0[len(comparison.l0) // 2]]
    if not rows:
        return ""
    fve = {(reached.family, reached.l0): reached.fve.value for reached in comparison.reached}
    one = max(rows, key=lambda row: fve[row.baseline, row.l0])
    lost = [said for band in one.bands if (said := _loss_in(band, names))]
    over = f"L0 {one.l0:.4g} (intervals over {'documents and seeds' if one.seeds > 1 else 'documents'})"
    if not lost:
        return f"By position {family} is nowhere shown to explain {LEAST_LOSS} less than {one.baseline} at {over}."
    return f"By position {family} explains {listed(lost)} than {one.baseline} does at {over}."


def _loss_in(band: PairedBand, names: Mapping[int, str]) -> str:
    """How much less is explained there, where its interval leaves no gain and it is worth a sentence."""
    value, low, high = band.fve.value, band.fve.low, band.fve.high
    if value is None or low is None or high is None or high >= 0 or value > -LEAST_LOSS:
        return ""
    return f"{fixed(-value, 4)} less at {at_positions(band.first, band.last, names)} ({fixed(-high, 4)} to {fixed(-low, 4)})"


def _mirrored(family: str, baseline: str, baselines: Sequence[str]) -> bool:
    """Whether `baseline` is compared with `family` instead."""
    return family in baselines and baselines.index(family) < baselines.index(baseline)


def _verdict(difference: Difference) -> str:
    if difference.verdict == ONE_SEED:
        return "one seed, higher" if difference.value > 0 else "one seed, lower"
    return difference.verdict


def _at(row: Against) -> str:
    size = f"{plus(row.fve.value, fixed(row.fve.value, 4))} FVE at L0 {row.l0:.4g}"
    if row.fve.low is None:
        return size
    return f"{size}, 95 % interval {fixed(row.fve.low, 4)} to {fixed(row.fve.high, 4)}, {row.fve.seeds} seeds"


# Scans


class _Late(NamedTuple):
    """What a clock explains at a layer past the first tokens of a row."""

    eta2: float
    floor: float
    clock: str
    layer: str


def late_clock(scan: Scan) -> str:
    """Which clock explains most once the first tokens of a row are left out."""
    above = [
        _Late(eta2, floor, name, layer)
        for name, clock in scan.clocks.items()
        for layer, eta2, floor in zip(scan.layers, clock.late_eta2, clock.late_floor, strict=True)
        if eta2 is not None and floor is not None and eta2 > floor
    ]
    if not above:
        return f"{scan.model}: past the first tokens of a row (late), no clock rises above its noise floor."
    best = max(above, key=lambda late: late.eta2 - late.floor)
    explained = f"{percent(best.eta2 - best.floor)} above its noise floor of {percent(best.floor)} {after(best.layer)}"
    return f"{scan.model}: from index {scan.late_from} on (late), the {best.clock} clock explains most: {explained}."
