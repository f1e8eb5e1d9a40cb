"""The ablation of mask strictness (lab notes, experiment 5): hard, soft and straight-through masks against FVE, and how much of their
position specialisation dictionaries keep when they harden and from seed to seed (`docs/method.md`, "Metrics").

Drawn from the runs of `results.json`. Arms belong together that differ in nothing but their strictness. A dot is the mean over seeds,
its bar Student's 95 % interval, small dots are single seeds; what was measured on one seed is drawn hollow, and its bar, where it has
one, is a bootstrap over documents.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from temporallens.dictionaries.kinds import kinds_of
from temporallens.evaluation.results import ArmSettings, RunResult, by_arm
from temporallens.evaluation.statistics import Estimate, difference_of, mean_of
from temporallens.figures import style
from temporallens.wording import SPACE, capital, fixed, minus, percent, plain

STRICTNESS = {"hard": "hard", "soft": "soft", "straight_through": "straight through"}
"""How a study calls it, and how the picture does; in the order of the rows of a group."""
BEFORE = "same runs, before hardening"
MEASURES = (("o", "profiles: mean Spearman's correlation"), ("s", "specialised features that stay so"), ("|", "that share by chance"))
NO_ARMS = "no arm of these activations has a mask whose strictness can be chosen"
NOT_KEPT = "this run does not hold what its dictionaries keep when they harden (evaluation.positions)"
ROW_HEIGHT, AROUND, LEAST_HEIGHT = 0.3, 2.0, 1.5
MOST_ROWS = 24
TITLE_CHARACTERS = 38
NAME = 26


class Retained(NamedTuple):
    """What one run kept of its position specialisation between two states, or between two seeds; intervals are over documents."""

    profile: Estimate | None  # mean correlation of features' position profiles
    specialised: Estimate | None  # share of the specialised features that stay so
    chance: float | None  # that share by chance
    fve_before: float | None = None  # of the state before


class Row(NamedTuple):
    """Arms of one strictness among arms that differ in nothing else, at one level."""

    group: str  # its name in the study
    strictness: str
    runs: list[RunResult]


class Line(NamedTuple):
    """One line of the picture: a row, or the same runs before they hardened."""

    name: str
    row: Row
    before: bool


def draw_mask_strictness(
    runs: Sequence[RunResult],
    arms: Mapping[str, ArmSettings],
    hardening: Mapping[tuple[str, int], Retained],
    seeds: Mapping[tuple[str, int], Retained],
    title: str = "",
) -> Figure:
    """`arms` are the study's; `hardening` and `seeds` say what the run of an arm and seed kept when it hardened, and from seed to seed."""
    rows = rows_of(runs, arms)[:MOST_ROWS]
    lines = _lines_of(rows, hardening)
    with style.ours():
        figure = style.new_figure(max(LEAST_HEIGHT, ROW_HEIGHT * len(lines)) + AROUND)
        style.head(figure, title)
        if not rows:
            names = ("FVE", "Kept when hardening", "Kept from seed to seed")
            style.empty_panels(figure.subplots(1, 3), "abc", names, TITLE_CHARACTERS, NO_ARMS)
            return figure
        several = any(_key(run) in seeds for row in rows for run in row.runs)
        panels = figure.subplots(1, 3 if several else 2)
        reference = _draw_fve(panels[0], lines, runs, hardening)
        _draw_retained(panels[1], lines, hardening, "b", "hardening", "when masks harden")
        if several:  # one seed has no other to be compared with
            _draw_retained(panels[2], lines, seeds, "c", "seeds", "from seed to seed")
        handles = [
            Line2D([], [], linestyle="none", marker=marker, color=style.INK, markersize=6, label=label) for marker, label in MEASURES
        ]
        note = f"{f'a: dashed line {reference} without a mask; ' if reference else ''}{_seeds_note(rows)}; b{', c' if several else ''}:"
        figure.legend(handles=handles, loc="outside lower center", ncols=len(MEASURES), title=note)
    return figure


def _lines_of(rows: Sequence[Row], hardening: Mapping[tuple[str, int], Retained]) -> list[Line]:
    lines = []
    for row in rows:
        lines.append(Line(f"{plain(row.group, NAME)}: {STRICTNESS[row.strictness]}", row, before=False))
        if _before(row, hardening):
            lines.append(Line(BEFORE, row, before=True))
    return lines


