"""The frontier: FVE against L0 for every arm of a study, one panel per activations entry (method, section 4: never a single point).

Drawn from the results of a study. The height is the unexplained variance on a logarithmic axis, upside down and labelled as FVE, so
that arms near the top can be told apart. A line joins an arm's levels at the mean of its seeds; dots are single seeds, bars
Student's 95 % interval; an arm of one seed is drawn hollow.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from temporallens.evaluation.statistics import Mean, mean_of
from temporallens.figures.style import COLOURS, MARKERS, PAPER, new_figure, open_grid, panel_title, plain, say_missing, style

COLUMNS = 2
ROW_HEIGHT, LEGEND_HEIGHT = 4.6, 0.24
LEGEND_COLUMNS = 4
TITLE_CHARACTERS = 58
LEGEND = "bars: 95 % interval over seeds, dots: single seeds; hollow markers: one seed"
LEAST_UNEXPLAINED = 1e-6
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Each palette of colours again in another dash, where a study has more arms than there are colours."""


class Look(NamedTuple):
    """How one arm is drawn, in every panel alike."""

    colour: str
    marker: str
    dash: Any


class Level(NamedTuple):
    """One arm at one level: what its seeds measured."""

    l0: float
    fve: Mean
    seeds: list[tuple[float, float]]  # (L0, FVE) of each


def draw_frontier(results: Mapping[str, Any]) -> Figure:
    """FVE against L0, all arms of one activations entry in a panel."""
    runs = [run for run in results.get("runs") or [] if _drawable(run)]
    families = list(dict.fromkeys(run["family"] for run in runs))
    looks = {family: _look(place) for place, family in enumerate(families)}
    entries = list(results.get("activations") or {}) or list(dict.fromkeys(run["activations"] for run in runs))
    columns = min(COLUMNS, max(len(entries), 1))
    rows = max(1, math.ceil(len(entries) / columns))
    with style():
        figure = new_figure(ROW_HEIGHT * rows + LEGEND_HEIGHT * (3 + math.ceil(len(families) / LEGEND_COLUMNS)))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for letter, axes, entry in zip("abcdefghijklmnopqrstuvwxyz", panels, entries, strict=False):
            panel_title(axes, letter, plain(entry), TITLE_CHARACTERS * COLUMNS // columns)
            _draw_panel(axes, [run for run in runs if run["activations"] == entry], looks)
        for axes in panels[len(entries) :]:
            axes.set_axis_off()
        handles = [_handle(panels[0], family, look) for family, look in looks.items()]
        if handles:
            columns = min(LEGEND_COLUMNS, len(handles))
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.2, title=LEGEND)
    return figure


def _drawable(run: Mapping[str, Any]) -> bool:
    return all(isinstance(run.get(key), int | float) and math.isfinite(run[key]) for key in ("l0", "fve")) and run["l0"] > 0


def _look(place: int) -> Look:
    colour = place % len(COLOURS)
    return Look(COLOURS[colour], MARKERS[(colour + place // len(COLOURS)) % len(MARKERS)], DASHES[place // len(COLOURS) % len(DASHES)])


def levels_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Level]]:
    """The levels of each arm, in order of L0."""
    found: dict[str, dict[Any, list[tuple[float, float]]]] = {}
    for run in runs:
        found.setdefault(run["family"], {}).setdefault(run.get("level"), []).append((float(run["l0"]), float(run["fve"])))
    return {family: sorted((_level(seeds) for seeds in own.values()), key=lambda level: level.l0) for family, own in found.items()}


def _level(seeds: list[tuple[float, float]]) -> Level:
    return Level(sum(l0 for l0, _ in seeds) / len(seeds), mean_of([fve for _, fve in seeds]), seeds)


def _draw_panel(axes: Axes, runs: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> None:
    if not runs:
        say_missing(axes, "no arm was trained on these activations")
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
    _ticks(axes, [run["l0"] for run in runs])
    axes.set_xlabel("L0, codes in use per token (log scale)")
    axes.set_ylabel("FVE (logarithm of what is left unexplained)")
    open_grid(axes)


def _draw_level(axes: Axes, level: Level, height: float, look: Look) -> None:
    mean, face = level.fve, look.colour if level.fve.seeds > 1 else PAPER
    if mean.low is not None and mean.high is not None:
        bar: dict[str, Any] = {"linewidth": 3, "alpha": 0.35, "solid_capstyle": "butt"}
        axes.plot([level.l0] * 2, [_height(mean.low), _height(mean.high)], color=look.colour, **bar)
        axes.plot(*zip(*((l0, _height(fve)) for l0, fve in level.seeds), strict=True), ".", color=look.colour, markersize=2.5, alpha=0.7)
    axes.plot([level.l0], [height], color=look.colour, marker=look.marker, markersize=5, markerfacecolor=face, markeredgewidth=1.1)


def _height(fve: float) -> float:
    return max(1 - fve, LEAST_UNEXPLAINED)


def _ticks(axes: Axes, l0: Sequence[float]) -> None:
    """Plain numbers: L0 at round values, heights as FVE."""
    low, high = min(l0), max(l0)
    marks = [value for power in range(-2, 6) for step in (1, 2, 4, 8) if low / 1.3 <= (value := step * 2.0 ** (4 * power)) <= high * 1.3]
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    bottom, top = sorted(axes.get_ylim())
    span = top / bottom
    axes.yaxis.set_major_locator(LogLocator(10, subs=tuple(np.arange(1, 10)) if span < 12 else (1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(_as_fve))
    axes.yaxis.set_minor_locator(NullLocator())


def _as_fve(height: float, _: object = None) -> str:
    return f"{1 - height:.10f}".rstrip("0").rstrip(".").replace("-", "−") or "0"


def _handle(axes: Axes, family: str, look: Look) -> Any:
    (handle,) = axes.plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=plain(family, 40))
    return handle
