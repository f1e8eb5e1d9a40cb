"""One training run by position (lab notes, Run 4): the loss over the steps, the loss at the end, and the position weights.

Drawn from the columns of a run's history file. Position 0 is drawn on a place of its own where the history knows it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from temporallens.figures.style import (
    COLOURS,
    MAP,
    MUTED,
    SPACE,
    ZERO,
    array,
    blocks,
    colour_bar,
    colour_norm,
    heatmap,
    limits,
    log_bins,
    new_figure,
    number,
    open_grid,
    panel_title,
    percent,
    plain,
    plain_log_axis,
    position_axis,
    say_missing,
    style,
)

LOSS = "squared error per token"
HEIGHT = 7.4
COLUMNS = 400
"""Steps drawn side by side at most; of longer runs, neighbours are averaged."""
LINES = 24
WIDE, NARROW = 110, 58
"""Characters in the title of a panel as wide as the figure, and of one half as wide."""


def draw_position_analysis(history: Mapping[str, Any], title: str = "", held_out: Any = None) -> Figure:
    """Three panels of one run; `held_out` [P] is the loss by position on held-out documents, in the history's units."""
    with style():
        figure = new_figure(HEIGHT)
        if title:
            figure.suptitle(plain(title, 110), x=0.008, ha="left", fontsize=11.5, fontweight="bold")
        panels = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        steps = array(history.get("step", []))
        loss = _table(history, "position_loss", len(steps))
        _draw_evolution(figure.add_subplot(panels[0, :]), steps, loss)
        _draw_final(figure.add_subplot(panels[1, 0]), loss, _table(history, "position_count", len(steps)), held_out)
        _draw_weights(figure.add_subplot(panels[1, 1]), steps, _table(history, "position_weight", len(steps)))
    return figure


def _table(history: Mapping[str, Any], name: str, steps: int) -> np.ndarray | None:
    """Column `name` as [T, P]; None where it is missing, of another shape, or holds no number."""
    values = array(history[name]) if name in history else None
    if values is None or values.ndim != 2 or len(values) != steps or not np.isfinite(values).any():
        return None
    return values


def _has_zero(values: np.ndarray) -> bool:
    return bool(np.isfinite(values[..., 0]).any())


def _step_edges(steps: np.ndarray) -> np.ndarray:
    """A logged value covers the steps since the one logged before it."""
    stride = steps[1] - steps[0] if len(steps) > 1 else 1.0
    start = steps[0] - stride
    return np.append(max(start, 0.0) if steps[0] > 0 else start, steps)


def _step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("training step")


# Panel 1


def _draw_evolution(axes: Axes, steps: np.ndarray, loss: np.ndarray | None) -> None:
    if loss is None or not np.isfinite(loss[:, 1:]).any():
        panel_title(axes, "1", "Loss by position over training", WIDE)
        say_missing(axes, "this run's history does not hold the loss by position")
        return
    zero, positions = _has_zero(loss), loss.shape[1]
    starts, columns = log_bins(positions), np.unique(np.linspace(0, len(steps), min(COLUMNS, len(steps)), endpoint=False).astype(int))
    drawn = blocks(blocks(loss, starts, 1), columns, 0).T
    x_edges = _step_edges(steps)[np.append(columns, len(steps))]
    y_edges = np.append(starts, positions) - 0.5
    norm = colour_norm(limits(drawn[1:]))
    assert norm is not None
    if not zero:
        drawn, y_edges = drawn[1:], y_edges[1:]
    mesh = heatmap(axes, x_edges, y_edges, drawn, norm)
    position_axis(axes, "y", positions, zero)
    axes.set_xlim(x_edges[0], x_edges[-1])
    _step_axis(axes)
    colour_bar(mesh, axes, drawn, LOSS + (" (log scale)" if isinstance(norm, LogNorm) else ""))
    panel_title(axes, "1", _evolution_statement(steps, loss), WIDE)


def _evolution_statement(steps: np.ndarray, loss: np.ndarray) -> str:
    known = [float(np.median(row[np.isfinite(row)])) for row in loss[:, 1:] if np.isfinite(row).any()]
    if len(known) < 2:
        return f"Loss by position at step {steps[-1]:,.0f}, the only one logged"
    first, last = known[0], known[-1]
    verb = "falls" if last < first else "rises" if last > first else "stays"
    apart = "" if _has_zero(loss) else "; position 0 is left out"
    return f"Loss {verb} from {number(first)} to {number(last)} (median over positions) in {steps[-1]:,.0f} steps{apart}"


# Panel 2


