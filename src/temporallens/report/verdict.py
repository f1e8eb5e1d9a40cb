"""What was found on one activations entry, in sentences that a reader understands who knows no measure by its name.

They say no more than the sentences with numbers in `answers.py`, which they stand above: a gain needs an interval over seeds that leaves
out zero, and what rests on one seed is said to.
"""

from collections.abc import Mapping, Sequence

from temporallens.dictionaries.kinds import UNTRAINED
from temporallens.evaluation.comparison import Against, Comparison
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionMeasures, PositionsPolicy
from temporallens.evaluation.results import ActivationsResult, RunResult, by_arm, by_family
from temporallens.report.closed import NOTHING_CLOSED, best_first, closed_by
from temporallens.wording import ONE_SEED, at_positions, average, counted, fixed, listed, percent, times_or_more

Families = Mapping[str, Sequence[RunResult]]

SAYS = ((0.02, "little"), (0.1, "something"), (0.5, "much"), (1.0, "most"))
"""What a clock says of an activation, by the share of the variance that it explains beyond chance."""
KNOWING = "A dictionary that knows the position ({family})"
MASKS = "A dictionary whose features may fire at some positions only ({family})"
VAGUE = 0.5
"""A share whose interval is wider is not told."""
PLAIN = ("index", "given")
"""Clocks of which a reader need not be told that they are one of several."""
LEVEL = 0.005
"""Share of what the other leaves unexplained within which two dictionaries are level."""


def verdict_on(entry: ActivationsResult, runs: Sequence[RunResult], comparison: Comparison, policy: PositionsPolicy) -> list[str]:
    """Which dictionaries say nothing at all, whether position matters there, whether knowing it helps a dictionary, and what masks and
    features make of it; what was not compared or measured is left out. `policy` is that by which `positions` were measured."""
    families = by_family(runs)
    masked = by_family(run for run in runs if run.openness is not None)
    sentences = [*_on_failures(runs), _on_position(entry), *_on_reconstruction(families, masked, comparison)]
    if masked:
        best = best_first(masked)[0]
        sentences += [_on_masks(best, masked[best], entry.position_names)]
    return [*sentences, *_on_features(masked or families, policy, "tokens" if entry.model else "activations")]


def worse_than_the_mean(runs: Sequence[RunResult]) -> list[str]:
    """Arms that reconstruct worse, in the mean over seeds, than the mean activation would."""
    return [arm for arm, alike in by_arm(runs).items() if (average(run.fve for run in alike) or 0.0) < 0]


def _on_failures(runs: Sequence[RunResult]) -> list[str]:
    """One sentence for arms that were trained here, and one for others, as they fail for other reasons."""
    alike = by_arm(runs)
    failed = {arm: f"{arm} (FVE {fixed(average(run.fve for run in alike[arm]), 2)})" for arm in worse_than_the_mean(runs)}
    here, theirs = ([said for arm, said in failed.items() if (alike[arm][0].kind in UNTRAINED) is elsewhere] for elsewhere in (False, True))
    sentences = [(here, "too few steps, or too high a learning rate"), (theirs, "most likely another model, layer, scale or kind of text")]
    return [
        f"{listed(names)} {'reconstructs' if len(names) == 1 else 'reconstruct'} worse than the mean activation would ({why}): what is "
        "said of codes and features below says nothing of the model."
        for names, why in sentences
        if names
    ]


def _on_position(entry: ActivationsResult) -> str:
    share, what = entry.eta2 - entry.eta2_floor, "a token" if entry.model else "an activation"
    where = f"Where {what} stands" if entry.clock_name in PLAIN else f"What the {entry.clock_name} clock says of {what}"
    if share <= 0:
        return f"{where} tells no more of what the activation is than chance would."
    says = next(word for most, word in SAYS if share <= most)
    return f"{where} tells {says} of what the activation is: {percent(share)} of how activations differ, beyond chance."


