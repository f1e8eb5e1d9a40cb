"""Codes needed for the same variance, beside what is known beforehand: how many codes an arm with an expectation needs to explain what the
plain arm explains, by layer.

Drawn from the results of a study that has both at several levels. Curves of FVE over log L0 are read as the matched comparison reads them,
by seed; a mark on the lower edge says that the fewest codes measured explain more than the plain arm does. Bars are Student's 95 %
interval over seeds.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from temporallens.evaluation.results import Results, RunResult
from temporallens.evaluation.statistics import Mean, mean_of
from temporallens.figures import style
from temporallens.wording import plain

HEIGHT = 4.8
MARKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Need(NamedTuple):
    """What stands for the codes of a plain arm."""

    plain: float  # its L0
    needed: Mean  # L0 of the same FVE
    beyond: bool  # fewer than were measured would do; then `needed` is the fewest


def draw_known(results: Results) -> Figure:
    """One panel for each arm with an expectation; a line for each activations entry."""
    arms = expecting(results)
    reference = plain_arm(results)
    with style.ours():
        figure = style.new_figure(HEIGHT)
        panels = [figure.add_subplot(1, len(arms), column + 1) for column in range(len(arms))]
        for letter, axes, arm in zip("abcdefgh", panels, arms, strict=False):
            found = {entry: needs(results.runs, entry, reference, arm) for entry in results.activations}
            style.panel_title(axes, letter, f"{plain(arm, 28)}: {_statement(found)}", 116 // len(arms))
            _draw_panel(axes, {entry: own for entry, own in found.items() if own}, reference)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), title=style.rests_on([2]))
    return figure


def expecting(results: Results) -> list[str]:
    """The arms that know something beforehand, without controls: tokens that are permuted, the past of another row."""
    arms = {name: arm.expectation for name, arm in results.study.arms.items() if arm.expectation}
    return [name for name, said in arms.items() if not said.get("permuted") and said.get("past_of", "row") == "row"]


def plain_arm(results: Results) -> str:
    """The first baseline of the first comparison."""
    return next(iter(results.comparison.values())).baselines[0]


def needs(runs: Sequence[RunResult], entry: str, reference: str, arm: str) -> list[Need]:
    """For each level of the plain arm, what the other needs for its FVE; nothing where no seed has both."""
    curves = {family: _curves(runs, entry, family) for family in (reference, arm)}
    seeds = [seed for seed in curves[reference] if seed in curves[arm]]
    found = []
    for level in range(min((len(curves[reference][seed]) for seed in seeds), default=0)):
        points = [curves[reference][seed][level] for seed in seeds]
        read = [_l0_at(curves[arm][seed], point[1]) for seed, point in zip(seeds, points, strict=True)]
        known = [l0 for l0 in read if l0 is not None]
        if len(known) == len(read):
            fewest = [curves[arm][seed][0][0] for seed in seeds]
            beyond = all(l0 <= least for l0, least in zip(known, fewest, strict=True))
            found.append(Need(sum(point[0] for point in points) / len(points), mean_of(known), beyond))
    return found


def _curves(runs: Sequence[RunResult], entry: str, family: str) -> dict[int, list[tuple[float, float]]]:
    """(L0, FVE) of every level, by seed, fewest codes first."""
    found: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        if run.activations == entry and run.family == family and run.l0 > 0:
            found.setdefault(run.seed, []).append((run.l0, run.fve))
    return {seed: sorted(points) for seed, points in found.items()}


def _l0_at(curve: Sequence[tuple[float, float]], fve: float) -> float | None:
    """At how many codes a curve reaches this FVE, by straight lines in log L0; its fewest where these explain more; None where its most
    explain less."""
    if curve[0][1] >= fve:
        return curve[0][0]
    for (low, below), (high, above) in pairwise(curve):
        if below < fve <= above:
            return low * math.exp(math.log(high / low) * (fve - below) / (above - below))
    return None


def _statement(found: dict[str, list[Need]]) -> str:
    """`at most 12 codes for 32`, at the most codes of the plain arm, over all entries."""
    last = [own[-1] for own in found.values() if own]
    if not last:
        return "no level is matched"
    most = max(need.needed.value for need in last)
    return f"at most {most:.0f} codes for {min(need.plain for need in last):.0f}"


def _draw_panel(axes: Axes, found: dict[str, list[Need]], reference: str) -> None:
    if not found:
        style.say_missing(axes, "no level of the plain arm is matched")
        return
    for order, (entry, own) in enumerate(found.items()):
        look = style.look(order)
        axes.plot([need.plain for need in own], [need.needed.value for need in own], color=look.colour, linestyle=look.dash)
        for need in own:
            if need.needed.low is not None and need.needed.high is not None:
                style.interval(axes, [need.plain] * 2, [max(need.needed.low, 0.5), need.needed.high], look.colour)
            marker = "v" if need.beyond else look.marker
            axes.plot([need.plain], [need.needed.value], color=look.colour, marker=marker, markersize=6)
        axes.plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=plain(entry, 40))
    every = [value for own in found.values() for need in own for value in (need.plain, need.needed.value)]
    ends = [min(every) / 1.2, max(every) * 1.2]
    axes.plot(ends, ends, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate("as many", (ends[1], ends[1]), ha="right", va="top", fontsize=8, color=style.MUTED)
    axes.plot(ends, [end / 2 for end in ends], color=style.FAINT, linewidth=0.9)
    axes.annotate("half as many", (ends[1], ends[1] / 2), ha="right", va="top", fontsize=8, color=style.MUTED)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    marks = [mark for mark in MARKS if ends[0] <= mark <= ends[1]]
    style.ticks_at(axes.xaxis, marks)
    style.ticks_at(axes.yaxis, marks)
    axes.set_xlabel(f"codes per token of {plain(reference, 28)} (log scale)")
    axes.set_ylabel("codes per token for the same FVE (log scale)\n\u25bc: the fewest measured explain more")
    style.open_grid(axes)
