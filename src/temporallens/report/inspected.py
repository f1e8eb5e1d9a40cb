"""The first lines of a report on dictionaries that were trained elsewhere: one question each, and what was measured of it.

Every answer has its number, its 95 % interval over documents and what chance gives; where nothing was measured it says why. Nothing is
computed here: all of it comes from the sections of `evaluation:`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.evaluation.model.fidelity import SECTION as FIDELITY, FidelityMeasures, FidelityPolicy
from temporallens.evaluation.positions.closing import SECTION as CLOSING, ClosingMeasures
from temporallens.evaluation.positions.drift import SECTION as DRIFT, DriftMeasures, Octave
from temporallens.evaluation.positions.octaves import SECTION as OCTAVES, OctaveMeasures, PositionOctave
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionMeasures, PositionsPolicy
from temporallens.evaluation.positions.sinks import SECTION as SINKS, Place, SinkMeasures, SinksPolicy
from temporallens.evaluation.results import Results, RunResult, by_arm
from temporallens.evaluation.section import Section
from temporallens.evaluation.statistics import Estimate, verdict_of
from temporallens.settings import Settings
from temporallens.wording import counted, estimated, fixed, minus, plus, span, times_or_more

SURE = 0.05
"""A gap is said to be there where chance gives as much less often."""

INSPECTED = (OCTAVES, SINKS, CLOSING)
"""A study that measures one of these asks these questions."""

LEFT_OUT = "Not measured: the study left {name} out."


class Asked(NamedTuple):
    """One question, with an answer for each dictionary."""

    question: str
    answers: list[str]


def asked(results: Results, entry: str) -> list[Asked]:
    """The questions put to the dictionaries of one activations entry that were trained elsewhere; none where no section asks them."""
    found = [run for run in results.runs if run.activations == entry and run.kind in UNTRAINED]
    runs = [alike[0] for alike in by_arm(found).values()]
    if not any(section.name in run.measures for run in runs for section in INSPECTED):
        return []
    titles = [f"{run.arm}: " if len(runs) > 1 else "" for run in runs]

    def answered(question: str, sentences: list[str]) -> Asked:
        return Asked(question, [title + sentence for title, sentence in zip(titles, sentences, strict=True)])

    return [
        answered("Are some positions explained worse than others?", _each(results, runs, OCTAVES, _octaves)),
        answered("How many features depend on position?", _each(results, runs, POSITIONS, _positions)),
        answered("How many live on the first tokens, or on sinks?", _each(results, runs, SINKS, _sinks)),
        answered(
            "When the text is pushed to later positions, how many follow the index, how many the text?",
            _each(results, runs, FIDELITY, _fidelity),
        ),
        answered("What would a mask made after training close for free?", _each(results, runs, CLOSING, _closing)),
        answered("Where do FVE and L0 go beyond the context length of its training?", [_beyond(run, results) for run in runs]),
    ]


def _each(results: Results, runs: Sequence[RunResult], section: Section, sentence: Any) -> list[str]:
    """What a section found in each dictionary, in words; they depend on what the study asked of it."""
    policy = results.study.policy_of(section)
    return [
        sentence(section.read(run.measures[section.name]), policy) if section.name in run.measures else LEFT_OUT.format(name=section.name)
        for run in runs
    ]


# Answers


def _octaves(found: OctaveMeasures, _policy: Settings) -> str:
    best, worst = found.octaves[found.best], found.octaves[found.worst]
    between = f"FVE is lowest at {_at(worst)}, {estimated(worst.fve, 3)}, and highest at {_at(best)}, {estimated(best.fve, 3)}"
    verdict = "Yes" if found.p < SURE else "No more than by chance"
    return f"{verdict}: {between}. The gap is {estimated(found.gap, 3)}; chance gives {fixed(found.chance_gap, 3)} (p = {found.p:.2g})."


def _positions(found: PositionMeasures, policy: PositionsPolicy) -> str:
    share, often = found.specialised, times_or_more(policy.least_firings)
    if share.value is None:
        return f"Not known: none fires {often} on {found.tokens:,} held-out tokens. Read more text."
    of = f"{share.n:,} features that fire {often}"
    return (
        f"{round(share.value * share.n):,} of {of}: {_percents(share)}, at q < .05 against circular shifts, so that at most one in twenty "
        "of them is named by chance."
    )


def _sinks(found: SinkMeasures, policy: SinksPolicy) -> str:
    places = "; ".join(map(_place, found.places))
    return f"A feature lives where more than half of its firings are. Of {found.asked:,} that fire {times_or_more(policy.least)}, {places}."


def _place(place: Place) -> str:
    where = {"first": "live on first tokens of rows", "sink": "on sinks further on", "early": "at positions 1 to 3"}[place.where]
    if not place.tokens:
        return f"none {where}, as no token is one" if place.where == "sink" else f"none {where}, as there is no such token"
    tokens = counted(place.tokens, "token", "tokens")
    return f"{place.features:,} {where}, {_percents(place.share)}, by chance {_percent(place.chance)} ({tokens}, L0 {fixed(place.l0, 0)})"


def _fidelity(found: FidelityMeasures, policy: FidelityPolicy) -> str:
    shift, often = found.shifts[-1], times_or_more(policy.least_firings)
    index, text = shift.follows_index, shift.follows_text
    if index.value is None or text.value is None:
        return f"Not known: none that fires {often} has a profile behind {counted(shift.shift, 'token', 'tokens')}. Read more text."
    return (
        f"Pushed by {counted(shift.shift, 'token', 'tokens')}, of {index.n:,} features that fire {often} "
        f"{round(index.value * index.n):,} follow the index, {_percents(index)}, and {round(text.value * index.n):,} the text, "
        f"{_percents(text)}, at q < .05 (as those do that do not depend on position). FVE of the same tokens changes by "
        f"{_change(shift.fve.change, 4)}."
    )


def _closing(found: ClosingMeasures, _policy: Settings) -> str:
    owed = minus(f"{100 * (found.closed - found.chance):.1f}")
    return (
        f"{_percent(found.closed)} of the entries (feature by group of positions, {found.groups} groups) of {found.features:,} features "
        f"that fire; {_percent(found.chance)} where positions are turned at random, so {owed} points of it are due to position. It takes "
        f"{_percents(found.codes)} of the codes away and changes FVE by {_change(found.fve_change, 4)}, on documents that did not give it."
    )


def _beyond(run: RunResult, results: Results) -> str:
    arm, entry = (results.study.whole.get(section, {}) for section in ("arms", "activations"))
    known = _path(arm, run.family, "origin", "context_length")
    rows = _path(entry, run.activations, "context_length")
    if DRIFT.name not in run.measures:
        if known is not None and rows is not None and known > rows:
            return f"Not measured: it was trained on rows of {known:,} tokens, and these have {rows:,}."
        return "Not measured: the study read no rows longer than these, or the model takes none."
    found: DriftMeasures = DRIFT.read(run.measures[DRIFT.name])
    last, beyond = found.octaves[-1], [octave for octave in found.octaves if octave.beyond]
    changes = f"FVE of the same tokens changes by {_change(found.fve_change, 4)} and L0 by {_change(found.l0_change, 2)}"
    verdict = {"above": "FVE rises", "below": "FVE falls", "no difference": "FVE stays"}[
        verdict_of(found.fve_change.low, found.fve_change.high)
    ]
    inside = [octave for octave in found.octaves if not octave.beyond][-1]
    said = f"{verdict}: at positions {beyond[0].first:,} to {last.last:,}, {changes}, against a place among the first {found.trained:,}."
    by_octave = f"FVE is {estimated(inside.fve, 3)} at {_at(inside)}, {estimated(last.fve, 3)} at {_at(last)}."
    if known is None:
        return f"{said} {by_octave} (Its file does not say what it was trained on: {found.trained:,} tokens is a guess.)"
    if known != found.trained:
        return f"{said} {by_octave} (It was trained on rows of {known:,} tokens.)"
    return f"{said} {by_octave}"


def _path(content: Any, *keys: str) -> int | None:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, int) else None


# Words


def _at(octave: PositionOctave | Octave) -> str:
    where = span(octave.first, octave.last)
    return f"position {where}" if octave.first == octave.last else f"positions {where}"


def _percent(share: float) -> str:
    """One digit, or two where there is less than 1 %."""
    return f"{minus(f'{100 * share:.1f}' if abs(share) >= 0.01 or share == 0 else f'{100 * share:.2f}')} %"


def _percents(share: Estimate) -> str:
    return estimated(share, 1 if (share.value or 0) >= 0.01 else 2, 100, " %")


def _change(change: Estimate, digits: int) -> str:
    return plus(change.value or 0.0, estimated(change, digits))
