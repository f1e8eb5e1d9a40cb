"""The pictures of a whole run: which it gets, from which of its files, under which names, in every format."""

from pathlib import Path

import pytest

from temporallens.errors import TemporalLensError
from temporallens.evaluation.comparison import Comparison
from temporallens.evaluation.positions.section import PositionsPolicy
from temporallens.evaluation.results import TimedResults, load_results
from temporallens.layout import RunId
from temporallens.report.verdict import _on_masks, verdict_on
from temporallens.study.pictures import beside_answers, captions, draw_pictures, headline, pictures_of
from temporallens.study.reading import read_study
from temporallens.study.run import browsing_order, run_study

STUDY = """
name: pictures
activations:
  first: &world
    {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
  second: *world
arms:
  batchtopk: {kind: batchtopk, features: 32, k: 2}
  hard: {kind: positional, features: 32, k: 2, groups: 2}
  soft: {kind: positional, features: 32, k: 2, groups: 2, strictness: soft}
  weighing: {kind: positional, features: 32, k: 2, groups: 2, position_weights: true}
training: {steps: 12, batch_size: 128, held_out: 0.25, log_every: 2}
seeds: [0, 1]
threads: 1
"""
OF_ENTRY = (
    "comparative_analysis",
    "position_weights",
    "sparsity_analysis",
    "masks",
    "mask_strictness",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TimedResults]:
    """A study up to its results."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "study.yaml").write_text(STUDY)
    run_study(read_study(folder / "study.yaml"), folder / "run", "evaluate")
    return folder / "run", load_results(folder / "run")


def test_the_headline_entry_has_the_plain_names_and_others_their_own_behind(run: tuple[Path, TimedResults]) -> None:
    names = [picture.name for picture in pictures_of(*run)]
    expected = {"frontier", "position_analysis", *OF_ENTRY, *(f"{name}-second" for name in OF_ENTRY)}
    arms = ("batchtopk", "hard", "soft", "weighing")
    assert set(names) == expected | {f"position_analysis-{entry}-{arm}-seed0" for entry in ("first", "second") for arm in arms}
    assert len(names) == len(set(names)) and names[-1] == "position_analysis"  # the proof of all others is drawn last


def test_every_picture_but_the_headlines_copy_has_a_caption_of_its_own(run: tuple[Path, TimedResults]) -> None:
    folder, results = run
    found = captions(folder, results)
    assert len(found) == len(pictures_of(folder, results)) - 1
    assert found["Position weights: first, weighing, seed 0"] == folder / "figures" / "position_weights.png"


def test_the_headline_run_weighs_positions_where_one_does(run: tuple[Path, TimedResults]) -> None:
    runs, study = run[1].runs, run[1].study
    assert headline(runs, study).arm == "weighing"
    assert headline([other for other in runs if other.arm != "weighing"], study).arm == "hard"
    assert headline([other for other in runs if other.arm == "batchtopk"], study).arm == "batchtopk"


def test_all_are_drawn_as_vectors_and_what_was_not_measured_says_so(run: tuple[Path, TimedResults]) -> None:
    folder, results = run
    runs = [run for run in results.runs_of("first") if run.arm != "batchtopk"]
    first = results.model_copy(update={"activations": {"first": results.activations["first"]}, "runs": runs})
    drawn = draw_pictures(folder, first, "pdf")
    assert {path.name for path in drawn} == {f"{picture.name}.pdf" for picture in pictures_of(folder, first)}
    assert all(path.read_bytes().startswith(b"%PDF") for path in drawn)


def test_an_unknown_format_is_refused_before_anything_is_drawn(run: tuple[Path, TimedResults]) -> None:
    with pytest.raises(TemporalLensError, match="not written as 'svgg'; did you mean 'svg'"):
        draw_pictures(*run, "svgg")
    assert not list((run[0] / "figures").glob("*.svgg"))


@pytest.mark.parametrize("best", ["hard", "soft", "weighing"])
def test_the_masks_that_are_drawn_are_those_of_which_the_answer_speaks(run: tuple[Path, TimedResults], best: str) -> None:
    folder, results = run
    runs = [run.model_copy(update={"fve": 0.9 if run.arm == best else 0.5}) for run in results.runs]
    found = [picture.caption for picture in pictures_of(folder, results.model_copy(update={"runs": runs})) if picture.name == "masks"]
    first = [run for run in runs if run.activations == "first"]
    answer = _on_masks(best, [run for run in first if run.family == best], {})
    assert found == [f"Mask: first, {best}, seed 0"]
    browsed = browsing_order(results.model_copy(update={"runs": runs}))
    assert browsed[0].id == RunId("first", best, 0) and browsed[-1].family == "batchtopk" and len(browsed) == len(runs)
    assert answer in verdict_on(
        results.activations["first"], first, Comparison(l0=[], baselines=[], reached=[], against=[]), PositionsPolicy()
    )


def test_one_dictionary_that_was_trained_elsewhere_is_drawn_without_panels_of_nothing(run: tuple[Path, TimedResults]) -> None:
    folder, results = run
    plain = next(run for run in results.runs_of("first") if run.arm == "batchtopk").model_copy(update={"kind": "pretrained"})
    theirs = results.model_copy(update={"activations": {"first": results.activations["first"]}, "runs": [plain]})
    pictures = {picture.name: picture for picture in pictures_of(folder, theirs)}
    assert not {"comparative_analysis", "position_weights", "frontier"} & set(pictures) and "sparsity_analysis" in pictures
    assert beside_answers(folder, theirs) == {"first": plain.id.title}
    assert [axes.get_ylabel() for axes in pictures["position_analysis"].draw().axes] == [
        "FVE, about the position's own mean",
        "codes in use per token",
    ]
