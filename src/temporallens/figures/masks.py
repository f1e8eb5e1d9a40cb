"""Where each feature may fire: the mask of one run before and after it hardened (lab notes, Run 2), or those of two networks side by
side, one whose positions carry roles, one language model.

Drawn from the gates of trained masks (`Dictionary.gates_by_position`); beside them stands their openness by position, and what is
known of how they came about and what they bought. Features are sorted by the middle of where they are open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from temporallens.figures import style
from temporallens.figures.steps import History, step_axis
from temporallens.wording import SPACE, number, percent, plain

HEIGHT = 6.4
ROWS = 700
"""Features of one mask drawn one below the other at most; of more, neighbours in the order are averaged."""
UNDECIDED = (0.1, 0.9)
"""A gate between these is neither open nor closed."""
ALIKE = 0.05
"""Shares of open features that differ by no more are called much alike."""
NO_SOFT = "this run did not keep its mask as it was before it hardened"
PAIR_HEIGHT, PAIR_CHARACTERS = 8.2, 56
TITLE = "Where each feature may fire: a network whose positions carry roles, and a language model"
TITLE_CHARACTERS = 60
BRACKET, NAME, NAME_LOWER = -0.052, -0.06, -0.09
"""Where fields are marked below the axis, in heights of the mask; names of short fields take turns in two lines."""
SHORT = 3


@dataclass(frozen=True)
class Case:
    """One network's mask, and what it bought."""

    name: str
    """The network and the layer."""
    gates: Float[np.ndarray, "P F"]
    """How open each feature is at each position, 0 to 1; position 0 is not drawn."""
    unexplained: float
    """Share of the held-out variance that the masked dictionary leaves unexplained."""
    unmasked: float
    """The same of the dictionary without masks that it is compared with, at the same L0."""
    comparison: str
    """What that dictionary is, and at which L0."""
    live: Bool[np.ndarray, " F"] | None = None
    """Features that fire on held-out documents; the others are not drawn. None: all."""
    example: str | None = None
    """A record whose characters stand along the axis; None: positions, by their logarithm."""
    fields: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Columns of the record's fields; those of one run are marked."""


def draw_masks(
    after: Float[np.ndarray, "P F"] | None,
    before: Float[np.ndarray, "P F"] | None = None,
    history: History | None = None,
    title: str = "",
    missing: str = NO_SOFT,
) -> Figure:
    """One run's mask: `after` as it ended, `before` as it was when it hardened (`missing` says why there is none); None: no mask."""
    with style.ours():
        figure = style.new_figure(PAIR_HEIGHT)
        style.head(figure, title)
        panels = figure.add_gridspec(2, 2, height_ratios=(1, 1.9))
        openness, evolution, left, right = (figure.add_subplot(panels[cell]) for cell in ((0, 0), (0, 1), (1, 0), (1, 1)))
        _draw_both(openness, after, before)
        _draw_annealing(evolution, history or {}, after is not None)
        order = None if after is None else _order(after[style.first() :])
        drawn = [
            _draw_one(left, before, order, "c", _before_statement(before), missing),
            _draw_one(right, after, order, "d", _after_statement(after, before), "this run's dictionary has no mask"),
        ]
        shown = [axes for axes, mesh in zip((left, right), drawn, strict=True) if mesh is not None]
        if shown:
            mesh = next(mesh for mesh in drawn if mesh is not None)
            style.colour_bar(mesh, shown, np.empty(0), "gate (0 closed, 1 open)")
    return figure


def _draw_both(axes: Axes, after: np.ndarray | None, before: np.ndarray | None) -> None:
    if after is None:
        style.empty_panel(axes, "a", "Openness by position", PAIR_CHARACTERS, "this run's dictionary has no mask")
        return
    first = style.first()
    known = [("before hardening", before, style.COLOURS[1], (0, (4, 2))), ("as trained", after, style.COLOURS[0], "-")]
    alone = "o" if len(after) == first + 1 else None  # a line of one point is not seen
    for label, gates, colour, dash in known:
        if gates is not None:
            axes.plot(np.arange(first, len(gates)), gates[first:].mean(1), color=colour, linestyle=dash, marker=alone, label=label)
    _share_axis(axes, "features open\n(mean gate)")
    style.position_axis(axes, "x", len(after), zero=first == 0)
    mean = after[first:].mean(1)
    axes.legend(loc="lower right" if mean.mean() > 0.5 else "upper right", borderaxespad=0.2)
    low, high = float(mean.min()), float(mean.max())
    least = f"{percent(float(mean.mean()))} of the mask is open; least at {style.called(int(mean.argmin()) + first)}: {percent(low)}"
    alike = f"{percent(low)} to {percent(high)} of the mask is open, much alike at every position"
    style.panel_title(axes, "a", least if high - low > ALIKE else alike, PAIR_CHARACTERS)


