"""One training run by position (lab notes, Run 4): the loss over the steps, the loss at the end, and the position weights.

Drawn from the columns of a run's history file. Position 0 is drawn on a place of its own where the history knows it, and named
where it was left out.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from temporallens.evaluation.bins import log_spaced
from temporallens.figures import style
from temporallens.figures.steps import (
    ELSEWHERE,
    EVEN,
    ByPosition,
    Curve,
    Followed,
    History,
    absent,
    column,
    draw_evolution,
    draw_final,
    has_zero,
    held_out_curve,
    known_weights,
    samples,
    standing_out,
    step_axis,
    training_curve,
)
from temporallens.wording import capital, minus, number, percent

LOSS = Followed("squared error per token", "loss", "Loss by position over training", "Final loss over the sequence")
HEIGHT = 7.4
LINES = 24
WIDE, NARROW = 110, 58
"""Characters in the title of a panel as wide as the figure, and of one half as wide."""


def draw_position_analysis(history: History, title: str = "", held_out: ByPosition | None = None, first_fve: float | None = None) -> Figure:
    """Three panels of one run; `held_out` is the loss by position on held-out documents in the history's units, [P] or, of several
    seeds, [S, P]; `first_fve` the variance explained at index 0, where that is left out of everything else."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        panels = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        steps = style.array(history["step"])
        loss, count = column(history, "position_loss"), column(history, "position_count")
        missing = absent(history, f"the {LOSS.name} by position")
        draw_evolution(figure.add_subplot(panels[0, :]), steps, loss, LOSS, _evolution_statement, WIDE, missing)
        final = figure.add_subplot(panels[1, 0])
        known = [held_out_curve(held_out), None if loss is None else training_curve(loss, count)]
        draw_final(final, known, LOSS, _loss_axis, _final_statement, NARROW)
        if first_fve is not None:
            _name_the_first(final, first_fve)
        _draw_weights(figure.add_subplot(panels[1, 1]), steps, known_weights(history), absent(history, "the position weights"))
    return figure


# Panel 1


def _evolution_statement(steps: np.ndarray, loss: np.ndarray) -> str:
    known = [float(np.median(row[np.isfinite(row)])) for row in loss[:, style.first() :] if np.isfinite(row).any()]
    if len(known) < 2:
        return f"Loss by position at step {steps[-1]:,.0f}, the only one logged"
    first, last = known[0], known[-1]
    verb = "falls" if last < first else "rises" if last > first else "stays"
    apart = "" if has_zero(loss) or style.first() == 0 else "; index 0 is left out"
    return f"Loss {verb} from {number(first)} to {number(last)} (median over positions) in {steps[-1]:,.0f} steps{apart}"


# Panel 2


def _loss_axis(axes: Axes, curves: list[Curve]) -> bool:
    """Scale the loss to positions 1 and later; position 0 is a star, at the edge with its value beside it when it lies beyond. Whether
    there is one."""
    everything = np.concatenate([curve.value[style.first() :] for curve in curves])
    low, high = float(np.nanmin(everything)), float(np.nanmax(everything))
    if low > 0 and high / low > 20:
        bottom, top = low / 1.3, high * 2
    else:
        bottom, top = 0.0, (1.32 * high if high > 0 else 1.0)
    axes.set_ylim(bottom, top)
    if bottom > 0:
        style.plain_log_axis(axes, "y")
    for order, (curve, colour) in enumerate(zip(curves, style.COLOURS, strict=False)):
        value = curve.value[0]
        if style.first() == 0 or not np.isfinite(value):
            continue
        inside = bottom <= value <= top
        if inside:
            axes.plot([0], [value], color=colour, clip_on=False, **style.ZERO)
            continue
        edge = 0.96 if value > top else 0.04
        axes.plot([0], [edge], color=colour, transform=axes.get_xaxis_transform(), **style.ZERO)
        if order == 0:
            arrow, alignment = ("↑", "top") if value > top else ("↓", "bottom")
            how: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "center", "va": alignment}
            axes.annotate(f"{number(value)} {arrow}", (0, edge), (0, -7 if value > top else 7), fontsize=7.5, color=style.MUTED, **how)
    return any(has_zero(curve.value) for curve in curves)


def _name_the_first(axes: Axes, fve: float) -> None:
    sentence = f"index 0 is left out of training and of this panel; FVE there: {minus(number(fve))}"
    axes.set_xlabel("\n".join(line for line in (axes.get_xlabel(), sentence) if line))


def _final_statement(curves: list[Curve]) -> str:
    samples_of, found = samples(curves), standing_out(curves)
    if found is None:
        alike = " in both" if len(curves) > 1 else ""
        return f"No position stands out {' and '.join(samples_of)}: none is {percent(EVEN - 1)} off the median loss{alike}"
    times = ", ".join(f"{number(ratio)} {sample}" for ratio, sample in zip(found.times, samples_of, strict=False))
    return f"{capital(style.called(found.position))} is {'hardest' if found.high else 'easiest'}: {times} (times the median loss)"


# Panel 3


def _draw_weights(axes: Axes, steps: np.ndarray, weight: np.ndarray | None, missing: str) -> None:
    if weight is None or missing == ELSEWHERE:
        style.empty_panel(axes, "3", "Position weights over training", NARROW, missing)
        return
    known = weight[np.isfinite(weight)]
    if np.allclose(known, 1.0, atol=1e-6):
        axes.plot(steps, np.ones(len(steps)), color=style.COLOURS[0], marker="o" if len(steps) == 1 else None)
        axes.set_ylim(0, 2)
        axes.text(
            0.5, 0.57, "weights are 1 throughout: adaptive weighting is off", transform=axes.transAxes, ha="center", color=style.MUTED
        )
        statement = "Every position weighs the same"
    else:
        _weight_lines(axes, steps, weight)
        statement = _weight_statement(steps, weight)
    step_axis(axes, steps)
    axes.set_ylabel("position weight (mean 1)")
    style.open_grid(axes)
    style.panel_title(axes, "3", statement, NARROW)


def _weight_lines(axes: Axes, steps: np.ndarray, weight: np.ndarray) -> None:
    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    first = style.first()
    live = np.flatnonzero(np.isfinite(weight[:, first:]).any(0)) + first
    if len(live):
        shown = log_spaced(live, LINES)
        colours = style.position_colours(int(live[-1]))
        for position in shown:
            axes.plot(steps, weight[:, position], color=colours.to_rgba(position), linewidth=1.2)
        style.colour_bar(colours, axes, shown.astype(float), "position")
        low, high = min(np.nanmin(weight[:, live]), 1.0), max(np.nanmax(weight[:, live]), 1.0)  # position 0 does not set the scale
        axes.set_ylim(low - 0.08 * (high - low), high + 0.2 * (high - low))
    if first == 1 and np.isfinite(weight[:, 0]).any():
        axes.plot(steps, weight[:, 0], color=style.MUTED, linestyle=(0, (4, 2)), linewidth=1.2, label="position 0")
        axes.legend(loc="upper left")


def _weight_statement(steps: np.ndarray, weight: np.ndarray) -> str:
    first, last = style.first(), weight[-1]
    if not np.isfinite(last[first:]).any():
        return "Position weights over training"
    most, least = int(np.nanargmax(last[first:])) + first, int(np.nanargmin(last[first:])) + first
    weights = f"{style.called(most)} weighs most ({number(last[most])}), {style.called(least)} least ({number(last[least])})"
    return f"At step {steps[-1]:,.0f} {weights}"
