"""Feature activation positional fidelity (lab notes, experiment 4): what happens to features when text is pushed to later positions.

Drawn from the fidelity measures of dictionaries (`docs/method.md`, "Fidelity and splicing"): whether features follow the
index or the token, how many firings stay on their tokens, and what the shift does to FVE, under the mask and with the mask open. An
arm is drawn at its first seed, its bars being bootstraps over documents; where several seeds were measured, at their mean, with
Student's interval over seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from temporallens.evaluation.model.fidelity import FidelityMeasures, ShiftFidelity
from temporallens.evaluation.statistics import Estimate, mean_of
from temporallens.figures import style
from temporallens.wording import minus, number, percent, plain

HEIGHT = 4.9
MOST_ARMS = 10
LEGEND_COLUMNS = 5
DODGE = 1.035
"""Arms at one shift stand so far apart, as a factor."""
OPEN = (0, (1, 1.5))
"""The dash of a masked dictionary with its mask opened."""
TITLE_CHARACTERS = 38
LITTLE = 0.005
"""A change of FVE below this is called no more than so much."""
NAME = 30
NOTHING = "no run of these activations was measured under shifts (evaluation.fidelity)"


class Point(NamedTuple):
    """One arm at one shift."""

    shift: int
    value: float
    low: float | None
    high: float | None


class Arm(NamedTuple):
    """One arm: what each of its seeds measured."""

    name: str
    seeds: list[FidelityMeasures]

    def points(self, of: Callable[[ShiftFidelity], Estimate | None]) -> list[Point]:
        """An estimate by shift, at the shifts where it has a value."""
        found: dict[int, list[Estimate]] = {}
        for shift in (shift for measures in self.seeds for shift in measures.shifts):
            estimate = of(shift)
            if estimate is not None and estimate.value is not None:
                found.setdefault(shift.shift, []).append(estimate)
        return [_point(shift, estimates) for shift, estimates in sorted(found.items())]


def _point(shift: int, estimates: Sequence[Estimate]) -> Point:
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    over_seeds = mean_of(values)
    ends = estimates[0] if len(estimates) == 1 else over_seeds
    return Point(shift, over_seeds.value, ends.low, ends.high)


def draw_fidelity(arms: Sequence[Arm], title: str = "") -> Figure:
    """Three panels by shift; `arms` are those of one activations entry that were measured."""
    with style.ours():
        figure = style.new_figure(HEIGHT + 0.24 * -(-len(arms[:MOST_ARMS]) // LEGEND_COLUMNS))
        style.head(figure, title)
        panels = figure.subplots(1, 3)
        if not arms:
            style.empty_panels(panels, "abc", ("Index or token", "Firings that stay", "FVE under shifts"), TITLE_CHARACTERS, NOTHING)
            return figure
        shown = arms[:MOST_ARMS]
        _draw_index(panels[0], shown)
        _draw_content(panels[1], shown)
        opened = _draw_fve(panels[2], shown)
        handles = [_handle(style.look(order), plain(arm.name, NAME)) for order, arm in enumerate(shown)]
        if opened:
            handles.append(Line2D([], [], color=style.MUTED, linestyle=OPEN, label="c: the same with its mask open"))
        left_out = f"; {len(arms) - len(shown)} more arms are not drawn" if len(arms) > len(shown) else ""
        note = f"bars: {style.rests_on((len(arm.seeds) for arm in shown), 'one seed, hollow')}{left_out}"
        figure.legend(handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)), handlelength=3, title=note)
    return figure


def _handle(look: style.Look, label: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=label)


def _draw_arms(axes: Axes, arms: Sequence[Arm], of: Callable[[ShiftFidelity], Estimate | None]) -> list[list[Point]]:
    """Lines over shifts with their intervals."""
    curves = [arm.points(of) for arm in arms]
    for order, (arm, points) in enumerate(zip(arms, curves, strict=True)):
        if not points:
            continue
        x = [point.shift * DODGE ** (order - (len(arms) - 1) / 2) for point in points]
        look = style.look(order)
        face = look.colour if len(arm.seeds) > 1 else style.PAPER
        axes.plot(x, [point.value for point in points], color=look.colour, linestyle=look.dash, linewidth=1.2)
        for at, point in zip(x, points, strict=True):
            if point.low is not None and point.high is not None:
                style.interval(axes, [at, at], [point.low, point.high], look.colour)
        values = [point.value for point in points]
        axes.plot(x, values, color=look.colour, linestyle="none", marker=look.marker, markerfacecolor=face)
    return curves


def _shift_axis(axes: Axes, arms: Sequence[Arm]) -> None:
    shifts = sorted({shift.shift for arm in arms for measures in arm.seeds for shift in measures.shifts})
    room = DODGE ** (len(arms) / 2 + 1)
    axes.set_xscale("log")
    axes.set_xlim(shifts[0] / room, shifts[-1] * room)
    style.ticks_at(axes.xaxis, shifts)
    axes.set_xlabel("shift: tokens inserted before the text (log scale)")
    style.ticks_at(axes.yaxis, MaxNLocator(6), lambda value: minus(f"{value:.12g}"))
    axes.margins(y=0.12)
    style.open_grid(axes)


# a


def _draw_index(axes: Axes, arms: Sequence[Arm]) -> None:
    curves = _draw_arms(axes, arms, lambda shift: shift.absolute_index)
    axes.axhline(0, color=style.MUTED, linewidth=0.9)
    _shift_axis(axes, arms)
    axes.set_ylabel("AI: above 0 tied to the index, below to the token")
    style.panel_title(axes, "a", _index_statement(arms, curves), TITLE_CHARACTERS)


def _index_statement(arms: Sequence[Arm], curves: Sequence[Sequence[Point]]) -> str:
    last = {arm.name: points[-1] for arm, points in zip(arms, curves, strict=True) if points}
    if not last:
        return "Whether features follow the index or the token is not known"
    shift = max(point.shift for point in last.values())
    sides: dict[str, list[str]] = {"the index": [], "the token": [], "neither": []}
    for name, point in last.items():
        bounds = (point.value, point.value) if point.low is None or point.high is None else (point.low, point.high)
        sides["the index" if bounds[0] > 0 else "the token" if bounds[1] < 0 else "neither"].append(name)
    clauses = [f"{_of(names, len(last))} follow {side}" for side, names in sides.items() if names]
    return f"At a shift of {shift} features of {'; of '.join(clauses)}"


def _of(names: Sequence[str], everything: int) -> str:
    if len(names) == everything > 1:
        return "every arm"
    return plain(names[0], NAME) if len(names) == 1 else f"{len(names)} arms"


# b


def _draw_content(axes: Axes, arms: Sequence[Arm]) -> None:
    curves = _draw_arms(axes, arms, lambda shift: shift.content)
    _shift_axis(axes, arms)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("firings that stay on their tokens (Jaccard)")
    control = [measures.control_content.value for arm in arms for measures in arm.seeds]
    known = [value for value in control if value is not None]
    if known:
        axes.axhline(min(known), color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.annotate("shift 0", (1, min(known)), (-2, -3), xycoords=axes.get_yaxis_transform(), textcoords="offset points", **SMALL)
    style.panel_title(axes, "b", _content_statement(arms, curves), TITLE_CHARACTERS)


SMALL: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 7.5, "color": style.MUTED}


def _content_statement(arms: Sequence[Arm], curves: Sequence[Sequence[Point]]) -> str:
    ends = [(points[-1].value, points[-1].shift, arm.name) for arm, points in zip(arms, curves, strict=True) if points]
    if not ends:
        return "How many firings stay on their tokens is not known"
    (low, shift, worst), (high, _, best) = min(ends), max(ends)
    if percent(low) == percent(high):
        return f"{percent(low)} of firings stay on their tokens at a shift of {shift}"
    return f"At a shift of {shift}, {percent(low)} ({plain(worst, NAME)}) to {percent(high)} ({plain(best, NAME)}) of firings stay"


# c


def _draw_fve(axes: Axes, arms: Sequence[Arm]) -> bool:
    curves = _draw_arms(axes, arms, lambda shift: shift.fve.change)
    opened = False
    for order, arm in enumerate(arms):
        points = arm.points(lambda shift: None if shift.open_fve is None else shift.open_fve.change)
        if points:
            opened = True
            x = [point.shift * DODGE ** (order - (len(arms) - 1) / 2) for point in points]
            axes.plot(x, [point.value for point in points], color=style.look(order).colour, linestyle=OPEN, linewidth=1.2)
    axes.axhline(0, color=style.MUTED, linewidth=0.9)
    _shift_axis(axes, arms)
    axes.set_ylabel("change of FVE on the same tokens")
    style.panel_title(axes, "c", _fve_statement(arms, curves), TITLE_CHARACTERS)
    return opened


def _fve_statement(arms: Sequence[Arm], curves: Sequence[Sequence[Point]]) -> str:
    known = [(point.value, point.shift, arm.name) for arm, points in zip(arms, curves, strict=True) for point in points]
    if not known:
        return "What shifts do to FVE is not known"
    largest = max(abs(value) for value, _, _ in known)
    if largest < LITTLE:
        return f"No shift changes FVE by more than {number(largest)}{_mask_clause(arms)}"
    beyond = [
        (point.value, point.shift, arm.name)
        for arm, points in zip(arms, curves, strict=True)
        for point in points
        if point.low is None or point.high is None or not point.low <= 0 <= point.high
    ]
    if not beyond:
        return f"No shift changes FVE beyond its interval{_mask_clause(arms)}"
    change, shift, name = min(beyond)
    verb = "loses most" if change < 0 else "gains least"
    return f"{plain(name, NAME)} {verb}: {number(abs(change))} of FVE at a shift of {shift}{_mask_clause(arms)}"


def _mask_clause(arms: Sequence[Arm]) -> str:
    """What masks have to do with it at the largest shift, where every masked arm says the same beyond its interval."""
    signs = set()
    for arm in arms:
        points = arm.points(lambda shift: shift.mask_change)
        if points:
            end = points[-1]
            known = end.low is not None and end.high is not None
            signs.add("worse" if known and (end.high or 0) < 0 else "better" if known and (end.low or 0) > 0 else "same")
    words = {"worse": "; masks make it worse", "better": "; masks make it better", "same": "; masks make no difference"}
    return words[signs.pop()] if len(signs) == 1 else ""
