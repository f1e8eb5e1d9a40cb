"""The tree of features by when they fire, and their profiles in the order of its leaves (lab notes, Run 9).

Drawn from a dictionary's cluster measures (`evaluation/clusters/section.py`). Rows of the two panels are the same features.
Position 0 is in no profile and on no axis here.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from temporallens.evaluation.clusters.section import BinsOfProfiles, ClusterMeasures
from temporallens.evaluation.clusters.table import ClusterRow, Drawing
from temporallens.evaluation.clusters.trees import SCATTERED
from temporallens.figures import style
from temporallens.wording import SPACE, number, percent

HEIGHT = 7.6
TREE_TITLE, MAP_TITLE = 40, 80
"""Characters in a line of a title."""
LARGEST, LEAST = 16.0, 4.0
"""How far the scale reaches on either side of 1: noise should look like noise, and a feature of one position should not set the scale."""
PEAK = 2.0
"""Level of a cluster's mean profile, in levels of a flat one, from which it is said to peak."""
TALL = 0.02
"""Share of the rows from which a cluster has room for its number."""
DISTANCES = {
    "jensen_shannon": "Jensen-Shannon distance",
    "correlation": "1 − correlation",
    "motif": "motif distance",
}


def draw_temporal_clustering(measures: ClusterMeasures | None, title: str = "") -> Figure:
    """The dendrogram and, row by row beside it, the profiles of the features that it joins."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        panels = figure.add_gridspec(1, 3, width_ratios=(1, 0.05, 2.2), wspace=0.01)
        tree, strip, profiles = (figure.add_subplot(panels[0, column]) for column in range(3))
        if measures is None or measures.bins is None or measures.drawing is None:
            strip.set_axis_off()
            style.empty_panel(tree, "a", "Tree of features", TREE_TITLE, missing(measures))
            style.empty_panel(profiles, "b", "Profiles in its order", MAP_TITLE, missing(measures))
            return figure
        labels = np.array(measures.drawing.cluster)[measures.drawing.order]
        _draw_tree(tree, measures, measures.drawing)
        _draw_strip(strip, labels)
        _draw_profiles(profiles, measures, measures.bins, measures.drawing, labels)
    return figure


def missing(measures: ClusterMeasures | None) -> str:
    """Why there is nothing to draw."""
    if measures is None:
        return "this run was evaluated without temporal clusters: give its study `evaluation: {clusters: {}}`"
    return (
        f"{measures.kept:,} of {measures.features:,} features fire {measures.least_firings:,} times or more on the held-out "
        f"documents ({measures.tokens:,} tokens): too few to be clustered"
    )


def colour_of(cluster: int) -> str:
    """A colour for each cluster, taken again after seven; clusters are numbered, too."""
    return style.FAINT if cluster == SCATTERED else style.COLOURS[cluster % len(style.COLOURS)]


def bin_edges(bins: BinsOfProfiles) -> np.ndarray:
    """Where bins begin, and where the last one ends."""
    return np.append(np.array(bins.first), bins.last[-1] + 1) - 0.5


def bin_axis(axes: Axes, bins: BinsOfProfiles, label: str = "position") -> None:
    """Positions along x: by their logarithm where bins are, evenly where every position is a bin."""
    edges = bin_edges(bins)
    if bins.kind == "log" and edges[-1] > style.LINEAR_UP_TO:
        style.position_axis(axes, "x", int(edges[-1] + 0.5), zero=bool(edges[0] < 0), label=label)
        return
    axes.set_xlim(edges[0], edges[-1])
    first, last = int(edges[0] + 0.5), int(edges[-1] - 0.5)
    step = max(1, 4 * math.ceil((last - first) / 48)) if last - first > 8 else 1
    inner = [tick for tick in range(0, last, step) if first + step / 2 < tick <= last - step * 0.75]
    axes.xaxis.set_major_locator(FixedLocator([first, *inner, last]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def positions_of(bins: BinsOfProfiles, bin: int) -> str:
    """A bin in words: `position 1`, `positions 5 to 6`."""
    first, last = bins.first[bin], bins.last[bin]
    return f"position{SPACE}{first:,}" if first == last else f"positions {first:,} to {last:,}"


# The tree


def _draw_tree(axes: Axes, measures: ClusterMeasures, drawing: Drawing) -> None:
    lines, colours = _branches(drawing)
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8))
    height = max((merge[2] for merge in drawing.merges), default=1.0) or 1.0
    axes.set_xlim(height * 1.03, 0)
    axes.set_ylim(len(drawing.order), 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{DISTANCES[measures.distance]} of joined branches")
    style.panel_title(axes, "a", _tree_statement(measures), TREE_TITLE)


def _branches(drawing: Drawing) -> tuple[list[np.ndarray], list[str]]:
    """Brackets of the tree, leaves at the right, each in the colour of its cluster where both its branches are of one."""
    leaves = len(drawing.order)
    middle = np.zeros(2 * leaves - 1)
    middle[np.array(drawing.order)] = np.arange(leaves) + 0.5
    height = np.zeros(2 * leaves - 1)
    owner = [*drawing.cluster, *([SCATTERED] * (leaves - 1))]
    lines, colours = [], []
    for number_of, (left, right, top, _) in enumerate(drawing.merges):
        a, b, node = int(left), int(right), leaves + number_of
        middle[node], height[node] = (middle[a] + middle[b]) / 2, top
        owner[node] = owner[a] if owner[a] == owner[b] else SCATTERED
        lines.append(np.array([[height[a], middle[a]], [top, middle[a]], [top, middle[b]], [height[b], middle[b]]]))
        colours.append(to_hex(style.MUTED) if owner[node] == SCATTERED else colour_of(owner[node]))
    return lines, colours


def _tree_statement(measures: ClusterMeasures) -> str:
    if measures.cophenetic is None:
        return "Tree of features by when they fire"
    chance = measures.chance["shuffled"]["cophenetic"]
    found = f"The tree keeps the distances with correlation {number(measures.cophenetic)}"
    if chance.mean is None or chance.p is None:
        return found
    return f"{found}; with shuffled profiles {number(chance.mean)} (p{SPACE}={SPACE}{chance.p:.2f})"


# The clusters, and the profiles


def _draw_strip(axes: Axes, labels: np.ndarray) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(len(labels), 0)
    axes.set_axis_off()
    starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1])).tolist()
    for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        cluster = int(labels[start])
        axes.axhspan(start, end, color=colour_of(cluster), linewidth=0)
        if cluster != SCATTERED and end - start >= TALL * len(labels):
            ink = style.INK if colour_of(cluster) in style.COLOURS[3:6] else style.PAPER
            axes.text(0.5, (start + end) / 2, str(cluster + 1), ha="center", va="center", color=ink, fontsize=8, fontweight="bold")


def _draw_profiles(axes: Axes, measures: ClusterMeasures, bins: BinsOfProfiles, drawing: Drawing, labels: np.ndarray) -> None:
    values = style.array(drawing.profiles)[drawing.order]
    low, high = style.extent(values[values > 0]) or (1.0, 1.0)
    norm = LogNorm(*(1.0 / np.clip(1.0 / low, LEAST, LARGEST), np.clip(high, LEAST, LARGEST)))
    mesh = style.heatmap(axes, bin_edges(bins), np.arange(len(values) + 1), values, norm)
    for border in (np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist():
        axes.axhline(border, color=style.PAPER, linewidth=0.7)
    axes.invert_yaxis()
    axes.set_yticks([])
    bin_axis(axes, bins, "position (0 is left out)")
    shown, kept = len(values), measures.kept
    axes.set_ylabel(f"{shown:,} of {kept:,} features, evenly along the tree" if shown < kept else f"{kept:,} features")
    style.colour_bar(mesh, axes, values, "mean activation, 1 = the feature's own level if it were flat")
    style.panel_title(axes, "b", statement(measures, bins), MAP_TITLE)


def statement(measures: ClusterMeasures, bins: BinsOfProfiles) -> str:
    """What was found, in a sentence."""
    kept, clusters, silhouette, p = measures.kept, measures.clusters, measures.silhouette, measures.p
    if silhouette is None or p is None or (clusters == 1 and measures.chosen == 1):
        return f"No clusters: no cut of the tree sets {kept:,} features apart"
    against_chance = f"(silhouette {number(silhouette)}, p{SPACE}={SPACE}{p:.2f})"
    if clusters == 1:
        return f"No clusters beyond chance among {kept:,} features {against_chance}"
    rows = measures.rows
    narrow = min(range(len(rows)), key=lambda order: (rows[order].width, -rows[order].features))
    peak, width = peak_of(rows[narrow], bins), percent(rows[narrow].width)
    return (
        f"{clusters} clusters among {kept:,} features {against_chance}; "
        f"the narrowest is {narrow + 1}: {rows[narrow].features:,} features, each spread over {width} of the axis"
        + (f", most active at {peak}" if peak else "")
    )


def peak_of(row: ClusterRow, bins: BinsOfProfiles) -> str | None:
    """Where the features of a cluster are most active; None where that is hardly more than elsewhere, as it is when each lives somewhere
    else."""
    peak = int(np.argmax(row.mean))
    return positions_of(bins, peak) if row.mean[peak] >= PEAK else None
