"""Pictures of temporal clusters: rows of tree and heatmap agree, titles say what was found, and missing data are said in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from test_figures import colour_bars, meshes, panels, texts

from made_firings import box, comb, flat, sampled
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.clusters.section import ClusterMeasures, cluster_firings
from temporallens.figures.cluster_patterns import correlations, draw_cluster_patterns
from temporallens.figures.save import save
from temporallens.figures.temporal_clustering import bin_edges, draw_temporal_clustering

FEW: dict[str, Any] = {"draws": 19, "bootstraps": 2, "sample": 40}
STRUCTURED = np.concatenate([[box(1, 8)] * 12, [box(20, 31)] * 12, flat(16)])


@pytest.fixture(scope="module")
def found() -> ClusterMeasures:
    return cluster_firings(sampled(STRUCTURED), ClustersPolicy(**FEW))


@pytest.fixture(scope="module")
def nothing() -> ClusterMeasures:
    return cluster_firings(sampled(flat(40), seed=1), ClustersPolicy(**FEW))


@pytest.fixture(scope="module")
def few() -> ClusterMeasures:
    return cluster_firings(sampled(STRUCTURED), ClustersPolicy(least_firings=100_000))


def branches(figure: Figure) -> list[np.ndarray]:
    (lines,) = (lines for lines in panels(figure)[0].collections if isinstance(lines, LineCollection))
    return [np.asarray(path.vertices) for path in lines.get_paths()]


def test_the_rows_of_tree_and_heatmap_are_the_same_features(found: ClusterMeasures) -> None:
    figure = draw_temporal_clustering(found, "a run")
    tree, strip, profiles = panels(figure)
    assert tree.get_ylim() == strip.get_ylim() == profiles.get_ylim() == (40, 0)
    drawing = found.drawing
    assert drawing is not None
    (mesh,) = meshes(figure)
    shown = np.asarray(mesh.get_array())
    assert np.allclose(shown, np.array(drawing.profiles)[drawing.order])
    leaves = {float(y) for bracket in branches(figure) for x, y in bracket[[0, 3]] if x == 0}
    assert leaves == {place + 0.5 for place in range(40)}
    heights = sorted(bracket[1, 0] for bracket in branches(figure))
    assert np.allclose(heights, sorted(merge[2] for merge in drawing.merges))


def test_titles_state_what_was_found(found: ClusterMeasures, nothing: ClusterMeasures) -> None:
    written = texts(draw_temporal_clustering(found, "a run"))
    assert "a run" in written and "3 clusters among 40 features" in written and "p = 0.05" in written
    assert "correlation" in written and "shuffled profiles" in written
    written = texts(draw_temporal_clustering(nothing))
    assert "No clusters beyond chance among 40 features" in written and f"p = {nothing.p:.2f}" in written
    patterns = texts(draw_cluster_patterns(found, "a run"))
    assert "24 of 40 features spend their activation on half of the axis or less" in patterns
    assert "16 features, flat" in patterns and "within clusters" in patterns
    patterns = texts(draw_cluster_patterns(nothing))
    assert "None of 40 features is specialised" in patterns and "All in one cluster" in patterns


def test_a_cluster_of_features_with_places_of_their_own_has_no_peak() -> None:
    rate = np.array(
        [*(box(start, start + 7) for start in range(5, 23)), *flat(16), *(comb(4, phase) for phase in range(4) for _ in range(4))]
    )
    measures = cluster_firings(sampled(rate), ClustersPolicy(distance="motif", **FEW))
    patterns = texts(draw_cluster_patterns(measures))
    assert "18 features, at various places" in patterns and "16 features, period 4" in patterns
    assert "most active" not in texts(draw_temporal_clustering(measures))


def test_axes_and_colour_bars_have_units(found: ClusterMeasures) -> None:
    figure = draw_temporal_clustering(found)
    tree, _, profiles = panels(figure)
    assert tree.get_xlabel().startswith("Jensen-Shannon distance") and profiles.get_xlabel() == "position (0 is left out)"
    (bar,) = colour_bars(figure)
    assert "1 = the feature's own level" in bar.get_ylabel()
    (mesh,) = meshes(figure)
    assert isinstance(mesh.norm, LogNorm) and 1 / 16 <= float(mesh.norm.vmin or 0) <= 1 / 4 and 4 <= float(mesh.norm.vmax or 0) <= 16
    patterns = draw_cluster_patterns(found)
    assert colour_bars(patterns)[0].get_ylabel() == "correlation of two features' profiles"
    labels = [axes.get_xlabel() for axes in panels(patterns)]
    assert "position at which a feature is most active" in labels and "position" in labels


def test_bins_that_widen_stand_on_a_logarithmic_axis() -> None:
    thin = cluster_firings(sampled(np.concatenate([flat(30, 0.012), flat(6, 0.012)])), ClustersPolicy(bins="log", least_firings=50, **FEW))
    measures = thin
    _, _, profiles = panels(draw_temporal_clustering(measures))
    assert profiles.get_xlabel() == "position (0 is left out) (log scale)" and profiles.get_xlim()[0] == 0.5
    assert measures.bins is not None
    edges = bin_edges(measures.bins)
    assert edges[0] == 0.5 and edges[-1] == 31.5 and np.diff(edges)[-1] > 1


def test_patterns_are_the_means_of_their_clusters(found: ClusterMeasures) -> None:
    figure = draw_cluster_patterns(found)
    titled = {axes.get_title(loc="left").split()[0]: axes for axes in panels(figure)}
    for place, row in enumerate(found.rows):
        axes = titled[str(place + 1)]
        assert np.allclose(np.asarray(axes.lines[0].get_ydata()), row.mean)
        assert f"{row.features} features" in axes.get_title(loc="left")
    (mesh,) = meshes(figure)
    assert np.asarray(mesh.get_array()).shape == (40, 40)
    bars = [patch for patch in titled["c"].patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 24


def test_correlations_of_rows_that_do_not_vary_are_zero() -> None:
    rows = np.array([[1.0, 1, 1], [0, 1, 2], [2, 1, 0]])
    assert np.allclose(correlations(rows), [[1, 0, 0], [0, 1, -1], [0, -1, 1]])


def test_many_clusters_are_drawn_as_far_as_there_is_room(tmp_path: Path) -> None:
    rate = np.zeros((72, 32))
    for place in range(12):
        rate[6 * place : 6 * place + 6, 1 + 2 * place : 3 + 2 * place] = 0.5
    measures = cluster_firings(sampled(rate), ClustersPolicy(**FEW))
    assert measures.clusters == 12
    figure = draw_cluster_patterns(measures, "many")
    assert "the 4 smallest are not drawn" in texts(figure) and "other clusters" in texts(figure)
    save(figure, tmp_path / "patterns")
    save(draw_temporal_clustering(measures, "many"), tmp_path / "tree")


@pytest.mark.parametrize("draw", [draw_temporal_clustering, draw_cluster_patterns])
def test_a_run_without_clusters_says_why_in_each_panel(draw: Any, few: ClusterMeasures, tmp_path: Path) -> None:
    for measures, reason in ((None, "evaluated without temporal clusters"), (few, "0 of 40 features fire 100,000 times or more")):
        figure = draw(measures, "a run")
        assert texts(figure).count(reason) >= 2
        save(figure, tmp_path / "a")


@pytest.mark.parametrize(("draw", "format"), [(draw_temporal_clustering, "svg"), (draw_cluster_patterns, "pdf")])
def test_the_same_measures_give_the_same_bytes(draw: Any, found: ClusterMeasures, tmp_path: Path, format: str) -> None:
    first, second = (save(draw(found, "a run"), tmp_path / name, format).read_bytes() for name in ("one", "two"))
    assert first == second
