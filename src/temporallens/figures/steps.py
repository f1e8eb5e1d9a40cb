"""What the pictures of one training run share: columns of its history, the axis of steps, position by step, and the run's end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from temporallens.evaluation.bins import drawn_starts
from temporallens.figures import style

COLUMNS = 400
"""Steps drawn side by side at most; of longer runs, neighbours are averaged."""
LAST_SHARE = 10
"""The end of a run is the mean over the last one in so many of its logged steps."""
EVEN = 1.15
"""A quantity within this factor of its median over positions is called even."""
ELSEWHERE = "trained elsewhere: no history"
"""What stands in panels of a training that nobody here has seen."""

History = Mapping[str, np.ndarray]
"""The columns of a run's history, by step or by step and position."""
ByPosition = np.ndarray | Sequence[Sequence[float | None]]
"""A quantity by position on held-out documents: [P] of one seed, or [seeds, P]."""


class Followed(NamedTuple):
    """A quantity that a figure follows over training and positions."""

    unit: str  # as an axis says it
    name: str  # as a sentence does: the `name` by position
    title: str  # of its panel over the steps, where nothing is known
    final: str  # of that of the end of the run


class Curve(NamedTuple):
    """A quantity over positions, of one run or of several seeds."""

    label: str
    value: Float[np.ndarray, " P"]
    low: Float[np.ndarray, " P"] | None = None  # lower end of Student's 95 % interval over seeds; the lower one of two; None for one
    high: Float[np.ndarray, " P"] | None = None


def column(history: History, name: str) -> Float[np.ndarray, "T P"] | None:
    """Column `name` of a history by step and position; None where it is missing, of another shape, or holds no number."""
    values = style.array(history[name]) if name in history else None
    if values is None or values.ndim != 2 or len(values) != len(history["step"]) or not np.isfinite(values).any():
        return None
    return values


def known_weights(history: History) -> Float[np.ndarray, "T P"] | None:
    """Position weights by step; unknown at positions that never had a token, whose weight is a 1 that nobody measured."""
    weight, count = column(history, "position_weight"), column(history, "position_count")
    if weight is None or count is None or count.shape != weight.shape:
        return weight
    return np.where(np.nan_to_num(count).sum(0) > 0, weight, np.nan)


def absent(history: History, what: str) -> str:
    """Why a run's history does not hold something: of a dictionary that others trained there is the line of step 0 alone."""
    return ELSEWHERE if list(history["step"]) == [0] else f"this run's history does not hold {what}"


def has_zero(values: np.ndarray) -> bool:
    """Whether anything is known of position 0."""
    return bool(np.isfinite(values[..., 0]).any())


def step_edges(steps: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T+1"]:
    """A logged value covers the steps since the one logged before it."""
    stride = steps[1] - steps[0] if len(steps) > 1 else 1.0
    start = steps[0] - stride
    return np.append(max(start, 0.0) if steps[0] > 0 else start, steps)


def step_axis(axes: Axes, steps: Float[np.ndarray, " T"]) -> None:
    """From the first step to the last one logged."""
    axes.set_xlim(0 if steps[0] >= 0 else steps[0], steps[-1] if steps[-1] > 0 else 1)
    style.ticks_at(axes.xaxis, MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]), "{:,.0f}".format)
    axes.set_xlabel("training step")


def draw_over_steps(axes: Axes, steps: Float[np.ndarray, " T"], values: Float[np.ndarray, "T P"], label: str) -> None:
    """`values` as a heatmap of position by step with its colour bar, whose scale position 0 does not set where it is known."""
    zero, positions = has_zero(values), values.shape[1]
    starts, columns = drawn_starts(positions), np.unique(np.linspace(0, len(steps), min(COLUMNS, len(steps)), endpoint=False).astype(int))
    drawn = style.blocks(style.blocks(values, starts, 1), columns, 0).T
    x_edges = step_edges(steps)[np.append(columns, len(steps))]
    y_edges = np.append(starts, positions) - 0.5
    norm = style.colour_norm(style.limits(drawn[style.first() :]))
    assert norm is not None, "the caller has seen that something is known beyond position 0"
    if not zero:
        drawn, y_edges = drawn[1:], y_edges[1:]
    mesh = style.heatmap(axes, x_edges, y_edges, drawn, norm)
    style.position_axis(axes, "y", positions, zero)
    step_axis(axes, steps)
    axes.set_xlim(x_edges[0], x_edges[-1])
    style.colour_bar(mesh, axes, drawn, label)


