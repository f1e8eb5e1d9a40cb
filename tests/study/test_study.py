"""Studies: what is planned, what runs, what is cached and when, and that a whole tiny study leaves what it should."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.results import write_docs

from temporallens.activations.language.models import LanguageModel
from temporallens.dictionaries.steps import Progress
from temporallens.errors import TemporalLensError
from temporallens.study.config import Study
from temporallens.study.plan import harvest_tokens, plan_study
from temporallens.study.plan_tables import plan_table
from temporallens.study.reading import StudyFile, read_copy, read_study, write_copy
from temporallens.study.run import run_study
from temporallens.study.stages import Kind
from temporallens.study.tables import dictionaries_table, results_table, scan_table
from temporallens.training.trainee import Trainee
from temporallens.training.views import View
from temporallens.wording import readable_bytes, readable_time
from tiny_studies import LEVELED, VALID

STUDIES = Path(__file__).parents[2] / "studies"

GUIDE = {
    "position_analysis",
    "comparative_analysis",
    "sparsity_analysis",
    "masks",
}
"""Pictures of an activations entry with an arm that has a mask, none that weighs positions, and of which no section of `evaluation` was
measured."""


# Running


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def run(path: Path, folder: Path, up_to: Kind = "report") -> list[str]:
    """Run the study and return what it said. Pictures take most of the time: a test that does not look at them stops before."""
    said: list[str] = []
    run_study(read_study(path), folder, up_to, say=said.append)
    return said


# One tiny study is run once; each test goes on from a copy of its folder.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "given.yaml"
    path.write_text(VALID.format(**sources))
    run(path, folder / "run")
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_it_leaves_results_figures_a_report_and_its_own_study(folder: Path, sources: dict[str, Path]) -> None:
    results = results_of(folder)
    assert [(run["activations"], run["arm"]) for run in results["runs"]] == [
        (store, arm) for store in ("low", "high") for arm in ("standard", "positional")
    ]
    assert all(run["training_steps"] == 12 for run in results["runs"])
    assert list(results["scans"]) == [str(sources["model"])]
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert pictures == {
        *("scan", "frontier", *GUIDE),
        *(f"{name}-high" for name in GUIDE - {"position_analysis"}),
        *(f"position_analysis-{run['activations']}-{run['arm']}-seed0" for run in results["runs"]),
    }
    assert "position_analysis" not in (folder / "report.html").read_text()  # pictures are inlined
    assert read_copy(folder / "study.yaml").text == VALID.format(**sources)


def test_run_again_it_does_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name not in {"study.yaml", ".lock"}}
    said = run(folder / "study.yaml", folder)
    assert said == [
        "scan: 1 of 1 finished before, skipped",
        "harvest: 2 of 2 finished before, skipped",
        "train: 4 of 4 finished before, skipped",
        "evaluate: 7 of 7 finished before, skipped",
        "figures: 1 of 1 finished before, skipped",
        "report: 1 of 1 finished before, skipped",
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_arm_is_trained_alone_and_the_rest_keeps_its_bits(folder: Path, write: Callable[..., Path]) -> None:
    before = results_of(folder)
    said = run(write(("k: 4", "k: 5")), folder, "evaluate")
    assert [line for line in said if line.startswith("train")] == [
        "train: 2 of 4 finished before, skipped",
        "train/low/positional-seed0: done",
        "train/high/positional-seed0: done",
    ]
    after = results_of(folder)
    for old, new in zip(before["runs"], after["runs"], strict=True):
        assert (old == new) == (old["arm"] == "standard")


def test_a_lost_output_is_made_again_with_the_same_bits(folder: Path) -> None:
    before = (folder / "results.json").read_bytes()
    shutil.rmtree(folder / "arms" / "low" / "standard-seed0")
    (folder / "results.json").unlink()
    said = run(folder / "study.yaml", folder)
    assert "train: 3 of 4 finished before, skipped" in said
    assert (folder / "results.json").read_bytes() == before


def test_a_failed_stage_leaves_no_results_and_the_finished_ones(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise TemporalLensError("the loss became NaN")

    with monkeypatch.context() as patch:
        patch.setattr("temporallens.study.run.train_arms", fail)
        with pytest.raises(TemporalLensError, match="became NaN"):
            run(write(), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    assert "harvest: 2 of 2 finished before, skipped" in run(write(), tmp_path / "run", "train")


def test_layers_of_one_model_are_harvested_in_one_pass(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    original = LanguageModel.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[LanguageModel], *arguments: Any, **keywords: Any) -> LanguageModel:
        loads.append(keywords.get("up_to"))
        return original(cls, *arguments, **keywords)

    monkeypatch.setattr(LanguageModel, "load", classmethod(load))
    study, text = read_study(write())
    run_study(StudyFile(study.model_copy(update={"scans": ()}), text), tmp_path / "run", "harvest")
    assert loads == [2]
    assert not (tmp_path / "run" / "arms").exists()


@pytest.mark.parametrize("stage", ["train_arms", "evaluate_reconstruction"])
def test_a_changed_study_that_fails_half_way_does_not_show_old_results(
    folder: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise TemporalLensError("stop")

    monkeypatch.setattr(f"temporallens.study.run.{stage}", fail)
    with pytest.raises(TemporalLensError, match="stop"):
        run(write(("k: 4", "k: 5")), folder)
    assert not [name for name in ("results.json", "report.html", "figures") if (folder / name).exists()]


def test_a_changed_study_that_is_only_harvested_does_not_show_old_results(folder: Path, write: Callable[..., Path]) -> None:
    run_study(read_study(write(("k: 4", "k: 5"))), folder, "harvest")
    assert not (folder / "results.json").exists()


def test_files_in_scans_that_the_study_does_not_name_are_not_read(folder: Path) -> None:
    before = (folder / "results.json").read_bytes()
    (folder / "scans" / "foreign.json").write_text("{")
    (folder / "results.json").unlink()
    run(folder / "study.yaml", folder)
    assert (folder / "results.json").read_bytes() == before


def test_a_checkpoint_is_gone_on_from_and_removed_once_its_settings_are_abandoned(
    folder: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ("steps: 12", "steps: 40\n  checkpoint_every: 4")

    def interrupted(path: Path) -> list[str]:
        steps: list[int] = []

        def stop(self: Trainee, view: View, progress: Progress) -> None:
            steps.append(progress.step)
            if len(steps) > 20:
                raise KeyboardInterrupt
            step(self, view, progress)

        step = Trainee.step
        with monkeypatch.context() as patch:
            patch.setattr(Trainee, "step", stop)
            with pytest.raises(KeyboardInterrupt):
                run(path, folder)
        assert min(steps) == started
        return sorted(path.name for path in (folder / "arms" / "low").glob("checkpoint-*"))

    started = 0
    first = interrupted(write(many))
    started = 8  # two arms, 20 steps: the checkpoint stands behind the eighth of each
    assert interrupted(write(many)) == first
    started = 0
    second = interrupted(write(many, ("k: 4", "k: 5")))
    assert len(first) == len(second) == 2  # the last two
    assert not set(first) & set(second)


def test_a_scan_that_is_no_longer_asked_for_leaves_the_results(folder: Path, write: Callable[..., Path]) -> None:
    path = write()
    text = path.read_text()
    path.write_text(text.replace(text[text.index("scans:") : text.index("activations:")], ""))
    run(path, folder, "evaluate")
    assert results_of(folder)["scans"] == {}


@pytest.fixture(scope="module")
def leveled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leveled")
    path = folder / "given.yaml"
    path.write_text(LEVELED)
    run(path, folder / "run")
    return folder / "run"


def test_a_study_of_levels_compares_its_arms_at_equal_l0(leveled: Path) -> None:
    results = results_of(leveled)
    assert len(results["runs"]) == 2 * 2 * 2 + 1
    comparison = results["comparison"]["world"]
    assert (comparison["l0"], comparison["baselines"]) == ([2, 4], ["batchtopk"])
    row = next(row for row in comparison["against"] if (row["family"], row["l0"]) == ("positional", 4))
    assert row["fve"]["seeds"] == 2 and row["fve"]["low"] < row["fve"]["value"] < row["fve"]["high"]
    assert all(run["world"]["mcc"] <= 1 and run["fields"] is None for run in results["runs"])
    assert (results["runs"][0]["arm"], results["runs"][0]["family"], results["runs"][0]["level"]) == ("batchtopk-k2", "batchtopk", 2)


def test_a_study_of_levels_draws_its_frontier_and_one_picture_of_each_arm(leveled: Path) -> None:
    pictures = {path.stem for path in (leveled / "figures").glob("*.png")}
    arms = {"batchtopk-k4", "positional-k4", "standard"}
    assert pictures == {"frontier"} | GUIDE | {f"position_analysis-world-{arm}-seed0" for arm in arms}
    page = (leveled / "report.html").read_text()
    for word in ("arms at equal L0", "against the known truth", "one seed", "training_steps: 0, final_loss: None"):
        assert word in page


def test_the_tables_of_a_study_of_levels_have_a_row_per_arm_and_per_dictionary(leveled: Path) -> None:
    from temporallens.evaluation.results import load_results

    results = load_results(leveled)
    assert results_table(results).row_count == 3
    table = dictionaries_table(results)
    assert table.row_count == 9
    assert list(table.columns[-1].cells) == [*[""] * 8, "training_steps: 0, final_loss: None"]


def test_what_is_documented_of_a_study_is_the_same_twice(leveled: Path, tmp_path: Path) -> None:
    numbers, page = write_docs(leveled, tmp_path)
    before = page.read_bytes(), numbers.read_bytes()
    assert write_docs(leveled, tmp_path) == [numbers, page]
    assert (page.read_bytes(), numbers.read_bytes()) == before
    kept = json.loads(numbers.read_text())
    assert list(kept["openness_by_position"]["world"]) == ["positional-k2", "positional-k4"]
    assert len(kept["runs"]) == 9 and not [key for run in kept["runs"] for key, value in run.items() if isinstance(value, list)]
    assert kept["runs"][0]["world"]["mcc"] > 0
    assert "| positional | 2 |" in page.read_text()


@pytest.mark.slow
def test_dictionaries_trained_a_few_at_a_time_are_the_same_bits(leveled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temporallens.study.dealing.TOGETHER", 5)
    shutil.copytree(leveled / "stores", tmp_path / "run" / "stores")
    write_copy(tmp_path / "run" / "study.yaml", LEVELED)
    run_study(read_study(tmp_path / "run" / "study.yaml"), tmp_path / "run", "train")
    for path in (leveled / "arms").rglob("*.safetensors"):
        assert (tmp_path / "run" / path.relative_to(leveled)).read_bytes() == path.read_bytes()


def test_an_interruption_loses_no_finished_part_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(LEVELED)
    trained: list[list[str]] = []

    def interrupted(_store: Any, arms: Any, _policy: Any, out: Path, **_named: Any) -> None:
        trained.append([arm.name for arm in arms])
        if len(trained) == 2:
            raise KeyboardInterrupt
        for arm in arms:
            (out / arm.name).mkdir(parents=True)
            (out / arm.name / "training.json").write_text("{}")

    monkeypatch.setattr("temporallens.study.dealing.TOGETHER", 6)
    monkeypatch.setattr("temporallens.study.run.train_arms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "run")
    run_study(read_study(path), tmp_path / "run", "train")
    assert [len(names) for names in trained] == [5, 4, 4]
    assert trained[1] == trained[2]


@pytest.mark.slow
def test_a_process_that_dies_just_before_it_removes_checkpoints_leaves_none_for_ever(
    leveled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_path: Path) -> None:
        raise KeyboardInterrupt

    run_folder, path = tmp_path / "run", tmp_path / "study.yaml"
    path.write_text(LEVELED)
    shutil.copytree(leveled / "stores", run_folder / "stores")
    write_copy(run_folder / "study.yaml", LEVELED)
    with monkeypatch.context() as patched:
        patched.setattr("temporallens.training.trainer.remove_checkpoints", died)
        with pytest.raises(KeyboardInterrupt):
            run_study(read_study(path), run_folder, "train")
    assert list(run_folder.rglob("checkpoint-*"))
    run_study(read_study(path), run_folder, "train")
    assert not list(run_folder.rglob("checkpoint-*"))


def test_checkpoints_of_what_is_no_longer_asked_for_are_removed_where_nothing_is_left_to_train(leveled: Path, tmp_path: Path) -> None:
    """One of several processes left them, whose dictionary diverged, and then was taken out of the study."""
    run_folder = tmp_path / "run"
    shutil.copytree(leveled, run_folder)
    left = run_folder / "arms" / "world" / f"checkpoint-{'0' * 16}.safetensors"
    left.touch()
    left.with_stem(f"{left.stem}-gone-seed0-12").touch()
    run_study(read_copy(run_folder / "study.yaml"), run_folder, "train")
    assert not list(run_folder.rglob("checkpoint-*"))


def test_the_folder_of_another_study_is_refused_untouched(folder: Path, write: Callable[..., Path]) -> None:
    kept = (folder / "study.yaml").read_bytes()
    with pytest.raises(TemporalLensError, match="holds the study 'tiny', not 'other'; choose another output folder"):
        run(write(("name: tiny", "name: other")), folder)
    assert (folder / "study.yaml").read_bytes() == kept


def test_the_tables_show_every_run_and_layer(folder: Path) -> None:
    from temporallens.evaluation.results import load_results

    results = load_results(folder)
    assert results_table(results).row_count == 4
    (scan,) = results.scans.values()
    assert scan_table(scan).row_count == len(scan.layers) == 5


def test_the_plan_says_what_is_finished(folder: Path, write: Callable[..., Path]) -> None:
    plan = plan_study(read_study(folder / "study.yaml"), folder)
    assert all(line.finished for line in plan.lines)
    assert plan.notes == ["16 of 16 stages are finished; there is nothing to do."]
    plan = plan_study(read_study(write(("k: 4", "k: 5"))), folder)
    assert {line.stage.kind for line in plan.lines if not line.finished} == {"train", "evaluate", "figures", "report"}
    assert plan_table(plan).row_count == 16


def test_a_folder_that_is_no_run_is_refused_untouched(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(TemporalLensError, match="is not empty and holds no study; choose an empty output folder"):
        run(write(), folder)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("layer: 2", "layer: 31", "layer 31 is out of range: .*llama has layers 0 to 3"),
        (
            "layer: 2, context_length: 16",
            "layer: 2, context_length: 65",
            "activations.high.context_length is 65, too long: .*llama has 64 positions",
        ),
        ("text.jsonl", "none.jsonl", "there is no text at .*none.jsonl"),
    ],
)
def test_what_the_model_or_text_cannot_give_is_refused_before_anything_is_written(
    write: Callable[..., Path], tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        run(write((old, new)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_a_store_cannot_fill_is_refused_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(LEVELED.replace("batch_size: 64", "batch_size: 1000"))
    sentence = "batch_size is 1,000, but activations.world holds at most 1,024 activations, of which 0.25 are held out"
    for attempt in (run, lambda *arguments: plan_study(read_study(arguments[0]), arguments[1])):
        with pytest.raises(TemporalLensError, match=sentence):
            attempt(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hub_model_that_cannot_be_had_is_refused_before_anything_is_done(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temporallens.activations.language.model_files.hub_is_known", lambda: False)
    path = write()
    text = path.read_text()
    path.write_text(text.replace(text[text.index("  high:") : text.index("arms:")], "  high: {model: smolm2-135m, layer: 2}\n"))
    with pytest.raises(TemporalLensError, match=r"smolm2-135m was found neither here nor on the hub .*; did you mean 'smollm2-135m'\?"):
        run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The plan


def test_the_plan_writes_nothing_and_counts_tokens(write: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_study(read_study(write()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tokens = {line.stage.name: line.tokens for line in plan.lines}
    assert tokens["train/low/standard-seed0"] == 12 * 32
    assert not any(line.finished for line in plan.lines)
    assert all(line.seconds is not None for line in plan.lines)
    assert "GFLOP/s, timed just now" in plan.notes[1]


def test_the_plan_of_a_model_out_of_reach_says_what_is_unknown(write: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_study(read_study(write(), model="nobody/nothing"), tmp_path / "run")
    assert {line.seconds for line in plan.lines if line.stage.kind == "harvest"} == {None}
    assert "without those marked ?" in plan.notes[0]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 2_450_000),
        ({"max_tokens": 1000}, 1000),
        ({"rows_per_document": 8}, 249 * 8 * 128),
        ({"rows": "document"}, 249 * 128),
        ({"text": "someone/texts"}, None),
        ({"text": "someone/texts", "max_tokens": 500}, 500),
    ],
)
def test_tokens_are_what_the_text_holds_bounded_by_the_policy(fields: dict[str, Any], tokens: int | None) -> None:
    raw = yaml.safe_load((STUDIES / "gemma-2-2b.yaml").read_text())
    entry = {key: value for key, value in raw["activations"]["layer-19"].items() if key != "rows_per_document"} | fields
    study = Study.model_validate(raw | {"activations": {"only": entry}})
    assert harvest_tokens(study.activations["only"]) == tokens


def test_amounts_are_readable() -> None:
    assert [readable_time(seconds) for seconds in (0.1, 40, 300, 9000)] == ["1 s", "40 s", "5 min", "2.5 h"]
    assert [readable_bytes(size) for size in (12, 12_000, 340e6, 4.1e9)] == ["12 bytes", "12 KB", "340 MB", "4.1 GB"]