def _share_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(0, 1.05)
    style.ticks_at(axes.yaxis, [0, 0.25, 0.5, 0.75, 1], percent)
    axes.set_ylabel(label)
    style.open_grid(axes)


def _draw_annealing(axes: Axes, history: History, masked: bool) -> None:
    if not masked or not {"step", "openness", "temperature"} <= history.keys():
        style.empty_panel(axes, "b", "Openness over training", PAIR_CHARACTERS, "this run's history does not hold the openness of a mask")
        return
    steps, openness, temperature = (style.array(history[name]) for name in ("step", "openness", "temperature"))
    axes.plot(steps, openness, color=style.COLOURS[0])
    _share_axis(axes, "mean gate")
    step_axis(axes, steps)
    hard = np.flatnonzero((temperature == 0) & (np.arange(len(steps)) > 0))
    annealed = temperature[temperature > 0]
    cooled = f", temperature {number(annealed[0])} to {number(annealed[-1])}" if len(annealed) else ""
    if len(hard):
        axes.axvline(steps[hard[0] - 1], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        where: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "right"}
        axes.annotate("hardens", (steps[hard[0] - 1], 0.06), (-4, 0), fontsize=7.5, color=style.MUTED, **where)
    statement = f"Openness goes from {percent(float(openness[0]))} to {percent(float(openness[-1]))} in {steps[-1]:,.0f} steps{cooled}"
    style.panel_title(axes, "b", statement, PAIR_CHARACTERS)


def _draw_one(
    axes: Axes, gates: np.ndarray | None, order: np.ndarray | None, letter: str, statement: str, missing: str
) -> ScalarMappable | None:
    style.panel_title(axes, letter, statement, PAIR_CHARACTERS)
    if gates is None or order is None:
        style.say_missing(axes, missing)
        return None
    first = style.first()
    ordered = gates[first:, order]
    rows = np.unique(np.linspace(0, len(order), min(ROWS, len(order)), endpoint=False).astype(int))
    edges = np.append(rows, len(order))
    mesh = style.heatmap(axes, np.arange(first, len(gates) + 1) - 0.5, edges, style.blocks(ordered, rows, 1).T, Normalize(0, 1))
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(FixedLocator([1, len(order)]))
    axes.set_ylabel("features, by the middle of where they end open", labelpad=-12)
    style.position_axis(axes, "x", len(gates), zero=first == 0)
    return mesh


def _undecided(gates: np.ndarray) -> str:
    low, high = UNDECIDED
    own = gates[style.first() :]
    share = float(((own > low) & (own < high)).mean())
    return f"{percent(share)} of the gates are undecided ({low:g} to {high:g})"


def _before_statement(before: np.ndarray | None) -> str:
    return "Before hardening" if before is None else f"Before hardening {_undecided(before)}"


def _after_statement(after: np.ndarray | None, before: np.ndarray | None) -> str:
    if after is None:
        return "The mask as trained"
    first = style.first()
    limited = f"{percent(float((after[first:].min(0) < UNDECIDED[0]).mean()))} of features are closed somewhere"
    if before is None:
        hard = bool(np.isin(after[first:], (0.0, 1.0)).all())
        return f"As trained, {limited}" if hard else f"As trained, {_undecided(after)}; {limited}"
    changed = float(((before[first:] >= 0.5) != (after[first:] >= 0.5)).mean())
    return f"As trained, {limited}; hardening took {percent(changed)} of the gates across one half"


