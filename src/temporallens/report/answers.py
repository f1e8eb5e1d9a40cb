"""The sentences of a report, made from the numbers in `results.json`, and no more than the numbers bear.

A gain is claimed only at matched L0, over several seeds, when its interval leaves out zero; position counts only above its noise
floor; what was not measured is said not to have been.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from temporallens.figures.style import percent

UNKNOWN = "–"
MATCHED = 0.02
"""Two L0 this close, as a share, count as matched."""
SEGMENTS = 4
"""Runs of positions that a sentence tells apart, at most."""


class Answer(NamedTuple):
    """What the study found on one activations entry."""

    name: str
    source: str
    sentence: str
    remarks: list[str]


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
    names = list(dict.fromkeys(str(run.get("arm")) for run in runs)) or list(study.get("arms") or {})
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
        said.append(f"{arms} {were} trained{each}{length}, with {counted(len(seeds), 'seed', 'seeds')}.")
    held_out = (study.get("training") or {}).get("held_out")
    share = f" ({percent(held_out)} of them)" if known(held_out) else ""
    said.append(f"Reconstruction is measured on documents held out from training{share}, index 0 and other sinks apart.")
    return " ".join(said)


# Answers


def answer(name: str, entry: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Answer:
    """One sentence on one activations entry, and what must be kept in mind with it."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        arms.setdefault(str(run.get("arm")), []).append(run)
    clauses = [_position_clause(entry)]
    masked = {arm: own for arm, own in arms.items() if any(run.get("openness") is not None for run in own)}
    clauses += [clause for arm, own in masked.items() if (clause := _mask_clause(arm, own))]
    remarks = []
    if arms:
        clauses.append(_reconstruction_clause(arms))
        clauses += [clause for arm in masked if (clause := compare(arm, masked[arm], arms))]
        if max(len(own) for own in arms.values()) == 1:
            remarks.append("One seed: no interval, so no difference between arms is established.")
    else:
        remarks.append("No arm was trained on these activations.")
    sentence = "; ".join(clauses)
    return Answer(name, source(entry), sentence[0].upper() + sentence[1:] + ".", remarks)


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


def _mask_clause(arm: str, runs: Sequence[Mapping[str, Any]]) -> str:
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


def _reconstruction_clause(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    means = {arm: average(runs, "fve") for arm, runs in arms.items()}
    ranked = sorted(arms, key=lambda arm: -math.inf if means[arm] is None else -float(means[arm] or 0.0))
    parts = []
    for order, arm in enumerate(ranked):
        seeds = f", mean of {len(arms[arm])} seeds" if len(arms[arm]) > 1 else ""
        verb = " explains a fraction of" if order == 0 else ""
        parts.append(f"{arm}{verb} {fixed(means[arm], 3)} (L0 {fixed(average(arms[arm], 'l0'), 1)}{seeds})")
    return f"on held-out documents {listed(parts)}"


def average(runs: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [float(run[key]) for run in runs if known(run.get(key))]
    return statistics.fmean(values) if values else None


def compare(arm: str, own: Sequence[Mapping[str, Any]], arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the masks of `arm` do to reconstruction, against the arm without masks whose L0 is nearest; claims no more than can be."""
    l0 = average(own, "l0")
    blind = {name: average(runs, "l0") for name, runs in arms.items() if all(run.get("openness") is None for run in runs)}
    near = sorted((abs(other - l0), name) for name, other in blind.items() if other is not None and l0 is not None)
    if not near:
        return ""
    base = near[0][1]
    theirs = {run.get("seed"): run for run in arms[base]}
    pairs = [(run, theirs[run.get("seed")]) for run in own if run.get("seed") in theirs]
    pairs = [(run, other) for run, other in pairs if known(run.get("fve")) and known(other.get("fve"))]
    if not pairs:
        return f"{arm} and {base} share no seed, so they are not compared"
    if any(run.get("training_steps") != other.get("training_steps") for run, other in pairs):
        return f"{arm} and {base} trained for different numbers of steps, so they are not compared"
    differences = [float(run["fve"]) - float(other["fve"]) for run, other in pairs]
    return _verdict(arm, base, differences, float(l0 or 0.0), float(blind[base] or 0.0))


def _verdict(arm: str, base: str, differences: Sequence[float], l0: float, base_l0: float) -> str:
    mean = statistics.fmean(differences)
    size = f"{'+' if mean > 0 else ''}{fixed(mean, 4)} FVE"
    matched = abs(l0 - base_l0) <= MATCHED * max(base_l0, 1e-9)
    sparser_and_better, denser_and_worse = l0 < base_l0 and mean > 0, l0 > base_l0 and mean <= 0
    if not (matched or sparser_and_better or denser_and_worse):
        points = f"L0 is {fixed(l0, 1)} in {arm}, {fixed(base_l0, 1)} in {base}"
        return f"whether masks change reconstruction cannot be read from one point each: {points}"
    at = "at matched L0" if matched else f"at L0 {fixed(l0, 1)} against {fixed(base_l0, 1)}"
    if len(differences) == 1:
        if mean > 0:
            return f"{arm} stands at {size} from {base} {at}, but one seed has no interval: no gain is claimed"
        return f"no reconstruction gain of {arm} over {base} ({size} {at})"
    half = _half_width(differences)
    interval = f"{size} {at}, 95 % interval {fixed(mean - half, 4)} to {fixed(mean + half, 4)}, {len(differences)} seeds"
    if mean - half > 0:
        return f"{arm} reconstructs better than {base} ({interval})"
    if mean + half < 0:
        return f"no reconstruction gain of {arm} over {base}, but a loss ({interval})"
    return f"no reconstruction gain of {arm} over {base} is shown ({interval})"


def _half_width(differences: Sequence[float]) -> float:
    """Half of Student's 95 % interval of the mean of paired differences."""
    from scipy import stats  # a second to import, and only studies with several seeds need it

    count = len(differences)
    return float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


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
