"""Sparsity by position (lab notes, Run 8): codes in use over training and at its end, and which features fire where.

Drawn from the columns of a run's history and from the firing rates `r_f(p)` of its dictionary on held-out documents
(`docs/method.md`, "Metrics"). Features are put in order by one half of the documents and drawn from the other, because an order by
peaks would find a diagonal in pure noise.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from temporallens.evaluation.bins import drawn_starts
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
    samples,
    standing_out,
    training_curve,
)
from temporallens.wording import capital, number, percent

L0 = Followed("codes in use per token", "L0", "Sparsity by position over training", "Final sparsity over positions")
HEIGHT = 8.0
BINS = 24
"""Of positions, in the heatmap of features, where there are more positions than twice this: rates of single ones are noise."""
ROWS = 500
"""Features drawn one below the other at most; of more, neighbours in the order are averaged."""
LEAST_FIRINGS = 200
"""A feature that fires less often on all held-out documents has no profile to speak of (`docs/method.md`, "Metrics")."""
LEAST_RATE, MOST_RATE = 0.25, 4.0
"""Ends of the colour scale, times the feature's mean rate."""
TITLE_CHARACTERS = 56


class Activity(NamedTuple):
    """What the features of a dictionary do by position in two halves of the held-out documents."""

    rate: Float[np.ndarray, "H P F"]  # r_f(p) in each half
    rows: Int[np.ndarray, "H P"]  # behind it
    firings: Int[np.ndarray, " F"]  # of each feature in both halves


def draw_sparsity_analysis(
    history: History, title: str = "", held_out: ByPosition | None = None, activity: Activity | None = None
) -> Figure:
    """Three panels of one run; `held_out` is the L0 by position on held-out documents."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        steps = style.array(history["step"])
        active, count = column(history, "position_l0"), column(history, "position_count")
        missing = absent(history, f"the {L0.name} by position")
        trained = missing != ELSEWHERE
        panels = figure.add_gridspec(1 + trained, 2)
        if trained:
            draw_evolution(figure.add_subplot(panels[0, 0]), steps, active, L0, _evolution_statement, TITLE_CHARACTERS, missing)
        known = [held_out_curve(held_out), None if active is None else training_curve(active, count)]
        draw_final(figure.add_subplot(panels[-1, 0]), known, L0, _l0_axis, _final_statement, TITLE_CHARACTERS, str(1 + trained))
        _draw_activity(figure.add_subplot(panels[:, 1]), activity, str(2 + trained))
    return figure


# Panel 1


def _evolution_statement(_steps: np.ndarray, active: np.ndarray) -> str:
    known = [row[np.isfinite(row)] for row in active[:, style.first() :] if np.isfinite(row).any()]
    first, last = known[0], known[-1]
    apart = "" if has_zero(active) or style.first() == 0 else "; index 0 is left out"
    return (
        f"Codes per token by position: {number(first.min())} to {number(first.max())} at first, "
        f"{number(last.min())} to {number(last.max())} at last{apart}"
    )


# Panel 2


def _l0_axis(axes: Axes, curves: list[Curve]) -> bool:
    top = max(float(np.nanmax(curve.value[style.first() :])) for curve in curves)
    axes.set_ylim(0, 1.32 * top if top > 0 else 1)  # room for the legend
    return style.first() == 0


def _final_statement(curves: list[Curve]) -> str:
    samples_of, found = samples(curves), standing_out(curves)
    if found is None:
        alike = " in both" if len(curves) > 1 else ""
        return f"No position stands out {' and '.join(samples_of)}: none is {percent(EVEN - 1)} off the median L0{alike}"
    value = number(float(curves[0].value[found.position]))
    times = ", ".join(f"{number(ratio)} {sample}" for ratio, sample in zip(found.times, samples_of, strict=False))
    return f"{capital(style.called(found.position))} uses {'most' if found.high else 'fewest'} codes, {value}: {times} (times the median)"


# Panel 3


class Ordered(NamedTuple):
    """Features in order of where they peak in one half of the documents, as the other half shows them."""

    starts: Int[np.ndarray, " B"]  # first position of each bin, position 0 left out where that is one of sinks
    relative: Float[np.ndarray, "L B"]  # rate in the bin, times the feature's mean rate
    alike: float  # share of features that peak in the same bin in both halves
    chance: float  # the same, were the halves unrelated


def order_by_peak(activity: Activity) -> Ordered | None:
    """None where no feature fires often enough."""
    positions = activity.rate.shape[1]
    starts = drawn_starts(positions, BINS)
    starts = starts[starts >= style.first()]
    rows = np.add.reduceat(activity.rows, starts, axis=1)
    fired = np.add.reduceat(activity.rate * activity.rows[:, :, None], starts, axis=1)
    chosen = (activity.firings >= LEAST_FIRINGS) & (fired.sum(1) > 0).all(0)
    if not chosen.any() or not (rows.sum(1) > 0).all():
        return None
    rate = np.where(rows[:, :, None] > 0, fired[:, :, chosen] / np.maximum(rows, 1)[:, :, None], np.nan)
    relative = rate / (fired[:, :, chosen].sum(1) / rows.sum(1)[:, None])[:, None]
    peaks = np.nan_to_num(relative).argmax(1)
    shares = [np.bincount(peak, minlength=len(starts)) / len(peak) for peak in peaks]
    order = np.lexsort((-np.nan_to_num(relative[0]).max(0), peaks[0]))
    return Ordered(starts, relative[1][:, order].T, float((peaks[0] == peaks[1]).mean()), float(shares[0] @ shares[1]))


def _draw_activity(axes: Axes, activity: Activity | None, letter: str) -> None:
    ordered = None if activity is None else order_by_peak(activity)
    if activity is None or ordered is None:
        style.panel_title(axes, letter, "Feature activity by position", TITLE_CHARACTERS)
        none = f"no feature of this run fires {LEAST_FIRINGS} times on its held-out documents"
        style.say_missing(axes, "this run's firings on held-out documents are not known" if activity is None else none)
        return
    features, positions = len(ordered.relative), activity.rate.shape[1]
    rows = np.unique(np.linspace(0, features, min(ROWS, features), endpoint=False).astype(int))
    drawn = style.blocks(ordered.relative, rows, 0)
    edges = np.append(ordered.starts, positions) - 0.5
    mesh = style.heatmap(axes, edges, np.append(rows, features), drawn, LogNorm(LEAST_RATE, MOST_RATE, clip=True))
    axes.invert_yaxis()
    style.position_axis(axes, "x", positions, zero=style.first() == 0)
    axes.yaxis.set_major_locator(FixedLocator([1, features]))
    axes.set_ylabel(f"{features:,} of {len(activity.firings):,} features, by their peak in the other half of the documents", labelpad=-8)
    style.colour_bar(mesh, axes, drawn, "firing rate, × the feature's mean rate")
    style.panel_title(axes, letter, _activity_statement(ordered), TITLE_CHARACTERS)


def _activity_statement(ordered: Ordered) -> str:
    return (
        f"{percent(ordered.alike)} of features peak at the same positions in both halves of the documents "
        f"({percent(ordered.chance)} would by chance)"
    )
