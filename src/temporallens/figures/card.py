"""What a model card shows of a dictionary: FVE and L0 by position on held-out documents, one panel each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from temporallens.figures import style
from temporallens.figures.steps import Curve, draw_curve
from temporallens.wording import number

HEIGHT = 4.2
TITLE_CHARACTERS = 70


def draw_card(fve: Sequence[float | None], l0: Sequence[float | None], title: str = "") -> Figure:
    """Values by position, None where there was no token; FVE is about the mean of each position."""
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        whole = (("FVE", "FVE, about the position's own mean", fve), ("L0", "codes in use per token", l0))
        for axes, letter, (name, unit, values) in zip(figure.subplots(1, 2), "ab", whole, strict=True):
            _draw_panel(axes, letter, name, style.array(values))
            axes.set_ylabel(unit)
    return figure


def _draw_panel(axes: Axes, letter: str, name: str, values: Float[np.ndarray, " P"]) -> None:
    first = style.first()
    known = values[first:][np.isfinite(values[first:])]
    if not len(known):
        style.empty_panel(axes, letter, f"{name} by position", TITLE_CHARACTERS, "no token was held out behind the first position")
        return
    draw_curve(axes, Curve(name, values), color=style.COLOURS[0])
    style.position_axis(axes, "x", len(values), zero=first == 0)
    style.open_grid(axes)
    at = [style.called(first + int(of(values[first:]))) for of in (np.nanargmin, np.nanargmax)]
    lowest, highest = number(known.min()), number(known.max())
    apart = f"{lowest} at {at[0]} to {highest} at {at[1]}"
    style.panel_title(axes, letter, f"{name}: {apart if lowest != highest else f'{lowest} at every position'}", TITLE_CHARACTERS)