def _before(row: Row, hardening: Mapping[tuple[str, int], Retained]) -> dict[int, float]:
    """FVE of the soft states of a row's runs, by seed."""
    states = {run.seed: hardening[_key(run)].fve_before for run in row.runs if _key(run) in hardening}
    return {seed: fve for seed, fve in states.items() if fve is not None}


def _key(run: RunResult) -> tuple[str, int]:
    return run.arm, run.seed


def rows_of(runs: Sequence[RunResult], arms: Mapping[str, ArmSettings]) -> list[Row]:
    """Rows of masked arms, group by group; groups of several strictnesses first, and where there are such, only those."""
    groups: list[tuple[dict[str, Any], list[Row]]] = []
    for name, seeds in by_arm(runs).items():
        arm = arms[seeds[0].family]
        if arm.strictness in STRICTNESS:
            alike = arm.model_dump(exclude={"strictness"}) | {"level": seeds[0].level}
            group = next((rows for settings, rows in groups if settings == alike), None)
            if group is None:
                groups.append((alike, group := []))
            group.append(Row(name, arm.strictness, seeds))
    order = list(STRICTNESS)
    several = [rows for _, rows in groups if len({row.strictness for row in rows}) > 1]
    chosen = several or [rows for _, rows in groups]
    return [row for rows in chosen for row in sorted(rows, key=lambda row: order.index(row.strictness))]


def _line_axis(axes: Axes, lines: Sequence[Line], named: bool) -> None:
    """One place per line; where names stand to the left already, they are not repeated."""
    style.name_rows(axes, [line.name if named else "" for line in lines])
    style.open_grid(axes, "both")


def _dot(axes: Axes, y: float, values: Sequence[Estimate], colour: str, marker: str) -> None:
    """The mean of some seeds with its interval; that of one seed is over documents, where it is known."""
    known = [float(one.value) for one in values if one.value is not None]
    if not known:
        return
    mean = mean_of(known)
    low, high = (mean.low, mean.high) if len(known) > 1 else (values[0].low, values[0].high)
    if low is not None and high is not None:
        style.interval(axes, [low, high], [y, y], colour)
    if len(known) > 1:
        axes.plot(known, [y] * len(known), ".", color=colour, markersize=2.5, alpha=0.7)
    face = colour if len(known) > 1 else style.PAPER
    axes.plot([mean.value], [y], color=colour, marker=marker, markersize=6, markerfacecolor=face, markeredgewidth=1.2)


def _without_intervals(values: Sequence[float]) -> list[Estimate]:
    """Values of seeds, of which no interval over documents is known."""
    return [Estimate(value, None, None, 1) for value in values]


def _look(strictness: str) -> tuple[str, str]:
    order = list(STRICTNESS).index(strictness)
    return style.COLOURS[order], style.MARKERS[order]


# a


def _draw_fve(axes: Axes, lines: Sequence[Line], runs: Sequence[RunResult], hardening: Mapping[tuple[str, int], Retained]) -> str:
    """The arms without a mask whose mean the dashed line shows; empty where there is none."""
    for y, (_, row, before) in enumerate(lines):
        colour, marker = _look(row.strictness)
        values = list(_before(row, hardening).values()) if before else [run.fve for run in row.runs]
        _dot(axes, y, _without_intervals(values), style.MUTED if before else colour, marker)
    unmasked = [run for run in runs if run.kind in kinds_of("baseline") and run.kind in kinds_of("ordinary")]
    reference = ", ".join(dict.fromkeys(run.family for run in unmasked)) if len({run.level for run in runs}) == 1 else ""
    if reference:
        axes.axvline(mean_of([run.fve for run in unmasked]).value, color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 2)), zorder=0.5)
    _line_axis(axes, lines, named=True)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("FVE, held-out documents")
    style.panel_title(axes, "a", _fve_statement([line.row for line in lines if not line.before], hardening), TITLE_CHARACTERS)
    return reference


def _seeds_note(rows: Sequence[Row]) -> str:
    if {len(row.runs) for row in rows} == {1}:
        return "one seed: no interval over seeds"
    return f"bars: 95{SPACE}% interval over seeds, of one seed (hollow) over documents"