def at_the_end(values: Float[np.ndarray, "T P"], count: Float[np.ndarray, "T P"] | None) -> tuple[Float[np.ndarray, " P"], int]:
    """Mean by position over the last logged steps, weighted by tokens where their number is known; and how many steps these are."""
    last = max(1, len(values) // LAST_SHARE)
    values = values[-last:]
    weight = np.isfinite(values) * (1.0 if count is None or count.shape[1:] != values.shape[1:] else np.nan_to_num(count[-last:]))
    total = weight.sum(0)
    return np.where(total > 0, (np.nan_to_num(values) * weight).sum(0) / np.where(total > 0, total, 1), np.nan), last


def training_curve(values: Float[np.ndarray, "T P"], count: Float[np.ndarray, "T P"] | None) -> Curve:
    """What training says at its end."""
    final, last = at_the_end(values, count)
    return Curve(f"training, mean of the last {last} logged steps" if last > 1 else "training, last logged step", final)


def held_out_curve(values: ByPosition | None) -> Curve | None:
    """What held-out documents say; None where they say nothing."""
    seeds = np.empty((1, 0)) if values is None else np.atleast_2d(style.array(values))
    if not np.isfinite(seeds[:, style.first() :]).any():
        return None
    curve = over_seeds("held-out documents", seeds)
    rests_on = {1: "one seed", 2: "2 seeds (band: both)"}.get(len(seeds), f"{len(seeds)} seeds (band: 95 % interval)")
    return curve._replace(label=f"{curve.label}, {rests_on}")


def over_seeds(label: str, values: Float[np.ndarray, "S P"]) -> Curve:
    """Mean over seeds with its interval, position by position; of two seeds, whose intervals would fill the panel, both stand for it."""
    if len(values) < 2:
        return Curve(label, values[0])
    if len(values) == 2:
        return Curve(label, values.mean(0), values.min(0), values.max(0))
    from scipy import stats  # a second to import, and only studies with several seeds need it

    mean = values.mean(0)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return Curve(label, mean, mean - half, mean + half)


def draw_evolution(
    axes: Axes,
    steps: Float[np.ndarray, " T"],
    values: Float[np.ndarray, "T P"] | None,
    what: Followed,
    state: Callable[[np.ndarray, np.ndarray], str],
    width: int,
    missing: str,
) -> None:
    """The first panel of a run: position by step, under what `state` says of steps and values in lines of so many characters; `missing`
    says why where there are none."""
    if values is None or not np.isfinite(values[:, style.first() :]).any():
        style.empty_panel(axes, "1", what.title, width, missing)
        return
    draw_over_steps(axes, steps, values, what.unit)
    style.panel_title(axes, "1", state(steps, values), width)


def draw_final(
    axes: Axes,
    known: Sequence[Curve | None],
    what: Followed,
    scale: Callable[[Axes, list[Curve]], bool],
    state: Callable[[list[Curve]], str],
    width: int,
    number: str = "2",
) -> None:
    """The panel of a run's end over positions, as training and held-out documents say it, under what `state` says of the curves of which
    something is known; `scale` sets the limits and says whether position 0 is drawn."""
    curves = [curve for curve in known if curve is not None and np.isfinite(curve.value[style.first() :]).any()]
    if not curves:
        missing = f"neither the history nor the evaluation holds the {what.name} by position"
        style.empty_panel(axes, number, what.final, width, missing)
        return
    for curve, colour, linewidth in zip(curves, style.COLOURS, (1.8, 1.1), strict=False):
        draw_curve(axes, curve, color=colour, linewidth=linewidth)
    style.position_axis(axes, "x", max(len(curve.value) for curve in curves), scale(axes, curves))
    axes.set_ylabel(what.unit)
    style.open_grid(axes)
    axes.legend(loc="upper right", borderaxespad=0.2)
    style.panel_title(axes, number, state(curves), width)


def draw_curve(axes: Axes, curve: Curve, **look: Any) -> None:
    """A line over positions (but for 0, where that is one of sinks), with its band."""
    first = style.first()
    position = np.arange(first, len(curve.value))
    sparse = np.isfinite(curve.value).sum() <= 12
    axes.plot(position, curve.value[first:], label=curve.label, marker=look.pop("marker", None) or ("o" if sparse else None), **look)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(position, curve.low[first:], curve.high[first:], color=look.get("color"), alpha=0.2, linewidth=0)


class Extreme(NamedTuple):
    """The position that stands out furthest from the median of a curve."""

    position: int
    times: list[float]  # the median, in each curve
    high: bool


def standing_out(curves: Sequence[Curve]) -> Extreme | None:
    """The position furthest from the median. Where two samples of documents are known, it must be so in both: else it is their noise.

    None where nothing is known, or where no position is out by more than the factor `EVEN`.
    """
    known = [curve.value[style.first() :] for curve in curves if len(curve.value) == len(curves[0].value)]
    if not known or any(np.isfinite(curve).sum() < 2 or np.nanmedian(curve) <= 0 for curve in known):
        return None
    times = np.stack([curve / np.nanmedian(curve) for curve in known])
    least, most = np.nan_to_num(times.min(0), nan=1.0), np.nan_to_num(times.max(0), nan=1.0)
    high = bool(least.max() * max(most.min(), 1e-12) >= 1)
    furthest = int(least.argmax() if high else most.argmin())
    if not (least[furthest] > EVEN if high else most[furthest] < 1 / EVEN):
        return None
    return Extreme(furthest + style.first(), times[:, furthest].tolist(), high)


def samples(curves: Sequence[Curve]) -> list[str]:
    """What each curve was measured on."""
    return ["on held-out documents" if curve.label.startswith("held-out") else "in training" for curve in curves]


def band_name(first: int, end: int) -> str:
    """`position 1`, `positions 2 to 3`."""
    return style.called(first) if end == first + 1 else f"positions {first:,} to {end - 1:,}"
