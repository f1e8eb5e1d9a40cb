"""All arms of one activations entry side by side (lab notes, Runs 5 and 6): loss, sparsity, loss by position, adaptive weights.

Drawn from the runs of `results.json`, seeds of an arm taken together, and the weights at the end of each run's history. Rows of the
three panels on arms stand in the same order; where there are too many to be read, each family is shown at the middle of its levels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from temporallens.evaluation.bins import drawn_starts, octaves
from temporallens.evaluation.comparison import EQUAL
from temporallens.evaluation.results import RunResult, by_arm, by_family
from temporallens.evaluation.statistics import Mean, difference_of, mean_of
from temporallens.figures import steps, style
from temporallens.wording import ONE_SEED, SPACE, capital, number, percent, plain

MOST_ROWS = 32
LINES = 8
BINS = 32
"""Columns of the heatmap where there are more positions than twice this."""
BAR = 0.66
MOST_BEYOND = 2.5
"""The axis of losses ends at so many times the largest squared error; what lies beyond is written."""
NAME = 30
"""Characters of an arm's name."""
ROW_HEIGHT, LEAST_HEIGHT, AROUND = 0.21, 2.5, 2.1
"""Inches: of one row, of a panel at least, and of titles, axes and legends."""
TITLE_CHARACTERS = 52
ALIKE = 1e-3
"""Weights that differ by less than this are drawn as one line: runs that repeat each other."""


class Row(NamedTuple):
    """One arm at one level: its runs, one per seed."""

    name: str
    family: str
    runs: list[RunResult]

    def mean(self, what: Literal["mse_loss", "final_loss", "l0"]) -> Mean:
        return mean_of([getattr(run, what) for run in self.runs])


def draw_comparative_analysis(
    runs: Sequence[RunResult], weights: Mapping[tuple[str, int], Float[np.ndarray, " P"]], title: str = ""
) -> Figure:
    """Four quadrants; `weights` are those at the end of the run of an arm and seed, of the arms that weigh positions."""
    rows, left_out = rows_of(runs)
    tall = max(LEAST_HEIGHT, ROW_HEIGHT * len(rows))
    with style.ours():
        figure = style.new_figure(2 * tall + AROUND)
        style.head(figure, title and title + left_out, 130)
        panels = figure.subplots(2, 2)
        _draw_loss(panels[0, 0], rows)
        _draw_sparsity(panels[0, 1], rows)
        _draw_patterns(panels[1, 0], rows)
        _draw_weights(panels[1, 1], rows, weights)
    return figure


