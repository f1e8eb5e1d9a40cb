"""Learning rates from a grid: chosen on other data, worn by the study's arms, kept when the study goes on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import TimedResults, Tuned, load_results
from temporallens.files import read_json
from temporallens.study.plan import plan_study
from temporallens.study.reading import read_study
from temporallens.study.run import run_study

WORLD = {"source": "world", "variant": "null", "sequences": 128, "width": 16, "features": 24, "active": 3.0, "highest_rate": 0.5}


def study_of(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tuned",
        "threads": 1,
        "activations": {"world": WORLD},
        "arms": {
            "plain": {"kind": "batchtopk", "features": 24, "k": 3},
            "masked": {"kind": "positional", "features": 24, "k": 3, "groups": "positions"},
            "penalised": {"kind": "standard", "features": 24, "sparsity": 0.1},
        },
        "levels": {"k": [2, 3, 4]},
        "training": {"steps": 12, "batch_size": 64, "learning_rate": 0.001, "held_out": 0.25},
        "tuning": {"learning_rates": [1e-6, 0.003, 0.01], "activations": {"other": WORLD | {"seed": 1}}, "seeds": [7]},
        **changes,
    }


def write(folder: Path, study: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    run_study(read_study(write(folder, study_of())), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def results(finished: Path) -> TimedResults:
    return load_results(finished)


def test_each_arm_gets_the_rate_that_explains_most_elsewhere(finished: Path, results: TimedResults) -> None:
    grid = load_results(finished / "tuning")
    for family in ("plain", "masked"):
        explained = {run.arm: run.fve for run in grid.runs if run.arm.startswith(family)}
        assert len(explained) == 3 and {run.level for run in grid.runs} == {None}
        best = max(explained, key=lambda arm: explained[arm])
        assert best == f"{family}-lr{results.tuning[family].learning_rate:g}"
        assert results.tuning[family].learning_rate > 1e-6  # with which nothing is learnt
        for run in results.runs:
            if run.family == family:
                summary = read_json(finished / "arms" / "world" / run.id.name / "training.json", "a training")
                assert summary["arm"]["learning_rate"] == results.tuning[family].learning_rate


def test_an_arm_whose_l0_follows_the_rate_keeps_that_of_training(finished: Path, results: TimedResults) -> None:
    assert "penalised" not in results.tuning
    summary = read_json(finished / "arms" / "world" / "penalised-seed0" / "training.json", "a training")
    assert "learning_rate" not in summary["arm"]


def test_it_trains_on_no_seed_and_no_data_of_the_study(finished: Path, results: TimedResults) -> None:
    grid = load_results(finished / "tuning")
    assert not {run.seed for run in grid.runs} & {run.seed for run in results.runs}
    assert not set(grid.activations) & set(results.activations)


def test_run_again_it_does_nothing(finished: Path) -> None:
    study, before = read_study(finished.parent / "study.yaml"), (finished / "results.json").read_bytes()
    lines: list[str] = []
    run_study(study, finished, say=lines.append)
    assert all("finished before, skipped" in line for line in lines)
    assert (finished / "results.json").read_bytes() == before
    assert all(line.finished for line in plan_study(study, finished).lines)


def test_a_rate_is_an_arms_own(tmp_path: Path, finished: Path, results: TimedResults) -> None:
    """The dictionaries are those of a study that gives each arm its rate by hand."""
    study = study_of()
    del study["tuning"], study["arms"]["penalised"]
    for family, tuned in results.tuning.items():
        study["arms"][family]["learning_rate"] = tuned.learning_rate
    run_study(read_study(write(tmp_path, study)), tmp_path / "run", up_to="train")
    for arm in ("plain-k3-seed0", "masked-k3-seed0"):
        files = [folder / "arms" / "world" / arm / "sae_weights.safetensors" for folder in (tmp_path / "run", finished)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_plan_counts_the_grid(tmp_path: Path) -> None:
    names = [line.stage.name for line in plan_study(read_study(write(tmp_path, study_of())), tmp_path / "run").lines]
    assert "tuning/train/other/plain-lr0.003-seed7" in names and "train/world/plain-k2-seed0" in names
    assert "tuning/report" not in names


def test_the_report_shows_the_grid_and_its_edge(finished: Path, results: TimedResults) -> None:
    page = (finished / "report.html").read_text()
    assert "learning rates, tuned on data and seeds that are compared nowhere below" in page
    assert results.tuning["plain"].at_the_edge and "0.01, the edge" in page


def model_study(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A study of a language model whose grid reads another text of it."""
    texts = {name: tmp_path / f"{name}.txt" for name in ("one", "other")}
    for path in texts.values():
        path.write_text("a b c d e f g h " * 40)
    entries = {name: {"model": str(tmp_path), "layer": 0, "text": str(path)} for name, path in texts.items()}
    study = study_of(activations={"one": entries["one"]})
    study["tuning"]["activations"] = {"other": entries["other"] | changes}
    return study


