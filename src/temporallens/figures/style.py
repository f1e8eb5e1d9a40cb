"""How every picture looks: sizes, fonts and colours, the position axis, heatmaps, titles, and how a panel says that it has no data.

Nothing here changes matplotlib's settings for the rest of the program: drawing and saving happen inside `with style():`. The
position axis is `u = log(1 + p)`, which gives position 0 a place of its own; it is marked apart there and never sets a scale.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from temporallens.wording import SPACE, plain

WIDTH = 12.0
"""Inches; with DPI, 1,800 pixels: still legible where a page shows the picture at 1,200."""
DPI = 150
MAP = "viridis"
"""Perceptually uniform and safe for colour-blind readers; for every heatmap and for every family of lines with an order."""
INK, MUTED, FAINT, PAPER = "#1b1f24", "#5b6570", "#d5dae0", "#ffffff"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
"""Okabe and Ito's palette, for things without an order; always together with a marker, so that grey prints keep them apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
ZERO: dict[str, Any] = {"marker": "*", "markersize": 9, "linestyle": "none", "markeredgecolor": INK, "markeredgewidth": 0.4}
"""How position 0 is drawn where other positions are a line."""
MOST_NAMED = 48
"""Positions whose names an axis has room for, which then ends with the last of them; of more, numbers are written."""
FEW_NAMES = 6
NAME = 18
LINEAR_UP_TO = 16
"""Positions up to which a linear axis shows all there is to see."""

