"""The pictures of the lab notes' guide: what their titles state is what the data hold, and a panel without data says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

import made_results
from temporallens.evaluation.bits.section import BitsMeasures, Saved
from temporallens.evaluation.model.fidelity import Explained, FidelityMeasures, ShiftFidelity
from temporallens.evaluation.results import ArmSettings, TimedRun
from temporallens.evaluation.statistics import Estimate
from temporallens.figures import style as look
from temporallens.figures.bits import Arm as BitsArm, draw_bits
from temporallens.figures.comparative import MOST_ROWS, draw_comparative_analysis
from temporallens.figures.fidelity import Arm, draw_fidelity
from temporallens.figures.masks import draw_masks
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.position_weights import draw_position_weights
from temporallens.figures.save import save
from temporallens.figures.sparsity import Activity, draw_sparsity_analysis, order_by_peak
from temporallens.figures.strictness import Retained, draw_mask_strictness

POSITIONS, STEPS = 64, 30


def make_history(weighs: bool = True) -> dict[str, np.ndarray]:
    """A run as its history has it: position 0 never seen; the weight of position 1 falls from 2 to 0.5, later ones settle near 1."""
    random = np.random.default_rng(0)
    step, place = np.arange(1, STEPS + 1) * 10, np.arange(POSITIONS)
    share = step[:, None] / step[-1]
    loss = 100 * (1 + 2 / (1 + place)) * (1 + 3 * np.exp(-5 * share)) * random.uniform(0.98, 1.02, (STEPS, POSITIONS))
    active = 32 * np.where(place == 3, 2.0, 1.0) * random.uniform(0.97, 1.03, (STEPS, POSITIONS))
    weight = np.ones((STEPS, POSITIONS))
    if weighs:
        weight = 1 + 0.05 * np.exp(-8 * share) * np.sin(place) + 0.001 * place / POSITIONS
        weight[:, 1] = 2 - 1.5 * share[:, 0]
        weight[:, 0] = 1
    loss[:, 0] = active[:, 0] = np.nan
    count = np.full((STEPS, POSITIONS), 80.0)
    count[:, 0] = 0
    columns = {"position_loss": loss, "position_l0": active, "position_count": count, "position_weight": weight}
    openness = np.linspace(1, 0.4, STEPS)
    temperature = np.where(np.arange(STEPS) < 24, np.geomspace(5, 0.1, STEPS), 0)
    return {"step": step, **columns, "openness": openness, "temperature": temperature}


def make_run(arm: str, /, seed: int = 0, **changes: Any) -> TimedRun:
    place = np.arange(POSITIONS)
    loss: list[float | None] = [None, *(100 * np.where(place[1:] < 2, 0.5, 1.0)).tolist()]
    numbers = {"features": 256, "final_loss": 12.0, "mse_loss": 10.0, "l0": 16.0, "fve": 0.8, "position_loss": loss}
    return made_results.make_run(arm, seed, **numbers | changes)


def texts(figure: Figure) -> str:
    return " ".join("\n".join(text.get_text() for text in figure.findobj(mpl.text.Text)).split())


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def titles(figure: Figure) -> list[str]:
    return [" ".join(axes.get_title(loc="left").split()) for axes in panels(figure)]


def meshes(figure: Figure) -> list[QuadMesh]:
    return [mesh for axes in panels(figure) for mesh in axes.collections if isinstance(mesh, QuadMesh)]


def colour_bars(figure: Figure) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]


def fits(figure: Figure) -> None:
    """No title, label or tick is cut off by the edge of the picture, and no title runs into its neighbour's."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with look.ours():
        figure.draw_without_rendering()
    whole = figure.bbox
    boxes = []
    for axes in panels(figure):
        title = axes._left_title.get_window_extent(renderer)  # type: ignore[attr-defined]  # matplotlib has no other way to it
        boxes.append(title)
        written = [axes.xaxis.label, axes.yaxis.label]
        for which, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            written += [label for label in axis.get_ticklabels() if low <= label.get_position()[which] <= high]
        for text in written:
            box = text.get_window_extent(renderer)
            if text.get_text() and text.get_visible() and axes.axison:
                assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1 and box.y0 >= whole.y0 - 1, (text.get_text(), box)
    for place, box in enumerate(boxes):
        assert box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, titles(figure)[place]
        assert not any(box.overlaps(other) for other in boxes[:place]), titles(figure)[place]


# position_analysis


