"""What is known of a model's activations before a code is read, by depth, and how they follow from their past; one row per model.

Drawn from the part `beforehand` of scans (`docs/method.md`, "What is known beforehand"). Shares are of held-out documents.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from temporallens.activations.clocks import CLOCKS
from temporallens.evaluation.beforehand import BEFORE, INDEX, LADDER, PAST, TOKEN, Beforehand, Explained, in_words
from temporallens.evaluation.scan import Scan
from temporallens.figures import style
from temporallens.figures.scan import depth_axis, layer_colours, layers_shown
from temporallens.wording import SPACE, percent, plain

ROW_HEIGHT = 7.4
TITLE_CHARACTERS = 66
NAMES = {TOKEN: "token", INDEX: "position (index)", BEFORE: "token before", PAST: "past, true activations: an upper bound"}
ORDER = (*LADDER, *(name for name in CLOCKS if name != INDEX))
"""Of colours and markers."""
DASHES = (0, (4, 2))
LAGS_TITLE = "How far activations resemble those of so many tokens before; dashed: of another row of text"
RANK_TITLE = "Directions that the first tokens of a row fill; dashed: tokens of as many rows"
Curves = Sequence[Sequence[float | None]]
"""By layer."""


def draw_beforehand(scans: Sequence[Scan]) -> Figure:
    """(a) told together, by depth; (b) each alone; (c) autocorrelation by lag; (d) effective rank by tokens read; one row per model."""
    with style.ours():
        known = [(scan, scan.beforehand) for scan in scans if scan.beforehand is not None]
        figure = style.new_figure(ROW_HEIGHT * max(len(known), 1))
        if not known:
            style.say_missing(figure.subplots(), "no scan of this study measured what is known beforehand")
            return figure
        rows = figure.subfigures(len(known), 1, hspace=0.03, squeeze=False)
        for row, (scan, found) in zip(rows[:, 0], known, strict=True):
            _draw_model(row, scan, found)
    return figure


def _draw_model(row: SubFigure, scan: Scan, found: Beforehand) -> None:
    heading = f"{plain(scan.model)}  ·  {found.held_out_documents:,} held-out documents, {found.held_out_tokens:,} tokens"
    row.suptitle(heading, x=0.008, ha="left", fontsize=11.5, fontweight="bold")
    (together, alone), (lags, rank) = row.subplots(2, 2, gridspec_kw={"height_ratios": (1.25, 1)})
    _draw_together(together, scan, found)
    _draw_alone(alone, scan, found)
    history = found.history
    _draw_history(lags, scan, history.lags, history.autocorrelation, history.other_rows)
    lags.set_ylabel("autocorrelation ρ")
    lags.set_xlabel("lag, tokens (log scale)")
    style.panel_title(lags, "c", LAGS_TITLE, TITLE_CHARACTERS)
    _draw_history(rank, scan, history.lengths, history.rank, history.shuffled_rank)
    style.plain_log_axis(rank, "y")
    rank.set_ylabel("effective rank (log scale)")
    rank.set_xlabel("tokens of a row, from its first (log scale)")
    style.panel_title(rank, "d", RANK_TITLE, TITLE_CHARACTERS)


def _percents(explained: Explained, which: str = "share") -> np.ndarray:
    return 100 * style.array(getattr(explained, which))


# (a) and (b)


def _draw_together(axes: Axes, scan: Scan, found: Beforehand) -> None:
    depth, below = np.arange(len(scan.layers)), np.zeros(len(scan.layers))
    for name in LADDER:
        top = np.maximum(np.nan_to_num(_percents(found.together[name])), below)  # what adds nothing takes no room
        axes.fill_between(depth, below, top, color=style.COLOURS[ORDER.index(name)], alpha=0.75, linewidth=0, label=NAMES[name])
        below = top
    _depth(axes, scan, 100.0)
    axes.set_ylabel("variance explained together, %")
    axes.legend(loc="upper right", ncols=2, handlelength=1.4, columnspacing=1.0)
    style.panel_title(axes, "a", in_words("", scan.layers, found).removeprefix(", ").rstrip("."), TITLE_CHARACTERS)


def _draw_alone(axes: Axes, scan: Scan, found: Beforehand) -> None:
    depth = np.arange(len(scan.layers))
    for order, name in enumerate(ORDER):
        explained = found.alone[name]
        colour, marker = style.COLOURS[order % len(style.COLOURS)], style.MARKERS[order % len(style.MARKERS)]
        label = f"clock: {CLOCKS[name].label}" if name in CLOCKS else NAMES[name].partition(",")[0]
        axes.plot(depth, _percents(explained), color=colour, marker=marker, markevery=max(1, len(depth) // 10), label=label)
        low, high = _percents(explained, "low"), _percents(explained, "high")
        axes.fill_between(depth, low, high, color=colour, alpha=0.18, linewidth=0)
        floor = _percents(explained, "floor")
        axes.plot(depth[np.isfinite(floor)], floor[np.isfinite(floor)], color=colour, linewidth=0.9, linestyle=DASHES)
    axes.plot([], [], color=style.MUTED, linewidth=0.9, linestyle=DASHES, label="floors: permuted labels")
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    axes.yaxis.set_major_locator(FixedLocator([-1, 0, 1, 2, 5, 10, 20, 50, 100]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    _depth(axes, scan, 2500.0)
    axes.set_ylim(-1.5, 2500.0)  # room for the legend above the lines
    axes.set_ylabel("variance explained alone, % (log)")
    axes.legend(loc="upper left", ncols=2, handlelength=2.2, columnspacing=1.0, labelspacing=0.3)
    style.panel_title(axes, "b", _alone_statement(scan, found), TITLE_CHARACTERS)


def _depth(axes: Axes, scan: Scan, top: float) -> None:
    axes.set_xlim(-0.3, max(len(scan.layers) - 0.7, 0.3))
    axes.set_ylim(0, top)
    depth_axis(axes, "x", scan.layers)
    style.open_grid(axes)


def _alone_statement(scan: Scan, found: Beforehand) -> str:
    clocks = {name: style.array(found.alone[name].share) for name in CLOCKS}
    name = max(clocks, key=lambda name: float(np.nan_to_num(clocks[name], nan=-1.0).max()))
    if not np.isfinite(clocks[name]).any() or np.nanmax(clocks[name]) <= 0:
        return "No clock explains held-out documents"
    depth = int(np.nanargmax(clocks[name]))
    layer = "the embedding" if scan.layers[depth] == "embed" else f"layer{SPACE}{scan.layers[depth]}"
    return f"Of the clocks the “{name}” clock explains most: {percent(float(clocks[name][depth]))} at {layer}"


# (c) and (d)


def _draw_history(axes: Axes, scan: Scan, at: Sequence[int], found: Curves, null: Curves) -> None:
    shown = layers_shown(scan.layers)
    for depth, colour in zip(shown, layer_colours(len(shown)), strict=True):
        name = "embedding" if scan.layers[depth] == "embed" else scan.layers[depth]
        axes.plot(at, style.array(found[depth]), color=colour, marker=".", label=name)
        axes.plot(at, style.array(null[depth]), color=colour, linewidth=0.9, linestyle=DASHES)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    style.open_grid(axes)
    axes.legend(title="layer", ncols=2, columnspacing=1.0, handlelength=1.4)
