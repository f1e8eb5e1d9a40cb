"""A sentence of held-out text: at each token, the share of its variance that was known before a code was read, and the codes in use.

Drawn from the `tokens` measures of two dictionaries, an ordinary one and one with an expectation, at their first seed and the level of
the middle. Shares below 0, where a token is a bad guide, are drawn as nothing and what follows makes up for them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from temporallens.evaluation.passage import Passage
from temporallens.figures import style
from temporallens.wording import plain

HEIGHT = 4.6
NAME = 30
WORD = 14
"""Characters of a token that are shown."""


class Reading(NamedTuple):
    """One dictionary's passage."""

    arm: str
    passage: Passage


def draw_passage(ordinary: Reading | None, knowing: Reading, title: str = "") -> Figure:
    """Bars by token, and above them how many codes each dictionary uses there."""
    passage = knowing.passage
    shares = parts(passage)
    with style.ours():
        figure = style.new_figure(HEIGHT)
        style.head(figure, title)
        axes = figure.subplots()
        style.panel_title(axes, "a", _statement(ordinary, knowing), 116)
        colours = (style.COLOURS[0], style.COLOURS[2], style.COLOURS[1])
        bottom = np.zeros(len(passage.words))
        for share, colour in zip(shares.values(), colours, strict=True):
            axes.bar(range(len(share)), share, 0.82, bottom=bottom, color=colour)
            bottom += share
        _codes(axes, ordinary, knowing)
        axes.set_xticks(
            range(len(passage.words)), [_shown(word) for word in passage.words], rotation=55, ha="right", rotation_mode="anchor"
        )
        axes.set_ylim(0, 1.24)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_xlim(-0.6, len(passage.words) - 0.4)
        axes.set_ylabel("share of the token's variance")
        handles = [Patch(color=colour, label=name) for name, colour in zip(shares, colours, strict=True)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=_rest(knowing))
    return figure


def parts(passage: Passage) -> dict[str, Float[np.ndarray, " T"]]:
    """What is drawn upon each other: shares at least 0, which end where the true sum does."""
    assert passage.token is not None and passage.before is not None
    ends = np.cumsum([passage.token, passage.before, passage.codes], axis=0).clip(0, 1)
    ends = np.maximum.accumulate(np.concatenate([np.zeros((1, len(passage.words))), ends]), axis=0)
    names = ("known from the token", "known from the token before", "said by codes")
    return dict(zip(names, np.diff(ends, axis=0), strict=True))


def _statement(ordinary: Reading | None, knowing: Reading) -> str:
    passage = knowing.passage
    used = f"{sum(passage.fired) / len(passage.fired):.0f} codes a token"
    if ordinary is not None:
        used += f", {sum(ordinary.passage.fired) / len(ordinary.passage.fired):.0f} in {plain(ordinary.arm, NAME)}"
    return f"{plain(knowing.arm, NAME)}: {used}"


def _codes(axes: Axes, ordinary: Reading | None, knowing: Reading) -> None:
    for height, reading, colour in ((1.04, knowing, style.INK), (1.14, ordinary, style.MUTED)):
        if reading is None:
            continue
        for place, fired in enumerate(reading.passage.fired):
            axes.annotate(str(fired), (place, height), ha="center", va="bottom", fontsize=8, color=colour)


def _rest(knowing: Reading) -> str:
    return f"numbers: codes in use, {plain(knowing.arm, NAME)} below; the rest to 1 is not explained"


def _shown(word: str) -> str:
    """A token as it can be read: what would be blank is written out."""
    written = word.replace("\n", "\u21b5").strip(" ") or "\u2423"
    return plain(written, WORD)
