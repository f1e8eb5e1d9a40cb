"""The matched comparison: curves read at equal L0, differences paired by seed, and verdicts that claim no more than intervals bear."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from made_results import make_comparison, make_entry, make_results, make_run
from temporallens.evaluation.comparison import REACH, Comparison, Point, RunScores, baselines_among, compare, read_curve
from temporallens.evaluation.statistics import difference_of, mean_of, ratio_of
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.save import save
from temporallens.figures.style import PAPER

LEVELS = (16.0, 32.0, 64.0)
values = st.lists(st.floats(-1, 1).map(lambda value: round(value, 6)), min_size=2, max_size=8)


def curve(slope: float = 0.1, start: float = 0.3, levels: tuple[float, ...] = LEVELS) -> list[Point]:
    """Points on a straight line in log L0."""
    return [Point(l0, start + slope * math.log(l0), start / 2 + slope * math.log(l0)) for l0 in levels]


def measured(family: str, seed: int = 0, gain: float = 0.0, kind: str = "", levels: tuple[float, ...] = LEVELS) -> list[RunScores]:
    return [
        RunScores(family, kind or family, seed, point.l0, point.fve + gain, point.fve_within_position + gain)
        for point in curve(levels=levels)
    ]


def only(comparison: Comparison, **wanted: Any) -> Any:
    """The one entry of `against` with these values."""
    (found,) = [row for row in comparison.against if all(getattr(row, name) == value for name, value in wanted.items())]
    return found


# Curves


@given(l0=st.floats(16, 64), slope=st.floats(-0.2, 0.2), order=st.permutations(range(3)))
def test_a_curve_that_is_a_line_is_read_exactly_whatever_the_order_of_its_points(l0: float, slope: float, order: list[int]) -> None:
    points = curve(slope)
    read = read_curve([points[place] for place in order], l0)
    (wanted,) = curve(slope, levels=(l0,))
    assert read is not None
    assert np.allclose(read, wanted, atol=1e-12)


def test_a_curve_is_read_a_little_beyond_its_ends_and_no_further() -> None:
    for l0 in (LEVELS[0] / (1 + 0.99 * REACH), LEVELS[-1] * (1 + 0.99 * REACH)):
        assert np.allclose(read_curve(curve(), l0) or (), curve(levels=(l0,))[0])
    for l0 in (LEVELS[0] / (1 + 1.01 * REACH), LEVELS[-1] * (1 + 1.01 * REACH)):
        assert read_curve(curve(), l0) is None


def test_between_points_only_the_two_nearest_count() -> None:
    points = [Point(8, 0.5, 0.5), Point(16, 0.7, 0.7), Point(32, 0.8, 0.8), Point(64, 0.0, 0.0)]
    read = read_curve(points, 16 * math.sqrt(2))
    assert read is not None and read.fve == pytest.approx(0.75)


def test_points_of_equal_l0_are_averaged_and_one_point_serves_where_l0_agree() -> None:
    both = read_curve([Point(16, 0.4, 0.2), Point(16, 0.6, 0.4)], 16.1)
    assert both == Point(16, 0.5, pytest.approx(0.3))
    assert read_curve([Point(16, 0.4, 0.2)], 17) is None


# The picture


def test_the_frontier_has_a_panel_per_store_and_a_line_per_arm_hollow_where_it_is_one_seed() -> None:
    runs = [
        make_run(family, seed, activations=entry, arm=f"{family}-k{l0:g}", level=l0, l0=l0 + 0.1 * seed, fve=fve)
        for entry in ("low", "high")
        for family, seeds in (("batchtopk", (0, 1, 2)), ("control", (0,)))
        for seed in seeds
        for l0, fve, _ in curve()
    ]
    entries = {"low": make_entry(), "high": make_entry(), "empty": make_entry()}
    figure = draw_frontier(make_results(activations=entries, runs=runs, comparison={name: make_comparison([]) for name in entries}))
    low, _, empty, unused = figure.axes
    lines = [line for line in low.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"]
    assert len(lines) == 2
    points = [line for line in low.lines if line.get_marker() in {"o", "s"} and len(line.get_xdata()) == 1]
    assert len(points) == 6
    assert [line.get_markerfacecolor() == PAPER for line in points] == [False] * 3 + [True] * 3
    assert low.get_xscale() == low.get_yscale() == "log" and low.yaxis.get_inverted()
    assert "no arm was trained" in empty.texts[0].get_text().replace("\n", " ") and not unused.axison
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["batchtopk", "control"]


def test_the_frontier_of_nothing_is_a_picture_too(tmp_path: Path) -> None:
    assert save(draw_frontier(make_results(activations={}, runs=[])), tmp_path / "frontier.png").stat().st_size > 0


# Statistics


@given(values)
def test_the_interval_and_the_test_are_scipys_paired_ones(differences: list[float]) -> None:
    found = difference_of(differences)
    if np.ptp(differences) < 1e-9:
        return
    other = np.linspace(0, 1, len(differences))
    reference = stats.ttest_rel(other + differences, other)
    interval = reference.confidence_interval(0.95)
    assert np.allclose([found.value, found.low, found.high, found.p], [np.mean(differences), *interval, reference.pvalue], atol=1e-6)
    assert found.verdict == ("above" if interval.low > 0 else "below" if interval.high < 0 else "no difference")


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = difference_of([0.3])
    assert (found.value, found.low, found.high, found.p, found.verdict) == (0.3, None, None, None, "one seed")
    assert mean_of([0.3]).high is None and ratio_of([0.5]).value == pytest.approx(0.5)


def test_seeds_that_agree_exactly_are_no_accident() -> None:
    assert difference_of([0.25, 0.25]).verdict == "above" and difference_of([0.25, 0.25]).p == 0
    assert difference_of([0.0, 0.0]).verdict == "no difference" and difference_of([0.0, 0.0]).p == 1


def test_the_ratio_is_a_geometric_mean_with_the_interval_of_logarithms() -> None:
    found = ratio_of([0.5, 2.0])
    assert found.value == pytest.approx(1.0)
    assert found.low is not None and found.high is not None
    assert found.low * found.high == pytest.approx(1.0)


# Families


def test_families_are_paired_by_seed_at_every_common_l0() -> None:
    gains = [0.010, 0.011, 0.013]
    runs = [run for seed, gain in enumerate(gains) for run in (*measured("batchtopk", seed), *measured("positional", seed, gain))]
    found = compare(runs, LEVELS)
    assert (found.l0, found.baselines) == (list(LEVELS), ["batchtopk"])
    row = only(found, family="positional", l0=32.0)
    assert row.fve.value == pytest.approx(np.mean(gains)) and row.fve.seeds == 3 and row.fve.verdict == "above"
    left = 1 - curve()[1].fve
    assert row.unexplained.value == pytest.approx(stats.gmean([(left - gain) / left for gain in gains]))
    assert {(row.family, row.baseline) for row in found.against} == {("positional", "batchtopk")}


def test_only_seeds_that_both_have_are_paired() -> None:
    runs = [*measured("batchtopk", 0), *measured("batchtopk", 1), *measured("control", 1, 0.02), *measured("control", 2, 0.5)]
    row = only(compare(runs, LEVELS), family="control", l0=16.0)
    assert (row.fve.verdict, row.fve.seeds) == ("one seed", 1)
    assert row.fve.value == pytest.approx(0.02)


def test_no_family_is_compared_beyond_what_it_measured() -> None:
    runs = [*measured("batchtopk"), *measured("standard", levels=(50.0, 90.0))]
    found = compare(runs, LEVELS)
    assert [row.l0 for row in found.against] == [64.0]
    assert [row.l0 for row in found.reached if row.family == "standard"] == [64.0]


def test_two_baselines_are_compared_once_with_each_other() -> None:
    runs = [*measured("batchtopk"), *measured("position_mean", gain=0.1), *measured("positional", gain=0.1)]
    pairs = {(row.family, row.baseline) for row in compare(runs, (32,)).against}
    assert pairs == {("position_mean", "batchtopk"), ("positional", "batchtopk"), ("positional", "position_mean")}


def test_a_baseline_is_the_family_of_that_name_or_the_first_of_that_kind() -> None:
    assert baselines_among([*measured("wide", kind="batchtopk"), *measured("batchtopk")]) == ["batchtopk"]
    assert baselines_among([*measured("blind", kind="batchtopk"), *measured("wide", kind="batchtopk")]) == ["blind"]
    assert baselines_among([*measured("run0", kind="standard"), *measured("run1", kind="positional_relu")]) == ["run0"]
    assert baselines_among([*measured("standard"), *measured("position_mean")]) == ["position_mean"]


def test_without_levels_arms_are_compared_only_where_their_l0_agree() -> None:
    runs = [
        RunScores("batchtopk", "batchtopk", 0, 32.0, 0.80, 0.79),
        RunScores("positional", "positional", 0, 32.3, 0.79, 0.78),
        RunScores("standard", "standard", 0, 40.5, 0.95, 0.94),
    ]
    found = compare(runs, ())
    assert found.l0 == [32.0]
    assert [(row.family, row.fve.verdict) for row in found.against] == [("positional", "one seed")]
    assert compare([], ()).against == [] == compare(runs[2:], (16,)).reached


def test_what_explains_everything_has_no_ratio() -> None:
    runs = [RunScores(family, family, 0, 32.0, 1.0, 1.0) for family in ("batchtopk", "positional")]
    assert only(compare(runs, (32,)), family="positional").unexplained is None


def test_levels_that_nobody_reaches_give_way_to_what_all_curves_have_in_common() -> None:
    """k of 1 and 2 in a narrow store may end at L0 of 2.4 to 3.6 on documents that nobody trained on."""
    runs = [*measured("batchtopk", levels=(2.0, 8.0)), *measured("positional", gain=0.1, levels=(4.0, 16.0))]
    compared = compare(runs, (0.5, 1))
    assert compared.l0 == [pytest.approx(math.sqrt(32))]
    assert only(compared, family="positional").fve.value == pytest.approx(0.1)
    assert not compare([*measured("batchtopk", levels=(2.0, 8.0)), *measured("positional", levels=(16.0, 64.0))], (0.5, 1)).against
