"""Bits that are known beforehand: what share of the bits of a dictionary's support is saved by position, token and the own past.

Drawn from the `bits` measures of dictionaries (`docs/method.md`, "Bits that are known beforehand"); beside every bar stands its null. An
arm is drawn at its first seed, its intervals being bootstraps over documents; where several seeds were measured, at their mean, with
Student's interval over seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from temporallens.evaluation.bits.section import BitsMeasures, Saved, in_words, name_of, names_in
from temporallens.evaluation.statistics import Estimate, Mean, mean_of
from temporallens.figures import style
from temporallens.wording import SPACE, Interval, minus, number, plain

MOST_ARMS = 6
LEGEND_COLUMNS = 4
NAME = 30
AROUND, LINE = 1.6, 0.17
"""Inches: about the bars, and for one of them."""
BAR, NULL = 0.66, 0.22
"""Of the room of one arm: its bar, and its null right below."""
TITLE_CHARACTERS = 120
NOTHING = "no run of these activations was measured for what is known of its codes (evaluation.bits)"


class Arm(NamedTuple):
    """One arm: what each of its seeds measured."""

    name: str
    seeds: list[BitsMeasures]

    def saved(self, name: str) -> list[Saved]:
        return [saved for measures in self.seeds if (saved := measures.saved.get(name)) is not None]


def draw_bits(arms: Sequence[Arm], title: str = "") -> Figure:
    """One panel of bars, by what is known and by arm; `arms` are those of one activations entry that were measured."""
    shown = arms[:MOST_ARMS]
    names = [name for name in names_in([one for arm in shown for one in arm.seeds]) if any(arm.saved(name) for arm in shown)]
    with style.ours():
        figure = style.new_figure(AROUND + LINE * max(1, len(names)) * (len(shown) + 1))
        style.head(figure, title)
        axes = figure.subplots()
        if not names:
            style.empty_panel(axes, "a", "What is known beforehand", TITLE_CHARACTERS, NOTHING)
            return figure
        for order, arm in enumerate(shown):
            _draw_arm(axes, order, arm, names, len(shown))
        _axes(axes, names)
        style.panel_title(axes, "a", _statement(shown), TITLE_CHARACTERS)
        handles = [Patch(color=style.COLOURS[order], label=_described(arm)) for order, arm in enumerate(shown)]
        handles.append(Patch(color=style.MUTED, alpha=0.45, label="below each bar: its null"))
        left_out = f"; {len(arms) - len(shown)} more arms are not drawn" if len(arms) > len(shown) else ""
        note = f"black: {style.rests_on(len(arm.seeds) for arm in shown)}{left_out}"
        figure.legend(handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)), title=note)
    return figure


def _draw_arm(axes: Axes, order: int, arm: Arm, names: Sequence[str], arms: int) -> None:
    for group, name in enumerate(names):
        saved = arm.saved(name)
        if not saved:
            continue
        y = group + (order - (arms - 1) / 2) / (arms + 1)
        share, null = _over_seeds([one.share for one in saved]), _over_seeds([one.null for one in saved])
        room = 1 / (arms + 1)
        _bar(axes, share, y - NULL / 2 * room, BAR * room, style.COLOURS[order], 1.0)
        _bar(axes, null, y + BAR / 2 * room, NULL * room, style.MUTED, 0.45)
        end = max(0.0, *(value for value in (share.value, share.high, null.high) if value is not None))
        said = f"{_percent(share.value)} (null {_percent(null.value)})"
        axes.annotate(said, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, color=style.INK)


def _bar(axes: Axes, share: Interval, y: float, height: float, colour: str, alpha: float) -> None:
    axes.barh(y, share.value or 0.0, height, color=colour, alpha=alpha, linewidth=0)
    if share.low is not None and share.high is not None:
        axes.plot([share.low, share.high], [y, y], color=style.INK, linewidth=1.1, marker="|", markersize=3)


def _over_seeds(estimates: Sequence[Estimate]) -> Estimate | Mean:
    """Of one seed as it stands, over documents; of several their mean, over seeds."""
    known = [estimate.value for estimate in estimates if estimate.value is not None]
    return estimates[0] if len(estimates) == 1 or not known else mean_of(known)


def _percent(share: float | None) -> str:
    return minus(f"{100 * (share or 0.0):z.2f}{SPACE}%")


def _axes(axes: Axes, names: Sequence[str]) -> None:
    style.name_rows(axes, [name_of(name) for name in names])
    axes.tick_params(axis="y", labelsize=9)
    low, high = axes.dataLim.x0, axes.dataLim.x1
    axes.set_xlim(min(0.0, 1.1 * low), 1.22 * high if high > 0 else 1.0)
    axes.axvline(0, color=style.MUTED, linewidth=0.9)
    style.ticks_at(axes.xaxis, MaxNLocator(8), lambda value: minus(f"{100 * value:.3g}{SPACE}%"))
    axes.set_xlabel("share of the held-out bits of which features fire that is saved when this is known")
    style.open_grid(axes, "x")


def _statement(arms: Sequence[Arm]) -> str:
    return f"Known before codes are read, less the null: {in_words([measures for arm in arms for measures in arm.seeds])}"


def _described(arm: Arm) -> str:
    plain_bits = mean_of([measures.plain.value for measures in arm.seeds if measures.plain.value is not None]).value
    return f"{plain(arm.name, NAME)}: {number(plain_bits)} bits per token by rates alone"