def _on_reconstruction(families: Families, masked: Families, comparison: Comparison) -> list[str]:
    """One that knows the means of positions, or else the best one with masks, beside the plain one; and the best one with masks beside
    means alone."""
    if not comparison.baselines:
        return []
    plain, *means = comparison.baselines
    knowing = [family for family in means or best_first(masked) if family in families]
    asked = [(KNOWING, family, f"one that does not ({plain})", plain) for family in knowing[:1]]
    if masked and means:
        asked.append((MASKS, best_first(masked)[0], f"one that knows no more than the mean of each position ({means[0]})", means[0]))
    middle = comparison.l0[len(comparison.l0) // 2] if comparison.l0 else None
    found = []
    for subject, family, other, baseline in asked:
        rows = [row for row in comparison.against if (row.family, row.baseline) == (family, baseline)]
        if chosen := next((row for row in rows if row.l0 == middle), None):
            found.append(_compared(subject.format(family=family), other, chosen, [row for row in rows if row.l0 != middle]))
    return found


def _compared(subject: str, other: str, row: Against, elsewhere: Sequence[Against]) -> str:
    """One sentence, whose number is a share of what the other leaves unexplained; `elsewhere` are the same two at other L0, of which is
    told where the sign turns."""
    gained = _gained(row)
    size = f"left {_less(gained)} unexplained than {other}"
    turned = [one for one in elsewhere if _gained(one) * gained < 0 and abs(_gained(one)) >= LEVEL]
    if elsewhere:
        size += f" at L0 {row.l0:.3g}"
    if turned:
        size += f" (and {listed([f'{_less(_gained(one))} at L0 {one.l0:.3g}' for one in turned])})"
    if row.fve.verdict == ONE_SEED:
        return f"{subject} {f'did about as well as {other}' if abs(gained) < LEVEL else size}; that is one seed, so it may be luck."
    if row.fve.verdict == "no difference":
        return f"{subject} did as well as {other}, as far as {row.fve.seeds} seeds can tell."
    return f"{subject} {size}, in {row.fve.seeds} seeds."


def _gained(row: Against) -> float:
    return 0.0 if row.unexplained is None else 1 - row.unexplained.value


def _less(gained: float) -> str:
    return f"{percent(abs(gained))} {'less' if gained > 0 else 'more'}"


def _on_masks(family: str, masked: Sequence[RunResult], names: Mapping[int, str]) -> str:
    most, *others = sorted(closed_by(masked), key=lambda segment: -segment.share)
    if most.share < NOTHING_CLOSED:
        return f"The masks of {family} stay open: it shut no feature out from any position."
    if not others:
        return f"The masks of {family} keep {percent(most.share)} of the features shut, and as many at every position."
    tokens = sum(segment.last - segment.first + 1 for segment in others)
    rest = sum(segment.share * (segment.last - segment.first + 1) for segment in others) / tokens
    elsewhere = "next to none" if rest < NOTHING_CLOSED else percent(rest)
    where = at_positions(most.first, most.last, names)
    return f"The masks of {family} keep {percent(most.share)} of the features shut at {where}, and {elsewhere} elsewhere."


def _on_features(families: Families, policy: PositionsPolicy, tokens: str) -> list[str]:
    """What the section `positions` says of the best family for which it was asked."""
    measured = {family: [run for run in runs if POSITIONS.name in run.measures] for family, runs in families.items()}
    best = best_first({family: runs for family, runs in measured.items() if runs})
    if not best:
        return []
    found: PositionMeasures = POSITIONS.read(measured[best[0]][0].measures[POSITIONS.name])
    often = times_or_more(policy.least_firings)
    if found.specialised.value is None:
        return [
            f"Whether features of {best[0]} prefer some positions to others is not known: none fires {often} on {found.tokens:,} held-out "
            f"{tokens}, so hold out more of them, or give more."
        ]
    share, of = found.specialised, f"Of the {found.specialised.n:,} features of {best[0]} that fire {often}, "
    if share.value is None or share.low is None or share.high is None or share.high - share.low > VAGUE:
        documents = counted(found.documents, "held-out document", "held-out documents")
        return [f"{of}it cannot be said how many prefer some positions to others: {documents} are too few."]
    return [f"{of}{f'{percent(share.value)} prefer' if share.value else 'none prefers'} some positions to others."]