def test_only_what_two_samples_of_documents_say_alike_stands_in_the_title() -> None:
    history = make_history()
    held_out = history["position_loss"][-1].copy()
    held_out[20] = 900  # a single odd token of the held-out documents
    figure = draw_position_analysis(history, "a", held_out=held_out, first_fve=-0.5)
    assert titles(figure)[1].startswith("2 Position 1 is hardest: ")
    assert "index 0 is left out of training and of this panel; FVE there: −0.500" in texts(figure)
    even = draw_position_analysis(history | {"position_loss": np.where(np.isnan(history["position_loss"]), np.nan, 7.0)}, "a")
    assert titles(even)[1] == "2 No position stands out in training: none is 15 % off the median loss"


def test_several_seeds_give_a_band_and_one_says_so() -> None:
    loss = make_history()["position_loss"][-3:]
    several, one = (draw_position_analysis(make_history(), "a", held_out=own) for own in (loss, loss[0]))
    assert "held-out documents, 3 seeds (band: 95 % interval)" in texts(several) and len(panels(several)[1].collections) == 1
    assert "held-out documents, one seed" in texts(one) and not panels(one)[1].collections


# comparative_analysis


def test_comparative_analysis_has_four_quadrants_that_state_what_the_runs_hold() -> None:
    runs = [make_run(arm, seed, mse_loss=value + seed, l0=16.0) for arm, value in (("good", 10), ("bad", 20)) for seed in range(3)]
    weights = {("good", seed): np.linspace(1.4, 0.6, POSITIONS) for seed in range(3)}
    figure = draw_comparative_analysis(runs, weights, "a: all arms")
    fits(figure)
    assert titles(figure) == [
        "a good ends with the lowest squared error (11.0); bad is next",
        "b All arms use as many codes: 16.0 to 16.0 per token, at most 6.2 % of the dictionary",
        "c Position 1 is easiest: 0.500 × the median loss, 0.500 to 0.500 in single arms",
        "d Weights run from 0.600 (position 63) to 1.39 (position 1), good",
    ]
    loss, sparsity, patterns, lines = panels(figure)
    assert "squared error" in loss.get_xlabel() and "codes in use per token" in sparsity.get_xlabel()
    assert "position" in patterns.get_xlabel() and "position" in lines.get_xlabel() and "weight" in lines.get_ylabel()
    assert colour_bars(figure) == ["held-out loss / the run's median"]
    (mesh,) = meshes(figure)
    assert np.asarray(mesh.get_array()).shape == (2, POSITIONS - 1)  # no column for position 0, of which nothing is known
    assert [text.get_text() for text in loss.get_yticklabels()] == ["good", "bad"]


def test_differences_within_the_noise_of_seeds_are_none_and_one_seed_is_not_tested() -> None:
    noisy = [make_run(arm, seed, mse_loss=10 + place + 4 * (-1) ** seed * place) for place, arm in enumerate("ab") for seed in range(4)]
    assert titles(draw_comparative_analysis(noisy, {}))[0] == "a a ends with the lowest squared error (10.0); no difference from b"
    single = draw_comparative_analysis([make_run("a"), make_run("b", mse_loss=11.0, l0=32.0)], {})
    assert titles(single)[0].endswith("(10.0); one seed, no test") and "one seed: no interval" in texts(single)
    assert titles(single)[1] == "b L0 runs from 16.0 (a) to 32.0 (b): errors in a are not all at equal sparsity"
    assert all(bar.get_facecolor() == mpl.colors.to_rgba(look.PAPER) for bar in panels(single)[1].patches)


def test_what_an_arm_adds_to_its_loss_is_drawn_apart_and_never_sets_the_scale() -> None:
    figure = draw_comparative_analysis([make_run("plain"), make_run("nested", final_loss=900.0)], {})
    assert panels(figure)[0].get_xlim()[1] < 60
    assert "10.0 of 900 →" in texts(figure) and "10.0 of 12.0" in texts(figure)


def test_runs_that_repeat_each_other_share_a_line_of_weights() -> None:
    weights = {(arm, 0): np.linspace(1.4, 0.6, POSITIONS) for arm in ("run6", "run7")} | {("run5", 0): np.linspace(1.2, 0.8, POSITIONS)}
    figure = draw_comparative_analysis([make_run(arm) for arm in ("run5", "run6", "run7")], weights)
    legend = panels(figure)[3].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["run6, run7 (alike)", "run5"]


