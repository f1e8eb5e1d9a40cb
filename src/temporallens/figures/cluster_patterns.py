"""What temporal clusters look like from inside (lab notes, Run 9): mean patterns, consistency, and where specialised features live.

Drawn from a dictionary's cluster measures (`evaluation/clusters/section.py`). Position 0 is in no profile and on no axis here.
"""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from temporallens.evaluation.clusters.section import BinsOfProfiles, ClusterMeasures
from temporallens.evaluation.clusters.table import ClusterRow, Drawing
from temporallens.evaluation.clusters.trees import SCATTERED
from temporallens.figures import style
from temporallens.figures.temporal_clustering import bin_axis, bin_edges, colour_of, missing, peak_of, positions_of
from temporallens.wording import SPACE, fixed, percent

DRAWN = 8
"""Clusters whose pattern is drawn, the largest ones."""
COLUMNS = 4
ROW, LOWER, HEADS = 2.05, 4.3, 0.5
"""Heights in inches: of a row of patterns, of the panels below, of their heading."""
LEGEND_COLUMNS = 4
MEMBERS = 24
"""Features of each cluster whose correlations are drawn."""
FLAT, BROAD, CLEAR = 0.9, 0.5, 0.5
"""Widths from which a pattern is called flat and broad, and the trend from which a broad one is said to rise or fall."""
MOST, COMMON = 0.5, 0.2
"""Share of a cluster's features that recur where its pattern is called periodic, and of those the share of a period that is named."""
WIDE, PATTERNS, HALF = 112, 120, 56
"""Characters in a title across the figure, in the titles of a row of patterns, and above half of the figure."""


def draw_cluster_patterns(measures: ClusterMeasures | None, title: str = "") -> Figure:
    """Mean patterns with their spread, correlations within and between clusters, and the places of specialised features."""
    rows = [] if measures is None else measures.rows
    lines = max(1, math.ceil(min(len(rows), DRAWN) / COLUMNS))
    with style.ours():
        figure = style.new_figure(HEADS + ROW * lines + LOWER)
        style.head(figure, title)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(HEADS + ROW * lines, LOWER))[:, 0]
        below = lower.subplots(1, 2, width_ratios=(1, 1))
        if measures is None or measures.bins is None or measures.drawing is None:
            names = ("Mean pattern of each cluster", "Consistency", "Specialised features")
            style.empty_panels((upper.subplots(), *below), "abc", names, HALF, missing(measures))
            return figure
        _draw_patterns(upper, measures, measures.bins, lines)
        _draw_consistency(below[0], measures, measures.drawing)
        _draw_specialised(below[1], measures, measures.bins)
    return figure


# Patterns


