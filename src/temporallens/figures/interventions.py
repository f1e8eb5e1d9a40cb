"""Is position used? What the model loses when features tied to position, or the means of positions, are taken away, beside controls.

Drawn from the `interventions` measures of dictionaries; arms at their first seed. Bars are 95 % intervals over documents.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from temporallens.evaluation.interventions.section import MATCHED, MEANS, TURNED, Intervention, InterventionMeasures
from temporallens.evaluation.statistics import Estimate
from temporallens.figures import style
from temporallens.wording import plain

HEIGHT = 5.0
MOST_ARMS = 5
NAME = 34
NAMES = {"found": "what position says", TURNED: "turned into other directions", MATCHED: "others alike"}
NOTHING = "no run of these activations was measured for what the model uses (evaluation.interventions)"
LEAST = 1e-7
"""Below, a logarithmic axis shows nothing."""


class Arm(NamedTuple):
    """One arm: what each of its seeds measured."""

    name: str
    seeds: list[InterventionMeasures]


def draw_interventions(arms: Sequence[Arm], title: str = "") -> Figure:
    """(a) what every change costs beside its controls; (b) the same of the means of positions by index."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        shown = arms[:MOST_ARMS]
        if not shown:
            style.empty_panels((left, right), "ab", ("What changes cost", "By index"), 60, NOTHING)
            return figure
        changes = [
            (f"{plain(arm.name, NAME)}: features" if one.name != MEANS else MEANS, one)
            for arm in shown
            for one in arm.seeds[0].interventions
        ]
        changes = [
            *(change for change in changes if change[1].name != MEANS),
            next(change for change in changes if change[1].name == MEANS),
        ]
        unit = "KL, nats a token" if shown[0].seeds[0].loss == "cross-entropy" else "share of the hidden states' variance"
        _draw_changes(left, changes, unit)
        _draw_by_index(right, changes[-1][1], unit)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="one seed; bars: 95 % over documents")
    return figure


def _draw_changes(axes: Axes, changes: Sequence[tuple[str, Intervention]], unit: str) -> None:
    for order, (what, name) in enumerate(NAMES.items()):
        look = style.look(order)
        axes.plot([], [], color=look.colour, marker=look.marker, linestyle="none", label=name)
        for row, (_, one) in enumerate(changes):
            effect = one.found if what == "found" else one.controls.get(what)
            if effect is not None:
                _point(axes, effect.kl, row + 0.22 * (order - 1), look)
    axes.set_yticks(range(len(changes)), [f"{name}\n{100 * one.found.removed:.2f} % of the variance" for name, one in changes])
    axes.set_ylim(len(changes) - 0.5, -0.5)
    style.plain_log_axis(axes, "x")
    axes.set_xlabel(f"{unit} (log scale)")
    style.open_grid(axes, "x")
    style.panel_title(axes, "a", "what each change costs", 60)


def _point(axes: Axes, estimate: Estimate, y: float, look: style.Look) -> None:
    if estimate.value is None or estimate.value <= LEAST:
        return
    if estimate.low is not None and estimate.high is not None:
        style.interval(axes, [max(estimate.low, LEAST), estimate.high], [y, y], look.colour)
    axes.plot([estimate.value], [y], color=look.colour, marker=look.marker, markersize=6)


def _draw_by_index(axes: Axes, means: Intervention, unit: str) -> None:
    places = [(one.first * (one.last + 1)) ** 0.5 for one in means.bins]
    for order, what in enumerate(NAMES):
        look = style.look(order)
        values = [one.found if what == "found" else one.controls[what] for one in means.bins]
        known = [(place, value) for place, value in zip(places, values, strict=True) if value.value is not None and value.value > LEAST]
        axes.plot([place for place, _ in known], [value.value or 0.0 for _, value in known], color=look.colour, linestyle=look.dash)
        for place, value in known:
            if value.low is not None and value.high is not None:
                style.interval(axes, [place, place], [max(value.low, LEAST), value.high], look.colour)
            axes.plot([place], [value.value or 0.0], color=look.colour, marker=look.marker, markersize=5)
    axes.set_xscale("log")
    axes.set_xlim(0.9 * means.bins[0].first, 1.1 * means.bins[-1].last)
    style.plain_log_axis(axes, "y")
    style.ticks_at(axes.xaxis, [one.first for one in means.bins])
    axes.set_xlabel("index in the row (log scale)")
    axes.set_ylabel(f"{unit} (log scale)")
    style.open_grid(axes)
    style.panel_title(axes, "b", "means of positions, by index", 60)
