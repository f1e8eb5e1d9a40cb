"""Positions of one's own: activations of a grid of patches, whose rows and columns have names, from arrays to the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import temporallens as tl
from temporallens.cli import app
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import bands_of
from temporallens.evaluation.known.fields import named_fields, score_fields
from temporallens.evaluation.results import load_results
from temporallens.evaluation.scan import Scan
from temporallens.figures.style import new_figure, position_axis
from temporallens.files import read_json
from temporallens.study.pictures import pictures_of
from temporallens.study.reading import read_study
from temporallens.study.run import run_study

ROWS, COLUMNS, WIDTH = ("top", "middle", "bottom"), ("left", "centre", "right"), 8
NAMES = [f"{row} {column}" for row in ROWS for column in COLUMNS]


def patches(images: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Each image's patches in an order of its own; axis 0 is high at the top left, axis 1 in the middle row."""
    generator = np.random.default_rng(0)
    positions = np.stack([generator.permutation(len(NAMES)) for _ in range(images)])
    x = generator.gamma(1.0, size=(images, len(NAMES), WIDTH))
    x[..., 0] += 4 * (positions == 0)
    x[..., 1] += 3 * (positions // 3 == 1)
    return x.astype(np.float32), positions


STUDY = """
name: patches
activations:
  images: {{source: store, path: {store}}}
arms:
  plain: {{kind: batchtopk, features: 12, k: 2}}
  masked: {{kind: positional, features: 12, k: 2, groups: positions}}
training: {{steps: 30, batch_size: 64, learning_rate: 0.01, held_out: 0.2}}
evaluation:
  features: {{contexts: 1}}
seeds: [0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    x, positions = patches()
    tl.ActivationStore.from_arrays(x, folder / "store", positions=positions, position_names=NAMES, exclude_first=False, norm_multiple=None)
    (folder / "study.yaml").write_text(STUDY.format(store=folder / "store"))
    run_study(read_study(folder / "study.yaml"), folder / "run", "report", say=lambda line: None)
    return folder / "run"


def test_a_store_of_arrays_is_an_entry_of_a_study(run: Path) -> None:
    results = load_results(run)
    entry = results.activations["images"]
    assert entry.positions == 9 and entry.clock_name == "given"
    assert list(entry.position_names.values()) == NAMES
    assert entry.eta2 > 0.1 > entry.eta2_floor
    plain = next(one for one in results.runs if one.family == "plain")
    assert sum(plain.position_count) == 12 * 9 and len(set(plain.position_count)) == 1  # index 0 is kept, whatever its position


def test_axes_tables_and_browser_carry_the_names(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "images: by position" in page and '<th scope="row">middle centre</th>' in page.replace("\n", "")
    assert all(json.dumps(name) in page for name in NAMES)  # in the browser's data
    (picture,) = [picture for picture in pictures_of(run, load_results(run)) if picture.name == "masks"]
    labels = [label.get_text() for axes in picture.draw().axes for label in axes.get_xticklabels()]
    assert labels.count("bottom right") >= 1


def test_positions_of_one_name_are_the_columns_of_a_field(tmp_path: Path) -> None:
    assert named_fields({0: "a", 1: "b"}) == {} and named_fields({}) == {}
    assert named_fields({0: "year", 2: "month", 1: "year"}) == {"year": (0, 1), "month": (2,)}
    x, positions = patches()
    rows = [name.split()[0] for name in NAMES]
    store = tl.ActivationStore.from_arrays(
        x, tmp_path / "store", positions=positions, position_names=rows, exclude_first=False, norm_multiple=None
    )
    dictionary = tl.Positional(features=WIDTH, k=3, groups="positions").build(WIDTH, 9, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.encoder.copy_(torch.eye(WIDTH))
        dictionary.mask.logits.fill_(-9.0)  # feature 1 lives in the middle row, the others everywhere
        dictionary.mask.logits[3:6, 1] = 9.0
        dictionary.mask.logits[:, torch.arange(WIDTH) != 1] = 9.0
        dictionary.threshold.fill_(0.1)  # type: ignore[operator]
    scores = score_fields(dictionary.eval(), store, np.arange(60))
    assert scores.group == {"top": 0, "middle": 1, "bottom": 0}
    assert scores.precision["middle"] == scores.recall["middle"] == 1.0


def test_axes_outside_have_numbers() -> None:
    axes = new_figure(2).subplots()
    position_axis(axes, "x", 9, zero=True)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]


def altered(**given: Any) -> dict[str, Any]:
    return {"positions": patches(2)[1]} | given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (altered(positions=np.zeros((2, 3), dtype=np.int64)), "positions has shape (2, 3), the activations need (2, 9)"),
        (altered(positions=np.full((2, 9), -1)), "the position at [0, 0] is -1: positions are whole numbers from 0 to 1,048,575"),
        (altered(positions=np.full((2, 9), 1 << 20)), "the position at [0, 0] is 1048576"),
        (altered(positions=np.ones((2, 9))), "positions should hold integers; this array holds float64"),
        (altered(position_names=NAMES[:4]), "position 4 occurs and has no name"),
        (altered(position_names={"a": "b"}), "'a' is no position"),
        (altered(position_names=["a", 3]), "the name of position 1 is 3"),
        (altered(position_names=[]), "a list of them"),
        ({"position_names": NAMES}, "give positions too"),
    ],
)
def test_bad_positions_are_refused_in_one_sentence_and_leave_nothing(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TemporalLensError) as refused:
        tl.ActivationStore.from_arrays(patches(2)[0], tmp_path / "store", **given)
    assert sentence in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_masked_activations_need_no_position(tmp_path: Path) -> None:
    x, positions = patches(2)
    given = np.ma.masked_array(positions, mask=np.zeros(positions.shape, bool))
    given[0, 3] = np.ma.masked
    mask = np.ones(positions.shape, bool)
    with pytest.raises(TemporalLensError, match="has none"):
        tl.ActivationStore.from_arrays(x, tmp_path / "store", positions=given, mask=mask)
    mask[0, 3] = False
    store = tl.ActivationStore.from_arrays(x, tmp_path / "store", positions=given, mask=mask, norm_multiple=None)
    assert store.read(np.array([0])).position.tolist() == np.delete(positions[0], 3).tolist()


def test_a_store_that_is_none_is_refused_when_the_study_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(store=tmp_path / "nothing"))
    with pytest.raises(TemporalLensError, match="does not exist: it should be the folder of an activation store"):
        read_study(tmp_path / "study.yaml")


def test_a_store_is_scanned_as_models_are(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scan", str(run / "stores" / "images"), "--out", str(tmp_path / "scan")])
    assert result.exit_code == 0, result.output
    assert "position (given) explains" in result.stdout
    scan = Scan.from_json(read_json(tmp_path / "scan" / "scan.json", "a scan"))
    assert set(scan.clocks) == {"position", "index"}
    x, positions = patches()
    means = np.stack([x[positions == value].mean(0) for value in range(9)])
    explained = np.square(means[positions] - x.mean((0, 1))).sum() / np.square(x - x.mean((0, 1))).sum()
    assert scan.clocks["position"].eta2[0] == pytest.approx(explained, rel=1e-4)
    floor, index = scan.clocks["position"].floor[0], scan.clocks["index"].eta2[0]
    assert floor is not None and index is not None and index < 0.1 and floor < 0.1


def test_position_zero_is_one_like_any_other_of_positions_with_names(run: Path) -> None:
    """Only as an index of a row is it that of an attention sink."""
    results = load_results(run)
    assert results.activations["images"].first_position == 0
    assert bands_of(tl.ActivationStore(run / "stores" / "images")) == [(position, position + 1) for position in range(9)]
    page = (run / "report.html").read_text().replace("\n", "")
    assert '<th scope="col">top left</th>' in page  # openness by position
    (picture,) = [picture for picture in pictures_of(run, results) if picture.name == "position_analysis"]
    panels = [axes for axes in picture.draw().axes if axes.get_title(loc="left")]
    evolution, final, _ = panels
    assert evolution.get_ylim()[0] == final.get_xlim()[0] == -0.5
    lines = [line for line in final.get_lines() if len(line.get_xdata()) > 2]
    assert lines and all(line.get_xdata()[0] == 0 for line in lines)
    assert "index 0" not in " ".join(axes.get_title(loc="left") + axes.get_xlabel() for axes in panels)


def test_one_position_alone_is_all_that_an_axis_shows() -> None:
    axes = new_figure(2).subplots()
    position_axis(axes, "x", 1, zero=True)
    assert axes.get_xlim() == (-0.5, 0.5) and [label.get_text() for label in axes.get_xticklabels()] == ["0"]


def test_what_is_printed_sets_position_0_apart_only_where_it_is(run: Path) -> None:
    printed = CliRunner().invoke(app, ["show", str(run)]).stdout
    assert printed.startswith("patches: held-out documents, one seed")


def test_index_zero_is_kept_where_positions_are_given_unless_it_is_asked_for(tmp_path: Path) -> None:
    x, positions = patches()
    stores = {
        "roles": tl.ActivationStore.from_arrays(x, tmp_path / "roles", positions=positions),
        "index": tl.ActivationStore.from_arrays(x, tmp_path / "index"),
        "asked": tl.ActivationStore.from_arrays(x, tmp_path / "asked", positions=positions, exclude_first=True),
    }
    assert {name: store.manifest.description.policies["position_zero"] for name, store in stores.items()} == {
        "roles": "kept",
        "index": "excluded",
        "asked": "excluded",
    }
    np.save(tmp_path / "x.npy", x)
    said = CliRunner().invoke(app, ["import", str(tmp_path / "x.npy"), "--out", str(tmp_path / "imported")]).stderr
    assert "index 0 of every sequence is left out of training and of headline numbers; --keep-first keeps it" in said
    kept = CliRunner().invoke(app, ["import", str(tmp_path / "x.npy"), "--keep-first", "--out", str(tmp_path / "kept")]).stderr
    assert "left out" not in kept


def test_positions_are_not_measured_on_one_document(tmp_path: Path) -> None:
    x, positions = patches()
    tl.ActivationStore.from_arrays(x, tmp_path / "store", positions=positions, documents=np.arange(len(x)) % 3)
    study = (
        STUDY.format(store=tmp_path / "store").replace("features: {contexts: 1}", "positions: {}").replace("held_out: 0.2", "held_out: 0.3")
    )
    (tmp_path / "study.yaml").write_text(study)
    with pytest.raises(TemporalLensError, match="one document alone is held out, and intervals of positions are over documents"):
        run_study(read_study(tmp_path / "study.yaml"), tmp_path / "run", "report", say=lambda line: None)
    assert not list((tmp_path / "run").rglob("training.json"))  # before anything was trained
