"""The sentences of a report, made from the numbers in `results.json`, and no more than the numbers bear.

A gain is claimed only at equal L0 (`evaluation/comparison.py`), over several seeds, when its interval leaves out zero; position
counts only above its noise floor; what was not measured is said not to have been.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from temporallens.figures.style import percent

UNKNOWN = "–"
MASKS_TOLD, ARMS_TOLD = 2, 6
"""Arms that a sentence names, at most; the tables hold all."""
VERDICTS = {
    "above": "{family} reconstructs better than {baseline}",
    "no difference": "no reconstruction gain of {family} over {baseline} is shown",
    "below": "no reconstruction gain of {family} over {baseline}, but a loss",
    "one seed, higher": "{family} stands above {baseline}, but one seed has no interval: no gain is claimed",
    "one seed, lower": "no reconstruction gain of {family} over {baseline}, in one seed",
}
SEGMENTS = 4
"""Runs of positions that a sentence tells apart, at most."""


class Answer(NamedTuple):
    """What the study found on one activations entry."""

    name: str
    source: str
    sentence: str
    findings: list[str]  # what each arm that knows positions gains over each baseline
    remarks: list[str]


Runs = Sequence[Mapping[str, Any]]


# Words


def known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int) -> str:
    """A number with that many digits, with a real minus; an en dash where it is not known."""
    return f"{value:,.{digits}f}".replace("-", "−") if known(value) else UNKNOWN


def text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def place(layer: Any) -> str:
    return "of the embedding" if layer == "embed" else f"after layer {layer}"


def whence(entry: Mapping[str, Any]) -> str:
    """The model and its layer; nothing for activations that came as arrays."""
    if entry.get("model") is None:
        return ""
    return str(entry["model"]) if entry.get("layer") is None else f"{entry['model']} {place(entry['layer'])}"


def source(entry: Mapping[str, Any]) -> str:
    """Where the activations come from, in a few words."""
    parts = [whence(entry)] if whence(entry) else []
    for key, unit in (
        ("width", "dimensions"),
        ("rows", "activations"),
        ("documents", "documents"),
        ("held_out_documents", "of them held out"),
    ):
        if known(entry.get(key)):
            parts.append(f"{entry[key]:,} {unit}")
    return " · ".join(parts)


def asked(results: Mapping[str, Any]) -> str:
    """What the study asks, in one paragraph."""
    study, entries, runs = results.get("study") or {}, results.get("activations") or {}, results.get("runs") or []
    names = list(_by_family(runs)) or list(study.get("arms") or {})
    said = [str(study["description"])] if study.get("description") else []
    if not entries:
        return " ".join([*said, "This study names no activations: nothing was trained."])
    places = [whence(entry) or str(name) for name, entry in entries.items()]
    said.append(
        f"How much of the activations of {listed(places)} depends on where in the sequence a token stands, and does a sparse dictionary "
        "that knows the position reconstruct them better, or as well with fewer open features?"
    )
    if names:
        training = study.get("training") or {}
        length = (
            f" for {training['steps']:,} steps of {training['batch_size']:,} activations"
            if {"steps", "batch_size"} <= set(training)
            else ""
        )
        seeds = study.get("seeds") or sorted({run.get("seed", 0) for run in runs})
        each = " on each" if len(entries) > 1 else ""
        were = "was" if len(names) == 1 else "were"
        arms = f"{counted(len(names), 'arm', 'arms')} ({listed(names)})"
        levels = max((len(values) for values in (study.get("levels") or {}).values()), default=1)
        at = f" at {counted(levels, 'level', 'levels')} of sparsity" if levels > 1 else ""
        alone = [*(study.get("one_seed") or {}).get("arms", []), *(study.get("one_seed") or {}).get("activations", [])]
        but = f" ({listed(alone)} with one)" if alone and len(seeds) > 1 else ""
        said.append(f"{arms} {were} trained{each}{at}{length}, with {counted(len(seeds), 'seed', 'seeds')}{but}.")
    held_out = (study.get("training") or {}).get("held_out")
    share = f" ({percent(held_out)} of them)" if known(held_out) else ""
    said.append(f"Reconstruction is measured on documents held out from training{share}, index 0 and other sinks apart.")
    return " ".join(said)


# Answers


def answer(name: str, entry: Mapping[str, Any], runs: Runs, comparison: Mapping[str, Any]) -> Answer:
    """One sentence on one activations entry, what each arm that knows positions gains, and what must be kept in mind with it."""
    families = _by_family(runs)
    masked = {family: own for family, own in families.items() if any(run.get("openness") is not None for run in own)}
    clauses = [_position_clause(entry)]
    clauses += [clause for family in _best_first(masked)[:MASKS_TOLD] if (clause := _mask_clause(family, masked[family]))]
    findings, remarks = [], []
    if families:
        knowing = [*masked, *(family for family in (comparison.get("baselines") or [])[1:] if family not in masked)]
        clauses.append(_reconstruction_clause(families, comparison))
        findings = [finding for family in knowing for finding in _findings(family, comparison)]
        alone = [family for family, own in families.items() if len({run.get("seed") for run in own}) == 1]
        if len(alone) == len(families):
            remarks.append("One seed: no interval, so no difference between arms is established.")
        elif alone:
            remarks.append(f"One seed only, so nothing is established, for {listed(alone)}.")
    else:
        remarks.append("No arm was trained on these activations.")
    sentence = "; ".join(clauses)
    return Answer(name, source(entry), sentence[0].upper() + sentence[1:] + ".", findings, remarks)


def _by_family(runs: Runs) -> dict[str, list[Mapping[str, Any]]]:
    families: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        families.setdefault(str(run.get("family", run.get("arm"))), []).append(run)
    return families


def _position_clause(entry: Mapping[str, Any]) -> str:
    eta2, floor = entry.get("eta2"), entry.get("eta2_floor")
    clock = f" ({entry['clock']} clock)" if entry.get("clock") else ""
    if not known(eta2):
        return f"how much of the variance position{clock} explains was not measured"
    if not known(floor):
        return f"position{clock} explains {percent(eta2)} of the variance, its noise floor was not measured"
    if eta2 <= floor:
        return f"position{clock} explains no more of the variance than noise would ({percent(eta2)}, noise floor {percent(floor)})"
    return f"position{clock} explains {percent(eta2)} of the variance (noise floor {percent(floor)})"


def _mask_clause(arm: str, runs: Runs) -> str:
    tables = [run["openness_by_position"] for run in runs if run.get("openness_by_position")]
    if not tables:
        overall = average(runs, "openness")
        return f"the masks of {arm} close {percent(1 - overall)} of the dictionary" if overall is not None else ""
    values = [[value for value in column if known(value)] for column in zip(*tables, strict=False)]
    closed = [1 - statistics.fmean(column) if column else math.nan for column in values]
    counts = runs[0].get("position_count") or []
    segments = closed_by_position(closed, start=0 if counts and counts[0] else 1)
    if not segments:
        return ""
    if len(segments) == 1:
        share = segments[0][2]
        if share < 0.005:
            return f"the masks of {arm} stay open everywhere: they do nothing here"
        return f"the masks of {arm} close {percent(share)} of the dictionary, and as much at every position"
    last = len(segments) - 1
    parts = []
    for order, (first, end, share) in enumerate(segments):
        where = (
            f"from position {first} on" if order == last else f"at position {first}" if first == end else f"at positions {first} to {end}"
        )
        parts.append(f"{percent(share)} {'of the dictionary ' if order == 0 else ''}{where}")
    return f"the masks of {arm} close {listed(parts)}"


def closed_by_position(closed: Sequence[float], start: int) -> list[tuple[int, int, float]]:
    """Octaves of positions (first, last, mean share closed), neighbours that differ by little put together."""
    octaves, first = [], start
    while first < len(closed):
        end = min(max(2 * first, first + 1), len(closed))
        own = [share for share in closed[first:end] if not math.isnan(share)]
        if own:
            octaves.append((first, end - 1, statistics.fmean(own)))
        first = end
    while len(octaves) > 1:
        gaps = [abs(left[2] - right[2]) for left, right in pairwise(octaves)]
        least = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[least] > 0.015 and len(octaves) <= SEGMENTS:
            break
        left, right = octaves[least], octaves[least + 1]
        sizes = left[1] - left[0] + 1, right[1] - right[0] + 1
        octaves[least : least + 2] = [(left[0], right[1], (left[2] * sizes[0] + right[2] * sizes[1]) / sum(sizes))]
    return octaves


def _reconstruction_clause(families: Mapping[str, Runs], comparison: Mapping[str, Any]) -> str:
    """How much the best arms explain: at the middle one of the common L0, or as measured where there is none."""
    levels = comparison.get("l0") or []
    if len(levels) < 2:
        return f"on held-out documents {listed(_measured_parts(families))}{_others_less(len(families))}"
    l0 = levels[len(levels) // 2]
    there = [row for row in comparison.get("reached") or [] if row["l0"] == l0]
    ranked = sorted(there, key=lambda row: -float(row["fve"]["value"]))
    parts = [f"{row['family']}{_seeds_of(row['fve'])} {fixed(row['fve']['value'], 4)}" for row in ranked[:ARMS_TOLD]]
    return f"on held-out documents, at L0 {l0:g}, the fraction of the variance explained is, of {listed(parts)}{_others_less(len(ranked))}"


def _others_less(arms: int) -> str:
    return f"; {counted(arms - ARMS_TOLD, 'other arm', 'other arms')} less" if arms > ARMS_TOLD else ""


def _seeds_of(mean: Mapping[str, Any]) -> str:
    return " (one seed)" if mean["seeds"] == 1 else ""


def _measured_parts(families: Mapping[str, Runs]) -> list[str]:
    means = {family: average(runs, "fve") for family, runs in families.items()}
    parts = []
    for order, family in enumerate(_best_first(families)[:ARMS_TOLD]):
        count = len({run.get("seed") for run in families[family]})
        seeds = f", mean of {count} seeds" if count > 1 else ""
        verb = " explains a fraction of" if order == 0 else ""
        parts.append(f"{family}{verb} {fixed(means[family], 3)} (L0 {fixed(average(families[family], 'l0'), 1)}{seeds})")
    return parts


def _best_first(families: Mapping[str, Runs]) -> list[str]:
    """By mean FVE; those without one at the end."""
    means = {family: average(runs, "fve") for family, runs in families.items()}
    return sorted(families, key=lambda family: math.inf if means[family] is None else -float(means[family] or 0.0))


def average(runs: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [float(run[key]) for run in runs if known(run.get(key))]
    return statistics.fmean(values) if values else None


def _findings(family: str, comparison: Mapping[str, Any]) -> list[str]:
    """What `family` gains over each baseline at equal L0, in one sentence each; claims no more than the intervals bear."""
    findings = []
    for baseline in comparison.get("baselines") or []:
        rows = [row for row in comparison.get("against") or [] if (row["family"], row["baseline"]) == (family, baseline)]
        verdicts = list(dict.fromkeys(_verdict(row["fve"]) for row in rows))
        for verdict in verdicts:
            there = "; ".join(_at(row) for row in rows if _verdict(row["fve"]) == verdict)
            findings.append(f"{VERDICTS[verdict].format(family=family, baseline=baseline)} ({there}).")
        if not rows and baseline != family and not _mirrored(family, baseline, comparison):
            findings.append(f"{family} and {baseline} have no L0 and seed in common, so they are not compared.")
    return findings


def _mirrored(family: str, baseline: str, comparison: Mapping[str, Any]) -> bool:
    """Whether `baseline` is compared with `family` instead."""
    baselines = comparison.get("baselines") or []
    return family in baselines and baselines.index(family) < baselines.index(baseline)


def _verdict(difference: Mapping[str, Any]) -> str:
    if difference["verdict"] == "one seed":
        return "one seed, higher" if difference["value"] > 0 else "one seed, lower"
    return str(difference["verdict"])


def _at(row: Mapping[str, Any]) -> str:
    difference = row["fve"]
    size = f"{'+' if difference['value'] > 0 else ''}{fixed(difference['value'], 4)} FVE at L0 {row['l0']:.4g}"
    if difference["low"] is None:
        return size
    return f"{size}, 95 % interval {fixed(difference['low'], 4)} to {fixed(difference['high'], 4)}, {difference['seeds']} seeds"


# Scans


def late_clock(scan: Mapping[str, Any]) -> str:
    """Which clock explains most once the first tokens of a row are left out; empty where a scan does not tell."""
    best: tuple[float, float, str, str] | None = None
    layers = scan.get("layers") or []
    for name, clock in (scan.get("clocks") or {}).items():
        for layer, eta2, floor in zip(layers, clock.get("late_eta2") or [], clock.get("late_floor") or [], strict=False):
            if known(eta2) and known(floor) and eta2 > floor and (best is None or eta2 - floor > best[0] - best[1]):
                best = (eta2, floor, str(name), str(layer))
    if best is None:
        told = any(clock.get("late_eta2") for clock in (scan.get("clocks") or {}).values())
        return (
            f"{scan.get('model') or 'The model'}: past the first tokens of a row (late), no clock rises above its noise floor."
            if told
            else ""
        )
    eta2, floor, name, layer = best
    start = f"from index {scan['late_from']} on" if known(scan.get("late_from")) else "past the first tokens of a row"
    explained = f"{percent(eta2)} {place(layer)} (noise floor {percent(floor)})"
    return f"{scan.get('model') or 'The model'}: {start} (late), the {name} clock explains most: {explained}."
