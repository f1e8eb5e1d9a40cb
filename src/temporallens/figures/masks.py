"""Where each feature may fire, in two networks side by side: one whose positions carry roles, one language model.

Drawn from the gates of two trained masks (`Dictionary.gates_by_position`), what the masks bought at equal L0, and, for the records,
the known layout. Above each mask stands its openness by position; features are sorted by the middle of where they are open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from temporallens.figures.style import (
    COLOURS,
    INK,
    MUTED,
    SPACE,
    colour_bar,
    heatmap,
    new_figure,
    number,
    open_grid,
    panel_title,
    percent,
    plain,
    position_axis,
    style,
)

HEIGHT = 6.4
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


def draw_two_cases(records: Case, language: Case) -> Figure:
    """The masks of two networks, features by positions."""
    with style():
        figure = new_figure(HEIGHT)
        figure.suptitle(TITLE, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
        panels = figure.add_gridspec(2, 2, height_ratios=(1, 5), width_ratios=(1.25, 1))
        masks = [figure.add_subplot(panels[1, place]) for place in range(2)]
        for place, (letter, case) in enumerate(zip("ab", (records, language), strict=True)):
            strip = figure.add_subplot(panels[0, place])
            gates = sorted_gates(case)
            _draw_openness(strip, gates, letter, case)
            drawn = _draw_mask(masks[place], gates)
            for axes in (strip, masks[place]):
                _axis(axes, case, labelled=axes is masks[place])
        colour_bar(drawn, masks, np.empty(0), "gate (0 closed, 1 open)")
    return figure


def sorted_gates(case: Case) -> Float[np.ndarray, "P L"]:
    """Gates of live features at positions 1 and later, in the order of the middle of where each is open (as many open positions
    before it as after it); of those with the same middle, the least open first."""
    gates = case.gates[1:] if case.live is None else case.gates[1:, case.live]
    total = gates.sum(0)
    middle = (gates.cumsum(0) >= total / 2).argmax(0)
    return gates[:, np.lexsort((total, np.where(total > 0, middle, len(gates))))]


def _draw_openness(axes: Axes, gates: Float[np.ndarray, "P L"], letter: str, case: Case) -> None:
    openness = gates.mean(1)
    axes.plot(np.arange(1, len(gates) + 1), openness, color=COLOURS[0], marker="o" if len(gates) <= 64 else None, markersize=2.5)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_ylabel("features\nopen")
    open_grid(axes)
    statement = f"{plain(case.name)}: {percent(float(openness.mean()))} of the mask is open"
    panel_title(axes, letter, f"{statement}. {effect(case)}", TITLE_CHARACTERS)


def effect(case: Case) -> str:
    """What the mask bought, as a sentence."""
    change = case.unexplained / case.unmasked - 1
    than = f"{number(100 * case.unexplained)}{SPACE}% against {number(100 * case.unmasked)}{SPACE}%"
    found = "as much" if abs(change) < 0.005 else f"{percent(abs(change))} {'less' if change < 0 else 'more'}"
    return f"It leaves {found} variance unexplained{' as' if found == 'as much' else ' than'} {plain(case.comparison)} ({than})"


def _draw_mask(axes: Axes, gates: Float[np.ndarray, "P L"]) -> ScalarMappable:
    positions, features = gates.shape
    mesh = heatmap(axes, np.arange(positions + 1) + 0.5, np.arange(features + 1), gates.T, Normalize(0, 1))
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(FixedLocator([1, features]))
    axes.set_ylabel("features, by the middle of where they are open", labelpad=-12)
    return mesh


def _axis(axes: Axes, case: Case, *, labelled: bool) -> None:
    positions = len(case.gates)
    if case.example is None:
        position_axis(axes, "x", positions, zero=False, label="position in the row")
    else:
        axes.set_xlim(0.5, positions - 0.5)
        axes.xaxis.set_major_locator(FixedLocator(range(1, positions)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(list(case.example[1:positions]), family="DejaVu Sans Mono", color=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("column of the record (an example's characters)", labelpad=30)
    if not labelled:
        axes.set_xlabel("")
        axes.set_xticklabels([])
    elif case.example is not None:
        _mark_fields(axes, case.fields)


def _mark_fields(axes: Axes, fields: Mapping[str, tuple[int, ...]]) -> None:
    """Brackets below the characters of each field that is one run of columns."""
    place = axes.get_xaxis_transform()
    runs = {name: columns for name, columns in fields.items() if columns[-1] - columns[0] == len(columns) - 1}
    for turn, (name, columns) in enumerate(sorted(runs.items(), key=lambda entry: entry[1])):
        axes.plot([columns[0] - 0.35, columns[-1] + 0.35], [BRACKET] * 2, transform=place, color=MUTED, linewidth=1.2, clip_on=False)
        height = NAME_LOWER if len(columns) <= SHORT and turn % 2 else NAME
        axes.text(float(np.mean(columns)), height, name, transform=place, ha="center", va="top", fontsize=7.5, color=MUTED)