def _final(loss: np.ndarray, count: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Mean loss by position over the last tenth of the logged steps, weighted by tokens where their number is known."""
    last = max(1, len(loss) // 10)
    values = loss[-last:]
    weight = np.isfinite(values) * (1.0 if count is None or count.shape != loss.shape else np.nan_to_num(count[-last:]))
    total = weight.sum(0)
    return np.where(total > 0, (np.nan_to_num(values) * weight).sum(0) / np.where(total > 0, total, 1), np.nan), last


def _draw_final(axes: Axes, loss: np.ndarray | None, count: np.ndarray | None, held_out: Any) -> None:
    curves: list[tuple[str, np.ndarray]] = []
    if held_out is not None and np.isfinite(array(held_out)).any():
        curves.append(("held-out documents", array(held_out)))
    if loss is not None:
        final, last = _final(loss, count)
        curves.append((f"training, mean of the last {last} logged steps" if last > 1 else "training, last logged step", final))
    curves = [(label, curve) for label, curve in curves if np.isfinite(curve[1:]).any()]
    if not curves:
        panel_title(axes, "2", "Final loss over the sequence", NARROW)
        say_missing(axes, "neither the history nor the evaluation holds the loss by position")
        return
    for (label, curve), colour, width in zip(curves, COLOURS, (1.8, 1.1), strict=False):
        sparse = np.isfinite(curve).sum() <= 12
        axes.plot(np.arange(1, len(curve)), curve[1:], color=colour, linewidth=width, label=label, marker="o" if sparse else None)
    _loss_axis(axes, curves)
    position_axis(axes, "x", max(len(curve) for _, curve in curves), any(_has_zero(curve) for _, curve in curves))
    axes.set_ylabel(LOSS)
    open_grid(axes)
    axes.legend(loc="upper right")
    panel_title(axes, "2", _final_statement(*curves[0]), NARROW)


def _loss_axis(axes: Axes, curves: list[tuple[str, np.ndarray]]) -> None:
    """Scale the loss to positions 1 and later; position 0 is a star, at the edge with its value beside it when it lies beyond."""
    everything = np.concatenate([curve[1:] for _, curve in curves])
    low, high = float(np.nanmin(everything)), float(np.nanmax(everything))
    if low > 0 and high / low > 20:
        bottom, top = low / 1.3, high * 2
    else:
        bottom, top = 0.0, (1.25 * high if high > 0 else 1.0)
    axes.set_ylim(bottom, top)
    if bottom > 0:
        plain_log_axis(axes, "y")
    for place, ((_, curve), colour) in enumerate(zip(curves, COLOURS, strict=False)):
        value = curve[0]
        if not np.isfinite(value):
            continue
        inside = bottom <= value <= top
        if inside:
            axes.plot([0], [value], color=colour, clip_on=False, **ZERO)
            continue
        edge = 0.96 if value > top else 0.04
        axes.plot([0], [edge], color=colour, transform=axes.get_xaxis_transform(), **ZERO)
        if place == 0:
            arrow, alignment = ("↑", "top") if value > top else ("↓", "bottom")
            how: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "center", "va": alignment}
            axes.annotate(f"{number(value)} {arrow}", (0, edge), (0, -7 if value > top else 7), fontsize=7.5, color=MUTED, **how)


def _final_statement(label: str, curve: np.ndarray) -> str:
    known = curve[1:][np.isfinite(curve[1:])]
    middle = float(np.median(known))
    hardest = 1 + int(np.nanargmax(curve[1:]))
    where = "on held-out documents" if label.startswith("held-out") else "at the end of training"
    if middle <= 0 or len(known) < 2:
        return f"Loss by position {where}"
    excess = float(np.nanmax(curve[1:])) / middle
    if excess < 1.15:
        return f"Loss is even over positions {where}: at most {percent(excess - 1)} over the median"
    return f"Position {hardest:,} is hardest {where}: {number(excess)}{SPACE}× the median loss"


# Panel 3


def _draw_weights(axes: Axes, steps: np.ndarray, weight: np.ndarray | None) -> None:
    if weight is None:
        panel_title(axes, "3", "Position weights over training", NARROW)
        say_missing(axes, "this run's history does not hold the position weights")
        return
    known = weight[np.isfinite(weight)]
    if np.allclose(known, 1.0, atol=1e-6):
        axes.plot(steps, np.ones(len(steps)), color=COLOURS[0], marker="o" if len(steps) == 1 else None)
        axes.set_ylim(0, 2)
        axes.text(0.5, 0.57, "weights are 1 throughout: adaptive weighting is off", transform=axes.transAxes, ha="center", color=MUTED)
        statement = "Every position weighs the same"
    else:
        _weight_lines(axes, steps, weight)
        statement = _weight_statement(steps, weight)
    axes.set_xlim(0 if steps[0] >= 0 else steps[0], steps[-1] if steps[-1] > 0 else 1)
    _step_axis(axes)
    axes.set_ylabel("weight in the loss (mean 1)")
    open_grid(axes)
    panel_title(axes, "3", statement, NARROW)


def _weight_lines(axes: Axes, steps: np.ndarray, weight: np.ndarray) -> None:
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    live = np.flatnonzero(np.isfinite(weight[:, 1:]).any(0)) + 1
    if len(live):
        shown = live[np.unique(np.geomspace(1, len(live), min(LINES, len(live))).round().astype(int)) - 1]
        colours = ScalarMappable(LogNorm(1, max(live[-1], 2)), MAP)
        for position in shown:
            axes.plot(steps, weight[:, position], color=colours.to_rgba(position), linewidth=1.2)
        colour_bar(colours, axes, shown.astype(float), "position (log scale)")
        low, high = min(np.nanmin(weight[:, live]), 1.0), max(np.nanmax(weight[:, live]), 1.0)  # position 0 does not set the scale
        axes.set_ylim(low - 0.08 * (high - low), high + 0.2 * (high - low))
    if np.isfinite(weight[:, 0]).any():
        axes.plot(steps, weight[:, 0], color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2, label="position 0")
        axes.legend(loc="upper left")


def _weight_statement(steps: np.ndarray, weight: np.ndarray) -> str:
    last = weight[-1, 1:]
    if not np.isfinite(last).any():
        return "Position weights over training"
    most, least = int(np.nanargmax(last)) + 1, int(np.nanargmin(last)) + 1
    return f"At step {steps[-1]:,.0f} position {most:,} weighs most ({number(last[most - 1])}), {least:,} least ({number(last[least - 1])})"
