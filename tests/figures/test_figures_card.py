"""The picture of a model card: what stands in its titles is what the values say."""

from pathlib import Path

from temporallens.figures.card import draw_card


def test_titles_name_where_values_are_lowest_and_highest(tmp_path: Path) -> None:
    figure = draw_card([0.1, 0.9, 0.25, None, 0.5], [9.0, 3.0, 3.0, None, 3.0], "a dictionary")
    figure.savefig(tmp_path / "card.png")
    fve, l0 = figure.axes
    assert fve.get_title(loc="left") == "a  FVE: 0.250 at position 2 to 0.900 at position 1"  # position 0 is left out
    assert l0.get_title(loc="left") == "b  L0: 3.00 at every position"
    assert [float(value) for value in fve.lines[0].get_ydata()[:2]] == [0.9, 0.25] and l0.get_ylabel() == "codes in use per token"


def test_what_is_not_known_is_said() -> None:
    for axes in draw_card([0.1], [2.0]).axes:
        assert any("no token was held out behind the first position" in " ".join(text.get_text().split()) for text in axes.texts)