def _draw_patterns(panel: SubFigure, measures: ClusterMeasures, bins: BinsOfProfiles, lines: int) -> None:
    rows = measures.rows
    drawn = sorted(sorted(range(len(rows)), key=lambda cluster: -rows[cluster].features)[:DRAWN])
    grid = panel.subplots(lines, min(COLUMNS, len(drawn)), squeeze=False, sharex=True)
    panel.suptitle(_pattern_statement(measures, len(drawn)), x=0.008, ha="left", fontsize=10, fontweight="bold")
    for axes, cluster in zip(grid.ravel(), drawn, strict=False):
        _draw_pattern(axes, bins, rows[cluster], cluster, PATTERNS // grid.shape[1])
    for axes in grid.ravel()[len(drawn) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("activation\n(1 = flat)")
    for number_of, axes in enumerate(grid.ravel()[: len(drawn)]):
        if number_of + grid.shape[1] < len(drawn):
            axes.set_xlabel("")
        else:
            axes.tick_params(labelbottom=True)


def _pattern_statement(measures: ClusterMeasures, drawn: int) -> str:
    rows = measures.rows
    most = max(range(len(rows)), key=lambda cluster: rows[cluster].features)
    whose = "The only cluster" if len(rows) == 1 else f"The largest cluster ({most + 1}) holds {rows[most].features:,} features and"
    found = f"{whose} is spread over {percent(rows[most].width)} of the axis"
    scattered = measures.scattered
    apart = "" if not scattered else "; 1 feature is scattered" if scattered == 1 else f"; {scattered:,} features are scattered"
    undrawn = len(rows) - drawn
    left = "" if not undrawn else "; the smallest is not drawn" if undrawn == 1 else f"; the {undrawn} smallest are not drawn"
    return textwrap.fill(f"a  {found}{apart}{left} (line: mean, band: 10th to 90th percentile)", WIDE)


def _draw_pattern(axes: Axes, bins: BinsOfProfiles, row: ClusterRow, cluster: int, characters: int) -> None:
    edges, colour = bin_edges(bins), colour_of(cluster)
    mean, low, high = (style.array(values) for values in (row.mean, row.low, row.high))
    x = (edges[:-1] + edges[1:]) / 2
    axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, mean, color=colour, linewidth=1.5)
    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylim(0, max(2.0, 1.1 * float(np.nanmax(np.maximum(mean, high)))))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    bin_axis(axes, bins)
    style.open_grid(axes)
    style.panel_title(axes, str(cluster + 1), f"{row.features:,} features, {_motif(row, bins)}", characters)


def _motif(row: ClusterRow, bins: BinsOfProfiles) -> str:
    """The shape of most of its features in a few words."""
    recurring = sum(row.periods.values())
    if recurring and recurring >= MOST * row.features:
        common = [period for period, count in row.periods.items() if count >= COMMON * recurring]
        return f"period {' or '.join(common)}"
    if row.width > FLAT:
        return "flat"
    if row.width > BROAD:
        low, high = row.trends
        if low < -CLEAR and high > CLEAR:
            return "rising or falling"
        return "broad" if abs(row.trend) < CLEAR else "rising" if row.trend > 0 else "falling"
    peak = peak_of(row, bins)
    return "at various places" if peak is None else f"peak at {peak.removeprefix('positions ').removeprefix('position' + SPACE)}"


# Consistency


def _draw_consistency(axes: Axes, measures: ClusterMeasures, drawing: Drawing) -> None:
    profiles, labels = _members(drawing)
    correlation = correlations(profiles)
    count = len(labels)
    norm = Normalize(min(-0.2, float(np.quantile(correlation, 0.01))), 1.0)
    mesh = style.heatmap(axes, np.arange(count + 1), np.arange(count + 1), correlation, norm)
    axes.invert_yaxis()
    starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    for border in starts[1:]:
        axes.axhline(border, color=style.PAPER, linewidth=0.8)
        axes.axvline(border, color=style.PAPER, linewidth=0.8)
    middles = (starts + np.append(starts[1:], count)) / 2
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(middles, [str(labels[start] + 1) for start in starts])
    axes.tick_params(length=0)
    axes.set_xlabel(f"cluster (up to {MEMBERS} features of each)")
    axes.set_ylabel("cluster")
    style.colour_bar(mesh, axes, correlation, "correlation of two features' profiles")
    style.panel_title(axes, "b", consistency_statement(measures, correlation, labels), HALF)


def _members(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Profiles of some features of each cluster, cluster after cluster, and their clusters."""
    order = np.array(drawing.order)
    labels, profiles = np.array(drawing.cluster)[order], style.array(drawing.profiles)[order]
    chosen = []
    for cluster in np.unique(labels[labels != SCATTERED]):
        members = np.flatnonzero(labels == cluster)
        chosen.append(members[np.unique(np.linspace(0, len(members) - 1, min(MEMBERS, len(members))).round().astype(int))])
    picked = np.concatenate(chosen)
    return profiles[picked], labels[picked]


def correlations(profiles: np.ndarray) -> np.ndarray:
    """Of all pairs of rows; 0 with a row that does not vary, 1 of each with itself."""
    centred = profiles - profiles.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-9 * np.abs(profiles).max())
    found = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return found


def consistency_statement(measures: ClusterMeasures, correlation: np.ndarray, labels: np.ndarray) -> str:
    """Mean correlations within clusters, of all their features, and between them, of those drawn."""
    within = [row.correlation for row in measures.rows if row.correlation is not None]
    if not within:
        return "Correlation of profiles"
    if len(measures.rows) == 1:
        return f"All in one cluster: profiles of two features correlate {fixed(within[0], 2)} in the mean"
    apart = correlation[labels[:, None] != labels]
    spread = fixed(within[0], 2) if len(within) == 1 else f"{fixed(min(within), 2)} to {fixed(max(within), 2)}"
    return f"Profiles correlate {spread} within clusters, {fixed(float(apart.mean()), 2)} between them{_found_again(measures)}"


def _found_again(measures: ClusterMeasures) -> str:
    drawn = measures.documents_drawn
    if drawn is None or drawn.ari is None:
        return ""
    interval = f"{fixed(drawn.low, 2)} to {fixed(drawn.high, 2)}"
    return f"; in other draws of documents they are found with an adjusted Rand index of {fixed(drawn.ari, 2)} ({interval})"


# Specialised features


def _draw_specialised(axes: Axes, measures: ClusterMeasures, bins: BinsOfProfiles) -> None:
    edges, parts = bin_edges(bins), _stacked(measures, len(bins.first))
    total = np.sum([counts for _, _, counts in parts], axis=0)
    style.panel_title(axes, "c", specialised_statement(measures.kept, bins, total), HALF)
    if not total.any():
        style.say_missing(
            axes, "no feature is specialised: none spends its activation on half of the axis or less for more reasons than noise"
        )
        return
    bottom = np.zeros(len(total))
    for colour, name, counts in parts:
        axes.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=colour, edgecolor=style.INK, linewidth=0.3, label=name)
        bottom += counts
    axes.set_ylim(0, (1.15 + 0.09 * math.ceil(len(parts) / LEGEND_COLUMNS)) * float(total.max()))  # the legend stands above the bars
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bin_axis(axes, bins, "position at which a feature is most active")
    axes.set_ylabel("specialised features")
    style.open_grid(axes)
    axes.legend(loc="upper right", ncols=LEGEND_COLUMNS)


def _stacked(measures: ClusterMeasures, bins: int) -> list[tuple[str, str, np.ndarray]]:
    """Colour, name and counts by bin: of the clusters with most specialised features as far as colours go round once, of all others
    together, and of scattered features."""
    rows = measures.rows
    by_size = sorted(range(len(rows)), key=lambda cluster: -sum(rows[cluster].specialised))
    named: list[int] = []
    for cluster in by_size:
        if sum(rows[cluster].specialised) and colour_of(cluster) not in map(colour_of, named):
            named.append(cluster)
    parts = [(colour_of(cluster), f"cluster {cluster + 1}", style.array(rows[cluster].specialised)) for cluster in sorted(named)]
    others = [style.array(row.specialised) for cluster, row in enumerate(rows) if cluster not in named]
    parts.append((style.MUTED, "other clusters", np.sum(others, axis=0) if others else np.zeros(bins)))
    parts.append((colour_of(SCATTERED), "scattered", style.array(measures.scattered_peaks)))
    return [part for part in parts if part[2].any()] or parts[-1:]


def specialised_statement(kept: int, bins: BinsOfProfiles, total: np.ndarray) -> str:
    """How many features are specialised, and where most of them are."""
    found = int(total.sum())
    if not found:
        return f"None of {kept:,} features is specialised"
    most = int(total.argmax())
    share = "all" if total[most] == found else percent(total[most] / found)
    return (
        f"{found:,} of {kept:,} features spend their activation on half of the axis or less; "
        f"{share} of them are most active at {positions_of(bins, most)}"
    )