def test_many_arms_are_grouped_by_family_and_stay_readable() -> None:
    runs = [
        make_run(f"family-with-a-long-name-{family}-k{level}", family=str(family), level=level)
        for family in range(14)
        for level in (1, 2, 3)
    ]
    figure = draw_comparative_analysis(runs, {}, "a")
    assert len(runs) > MOST_ROWS and "14 of 42 arms, each family at the middle of its levels" in texts(figure)
    fits(figure)
    names = [label.get_window_extent() for label in panels(figure)[0].get_yticklabels()]
    assert not any(a.overlaps(b) for place, a in enumerate(names) for b in names[:place])


def test_comparative_analysis_says_what_is_missing(tmp_path: Path) -> None:
    figure = draw_comparative_analysis([make_run("a", position_loss=[None] * POSITIONS)], {})
    for sentence in ("was evaluated by position", "weighs positions by how hard they are"):
        assert sentence in texts(figure)
    save(figure, tmp_path / "a.png")


# position_weights


def test_position_weights_has_three_panels_that_state_what_the_weights_did() -> None:
    difficulty = np.linspace(0.1, 0.3, POSITIONS)
    figure = draw_position_weights(make_history(), "a", difficulty, Estimate(0.61, 0.4, 0.72, 63))
    fits(figure)
    assert titles(figure) == [
        "1 Position 1 moves most: its weight falls from 1.95 to 0.500; in the end 98 % of positions weigh 0.9 to 1.1",
        "2 Most weights have settled: by 0.0014 % (median) in the last 30 steps; position 1 still moves by 30 %",
        "3 Weights follow what is hard: Spearman 0.61 (95 % interval 0.40 to 0.72, 63 positions)",
    ]
    evolution, convergence, scatter = panels(figure)
    assert evolution.get_xlabel() == convergence.get_xlabel() == "training step"
    assert "%" in convergence.get_ylabel() and "weight" in scatter.get_ylabel() and "unexplained" in scatter.get_xlabel()
    assert colour_bars(figure) == ["position weight (mean 1)", "position (log scale)", "position (log scale)"]
    (points,) = [found for found in scatter.collections if isinstance(found, PathCollection)]
    assert len(np.asarray(points.get_offsets())) == POSITIONS - 1  # not position 0, whose weight of 1 nobody measured


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(-0.5, -0.7, -0.2, 63), "Weights run against what is hard: Spearman −0.50 (95 % interval −0.70 to −0.20"),
        (Estimate(0.1, -0.2, 0.3, 63), "Weights do not go with what is hard: Spearman 0.10"),
        (Estimate(0.9, None, None, 63), "Spearman 0.90 over 63 positions, no interval"),
        (Estimate(None, None, None, 0), "their correlation is not known"),
        (None, "their correlation is not known"),
    ],
)
def test_the_correlation_is_called_what_its_interval_allows(estimate: Estimate | None, said: str) -> None:
    assert said in titles(draw_position_weights(make_history(), "a", np.linspace(0.1, 0.3, POSITIONS), estimate))[2]


def test_position_weights_says_what_is_missing() -> None:
    assert texts(draw_position_weights(make_history(weighs=False))).count("adaptive weighting is off") == 3
    assert texts(draw_position_weights({"step": np.arange(3)})).count("does not hold the position weights") == 3
    assert "was not evaluated by position" in texts(draw_position_weights(make_history()))
    short = {name: values[:1] for name, values in make_history().items()}
    assert "too few steps to see weights settle" in texts(draw_position_weights(short))


# sparsity_analysis


def make_activity(specialised: bool, features: int = 200) -> Activity:
    """Features that fire at one position each more often than elsewhere, in both halves; or anywhere, by chance."""
    random = np.random.default_rng(0)
    rate = np.full((POSITIONS, features), 0.05)
    if specialised:
        rate[1 + np.arange(features) % (POSITIONS - 1), np.arange(features)] = 0.9
    rows = np.full((2, POSITIONS), 100)
    rows[:, 0] = 0
    fired = random.binomial(100, np.stack([rate, rate]))
    fired[:, 0] = 0
    return Activity(fired / 100, rows, fired.sum((0, 1)))


def test_sparsity_analysis_has_three_panels_that_state_what_codes_do() -> None:
    history = make_history()
    figure = draw_sparsity_analysis(history, "a", history["position_l0"][-2:], make_activity(specialised=True))
    fits(figure)
    evolution, final, activity = titles(figure)
    assert evolution.startswith("1 Codes per token by position: 31.") and evolution.endswith("index 0 is left out")
    assert final.startswith("2 Position 3 uses most codes, 6") and "on held-out documents" in final and "in training" in final
    assert activity == "3 100 % of features peak at the same positions in both halves of the documents (8.6 % would by chance)"
    assert [axes.get_xlabel() for axes in panels(figure)] == ["training step", "position (log scale)", "position (log scale)"]
    assert colour_bars(figure) == ["codes in use per token", "firing rate, × the feature's mean rate (log scale)"]
    assert "200 of 200 features" in panels(figure)[2].get_ylabel()


