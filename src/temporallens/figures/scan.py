"""The scan of a model: where position lives in it, by depth, by clock and by index (method, section 1), one row per model.

Each panel says so where nothing is known of what it shows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from temporallens.activations.clocks import CLOCKS
from temporallens.evaluation.bins import sink_starts
from temporallens.evaluation.scan import Scan
from temporallens.figures import style
from temporallens.wording import SPACE, number, percent, plain

ROW_HEIGHT = 4.5
LAYERS_SHOWN = 5
SINK_BINS = 14
TITLE_CHARACTERS = 41
SHARE = "Where along the row the index explains"
LEAST_SHARE = 1e-3
"""Shares below this are drawn alike: what happens there is noise."""


def draw_scan(scans: Sequence[Scan]) -> Figure:
    """(a) eta^2 by depth and clock; (b) where along the index it lies; (c) norms and sinks by index; one row per model."""
    with style.ours():
        figure = style.new_figure(ROW_HEIGHT * max(len(scans), 1))
        if not scans:
            style.say_missing(figure.subplots(), "no model was scanned in this study")
            return figure
        rows = figure.subfigures(len(scans), 1, hspace=0.03, squeeze=False)
        for row, scan in zip(rows[:, 0], scans, strict=True):
            _draw_model(row, scan)
    return figure


def _draw_model(row: SubFigure, scan: Scan) -> None:
    heading = f"{plain(scan.model)}  ·  {scan.sequences:,} sequences of up to {scan.context_length:,} tokens"
    row.suptitle(heading, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
    panels = row.add_gridspec(2, 3, width_ratios=(1.0, 1.1, 1.05), height_ratios=(2.6, 1))
    _draw_depth(row.add_subplot(panels[:, 0]), scan)
    _draw_share(row.add_subplot(panels[:, 1]), scan)
    norms = row.add_subplot(panels[0, 2])
    _draw_norms(norms, scan)
    _draw_sinks(row.add_subplot(panels[1, 2]), scan)


def layer_name(layer: str) -> str:
    return "the embedding" if layer == "embed" else f"layer{SPACE}{layer}"


def depth_axis(axes: Axes, which: str, layers: Sequence[str]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    stride = max(1, -(-len(layers) // 9))
    ticks = [depth for depth, layer in enumerate(layers) if layer.isdigit() and int(layer) % stride == 0]
    shown = sorted({*ticks, *([0] if layers[0] == "embed" and stride == 1 else [])})
    style.ticks_at(axis, shown, lambda depth: layers[round(depth)] if 0 <= round(depth) < len(layers) else "")
    axis.set_label_text("layer (output of block n)")


# (a)


def _draw_depth(axes: Axes, scan: Scan) -> None:
    layers, found = scan.layers, _clocks(scan)
    if not found:
        style.empty_panel(axes, "a", "Variance explained by each clock", TITLE_CHARACTERS, "this scan holds no clock")
        return
    depth = np.arange(len(layers))
    for order, clock in enumerate(found):
        colour, marker = style.COLOURS[order % len(style.COLOURS)], style.MARKERS[order % len(style.MARKERS)]
        label = CLOCKS[clock.name].label if clock.name in CLOCKS else plain(clock.name, 30)
        axes.plot(depth, 100 * clock.eta2, color=colour, marker=marker, markevery=max(1, len(layers) // 10), label=label)
        axes.plot(depth, 100 * clock.floor, color=colour, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.plot([], [], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label="noise floor of the clock in its colour")
    top = np.nanmax([np.nanmax(np.append(100 * clock.eta2, 0.0)) for clock in found])
    axes.set_ylim(0, max(1.42 * top, 0.1))  # room for the legend above the lines
    axes.set_xlim(-0.3, max(len(layers) - 0.7, 0.3))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("η²: share of the variance, %")
    depth_axis(axes, "x", layers)
    style.open_grid(axes)
    axes.legend(loc="upper left", borderaxespad=0.2, handlelength=2.4, labelspacing=0.35)
    absent = [name for name in CLOCKS if name not in {clock.name for clock in found}]
    if absent:
        axes.set_xlabel(axes.get_xlabel() + "\n" + "clocks not measured: " + ", ".join(absent))
    style.panel_title(axes, "a", _depth_statement(layers, found), TITLE_CHARACTERS)


class Clock(NamedTuple):
    """What one clock explains."""

    name: str
    eta2: Float[np.ndarray, " L"]
    floor: Float[np.ndarray, " L"]

    @property
    def excess(self) -> Float[np.ndarray, " L"]:
        return self.eta2 - np.nan_to_num(self.floor)


def _clocks(scan: Scan) -> list[Clock]:
    """Each clock that has a value somewhere, in the order of CLOCKS."""
    names = sorted(scan.clocks, key=lambda name: list(CLOCKS).index(name) if name in CLOCKS else len(CLOCKS))
    clocks = [Clock(name, style.array(scan.clocks[name].eta2), style.array(scan.clocks[name].floor)) for name in names]
    return [clock for clock in clocks if np.isfinite(clock.eta2).any()]


def _depth_statement(layers: Sequence[str], found: Sequence[Clock]) -> str:
    peaks = []
    for clock in found:
        if np.nanmax(clock.excess) > 0:
            depth = int(np.nanargmax(clock.excess))
            peaks.append((float(clock.excess[depth]), depth, clock.name))
    if not peaks:
        return "No clock rises above its noise floor"
    value, depth, name = max(peaks)
    return f"The “{plain(name, 20)}” clock leads: {percent(value)} above its noise floor at {layer_name(layers[depth])}"


# (b)


def _draw_share(axes: Axes, scan: Scan) -> None:
    layers, clock = scan.layers, scan.clocks.get("index")
    share = np.empty(0) if clock is None else style.array(clock.share)
    if clock is None or not np.isfinite(share).any():
        style.empty_panel(axes, "b", SHARE, TITLE_CHARACTERS, "this scan does not hold the index clock's variance by position")
        return
    values = style.array(clock.values)
    end = max(float(scan.context_length), values[-1] + 1)
    edges = np.append(values, end) - 0.5
    apart = values < 1
    scale = np.maximum(share[:, ~apart], LEAST_SHARE)
    norm = style.colour_norm(style.extent(scale))
    if norm is None:
        style.empty_panel(axes, "b", SHARE, TITLE_CHARACTERS, "this scan holds no position but 0")
        return
    zero = bool(apart.any() and np.nansum(np.abs(share[:, apart])) > 0)
    columns = slice(None) if zero else ~apart
    drawn = np.maximum(share, LEAST_SHARE)[:, columns]
    first = edges[0] if zero else edges[:-1][~apart][0]
    mesh = style.heatmap(axes, np.append(first, edges[1:][columns]), np.arange(len(layers) + 1) - 0.5, drawn, norm)
    style.position_axis(axes, "x", int(end), zero, "index in the row")
    depth_axis(axes, "y", layers)
    excess = _excess(scan)
    for row in np.flatnonzero(excess <= 0):
        axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor="white", hatch="////", linewidth=0)
    style.colour_bar(mesh, axes, drawn, "share of what the index explains, %", as_percent=True)
    if (excess <= 0).any():
        axes.set_xlabel(axes.get_xlabel() + "\nhatched: η² is not above its noise floor")
    style.panel_title(axes, "b", _share_statement(layers, edges + 0.5, share, excess), TITLE_CHARACTERS)


def _excess(scan: Scan) -> Float[np.ndarray, " L"]:
    """By how much the index clock exceeds its noise floor; where it does not, its shares are the shares of noise."""
    clock = scan.clocks["index"]
    return np.nan_to_num(Clock("index", style.array(clock.eta2), style.array(clock.floor)).excess)


def _share_statement(layers: Sequence[str], edges: np.ndarray, share: np.ndarray, excess: np.ndarray) -> str:
    early = np.nansum(share[:, (edges[:-1] >= 1) & (edges[1:] <= 4)], axis=1)
    above = np.flatnonzero((excess > 0) & np.isfinite(share).any(axis=1))
    if len(above) == 0:
        return "The index clock is nowhere above its noise floor"
    most, last = above[np.argmax(excess[above])], above[-1]
    statement = f"Positions 1–3: {percent(early[most])} of what the index explains at {layer_name(layers[most])}"
    return f"{statement}, {percent(early[last])} at {layers[last]}" if last != most else f"{statement}, where it explains most"


# (c)


def layers_shown(layers: Sequence[str]) -> list[int]:
    return sorted({round(depth) for depth in np.linspace(0, len(layers) - 1, min(LAYERS_SHOWN, len(layers)))})


def layer_colours(count: int) -> np.ndarray:
    return colormaps[style.MAP](np.linspace(0.0, 0.88, count))


def _known(by_index: Sequence[Sequence[float | None]]) -> Float[np.ndarray, "L S"] | None:
    values = style.array(by_index)
    return values if np.isfinite(values).any() else None


def _draw_norms(axes: Axes, scan: Scan) -> None:
    layers, norm = scan.layers, _known(scan.norm)
    if norm is None:
        style.empty_panel(axes, "c", "Mean norm by index", TITLE_CHARACTERS, "this scan does not hold the norms by index")
        return
    shown, index = layers_shown(layers), np.arange(norm.shape[1])
    for depth, colour in zip(shown, layer_colours(len(shown)), strict=True):
        name = "embedding" if layers[depth] == "embed" else layers[depth]
        axes.plot(index[1:], norm[depth, 1:], color=colour, label=name)
        axes.plot(index[:1], norm[depth, :1], color=colour, **style.ZERO)
    axes.plot([], [], color=style.FAINT, label="index 0", **style.ZERO)
    _leave_room_for_legend(axes, norm[shown])
    style.plain_log_axis(axes, "y")
    style.position_axis(axes, "x", norm.shape[1], zero=True, label="")
    axes.set_xlabel("")
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("mean norm (log scale)")
    style.open_grid(axes)
    axes.legend(title="layer", loc="upper right", ncols=2, columnspacing=1.0, handlelength=1.4)
    style.panel_title(axes, "c", _norm_statement(layers, norm), TITLE_CHARACTERS)


def _leave_room_for_legend(axes: Axes, norm: np.ndarray) -> None:
    """Let the curves (all but index 0) end below the legend on the logarithmic axis."""
    positive = norm[np.isfinite(norm) & (norm > 0)]
    beyond = norm[:, 1:][np.isfinite(norm[:, 1:]) & (norm[:, 1:] > 0)]
    if positive.size and beyond.size:
        low = min(positive.min(), beyond.max() / 3) / 1.15
        axes.set_ylim(low, max(low * (beyond.max() / low) ** 1.75, positive.max() * 1.6))


def _norm_statement(layers: Sequence[str], norm: np.ndarray) -> str:
    if norm.shape[1] < 2 or not np.isfinite(norm[:, 0]).any():
        return "Mean norm by index; nothing is known of index 0"
    rest = np.array([np.median(row[1:][np.isfinite(row[1:])]) if np.isfinite(row[1:]).any() else np.nan for row in norm])
    ratio = norm[:, 0] / np.where(rest > 0, rest, np.nan)
    if not np.isfinite(ratio).any():
        return "Mean norm by index"
    depth = int(np.nanargmax(ratio))
    if ratio[depth] < 2:
        return "Index 0 is no sink: its norm is like that of the rest"
    return f"Index 0 is a sink: {number(ratio[depth])}{SPACE}× the norm of the rest at {layer_name(layers[depth])}"


def _draw_sinks(axes: Axes, scan: Scan) -> None:
    layers, sinks = scan.layers, _known(scan.sinks)
    if sinks is None:
        style.say_missing(axes, "this scan does not hold the sinks by index")
        return
    shown, length = layers_shown(layers), sinks.shape[1]
    starts = sink_starts(length, SINK_BINS)
    centres = (starts + np.append(starts[1:], length) - 1) / 2
    binned = 100 * style.blocks(sinks, starts, 1)  # sinks are rare: single positions would show noise
    for depth, colour in zip(shown, layer_colours(len(shown)), strict=True):
        axes.plot(centres[1:], binned[depth, 1:], color=colour, linewidth=1.2, marker=".", clip_on=False)
        axes.plot([0], binned[depth, :1], color=colour, clip_on=False, **style.ZERO)
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    axes.set_ylim(0, 130)
    style.ticks_at(axes.yaxis, [0, 0.1, 1, 10, 100])
    style.position_axis(axes, "x", length, zero=True, label="index in the row")
    axes.set_ylabel("sinks, % of\ntokens (log)")
    style.open_grid(axes)
    beyond = sinks[shown, 1:][np.isfinite(sinks[shown, 1:])]
    if beyond.size and not beyond.any():
        axes.text(
            0.99, 0.9, "none after index 0 in these layers", transform=axes.transAxes, ha="right", va="top", color=style.MUTED, fontsize=7.5
        )