def test_another_model_is_that_of_the_grid_too(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, model_study(tmp_path)), model="minilm-l6").study
    assert study.tuning
    models = [entry.model_dump()["model"] for entry in (*study.activations.values(), *study.tuning.activations.values())]
    assert models == ["minilm-l6", "minilm-l6"]


def test_what_the_grid_cannot_have_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    study = model_study(tmp_path, model=str(tmp_path / "nowhere"))
    study["activations"] = {"world": WORLD}
    with pytest.raises(TemporalLensError, match="nowhere"):
        run_study(read_study(write(tmp_path, study)), tmp_path / "run")
    assert not (tmp_path / "run" / "stores").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"learning_rates": [0.01, 0.003, 0.001]}, "the learning rates should rise"),
        ({"learning_rates": [0.001, 0.0010000001, 0.01]}, "differ in their first six digits"),
        ({"learning_rates": [0.001, 0.003]}, "learning_rates"),
        ({"seeds": [0]}, "tuning.seeds and seeds both have 0"),
        ({"activations": {"other": WORLD}}, "tuning.activations.other is an entry of the study too"),
        ({"activations": {"other": WORLD | {"seed": 1, "positions": 4}}}, "positions"),
    ],
)
def test_a_grid_that_proves_nothing_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    study = study_of()
    study["tuning"] |= change
    with pytest.raises(TemporalLensError, match=complaint):
        read_study(write(tmp_path, study))


def test_arms_without_a_number_of_codes_alone_leave_nothing_to_tune(tmp_path: Path) -> None:
    study = study_of(arms={"penalised": {"kind": "standard", "features": 24}}, levels={"sparsity": [0.1, 0.2]})
    with pytest.raises(TemporalLensError, match="tuning has nothing to tune"):
        read_study(write(tmp_path, study))


@pytest.fixture(scope="module")
def diverging(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, said = tmp_path_factory.mktemp("diverging"), list[str]()
    study = study_of()
    study["tuning"]["learning_rates"] = [1e-6, 0.01, 1e30]
    run_study(read_study(write(folder, study)), folder / "run", say=said.append)
    return folder, said


@pytest.mark.slow
def test_a_rate_that_diverges_counts_as_the_worst(diverging: tuple[Path, list[str]]) -> None:
    folder, said = diverging
    tuned = load_results(folder / "run").tuning
    for family in ("plain", "masked"):
        assert tuned[family].fve["1e+30"] is None and tuned[family].learning_rate == 0.01
        assert not tuned[family].at_the_edge  # beyond it is known to be worse
        assert any(f"'{family}-lr1e30-seed7'" in line and "the grid goes on without it" in line for line in said)
    assert "diverged" in (folder / "run" / "report.html").read_text()


def test_a_rate_that_diverged_is_not_tried_again(diverging: tuple[Path, list[str]]) -> None:
    folder, _ = diverging
    study, lines = read_study(folder / "study.yaml"), list[str]()
    run_study(study, folder / "run", say=lines.append)
    assert all("finished before, skipped" in line for line in lines)
    assert all(line.finished for line in plan_study(study, folder / "run").lines)


def test_with_other_settings_it_is_tried_again(diverging: tuple[Path, list[str]]) -> None:
    folder, _ = diverging
    study = read_study(folder / "study.yaml")
    longer = study.study.model_copy(update={"training": study.study.training.model_copy(update={"steps": 13})})
    names = [line.stage.name for line in plan_study(study._replace(study=longer), folder / "run").lines]
    assert "tuning/train/other/plain-lr1e30-seed7" in names


def test_an_arm_that_diverges_at_every_rate_is_refused(tmp_path: Path) -> None:
    study = study_of()
    study["tuning"]["learning_rates"] = [1e30, 2e30, 3e30]
    with pytest.raises(TemporalLensError, match=r"diverges at every one of tuning\.learning_rates: add lower ones"):
        run_study(read_study(write(tmp_path, study)), tmp_path / "run")


@pytest.mark.slow
def test_a_rate_that_leaves_nothing_to_measure_counts_as_diverged(tmp_path: Path) -> None:
    """Features that fired in the first steps hide in a history of one line that none does in the last."""
    study = study_of(levels={})
    study["training"]["log_every"] = 12
    study["tuning"]["learning_rates"] = [1e-6, 0.01, 100]
    said: list[str] = []
    run_study(read_study(write(tmp_path, study)), tmp_path / "run", say=said.append)
    assert any("'plain-lr100-seed7' left nothing that can be measured: no feature fires" in line for line in said)
    assert {tuned.learning_rate for tuned in load_results(tmp_path / "run").tuning.values()} == {0.01}


def test_an_edge_is_one_whatever_its_digits() -> None:
    fve = {"0.00123457": 0.5, "0.01": 0.4, "0.1": None}
    assert Tuned(learning_rate=0.0012345678, fve=fve).at_the_edge and not Tuned(learning_rate=0.01, fve=fve).at_the_edge