def test_features_are_ordered_by_one_half_and_drawn_from_the_other() -> None:
    noise, order = make_activity(specialised=False), order_by_peak(make_activity(specialised=True))
    assert order is not None and (order.relative.argmax(1)[1:] >= order.relative.argmax(1)[:-1]).all()
    chance = order_by_peak(noise)
    assert chance is not None and chance.alike < 0.15 and abs(chance.alike - chance.chance) < 0.1  # no diagonal out of nothing
    flipped = order_by_peak(noise._replace(rate=noise.rate[::-1], rows=noise.rows[::-1]))
    assert flipped is not None and not np.array_equal(flipped.relative, chance.relative)


def test_sparsity_analysis_says_what_is_missing() -> None:
    history = make_history()
    del history["position_l0"]
    figure = draw_sparsity_analysis(history)
    for sentence in (
        "history does not hold the L0 by position",
        "neither the history nor the evaluation",
        "firings on held-out documents are not",
    ):
        assert sentence in texts(figure)
    rare = make_activity(specialised=True)
    assert "no feature of this run fires 200 times" in texts(
        draw_sparsity_analysis(history, "a", None, rare._replace(firings=rare.firings // 100))
    )


def test_of_what_others_trained_there_is_no_history() -> None:
    ones = np.ones((1, POSITIONS), dtype=np.float32)
    history = {"step": np.zeros(1, dtype=np.int64), "tokens": np.zeros(1, dtype=np.int64), "position_weight": ones}
    analysis = draw_position_analysis(history, "theirs", np.full(POSITIONS, 2.0))
    assert texts(analysis).count("trained elsewhere: no history") == 2
    assert "adaptive weighting is off" not in texts(analysis)
    assert texts(draw_position_weights(history)).count("trained elsewhere: no history") == 3
    sparsity = draw_sparsity_analysis(history)
    assert "trained elsewhere" not in texts(sparsity) and len(sparsity.axes) == 2  # neither has a panel of steps


# masks


def test_masks_show_openness_before_and_after_hardening() -> None:
    soft = np.full((POSITIONS, 50), 0.9)
    soft[1, :30], soft[2:, 30:40] = 0.2, 0.45
    hard = (soft >= 0.4).astype(float)
    figure = draw_masks(hard, soft, make_history(), "a")
    fits(figure)
    assert titles(figure) == [
        "a 99 % of the mask is open; least at position 1: 40 %",
        "b Openness goes from 100 % to 40 % in 300 steps, temperature 5.00 to 0.225",
        "c Before hardening 21 % of the gates are undecided (0.1 to 0.9)",
        "d As trained, 60 % of features are closed somewhere; hardening took 20 % of the gates across one half",
    ]
    assert all(np.asarray(mesh.get_array()).shape == (50, POSITIONS - 1) for mesh in meshes(figure)) and len(meshes(figure)) == 2
    assert colour_bars(figure) == ["gate (0 closed, 1 open)"] and "hardens" in texts(figure)
    assert panels(figure)[2].get_xlabel() == "position (log scale)" and "features" in panels(figure)[2].get_ylabel()


def test_masks_say_what_is_missing() -> None:
    kept = texts(draw_masks(np.ones((POSITIONS, 5)), None, make_history(), "a"))
    assert "did not keep its mask as it was before it hardened" in kept and "100 % to 100 % of the mask is open, much alike" in kept
    assert texts(draw_masks(None)).count("this run's dictionary has no mask") == 2 and "openness of a mask" in texts(draw_masks(None))


# mask_strictness

ARMS = {
    name: ArmSettings.model_validate({"kind": "positional", "k": 6, "strictness": strictness})
    for name, strictness in (("hard", "hard"), ("soft", "soft"), ("straight", "straight_through"))
} | {
    "other": ArmSettings.model_validate({"kind": "positional", "k": 9, "strictness": "hard"}),
    "batchtopk": ArmSettings.model_validate({"kind": "batchtopk"}),
}


def test_strictness_compares_arms_that_differ_in_nothing_else() -> None:
    gains = {"hard": 0.8, "soft": 0.85, "straight": 0.8, "other": 0.1, "batchtopk": 0.7}
    runs = [make_run(arm, seed, fve=gain + 0.001 * seed, l0=6.0) for arm, gain in gains.items() for seed in range(3)]
    hardening = {("hard", seed): Retained(Estimate(0.9, 0.85, 0.95, 50), Estimate(0.75, 0.7, 0.8, 50), 0.3, 0.82) for seed in range(3)}
    figure = draw_mask_strictness(runs, ARMS, hardening, {}, "a")
    fits(figure)
    fve, kept = panels(figure)  # nothing was measured from seed to seed
    assert titles(figure)[0] == "a FVE: soft above hard (+0.0500); straight through no different from hard (+0.0000)"
    assert titles(figure)[1] == "b 75 % of specialised features stay so (30 % by chance); profiles correlate at 0.90 when masks harden"
    lines = [label.get_text() for label in fve.get_yticklabels()]
    assert lines == ["hard: hard", "same runs, before hardening", "soft: soft", "straight: straight through"]
    assert "FVE" in fve.get_xlabel() and "share" in kept.get_xlabel() and texts(figure).count("never hardens") == 2
    assert "dashed line batchtopk without a mask" in texts(figure)


def test_what_one_seed_kept_is_compared_with_that_seed_and_drawn_hollow() -> None:
    runs = [make_run("hard", seed, fve=0.8 + 0.1 * seed) for seed in range(3)]
    kept = {("hard", 1): Retained(Estimate(0.9, 0.85, 0.95, 50), None, None, 0.95)}
    figure = draw_mask_strictness(runs, ARMS, kept, kept)
    assert titles(figure)[0] == "a FVE: as hardened against before, one seed (−0.0500)"
    dots = [line for line in panels(figure)[1].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in dots] == [look.PAPER]
    bars = [line for line in panels(figure)[1].lines if line.get_linewidth() == 3]
    assert np.allclose([np.asarray(line.get_xdata(), dtype=float) for line in bars], [[0.85, 0.95]])


def test_two_arms_of_one_seed_are_one_seed() -> None:
    runs = [make_run("hard", fve=0.8), make_run("other", fve=0.9)]
    kept = {(arm, 0): Retained(None, None, None, before) for arm, before in (("hard", 0.79), ("other", 0.87))}
    assert titles(draw_mask_strictness(runs, ARMS, kept, {}))[0] == "a FVE: as hardened against before, one seed (+0.0200)"


def test_strictness_of_one_seed_or_of_nothing_claims_nothing() -> None:
    one = draw_mask_strictness([make_run("hard"), make_run("soft", fve=0.9)], ARMS, {}, {})
    assert titles(one)[0] == "a FVE: soft against hard, one seed (+0.1000)" and "one seed: no interval over seeds" in texts(one)
    assert "hold what its dictionaries keep when they harden" in texts(one)
    assert (
        titles(draw_mask_strictness([make_run("other")], ARMS, {}, {}))[0]
        == "a All masks are hard: there is no other strictness to compare"
    )
    assert texts(draw_mask_strictness([make_run("batchtopk")], ARMS, {}, {})).count("no arm of these activations has a mask") == 3


# fidelity


def estimate(value: float | None, half: float = 0.01) -> Estimate:
    return Estimate(None, None, None, 100) if value is None else Estimate(value, value - half, value + half, 100)


def make_fidelity(index: float | None, content: float, change: float, masked: bool = False) -> FidelityMeasures:
    def explained(change: float) -> Explained:
        return Explained(estimate(0.8), estimate(0.8 + change), estimate(change), [], [])

    shifts = [
        ShiftFidelity(
            shift=shift,
            absolute_index=estimate(index),
            index_correlation=estimate(0.5),
            content_correlation=estimate(0.5),
            absolute_index_distance=estimate(0.5),
            tied_to_index=0,
            tied_to_content=0,
            undecided=0,
            follows_index=estimate(0.1),
            follows_text=estimate(0.6),
            content=estimate(content**place),
            fve=explained(change * place),
            open_fve=explained(change / 2) if masked else None,
            mask_change=estimate(-0.05) if masked else None,
            feature_absolute_index=[],
            feature_distance=[],
            feature_q=[],
            feature_content=[],
            position_content=[],
            position_count=[],
        )
        for place, shift in enumerate((1, 2, 4), 1)
    ]
    return FidelityMeasures(shifts, estimate(0.99), estimate(0.0), None, [], [], 1, 1, 100)


def test_fidelity_states_what_features_follow_and_what_shifts_cost() -> None:
    arms = [Arm("plain", [make_fidelity(-0.4, 0.9, -0.01)]), Arm("masked", [make_fidelity(0.3, 0.8, -0.1, masked=True)])]
    figure = draw_fidelity(arms, "a")
    fits(figure)
    assert titles(figure) == [
        "a At a shift of 4 features of masked follow the index; of plain follow the token",
        "b At a shift of 4, 51 % (masked) to 73 % (plain) of firings stay",
        "c masked loses most: 0.300 of FVE at a shift of 4; masks make it worse",
    ]
    assert all("shift: tokens inserted" in axes.get_xlabel() and axes.get_ylabel() for axes in panels(figure))
    assert "one seed, hollow: over documents" in texts(figure) and "the same with its mask open" in texts(figure)


def test_fidelity_without_shifts_says_so() -> None:
    assert texts(draw_fidelity([])).count("no run of these activations was measured under shifts") == 3
    figure = draw_fidelity([Arm("a", [make_fidelity(None, 0.9, -0.001)])])
    assert "is not known" in titles(figure)[0] and titles(figure)[2] == "c No shift changes FVE by more than 0.00300"


# bits


def make_bits(token: float | None, plain: float = 234.4) -> BitsMeasures:
    def saved(share: float, half: float = 0.002) -> Saved:
        return Saved(estimate(share * plain), estimate(share, half), estimate(0.0004, 0.001), estimate(share - 0.0004, half))

    shares: dict[str, float | None] = {"position": 0.006, "index": 0.001, "token": token, "own_past": -0.0301}
    found = {name: None if share is None else saved(share) for name, share in shares.items()}
    return BitsMeasures(estimate(plain), found, 25, 12698, 99290)


def test_bits_state_what_is_known_beside_its_null() -> None:
    figure = draw_bits([BitsArm("plain", [make_bits(0.431)]), BitsArm("masked", [make_bits(0.4), make_bits(0.42)])], "a")
    fits(figure)
    (axes,) = panels(figure)
    assert titles(figure) == [
        "a Known before codes are read, less the null: position 0.6 %, index in the row nothing, token 40 to 43 % and own past nothing"
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["position", "index in the row", "token", "own past"]
    assert axes.get_xlim()[0] < -0.03 and "share of the held-out bits" in axes.get_xlabel()
    written = texts(figure)
    assert "43.10 % (null 0.04 %)" in written and "41.00 % (null 0.04 %)" in written and "−3.01 % (null 0.04 %)" in written
    assert "plain: 234 bits per token by rates alone" in written
    assert "one seed: over documents; several seeds: over seeds" in written


def test_bits_of_a_store_without_tokens_have_no_bar_of_them_and_none_say_so() -> None:
    (axes,) = panels(draw_bits([BitsArm("plain", [make_bits(None)])]))
    assert "token" not in [label.get_text() for label in axes.get_yticklabels()]
    assert "no run of these activations was measured for what is known" in texts(draw_bits([]))
    assert "1 more arms are not drawn" in texts(draw_bits([BitsArm(f"arm {number}", [make_bits(0.4)]) for number in range(7)]))


# All of them

DRAWN: dict[str, Callable[[], Figure]] = {
    "comparative_analysis": lambda: draw_comparative_analysis([make_run("x$x_{ \x01 & 漢字")], {}, "$x_{"),
    "masks": lambda: draw_masks(np.ones((2, 3)), None, {}, "$x_{"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_vectors_too_and_the_same_bytes_for_the_same_data(tmp_path: Path, name: str) -> None:
    first, second = (save(DRAWN[name](), tmp_path / f"{name}-{time}", "svg").read_bytes() for time in range(2))
    assert first == second and b"<svg" in first


def test_heatmaps_use_the_uniform_map_and_position_zero_sets_no_scale() -> None:
    history = make_history()
    history["position_l0"][:, 0] = 9000
    history["position_count"][:, 0] = 80
    history["position_weight"][:, 0] = 50
    (l0, *_), (weight, *_) = meshes(draw_sparsity_analysis(history)), meshes(draw_position_weights(history))
    for mesh, limit in ((l0, 100), (weight, 3)):
        assert mesh.get_cmap().name == "viridis" and mesh.get_clim()[1] is not None and mesh.get_clim()[1] < limit
    assert 9000.0 in np.asarray(l0.get_array())  # it is drawn apart, all the same