def rows_of(runs: Sequence[RunResult]) -> tuple[list[Row], str]:
    """The arms in order of appearance, and a word on those left out where there are more than can be read."""
    rows = [Row(arm, seeds[0].family, seeds) for arm, seeds in by_arm(runs).items()]
    if len(rows) <= MOST_ROWS:
        return rows, ""
    levels = [[row for row in rows if row.family == family] for family in by_family(runs)]
    middle = [alike[len(alike) // 2] for alike in levels][:MOST_ROWS]
    return middle, f": {len(middle)} of {len(rows)} arms, each family at the middle of its levels"


def _families(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each family, where there are enough; else one for all."""
    families = list(dict.fromkeys(row.family for row in rows))
    return {
        family: style.COLOURS[order] if len(families) < len(style.COLOURS) else style.COLOURS[0] for order, family in enumerate(families)
    }


def _row_axis(axes: Axes, rows: Sequence[Row], named: bool = True) -> None:
    """One line per arm; where names stand to the left of the same rows already, they are not repeated."""
    style.name_rows(axes, [plain(row.name, NAME) if named else "" for row in rows])


def _bar_axis(axes: Axes, top: float, label: str) -> None:
    axes.set_xlim(0, top if top > 0 else 1)
    style.ticks_at(axes.xaxis, MaxNLocator(6), "{:,.12g}".format)
    axes.set_xlabel(label)
    style.open_grid(axes, "x")


def _draw_bars(axes: Axes, rows: Sequence[Row], means: Sequence[Mean]) -> float:
    """Horizontal bars with their intervals; those of one seed are hollow. Returns where the longest ends."""
    colours = _families(rows)
    for y, (row, mean) in enumerate(zip(rows, means, strict=True)):
        colour = colours[row.family]
        axes.barh(y, mean.value, BAR, color=colour if mean.seeds > 1 else style.PAPER, edgecolor=colour, linewidth=1.2)
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color=style.INK, linewidth=1.3, marker="|", markersize=4)
    return max(_end(mean) for mean in means)


def _end(mean: Mean) -> float:
    return mean.value if mean.high is None else mean.high


def _say_beside(axes: Axes, x: float, y: int, text: str) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, color=style.INK)


def _intervals_of(rows: Sequence[Row]) -> str:
    counts = {len(row.runs) for row in rows}
    if counts == {1}:
        return "one seed: no interval"
    return "black: 95 % interval over seeds" + ("; hollow: one seed" if 1 in counts else "")


# a, b


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    errors, losses = [row.mean("mse_loss") for row in rows], [row.mean("final_loss") for row in rows]
    end = _draw_bars(axes, rows, errors)
    limit = min(max([end, *(loss.value for loss in losses)]), MOST_BEYOND * end)
    for y, (row, error, loss) in enumerate(zip(rows, errors, losses, strict=True)):
        more = loss.value - error.value
        if more > 0:
            axes.barh(y, min(more, limit - error.value), BAR, left=error.value, color=_families(rows)[row.family], alpha=0.22)
        beyond = "" if abs(more) < 0.005 * error.value else f" of {number(loss.value)}{' →' if loss.value > limit else ''}"
        _say_beside(axes, min(max(_end(error), error.value + more), limit), y, f"{number(error.value)}{beyond}")
    label = "final training loss per token: squared error, and in a pale tint\nwhat the arm adds to it: penalties, further terms"
    _bar_axis(axes, 1.24 * limit, f"{label} ({_intervals_of(rows)})")
    _row_axis(axes, rows)
    style.panel_title(axes, "a", _lowest_statement(rows, errors), TITLE_CHARACTERS)


def _lowest_statement(rows: Sequence[Row], means: Sequence[Mean]) -> str:
    known = sorted((mean.value, index) for index, mean in enumerate(means))
    best = number(known[0][0])
    lowest = [rows[index] for value, index in known if number(value) == best]
    if len(lowest) > 1:
        names = f"{len(lowest)} arms" if len(lowest) > 2 else " and ".join(plain(row.name, NAME) for row in lowest)
        return f"{names} end with the lowest squared error ({best})"
    name = plain(lowest[0].name, NAME)
    if len(known) == 1:
        return f"{name} ends with a squared error of {best}"
    other = rows[known[1][1]]
    following = {"no difference": f"no difference from {plain(other.name, NAME)}", ONE_SEED: "one seed, no test"}
    verdict = following.get(_verdict(lowest[0], other), f"{plain(other.name, NAME)} is next")
    return f"{name} ends with the lowest squared error ({best}); {verdict}"


def _verdict(first: Row, second: Row) -> str:
    theirs = {run.seed: run.mse_loss for run in second.runs}
    pairs = [run.mse_loss - theirs[run.seed] for run in first.runs if run.seed in theirs]
    return difference_of(pairs).verdict if pairs else ONE_SEED


def _draw_sparsity(axes: Axes, rows: Sequence[Row]) -> None:
    means = [row.mean("l0") for row in rows]
    end = _draw_bars(axes, rows, means)
    for y, mean in enumerate(means):
        _say_beside(axes, _end(mean), y, number(mean.value))
    _bar_axis(axes, 1.16 * end, "L0: codes in use per token, held-out documents")
    _row_axis(axes, rows, named=False)
    style.panel_title(axes, "b", _sparsity_statement(rows, means), TITLE_CHARACTERS)


def _sparsity_statement(rows: Sequence[Row], means: Sequence[Mean]) -> str:
    known = sorted((mean.value, index) for index, mean in enumerate(means))
    (low, least), (high, most) = known[0], known[-1]
    share = high / rows[most].runs[0].features
    if low > 0 and high / low <= 1 + EQUAL:
        return f"All arms use as many codes: {number(low)} to {number(high)} per token, at most {percent(share)} of the dictionary"
    names = f"{number(low)} ({plain(rows[least].name, NAME)}) to {number(high)} ({plain(rows[most].name, NAME)})"
    return f"L0 runs from {names}: errors in a are not all at equal sparsity"


# c


def pattern(row: Row) -> Float[np.ndarray, " P"]:
    """Held-out loss by position, mean over seeds, as a multiple of its median over positions (but for 0, where that is one of sinks)."""
    curve = np.stack([style.array(run.position_loss) for run in row.runs]).mean(0)
    beyond = curve[style.first() :]
    known = beyond[np.isfinite(beyond)]
    middle = float(np.median(known)) if len(known) else np.nan
    return curve / middle if middle > 0 else np.full(len(curve), np.nan)


def _draw_patterns(axes: Axes, rows: Sequence[Row]) -> None:
    values = np.stack([pattern(row) for row in rows])
    positions = values.shape[1]
    if not np.isfinite(values[:, style.first() :]).any():
        style.empty_panel(axes, "c", "Loss by position and run", TITLE_CHARACTERS, "no run of these activations was evaluated by position")
        return
    zero, starts = steps.has_zero(values), drawn_starts(positions, BINS)
    drawn, edges = style.blocks(values, starts, 1), np.append(starts, positions) - 0.5
    norm = style.colour_norm(style.limits(drawn[:, style.first() :]))
    assert norm is not None, "something beyond position 0 is known"
    if not zero:
        drawn, edges = drawn[:, 1:], edges[1:]
    mesh = style.heatmap(axes, edges, np.arange(len(rows) + 1) - 0.5, drawn, norm)
    style.position_axis(axes, "x", positions, zero)
    _row_axis(axes, rows)
    style.colour_bar(mesh, axes, drawn, "held-out loss / the run's median")
    style.panel_title(axes, "c", _pattern_statement(values), TITLE_CHARACTERS)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _pattern_statement(values: Float[np.ndarray, "R P"]) -> str:
    """Which band of positions is furthest from the median; single ones would be the noise of few documents."""
    ranges = octaves(values.shape[1], style.first())
    levels = np.array([[_median(row[first:last]) for first, last in ranges] for row in values])
    typical = np.array([level if np.isfinite(level := _median(band)) else 1.0 for band in levels.T])
    furthest = int(np.abs(np.log(np.maximum(typical, 1e-9))).argmax())
    first, last = ranges[furthest]
    known = levels[np.isfinite(levels[:, furthest]), furthest]
    if 1 / steps.EVEN < typical[furthest] < steps.EVEN:
        return f"Loss is even over positions: in the typical arm no band is {percent(steps.EVEN - 1)} off the median"
    verb = f"{'is' if last == first + 1 else 'are'} {'hardest' if typical[furthest] > 1 else 'easiest'}"
    spread = f", {number(known.min())} to {number(known.max())} in single arms" if len(known) > 1 else ""
    return f"{capital(steps.band_name(first, last))} {verb}: {number(typical[furthest])}{SPACE}× the median loss{spread}"


# d


def weight_curves(rows: Sequence[Row], weights: Mapping[tuple[str, int], Float[np.ndarray, " P"]]) -> list[steps.Curve]:
    """Weights of each arm that has them, mean over seeds; arms that weigh alike share one curve."""
    found: list[tuple[list[str], steps.Curve]] = []
    for row in rows:
        seeds = [style.array(weights[row.name, run.seed]) for run in row.runs if (row.name, run.seed) in weights]
        if not seeds or not np.isfinite(np.stack(seeds)[:, style.first() :]).any():
            continue
        curve = steps.over_seeds(row.name, np.stack(seeds))
        for names, other in found:
            if np.nanmax(np.abs(other.value - curve.value)) < ALIKE:
                names.append(row.name)
                break
        else:
            found.append(([row.name], curve))
    return [curve._replace(label=_alike(names)) for names, curve in found]


def _alike(names: Sequence[str]) -> str:
    return plain(names[0], NAME) if len(names) == 1 else f"{plain(', '.join(names), NAME + 14)} (alike)"


def _draw_weights(axes: Axes, rows: Sequence[Row], weights: Mapping[tuple[str, int], Float[np.ndarray, " P"]]) -> None:
    curves = weight_curves(rows, weights)
    if not curves:
        missing = "no arm of these activations weighs positions by how hard they are (position_weights)"
        style.empty_panel(axes, "d", "Adaptive weights by position", TITLE_CHARACTERS, missing)
        return
    shown = sorted(curves, key=_spread, reverse=True)[:LINES]
    for order, curve in enumerate(shown):
        look = style.look(order)
        steps.draw_curve(axes, curve, color=look.colour, linestyle=look.dash, linewidth=1.4)
        if style.first() == 1 and np.isfinite(curve.value[0]):
            axes.plot([0], curve.value[:1], color=look.colour, clip_on=False, **style.ZERO)
    beyond = np.concatenate([curve.value[style.first() :] for curve in shown])
    low, high = min(float(np.nanmin(beyond)), 1.0), max(float(np.nanmax(beyond)), 1.0)
    axes.set_ylim(low - 0.06 * (high - low), high + (0.1 + 0.09 * len(shown)) * (high - low))  # position 0 does not set it; room for names
    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    style.position_axis(axes, "x", max(len(curve.value) for curve in shown), any(steps.has_zero(curve.value) for curve in shown))
    axes.set_ylabel("weight at the end of training (mean 1)")
    if any(curve.low is not None for curve in shown):
        axes.set_xlabel(f"{axes.get_xlabel()}; bands: 95{SPACE}% interval over seeds, of two both")
    style.open_grid(axes)
    axes.legend(loc="upper right", borderaxespad=0.2)
    style.panel_title(axes, "d", _weights_statement(shown[0], len(curves) - len(shown)), TITLE_CHARACTERS)


def _spread(curve: steps.Curve) -> float:
    return float(np.ptp(curve.value[style.first() :][np.isfinite(curve.value[style.first() :])]))


def _weights_statement(curve: steps.Curve, left_out: int) -> str:
    first = style.first()
    least, most = (first + int(of(curve.value[first:])) for of in (np.nanargmin, np.nanargmax))
    found = f"Weights run from {number(curve.value[least])} ({style.called(least)}) to {number(curve.value[most])} ({style.called(most)})"
    return f"{found}, {plain(curve.label, NAME)}" + (f"; {left_out} flatter ones are not drawn" if left_out else "")
