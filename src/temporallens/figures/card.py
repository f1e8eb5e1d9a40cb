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
        panels = zip(figure.subplots(1, 2), "ab", ((fve, "FVE"), (l0, "codes in use per token (L0)")), strict=True)
        for axes, letter, (values, name) in panels:
            _draw_panel(axes, letter, name, style.array(values))
    return figure


def _draw_panel(axes: Axes, letter: str, name: str, values: Float[np.ndarray, " P"]) -> None:
    known = values[1:][np.isfinite(values[1:])]
    if not len(known):
        style.empty_panel(axes, letter, f"{name} by position", TITLE_CHARACTERS, "no token was held out behind the first position")
        return
    draw_curve(axes, Curve(name, values), color=style.COLOURS[0])
    style.position_axis(axes, "x", len(values), zero=False)
    axes.set_ylabel(name)
    style.open_grid(axes)
    at = 1 + int(np.nanargmin(values[1:])), 1 + int(np.nanargmax(values[1:]))
    statement = f"{name}: {number(known.min())} at position {at[0]:,} to {number(known.max())} at position {at[1]:,}"
    style.panel_title(axes, letter, statement, TITLE_CHARACTERS)
