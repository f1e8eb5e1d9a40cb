"""Adaptive position weights (lab notes, Run 7): how they evolve, whether they settle, and whether they follow what is hard.

Drawn from the columns of a run's history. Weights follow the training loss of their position by construction (lab notes, Run 5); the
third panel asks whether that is what is hard on held-out documents.
"""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from temporallens.evaluation.bins import log_spaced
from temporallens.evaluation.statistics import Estimate
from temporallens.figures import style
from temporallens.figures.steps import ELSEWHERE, History, absent, draw_over_steps, known_weights, step_axis
from temporallens.wording import SPACE, capital, fixed, number, percent

CONVERGENCE, DIFFICULTY = "Convergence of the weights", "Weights and what is hard"
"""Of panels whose titles would say more, if there were data."""
HEIGHT, EMPTY_HEIGHT = 7.6, 3.2
LINES = 16
WIDE, NARROW = 110, 56
SETTLED = 0.01
"""Weights that move by less than this share in a tenth of the training are called settled."""
LAG = 10
"""Movement is measured over one in so many of the logged steps."""


def draw_position_weights(
    history: History, title: str = "", difficulty: np.ndarray | None = None, correlation: Estimate | None = None
) -> Figure:
    """Three panels of one run; `difficulty` [P] is the share of each position's variance that is left unexplained on held-out
    documents, `correlation` Spearman's over positions of the last weights with it."""
    steps, weight = style.array(history["step"]), known_weights(history)
    missing, why = "", absent(history, "the position weights")
    if why == ELSEWHERE or weight is None or not np.isfinite(weight[:, style.first() :]).any():
        missing = why
    elif np.allclose(weight[np.isfinite(weight)], 1.0, atol=1e-6):
        missing = "this run weighs every position the same: adaptive weighting is off"
    with style.ours():
        figure = style.new_figure(EMPTY_HEIGHT if missing else HEIGHT)
        style.head(figure, title)
        panels = figure.add_gridspec(2, 2, height_ratios=(1.1, 1))
        evolution, convergence, scatter = (figure.add_subplot(panels[cell]) for cell in (np.s_[0, :], np.s_[1, 0], np.s_[1, 1]))
        if weight is None or missing:
            names = ("Position weights over training", CONVERGENCE, DIFFICULTY)
            style.empty_panels((evolution, convergence, scatter), "123", names, NARROW, missing)
        else:
            _draw_evolution(evolution, steps, weight)
            _draw_convergence(convergence, steps, weight)
            known = np.empty(0) if difficulty is None else style.array(difficulty)
            _draw_difficulty(scatter, weight[-1], known, correlation)
    return figure


# Panel 1


def _draw_evolution(axes: Axes, steps: np.ndarray, weight: np.ndarray) -> None:
    draw_over_steps(axes, steps, weight, "position weight (mean 1)")
    style.panel_title(axes, "1", _evolution_statement(steps, weight), WIDE)


def _evolution_statement(steps: np.ndarray, weight: np.ndarray) -> str:
    first, last = weight[0, style.first() :], weight[-1, style.first() :]
    if len(steps) < 2 or not np.isfinite(last - first).any():
        return f"Position weights at step {steps[-1]:,.0f}"
    most = int(np.nanargmax(np.abs(last - first)))
    verb = "falls" if last[most] < first[most] else "rises"
    even = percent(float(np.mean(np.abs(last[np.isfinite(last)] - 1) < 0.1)))
    return (
        f"{capital(style.called(most + style.first()))} moves most: its weight {verb} from {number(first[most])} to {number(last[most])}; "
        f"in the end {even} of positions weigh 0.9 to 1.1"
    )


# Panel 2


