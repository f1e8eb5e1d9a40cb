"""The picture of what a model loses when what is encoded of position is taken away."""

from pathlib import Path

from temporallens.evaluation.interventions.section import (
    MATCHED,
    MEANS,
    TIED,
    TURNED,
    BinEffects,
    Effect,
    Intervention,
    InterventionMeasures,
    in_words,
    tables,
)
from temporallens.evaluation.statistics import Estimate
from temporallens.figures.interventions import Arm, draw_interventions


def estimate(value: float) -> Estimate:
    return Estimate(value, 0.9 * value, 1.1 * value, 100)


def intervention(name: str, features: int | None, found: float, control: float) -> Intervention:
    effects = {what: Effect(0.01, estimate(control), estimate(control)) for what in (TURNED, MATCHED)}
    bins = [
        BinEffects(first, 2 * first - 1, estimate(found / first), dict.fromkeys((TURNED, MATCHED), estimate(control)))
        for first in (1, 2, 4)
    ]
    beyond = dict.fromkeys((TURNED, MATCHED), estimate(found - control))
    return Intervention(name, features, Effect(0.01, estimate(found), estimate(found)), effects, beyond, bins)


def measured(found: float) -> InterventionMeasures:
    both = [intervention(TIED, 12, found, 0.001), intervention(MEANS, None, found, 0.001)]
    return InterventionMeasures("cross-entropy", 12, both, 32, 20, 3000)


def test_the_picture_has_every_change_with_its_controls(tmp_path: Path) -> None:
    figure = draw_interventions([Arm("batchtopk", [measured(0.02)]), Arm("masked", [measured(0.03)])], "middle")
    figure.savefig(tmp_path / "interventions.png")
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["batchtopk: features", "masked: features", "means of positions"]
    assert "nats" in left.get_xlabel() and "index" in right.get_xlabel()


def test_without_measures_it_says_so() -> None:
    assert all("no run" in axes.texts[0].get_text() for axes in draw_interventions([], "middle").axes)


def test_the_sentence_says_used_only_where_the_interval_does() -> None:
    assert "the model uses it" in in_words("masked", measured(0.02))
    assert "costs no more" in in_words("masked", measured(0.001))
    (table,) = tables({"masked": measured(0.02)})
    assert len(table.rows) == 2 and all(len(row.cells) == len(table.columns) - 1 for row in table.rows)
