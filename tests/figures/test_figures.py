"""Pictures say what they show: axes, colour bars, position 0 apart, missing data in words, and the same bytes for the same data."""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from made_results import make_beforehand, make_scan
from temporallens import wording
from temporallens.errors import TemporalLensError
from temporallens.figures import steps, style as look
from temporallens.figures.beforehand import draw_beforehand
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan

SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def make_history(logged: int = 60, positions: int = 128, zero: bool = False, adaptive: bool = False) -> dict[str, np.ndarray]:
    """A history in the stored shape: the loss falls, and is highest at early positions; position 0 is a sink or unknown."""
    random = np.random.default_rng(0)
    step = np.arange(1, logged + 1) * 10
    place = np.arange(positions)
    level = 120 * (1 + 1.5 / (1 + place)) * (1 + 4 * np.exp(-step / 90))[:, None]
    loss = level * random.uniform(0.93, 1.07, (logged, positions))
    loss[:, 0] = 9000 if zero else np.nan
    weight = np.ones((logged, positions))
    if adaptive:
        weight = 1 + (level / level[:, 1:].mean(1, keepdims=True) - 1) * (step / step[-1])[:, None]
        weight[:, 0] = 1
    return {"step": step, "position_loss": loss, "position_count": np.full((logged, positions), 80), "position_weight": weight}


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text)).replace("\n", " ").replace("\u00a0", " ")