def draw_two_cases(records: Case, language: Case) -> Figure:
    """The masks of two networks, features by positions."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        figure.suptitle(TITLE, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
        panels = figure.add_gridspec(2, 2, height_ratios=(1, 5), width_ratios=(1.25, 1))
        masks = [figure.add_subplot(panels[1, column]) for column in range(2)]
        for column, (letter, case) in enumerate(zip("ab", (records, language), strict=True)):
            strip = figure.add_subplot(panels[0, column])
            gates = sorted_gates(case)
            _draw_openness(strip, gates, letter, case)
            drawn = _draw_mask(masks[column], gates)
            for axes in (strip, masks[column]):
                _axis(axes, case, labelled=axes is masks[column])
        style.colour_bar(drawn, masks, np.empty(0), "gate (0 closed, 1 open)")
    return figure


def sorted_gates(case: Case) -> Float[np.ndarray, "P L"]:
    """Gates of live features at positions 1 and later, in order."""
    gates = case.gates[1:] if case.live is None else case.gates[1:, case.live]
    return gates[:, _order(gates)]


def _order(gates: Float[np.ndarray, "P F"]) -> Int[np.ndarray, " F"]:
    """By the middle of where each feature is open (as many open positions before it as after it); of those with the same middle, the
    least open first."""
    total = gates.sum(0)
    middle = (gates.cumsum(0) >= total / 2).argmax(0)
    return np.lexsort((total, np.where(total > 0, middle, len(gates))))


def _draw_openness(axes: Axes, gates: Float[np.ndarray, "P L"], letter: str, case: Case) -> None:
    openness = gates.mean(1)
    axes.plot(np.arange(1, len(gates) + 1), openness, color=style.COLOURS[0], marker="o" if len(gates) <= 64 else None, markersize=2.5)
    axes.set_ylim(0, 1.05)
    style.ticks_at(axes.yaxis, [0, 0.5, 1], percent)
    axes.set_ylabel("features\nopen")
    style.open_grid(axes)
    statement = f"{plain(case.name)}: {percent(float(openness.mean()))} of the mask is open"
    style.panel_title(axes, letter, f"{statement}. {effect(case)}", TITLE_CHARACTERS)


def effect(case: Case) -> str:
    """What the mask bought, as a sentence."""
    change = case.unexplained / case.unmasked - 1
    than = f"{number(100 * case.unexplained)}{SPACE}% against {number(100 * case.unmasked)}{SPACE}%"
    found = "as much" if abs(change) < 0.005 else f"{percent(abs(change))} {'less' if change < 0 else 'more'}"
    return f"It leaves {found} variance unexplained{' as' if found == 'as much' else ' than'} {plain(case.comparison)} ({than})"


def _draw_mask(axes: Axes, gates: Float[np.ndarray, "P L"]) -> ScalarMappable:
    positions, features = gates.shape
    mesh = style.heatmap(axes, np.arange(positions + 1) + 0.5, np.arange(features + 1), gates.T, Normalize(0, 1))
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(FixedLocator([1, features]))
    axes.set_ylabel("features, by the middle of where they are open", labelpad=-12)
    return mesh


def _axis(axes: Axes, case: Case, *, labelled: bool) -> None:
    positions = len(case.gates)
    if case.example is None:
        style.position_axis(axes, "x", positions, zero=False, label="position in the row")
    else:
        axes.set_xlim(0.5, positions - 0.5)
        axes.xaxis.set_major_locator(FixedLocator(range(1, positions)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(list(case.example[1:positions]), family="DejaVu Sans Mono", color=style.INK)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("column of the record (an example's characters)", labelpad=30)
    if not labelled:
        axes.set_xlabel("")
        axes.set_xticklabels([])
    elif case.example is not None:
        _mark_fields(axes, case.fields)


def _mark_fields(axes: Axes, fields: Mapping[str, tuple[int, ...]]) -> None:
    """Brackets below the characters of each field that is one run of columns."""
    below = axes.get_xaxis_transform()
    runs = {name: columns for name, columns in fields.items() if columns[-1] - columns[0] == len(columns) - 1}
    for turn, (name, columns) in enumerate(sorted(runs.items(), key=lambda entry: entry[1])):
        axes.plot([columns[0] - 0.35, columns[-1] + 0.35], [BRACKET] * 2, transform=below, color=style.MUTED, linewidth=1.2, clip_on=False)
        height = NAME_LOWER if len(columns) <= SHORT and turn % 2 else NAME
        axes.text(float(np.mean(columns)), height, name, transform=below, ha="center", va="top", fontsize=7.5, color=style.MUTED)