SETTINGS: dict[str, Any] = {
    "figure.dpi": DPI,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a model's name may hold a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.title_fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "image.cmap": MAP,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "temporallens",  # without it the ids in an SVG are random
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@contextmanager
def ours() -> Iterator[None]:
    """Our settings on top of matplotlib's own defaults, whatever the user's matplotlibrc says; all put back at the end."""
    with matplotlib.style.context(SETTINGS, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script the font lacks shows as boxes: no reason to fail
        yield


def new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def head(figure: Figure, title: str, limit: int = 110) -> None:
    """What a figure is of, in one line above its panels; nothing for an empty title."""
    if title:
        figure.suptitle(plain(title, limit), x=0.008, ha="left", fontsize=11.5, fontweight="bold")


# Arms


class Look(NamedTuple):
    """How one arm is drawn, in every panel alike."""

    colour: str
    marker: str
    dash: Any


def look(order: int) -> Look:
    """Of the arm that is number `order`: each palette of colours again in another dash, where there are more arms than colours."""
    colour, turn = order % len(COLOURS), order // len(COLOURS)
    return Look(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


def interval(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """A pale bar from end to end."""
    axes.plot(x, y, color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")


def rests_on(seeds: Iterable[int], alone: str = "one seed") -> str:
    """What the intervals of arms of so many seeds are over."""
    counts = {min(count, 2) for count in seeds}
    words = {1: f"{alone}: over documents", 2: "several seeds: over seeds"}
    return f"95{SPACE}% intervals; {'; '.join(words[count] for count in sorted(counts))}"


# Text


def panel_title(axes: Axes, letter: str, statement: str, characters: int) -> None:
    """What the panel shows, as a sentence of lines of at most `characters`."""
    axes.set_title(textwrap.fill(f"{letter}  {statement}", characters), loc="left")


def empty_panel(axes: Axes, letter: str, title: str, characters: int, sentence: str) -> None:
    """A panel without data under its title."""
    panel_title(axes, letter, title, characters)
    say_missing(axes, sentence)


def empty_panels(panels: Iterable[Axes], letters: str, titles: Iterable[str], characters: int, sentence: str) -> None:
    """The panels of a figure that has no data at all."""
    for axes, letter, title in zip(panels, letters, titles, strict=True):
        empty_panel(axes, letter, title, characters, sentence)


def say_missing(axes: Axes, sentence: str) -> None:
    """Let an empty panel say why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("#f3f5f7")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(0.5, 0.5, textwrap.fill(sentence, 46), transform=axes.transAxes, ha="center", va="center", color=MUTED)


# Axes


def _place(position: Any) -> Any:
    return np.log1p(np.maximum(position, -0.9))


_NAMES: ContextVar[Mapping[int, str]] = ContextVar("names of positions", default=MappingProxyType({}))


_FIRST: ContextVar[int] = ContextVar("the first position that is like any other", default=1)


@contextmanager
def positions_called(names: Mapping[int, str], first: int) -> Iterator[None]:
    """Let axes of positions carry names within, or numbers where there are none; they begin at `first`, 0 where position 0 is like any
    other, else 1."""
    tokens = _NAMES.set(names), _FIRST.set(first)
    try:
        yield
    finally:
        _NAMES.reset(tokens[0])
        _FIRST.reset(tokens[1])


def first() -> int:
    """The first position that is like any other: 1 where position 0 is that of attention sinks, which no scale should depend on."""
    return _FIRST.get()


def position_colours(last: int) -> ScalarMappable:
    """Colours of positions up to `last`: by their logarithm, where it begins at 1."""
    return ScalarMappable(LogNorm(1, max(last, 2)) if first() else Normalize(0, max(last, 1)), MAP)


def called(position: int) -> str:
    """`position 5`, with its name where it has one: `position 5 (month)`."""
    name = _NAMES.get().get(position)
    return f"position {position:,}" + ("" if name is None else f" ({plain(name, NAME)})")


def _named_axis(axis: Axis, upright: bool, names: Mapping[int, str], first: int, last: int) -> None:
    runs = [list(run) for _, run in groupby(range(first, last + 1), names.get)]
    shown = [sum(run) / len(run) for run in runs if run[0] in names]  # a name that runs on stands in the middle
    axis.set_ticks(shown, [plain(names[run[0]], NAME) for run in runs if run[0] in names])
    slanted = not upright and len(shown) > FEW_NAMES
    axis.set_tick_params(labelsize=7 if len(shown) > FEW_NAMES else 8, rotation=60 if slanted else 0)
    if slanted:
        for label in axis.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")


def position_axis(axes: Axes, which: Literal["x", "y"], positions: int, zero: bool, label: str = "position") -> None:
    """Positions 0 .. positions - 1, by their logarithm when there are many; without data at position 0 the axis begins at 1."""
    start = 0 if zero else 1
    axis, last = (axes.xaxis if which == "x" else axes.yaxis), max(positions - 1, start)
    names = _NAMES.get() if len(_NAMES.get()) <= MOST_NAMED else {}
    last = min(last, max(names)) if names else last
    logarithmic = positions > LINEAR_UP_TO and not names
    if names:
        _named_axis(axis, which == "y", names, start, last)
    elif logarithmic:
        set_scale = axes.set_xscale if which == "x" else axes.set_yscale
        set_scale("function", functions=(_place, np.expm1))
        base = 2 if positions <= 256 else 4
        powers = [base**n for n in range(12) if base**n <= last / 1.3]
        ticks = [0, *powers, last] if zero else [*powers, last]
    else:
        ticks = list(range(start, last + 1, 1 if last <= 8 else 2))
    if not names:
        ticks_at(axis, ticks, "{:,.0f}".format)
    (axes.set_xlim if which == "x" else axes.set_ylim)(start - 0.5, last + 0.5)
    axis.set_label_text(f"{label} (log scale)" if logarithmic else label)
    if zero and last >= 1 and first() == 1:
        (axes.axvline if which == "x" else axes.axhline)(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))


def ticks_at(axis: Axis, where: Locator | Sequence[float], write: Callable[[float], str] = "{:g}".format) -> None:
    """Ticks at some values, or where a locator puts them, none between them; `write` gives their labels."""
    axis.set_major_locator(where if isinstance(where, Locator) else FixedLocator(where))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """One line of the y axis for each name, the first at the top."""
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def plain_log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    crowded = high / max(low, 1e-300) > 100
    axis.set_major_locator(LogLocator(10, subs=(1.0,) if crowded else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(_short))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def open_grid(axes: Axes, axis: Literal["x", "y", "both"] = "y") -> None:
    """Light lines behind curves, so that a value can be read off."""
    axes.grid(True, axis=axis)
    axes.set_axisbelow(True)


# Data


def array(values: Any) -> np.ndarray:
    """Numbers as float64; what JSON holds as null becomes NaN, and so does infinity."""
    numbers = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis)
    count = known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def blocks(values: np.ndarray, starts: np.ndarray, axis: int) -> np.ndarray:
    """Means over the runs of `axis` that begin at `starts`."""
    parts = np.split(values, starts[1:], axis)
    return np.stack([mean(part, axis) for part in parts], axis)


def limits(values: np.ndarray) -> tuple[float, float] | None:
    """Least and greatest value but for two in a thousand at either end: so much, noise may lie beyond a scale."""
    known = values[np.isfinite(values)]
    if known.size <= 400:
        return extent(known)
    low, high = np.quantile(known, [0.002, 0.998])
    return float(low), float(high)


def extent(values: np.ndarray) -> tuple[float, float] | None:
    """Least and greatest value; None where nothing is known."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else None


def colour_norm(span: tuple[float, float] | None) -> Normalize | None:
    """A scale from `limits` or `extent` of values, position 0 left out: logarithmic where they span more than a factor of 3."""
    if span is None:
        return None
    low, high = span
    if low > 0 and high / low > 3:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + max(abs(low), 1.0) * 1e-3)


def heatmap(axes: Axes, x_edges: np.ndarray, y_edges: np.ndarray, values: np.ndarray, norm: Normalize) -> ScalarMappable:
    """Cells [y, x] between edges; grey where nothing is known; a picture inside vector files, where cells would weigh megabytes."""
    axes.set_facecolor(FAINT)
    return axes.pcolormesh(x_edges, y_edges, np.ma.masked_invalid(values), norm=norm, cmap=MAP, rasterized=True)


def colour_bar(mappable: ScalarMappable, axes: Axes | Sequence[Axes], values: np.ndarray, label: str, as_percent: bool = False) -> None:
    """The scale beside a heatmap, which says where it is logarithmic; its ends are pointed where values lie beyond them (position 0)."""
    low, high = (float(end) for end in mappable.get_clim())
    known = values[np.isfinite(values)]
    below, above = bool((known < low * (1 - 1e-9)).any()), bool((known > high * (1 + 1e-9)).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    figure = (axes if isinstance(axes, Axes) else axes[0]).get_figure()
    assert figure is not None
    bar = figure.colorbar(mappable, ax=axes, extend=extend, pad=0.015, fraction=0.05, aspect=26)
    span = high / low if low > 0 else 0.0
    digits = (1.0,) if span > 200 else (1.0, 2.0, 5.0) if span > 12 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    bar.locator = LogLocator(10, subs=digits) if isinstance(mappable.norm, LogNorm) else MaxNLocator(6)
    bar.formatter = FuncFormatter((lambda value, _: f"{100 * value:.3g}") if as_percent else _short)
    bar.minorlocator = NullLocator()
    bar.update_ticks()
    bar.set_label(f"{label} (log scale)" if isinstance(mappable.norm, LogNorm) else label)
    bar.outline.set_visible(False)