def movement(weight: Float[np.ndarray, "T P"]) -> tuple[Float[np.ndarray, "L P"], int]:
    """By what share of itself each weight moved over the logged steps before; and how many steps these are."""
    lag = max(1, len(weight) // LAG)
    return np.abs(weight[lag:] - weight[:-lag]) / weight[lag:], lag


def _draw_convergence(axes: Axes, steps: np.ndarray, weight: np.ndarray) -> None:
    moved, lag = movement(weight)
    live = np.flatnonzero(np.isfinite(weight[:, style.first() :]).any(0)) + style.first()
    if not len(moved) or not (moved[:, live] > 0).any():
        style.empty_panel(axes, "2", CONVERGENCE, NARROW, "this run logged too few steps to see weights settle")
        return
    floor = max(float(moved[:, live][moved[:, live] > 0].min()), 1e-5)
    shown = log_spaced(live, LINES)
    colours = style.position_colours(int(live[-1]))
    for position in shown:
        axes.plot(steps[lag:], 100 * np.maximum(moved[:, position], floor), color=colours.to_rgba(position), linewidth=0.9, alpha=0.8)
    median = np.nanmedian(moved[:, live], 1)
    axes.plot(steps[lag:], 100 * np.maximum(median, floor), color=style.INK, linewidth=2.4, label="median over positions")
    axes.axhline(100 * SETTLED, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label=f"{percent(SETTLED)}: settled")
    style.plain_log_axis(axes, "y")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.22)  # room for the legend
    step_axis(axes, steps)
    span = steps[-1] - steps[-1 - lag]
    axes.set_ylabel(f"movement in {span:,.0f} steps, % (log scale)")
    style.open_grid(axes)
    axes.legend(loc="upper right", ncols=2, borderaxespad=0.2)
    style.colour_bar(colours, axes, shown.astype(float), "position")
    style.panel_title(axes, "2", _convergence_statement(moved[-1, style.first() :], float(median[-1]), span), NARROW)


def _convergence_statement(last: np.ndarray, median: float, span: float) -> str:
    fastest = int(np.nanargmax(last))
    settled = "Most weights have settled" if median < SETTLED else "Weights still move"
    most = f"{style.called(fastest + style.first())} still moves by {percent(last[fastest])}"
    return f"{settled}: by {percent(median)} (median) in the last {span:,.0f} steps; {most}"


# Panel 3


def _draw_difficulty(axes: Axes, weight: np.ndarray, difficulty: np.ndarray, correlation: Estimate | None) -> None:
    difficulty = difficulty if len(difficulty) == len(weight) else np.full(len(weight), np.nan)
    first = style.first()
    known = np.flatnonzero(np.isfinite(weight[first:]) & np.isfinite(difficulty[first:])) + first
    if len(known) < 3:
        unknown = "this run was not evaluated by position: what is hard on held-out documents is not known"
        style.empty_panel(axes, "3", DIFFICULTY, NARROW, unknown)
        return
    colours = style.position_colours(int(known[-1]))
    axes.scatter(100 * difficulty[known], weight[known], c=colours.to_rgba(known), s=22, edgecolors=style.INK, linewidths=0.3)
    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    extremes = {first, known[np.argmax(weight[known])], known[np.argmin(weight[known])], known[np.argmax(difficulty[known])]}
    for position in sorted(extremes & set(known)):
        point = (100 * difficulty[position], weight[position])
        axes.annotate(f"{position:,}", point, (5, 3), textcoords="offset points", fontsize=7.5, color=style.MUTED)
    axes.margins(0.08)
    axes.set_xlabel("variance left unexplained at the position, %, held-out documents")
    axes.set_ylabel("weight at the end of training (mean 1)")
    style.open_grid(axes)
    style.colour_bar(colours, axes, known.astype(float), "position")
    style.panel_title(axes, "3", _correlation_statement(correlation), NARROW)


def _correlation_statement(correlation: Estimate | None) -> str:
    if correlation is None or correlation.value is None:
        return "Weights against what is hard; their correlation is not known"
    value = f"Spearman {fixed(correlation.value, 2)}"
    if correlation.low is None or correlation.high is None:
        return f"Weights against what is hard: {value} over {correlation.n:,} positions, no interval"
    found = "Weights follow" if correlation.low > 0 else "Weights run against" if correlation.high < 0 else "Weights do not go with"
    interval = f"95{SPACE}% interval {fixed(correlation.low, 2)} to {fixed(correlation.high, 2)}"
    return f"{found} what is hard: {value} ({interval}, {correlation.n:,} positions)"
