"""The frontier: FVE against L0 for every arm of a study, one panel per activations entry (method, section 4: never a single point).

Drawn from the results of a study. The height is the unexplained variance on a logarithmic axis, upside down and labelled as FVE, so
that arms near the top can be told apart. A line joins an arm's levels at the mean of its seeds; dots are single seeds, bars
Student's 95 % interval; an arm of one seed is drawn hollow. Below it stands what the matched comparison says: by how much more or
less each arm leaves unexplained than the first baseline, paired by seed at equal L0.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from temporallens.evaluation.comparison import Against, Comparison
from temporallens.evaluation.results import Results, RunResult, by_family
from temporallens.evaluation.statistics import Mean, mean_of
from temporallens.figures import style
from temporallens.wording import ONE_SEED, listed, minus, plain

COLUMNS = 2
ROW_HEIGHT, LEGEND_HEIGHT = 4.6, 0.24
LEGEND_COLUMNS = 4
TITLE_CHARACTERS = 58
LEGEND = "bars: 95 % interval over seeds, dots: single seeds; hollow markers: one seed"
L0_LABEL = "L0, codes in use per token (log scale)"
LEAST_SPAN = 1.5
"""An axis of L0 spans at least this factor: a few percent are nothing to look at."""
LEAST_ROOM = 1.5
"""Bars are shown up to this factor, at least, beyond the heights of all runs."""
LEAST_UNEXPLAINED = 1e-6
STRIP_HEIGHT = 1.5
DODGE = 1.035
"""Arms at one L0 stand so far apart, as a factor."""
FEW = 4
"""What is left unexplained varies less than so many times: FVE is then marked at round values."""
NAMED = 3
"""Arms that a title names; more are counted."""
VERDICTS = {
    "above": "above",
    "no difference": "no different from",
    "below": "below",
    "mixed": "above or below, by L0,",
}
"""How a title says what the comparison found, in this order."""


class Level(NamedTuple):
    """One arm at one level: what its seeds measured."""

    l0: float
    fve: Mean
    seeds: list[tuple[float, float]]  # (L0, FVE) of each


def draw_frontier(results: Results) -> Figure:
    """FVE against L0, all arms of one activations entry in a panel."""
    runs = [run for run in results.runs if run.l0 > 0]
    looks = {family: style.look(order) for order, family in enumerate(by_family(runs))}
    entries, comparisons = list(results.activations), results.comparison
    strips = any(_with_ratios(comparison) for comparison in comparisons.values())
    columns = min(COLUMNS, max(len(entries), 1))
    rows = max(1, math.ceil(len(entries) / columns))
    with style.ours():
        figure = style.new_figure(
            (ROW_HEIGHT + STRIP_HEIGHT * strips) * rows + LEGEND_HEIGHT * (3 + math.ceil(len(looks) / LEGEND_COLUMNS))
        )
        ratios = (ROW_HEIGHT, STRIP_HEIGHT) if strips else (1,)
        grid = figure.add_gridspec(len(ratios) * rows, columns, height_ratios=ratios * rows)
        cells = [(row, column) for row in range(rows) for column in range(columns)]
        panels = [figure.add_subplot(grid[len(ratios) * row, column]) for row, column in cells]
        for letter, axes, entry in zip("abcdefghijklmnopqrstuvwxyz", panels, entries, strict=False):
            style.panel_title(axes, letter, plain(entry) + _statement(comparisons[entry]), TITLE_CHARACTERS * COLUMNS // columns)
            _draw_panel(axes, [run for run in runs if run.activations == entry], looks)
        for axes in panels[len(entries) :]:
            axes.set_axis_off()
        for (row, column), axes, entry in zip(cells, panels, entries, strict=False):
            if strips:
                _draw_strip(figure.add_subplot(grid[2 * row + 1, column]), axes, comparisons[entry], looks)
        handles = [_handle(panels[0], family, look) for family, look in looks.items()]
        if handles:
            columns = min(LEGEND_COLUMNS, len(handles))
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.2, title=LEGEND)
    return figure


def _statement(comparison: Comparison) -> str:
    """Which arms lie above and below the first baseline at equal L0, beyond the noise of seeds."""
    baseline = comparison.baselines[0] if comparison.baselines else ""
    if comparison.l0 and not comparison.reached:
        return f": no arm reaches an L0 at which arms are compared ({listed([f'{l0:.3g}' for l0 in comparison.l0])})"
    if not comparison.against:
        return f": no arm is at the L0 of {plain(baseline, 28)}, so none is compared with it" if baseline else ""
    verdicts: dict[str, set[str]] = {}
    for row in comparison.against:
        if row.baseline == baseline:
            verdicts.setdefault(row.family, set()).add(row.fve.verdict)
    named: dict[str, list[str]] = {}
    for family, found_at in verdicts.items():
        tested = found_at - {ONE_SEED}
        decided = tested - {"no difference"}
        found = ONE_SEED if not tested else decided.pop() if len(decided) == 1 else "mixed" if decided else "no difference"
        named.setdefault(found, []).append(plain(family, 28))
    if set(named) <= {ONE_SEED}:
        return f": {_highest(comparison)}"
    clauses = [f"{_some(named[key])} {words} {plain(baseline, 28)}" for key, words in VERDICTS.items() if key in named]
    return ": " + "; ".join(clauses + ([f"{_some(named[ONE_SEED])}: one seed, not tested"] if ONE_SEED in named else []))


def _highest(comparison: Comparison) -> str:
    l0 = comparison.l0[len(comparison.l0) // 2]
    reached = [row for row in comparison.reached if row.l0 == l0] or comparison.reached
    best = max(reached, key=lambda row: row.fve.value)
    return f"at L0 {best.l0:.3g} {plain(best.family, 28)} is highest ({best.fve.value:.4f}); one seed, not tested"


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} arms" if len(names) > NAMED else listed(names)


def _draw_strip(axes: Axes, panel: Axes, comparison: Comparison, looks: Mapping[str, style.Look]) -> None:
    """Unexplained variance of each arm against that of the first baseline, on the axis of the panel above it."""
    rows = _with_ratios(comparison)
    if not rows:
        style.say_missing(axes, "nothing to compare at equal L0")
        return
    compared = {row.family for row, _ in rows}
    families = [family for family in looks if family in compared]
    for row, ratio in rows:
        look = looks[row.family]
        x = row.l0 * DODGE ** (families.index(row.family) - (len(families) - 1) / 2)
        if ratio.low is not None and ratio.high is not None:
            ends = [100 * (ratio.low - 1), 100 * (ratio.high - 1)]
            style.interval(axes, [x, x], ends, look.colour)
        face = look.colour if ratio.seeds > 1 else style.PAPER
        axes.plot([x], [100 * (ratio.value - 1)], color=look.colour, marker=look.marker, markersize=4.5, markerfacecolor=face)
    axes.axhline(0, color=style.MUTED, linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlim(panel.get_xlim())
    style.ticks_at(axes.xaxis, list(panel.get_xticks()))
    panel.set_xlabel("")
    _strip_scale(axes, [100 * (ratio.value - 1) for _, ratio in rows])
    axes.set_ylabel("unexplained\nvariance, %")
    axes.invert_yaxis()
    axes.set_xlabel(f"{L0_LABEL}\nup: less left unexplained than by {plain(comparison.baselines[0], 28)}, at equal L0")
    style.open_grid(axes)


def _with_ratios(comparison: Comparison) -> list[tuple[Against, Mean]]:
    """Arms that are compared with the first baseline, and what each leaves unexplained as a share of what that leaves."""
    return [(row, row.unexplained) for row in comparison.against if [row.baseline] == comparison.baselines[:1] and row.unexplained]


def _strip_scale(axes: Axes, changes: Sequence[float]) -> None:
    """Linear, or from 5 % on logarithmic where one arm is far from all others."""
    if max(map(abs, changes)) > 40 and statistics.median(map(abs, changes)) < 10:
        axes.set_yscale("symlog", linthresh=5, linscale=0.8)
        marks: Locator | list[float] = [-50, -20, -5, 0, 5, 20, 100, 500]
        axes.set_ylim(2 * min(*changes, -2.5), 2 * max(*changes, 2.5))
    else:
        axes.margins(y=0.16)
        marks = MaxNLocator(4)
    style.ticks_at(axes.yaxis, marks, lambda value: minus(f"{value:+g}") if value else "0")


def levels_of(runs: Sequence[RunResult]) -> dict[str, list[Level]]:
    """The levels of each arm, in order of L0."""
    found: dict[str, dict[float | None, list[tuple[float, float]]]] = {}
    for run in runs:
        found.setdefault(run.family, {}).setdefault(run.level, []).append((run.l0, run.fve))
    return {family: sorted(map(_level, levels.values()), key=lambda level: level.l0) for family, levels in found.items()}


def _level(seeds: list[tuple[float, float]]) -> Level:
    return Level(sum(l0 for l0, _ in seeds) / len(seeds), mean_of([fve for _, fve in seeds]), seeds)


def _draw_panel(axes: Axes, runs: Sequence[RunResult], looks: Mapping[str, style.Look]) -> None:
    if not runs:
        style.say_missing(axes, "no arm was trained on these activations")
        return
    for family, levels in levels_of(runs).items():
        look = looks[family]
        x, y = [level.l0 for level in levels], [_height(level.fve.value) for level in levels]
        axes.plot(x, y, color=look.colour, linestyle=look.dash, linewidth=1.5)
        for level, height in zip(levels, y, strict=True):
            _draw_level(axes, level, height, look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    _bound_heights(axes, [_height(run.fve) for run in runs])
    _ticks(axes, [run.l0 for run in runs])
    axes.set_xlabel(L0_LABEL)
    axes.set_ylabel("FVE (logarithm of what is left unexplained)")
    style.open_grid(axes)


def _draw_level(axes: Axes, level: Level, height: float, look: style.Look) -> None:
    mean, face = level.fve, look.colour if level.fve.seeds > 1 else style.PAPER
    if mean.low is not None and mean.high is not None:
        style.interval(axes, [level.l0] * 2, [_height(mean.low), _height(mean.high)], look.colour)
        axes.plot(*zip(*((l0, _height(fve)) for l0, fve in level.seeds), strict=True), ".", color=look.colour, markersize=2.5, alpha=0.7)
    axes.plot([level.l0], [height], color=look.colour, marker=look.marker, markersize=5, markerfacecolor=face, markeredgewidth=1.1)


def _height(fve: float) -> float:
    return max(1 - fve, LEAST_UNEXPLAINED)


def _bound_heights(axes: Axes, heights: Sequence[float]) -> None:
    """Bars that reach far beyond all runs, as those over two seeds may, are cut and do not set the scale."""
    bottom, top = sorted(axes.get_ylim())
    low, high = min(heights), max(heights)
    room = max(LEAST_ROOM, high / low)
    axes.set_ylim(min(top, high * room), max(bottom, low / room))


def _ticks(axes: Axes, l0: Sequence[float]) -> None:
    """Plain numbers: L0 at round values, heights as FVE."""
    low, high = min(l0), max(l0)
    room = max(1.12, math.sqrt(LEAST_SPAN * low / high))
    axes.set_xlim(low / room, high * room)
    marks = [step * 2.0 ** (4 * power) for power in range(-2, 6) for step in (1, 2, 4, 8)]
    marks = [mark for mark in marks if low / room <= mark <= high * room]
    if len(marks) < 2:
        marks = list(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low / room, high * room))
    style.ticks_at(axes.xaxis, marks)
    bottom, top = sorted(axes.get_ylim())
    span = top / bottom
    few = [1 - fve for fve in MaxNLocator(7).tick_values(1 - top, 1 - bottom) if fve < 1]
    many = LogLocator(10, subs=tuple(np.arange(1, 10)) if span < 12 else (1.0, 2.0, 5.0), numticks=20)
    style.ticks_at(axes.yaxis, few if span < FEW else many, _as_fve)


def _as_fve(height: float) -> str:
    return minus(f"{1 - height:.10f}".rstrip("0").rstrip(".")) or "0"


def _handle(axes: Axes, family: str, look: style.Look) -> Any:
    (handle,) = axes.plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=plain(family, 40))
    return handle