def meshes(figure: Figure) -> list[QuadMesh]:
    return [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh) and axes.get_label() != "<colorbar>"]


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def colour_bars(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def test_position_analysis_has_three_panels_with_labels_units_and_titles_that_state_numbers() -> None:
    figure = draw_position_analysis(make_history(), "positional, seed 0", held_out=np.full(128, 150.0))
    evolution, final, weights = panels(figure)
    assert evolution.get_xlabel() == weights.get_xlabel() == "training step"
    assert evolution.get_ylabel() == final.get_xlabel() == "position (log scale)"
    assert final.get_ylabel() == "squared error per token" and "weight" in weights.get_ylabel()
    assert colour_bars(figure)[0].get_ylabel().startswith("squared error per token")
    assert "falls from" in evolution.get_title(loc="left") and "600 steps" in evolution.get_title(loc="left")
    assert "positional, seed 0" in texts(figure)


def test_weights_of_one_are_called_off() -> None:
    assert "weights are 1 throughout: adaptive weighting is off" in texts(draw_position_analysis(make_history(), "a"))
    adaptive = texts(draw_position_analysis(make_history(adaptive=True), "a"))
    assert "adaptive weighting is off" not in adaptive and "position 1 weighs most" in adaptive


def test_position_zero_never_sets_a_scale() -> None:
    figure = draw_position_analysis(make_history(zero=True, adaptive=True), "a")
    (mesh,) = meshes(figure)
    assert mesh.norm.vmax is not None and mesh.norm.vmax < 2000
    assert panels(figure)[1].get_ylim()[1] < 2000
    assert "9,000 ↑" in texts(figure)
    assert 9000.0 in np.asarray(mesh.get_array())  # it is drawn, all the same


def test_position_zero_has_no_row_where_it_is_unknown() -> None:
    (mesh,) = meshes(draw_position_analysis(make_history(), "a"))
    assert np.asarray(mesh.get_array()).shape == (127, 60)


def test_a_wide_span_of_loss_gets_a_logarithmic_colour_scale() -> None:
    history = make_history()
    history["position_loss"] = history["position_loss"] * np.linspace(30, 1, 60)[:, None]
    assert isinstance(meshes(draw_position_analysis(history, "a"))[0].norm, LogNorm)


@pytest.mark.parametrize("column", ["position_loss", "position_weight"])
@pytest.mark.parametrize("how", ["absent", "unknown", "empty"])
def test_a_run_without_the_data_of_a_panel_says_so_in_that_panel(tmp_path: Path, column: str, how: str) -> None:
    history = make_history()
    if how == "absent":
        del history[column]
    elif how == "unknown":
        history[column] = np.full_like(history[column], np.nan)
    else:
        history = {name: values[:0] for name, values in history.items()}
    figure = draw_position_analysis(history, "a")
    assert len(panels(figure)) == 3
    assert f"does not hold the {'loss by position' if column == 'position_loss' else 'position weights'}" in texts(figure)
    save(figure, tmp_path / "a.png")


@pytest.mark.parametrize(("logged", "positions"), [(1, 128), (2, 2), (3, 1), (900, 1024), (5, 8)])
def test_histories_of_any_size_are_drawn(tmp_path: Path, logged: int, positions: int) -> None:
    figure = draw_position_analysis(make_history(logged, positions, zero=True, adaptive=positions > 1), "a")
    assert save(figure, tmp_path / "a.png").stat().st_size > 10_000
    for mesh in meshes(figure):
        assert np.asarray(mesh.get_array()).size <= 400 * 256  # long runs are averaged, not drawn cell by cell


def test_final_loss_is_weighted_by_tokens() -> None:
    history = make_history(20, 4)
    history["position_loss"][-2:, 1] = [10.0, 40.0]
    history["position_count"][-2:, 1] = [1, 2]
    curve = panels(draw_position_analysis(history, "a"))[1].lines[0]
    assert np.asarray(curve.get_ydata())[0] == pytest.approx(30.0)


def test_scan_has_one_row_per_model_with_labels_and_colour_bars() -> None:
    figure = draw_scan([make_scan(), make_scan("minilm-l6", layers=7, clocks=("index", "document", "sentence", "newline"))])
    assert len(panels(figure)) == 8 and len(colour_bars(figure)) == 2
    written = texts(figure)
    assert "smollm2-135m" in written and "minilm-l6" in written and "256 sequences of up to 128 tokens" in written
    depth, share, norms, sinks = panels(figure)[:4]
    assert "η²" in depth.get_ylabel() and "%" in depth.get_ylabel() and "layer" in depth.get_xlabel()
    assert "index in the row" in share.get_xlabel() and "layer" in share.get_ylabel()
    assert "norm" in norms.get_ylabel() and "sinks" in sinks.get_ylabel()
    assert all("%" in axes.get_ylabel() for axes in colour_bars(figure))
    assert "above its noise floor at layer\u00a0" in depth.get_title(loc="left").replace("\n", " ")
    assert "Index 0 is a sink" in norms.get_title(loc="left")


def test_scan_draws_each_clock_with_its_floor_and_names_absent_ones() -> None:
    figure = draw_scan([make_scan(clocks=("index", "newline"))])
    depth = panels(figure)[0]
    solid = [line for line in depth.lines if line.get_linestyle() == "-" and len(np.asarray(line.get_xdata()))]
    dashed = [line for line in depth.lines if line.get_linestyle() != "-" and len(np.asarray(line.get_xdata()))]
    assert len(solid) == len(dashed) == 2
    assert "clocks not measured: document, sentence" in texts(figure)


def test_what_is_known_beforehand_is_drawn_with_its_sentence() -> None:
    known = make_scan(beforehand=make_beforehand(token=0.63, encoder=True))
    written = texts(draw_beforehand([known, make_scan()]))  # the second was scanned without it
    for part in ("token 63", "token before", "floors: permuted labels", "autocorrelation", "effective rank", "sees both sides"):
        assert part in " ".join(written.split()), part
    assert "no scan of this study measured" in texts(draw_beforehand([make_scan()]))


def test_scan_position_zero_does_not_set_the_colour_scale() -> None:
    scan = make_scan()
    for row in scan.clocks["index"].share:
        row[0] = 50.0
    (mesh,) = meshes(draw_scan([scan]))
    assert mesh.norm.vmax is not None and mesh.norm.vmax < 1


def test_scan_ranks_clocks_by_what_they_explain_above_their_floor() -> None:
    scan = make_scan(clocks=("index", "document"))
    document = replace(scan.clocks["document"], eta2=[0.5] * 8, floor=[0.5] * 8)
    assert "The “index” clock leads" in texts(draw_scan([replace(scan, clocks=scan.clocks | {"document": document})]))


def test_scan_below_its_floor_claims_nothing() -> None:
    scan = make_scan(clocks=("index",))
    index = replace(scan.clocks["index"], floor=[0.5] * 8)
    written = texts(draw_scan([replace(scan, clocks={"index": index})]))
    assert "No clock rises above its noise floor" in written and "nowhere above its noise floor" in written
    assert "hatched" in written


def test_scan_without_data_says_so_in_each_panel(tmp_path: Path) -> None:
    scan = make_scan(layers=2, clocks=("sentence",))
    unknown = [[None] * 128] * 2
    silent = replace(scan.clocks["sentence"], eta2=[None, None], floor=[None, None])
    figure = draw_scan([replace(scan, norm=unknown, sinks=unknown), replace(scan, clocks={"sentence": silent})])
    written = texts(figure)
    assert "does not hold the index clock's variance" in written
    assert "does not hold the norms by index" in written and "does not hold the sinks by index" in written
    assert "this scan holds no clock" in written
    save(figure, tmp_path / "a.png")
    assert "no model was scanned" in texts(draw_scan([]))


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    scan = make_scan("$\\frac{1}{ <script>\n" + "x" * 300 + "漢字")
    save(draw_scan([scan]), tmp_path / "a.png")
    save(draw_position_analysis(make_history(5, 4), "$x_{ \x00 & 漢字"), tmp_path / "b.png")


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_the_same_data_give_the_same_bytes(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(draw_position_analysis(make_history(), "a"), tmp_path / "one", format).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # a later time of writing must not show
    with mpl.rc_context({"font.size": 20, "svg.hashsalt": "another"}):  # nor a user's own settings
        second = save(draw_position_analysis(make_history(), "a"), tmp_path / "two", format).read_bytes()
    assert first == second and first.startswith(SIGNATURES[format])


def test_pictures_are_wide_enough_even_from_a_small_figure(tmp_path: Path) -> None:
    path = save(Figure(figsize=(4, 3), dpi=100), tmp_path / "gemma-2.2b")
    assert path.name == "gemma-2.2b.png"
    assert int.from_bytes(path.read_bytes()[16:20], "big") >= 1200


def test_an_unknown_format_is_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match="'svgg'; did you mean 'svg'"):
        save(Figure(), tmp_path / "a.png", "svgg")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_global_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save(draw_scan([make_scan()]), tmp_path / "a.png")
    with pytest.raises(RuntimeError), look.ours():
        raise RuntimeError
    assert dict(mpl.rcParams) == before


def test_numbers_and_shares_read_well() -> None:
    assert [wording.number(value) for value in (0, 25143.2, 98.26, 0.03117, float("nan"))] == ["0", "25,100", "98.3", "0.0312", "n/a"]
    assert [wording.percent(share) for share in (0, 0.9, 0.0121, 0.0004)] == ["0\u00a0%", "90\u00a0%", "1.2\u00a0%", "0.04\u00a0%"]
    assert [wording.fixed(value, 2) for value in (-0.001, -0.006, None)] == ["0.00", "−0.01", "–"]
    assert wording.plain("a\nb" + "c" * 100, 11) == "a bcc…ccccc"


def test_a_position_is_called_by_its_name_where_it_has_one() -> None:
    assert look.called(1200) == "position 1,200"
    with look.positions_called({5: "McDonald"}, 1):
        assert [look.called(position) for position in (4, 5)] == ["position 4", "position 5 (McDonald)"]
        assert steps.band_name(5, 6) == "position 5 (McDonald)" and steps.band_name(5, 7) == "positions 5 to 6"
    assert steps.band_name(5, 6) == "position 5"