def _fve_statement(rows: Sequence[Row], hardening: Mapping[tuple[str, int], Retained]) -> str:
    """What the first group of several strictnesses says, against its hard masks and paired by seed; else what hardening cost."""
    hard = next((row for row in rows if row.strictness == "hard"), None)
    others = [row for row in rows if row.strictness != "hard"][:2]
    if hard is not None and others:
        clauses = []
        for row in others:
            theirs = {run.seed: run.fve for run in hard.runs}
            pairs = [run.fve - theirs[run.seed] for run in row.runs if run.seed in theirs]
            clauses.append(f"{STRICTNESS[row.strictness]} {_against(pairs, 'hard')}")
        return f"FVE: {'; '.join(clauses)}"
    if gained := _gained_by_hardening(rows, hardening):
        return f"FVE: as hardened {_against(gained, 'before')}"
    return f"All masks are {STRICTNESS[rows[0].strictness]}: there is no other strictness to compare"


def _gained_by_hardening(rows: Sequence[Row], hardening: Mapping[tuple[str, int], Retained]) -> list[float]:
    """FVE of the hard states less that of the soft ones, one number for each seed: its arms are not so many seeds."""
    gained: dict[int, list[float]] = {}
    for row in rows:
        before = _before(row, hardening)
        for run in row.runs:
            if run.seed in before:
                gained.setdefault(run.seed, []).append(run.fve - before[run.seed])
    return [fmean(of_seed) for of_seed in gained.values()]


def _against(pairs: Sequence[float], other: str) -> str:
    if not pairs:
        return f"has no seed in common with {other}"
    found = difference_of(pairs)
    words = {"above": f"above {other}", "below": f"below {other}", "no difference": f"no different from {other}"}
    value = minus(f"{found.value:+.4f}")
    return f"{words.get(found.verdict, f'against {other}, one seed')} ({value})"


# b, c


def _draw_retained(
    axes: Axes, lines: Sequence[Line], retained: Mapping[tuple[str, int], Retained], letter: str, between: str, when: str
) -> None:
    known = [[] if line.before else [retained[_key(run)] for run in line.row.runs if _key(run) in retained] for line in lines]
    if not any(known):
        style.empty_panel(axes, letter, f"Specialisation kept {when}", TITLE_CHARACTERS, NOT_KEPT)
        return
    for y, (line, seeds) in enumerate(zip(lines, known, strict=True)):
        colour, _ = _look(line.row.strictness)
        if not seeds and not line.before:
            never = line.row.strictness != "hard" and between == "hardening"
            axes.text(0.02, y, "never hardens" if never else "not measured", va="center", fontsize=7.5, color=style.MUTED)
        profiles, shares = (_given(seeds, of) for of in (lambda k: k.profile, lambda k: k.specialised))
        chance = [one.chance for one in seeds if one.chance is not None]
        for shift, marker, values in ((-0.16, "o", profiles), (0.16, "s", shares)):
            if values:
                _dot(axes, y + shift, values, colour, marker)
        if chance:
            axes.plot([fmean(chance)] * 2, [y + 0.02, y + 0.3], color=style.INK, linewidth=1.4)
    _line_axis(axes, lines, named=False)
    axes.set_xlim(min(-0.02, axes.get_xlim()[0]), 1.04)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: minus(f"{value:.12g}")))
    axes.set_xlabel("correlation, or share of features")
    style.panel_title(axes, letter, _retained_statement([one for seeds in known for one in seeds], when), TITLE_CHARACTERS)


def _given(seeds: Sequence[Retained], of: Callable[[Retained], Estimate | None]) -> list[Estimate]:
    return [one for seed in seeds if (one := of(seed)) is not None and one.value is not None]


def _retained_statement(seeds: Sequence[Retained], when: str) -> str:
    chances = [seed.chance for seed in seeds if seed.chance is not None]
    shares, profiles = (
        [one.value for one in _given(seeds, of) if one.value is not None] for of in (lambda k: k.specialised, lambda k: k.profile)
    )
    clauses = []
    if shares:
        by_chance = f" ({percent(fmean(chances))} by chance)" if chances else ""
        clauses.append(f"{percent(fmean(shares))} of specialised features stay so{by_chance}")
    if profiles:
        clauses.append(f"profiles correlate at {fixed(fmean(profiles), 2)}")
    return capital(f"{'; '.join(clauses) or 'nothing is known'} {when}")
