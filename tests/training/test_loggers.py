"""Loggers and `on_log`: what they are given, one run per dictionary, and that nothing that is trained or finished knows of them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

import temporallens as tl
from conftest import ARMS, POLICY
from temporallens import processes
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.positional import Positional
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.files import sha256
from temporallens.study.reading import read_copy, read_study, write_copy
from temporallens.study.stages import stages_of
from temporallens.training.history import load_history
from temporallens.training.listening import FVE, HeldOutRows
from temporallens.training.loggers import LOGGERS, Tracked, Watched, check_loggers
from temporallens.training.objective import inputs_for
from temporallens.training.policy import LoggerName, TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

RUNS = [ArmRun(name, arm, 0) for name, arm in ARMS.items()]
LINES = range(POLICY.log_every, POLICY.steps + 1, POLICY.log_every)
CHECKPOINTS = range(POLICY.checkpoint_every, POLICY.steps + 1, POLICY.checkpoint_every)


def watched_by(*loggers: LoggerName) -> TrainingPolicy:
    return POLICY.model_copy(update={"loggers": loggers})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_every_logger_that_can_be_named_is_there() -> None:
    assert set(get_args(LoggerName)) == set(LOGGERS)


def test_what_is_watched_is_trained_to_the_same_bits(store: ActivationStore, trained: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    watched = train_arms(store, RUNS, watched_by("jsonl"), tmp_path, on_log=lambda name, step, values: seen.append((name, step)))
    assert seen == [(run.name, step) for step in LINES for run in RUNS]
    for name, plain in trained.items():
        files = {path.name for path in plain.folder.iterdir()}
        assert {path.name for path in watched[name].folder.iterdir()} - {"log.jsonl"} == files
        for file in files - {"timing.json"}:
            assert (plain.folder / file).is_dir() or sha256(watched[name].folder / file) == sha256(plain.folder / file), file


def test_json_lines_hold_the_history_and_fve_at_checkpoints(store: ActivationStore, tmp_path: Path) -> None:
    run = tl.train(store, ARMS["standard"], out=tmp_path / "run", loggers=["jsonl"], **POLICY.model_dump())
    lines, history = lines_of(run.folder), load_history(run.folder / "history.safetensors")
    assert [line["step"] for line in lines] == list(LINES)
    assert [line["step"] for line in lines if FVE in line] == list(CHECKPOINTS)
    for name, column in history.items():
        logged = np.array([line[name] for line in lines], dtype=float)  # null is NaN
        np.testing.assert_array_equal(logged, column.astype(float), err_msg=name)
    held_out = store.split(POLICY.held_out, POLICY.data_seed).held_out
    measured = evaluate_reconstruction(run.dictionary, store, held_out, run.summary["scale"]).fve
    fve = [line[FVE] for line in lines if FVE in line]
    assert fve[0] < fve[-1] and fve[-1] == pytest.approx(measured, abs=1e-3)


def test_a_process_that_measures_asks_no_other(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others learn on meanwhile: asked for the rows of their batches, they would take the question for one of the next step."""
    moments, held_out = store.moments, store.split(POLICY.held_out, POLICY.data_seed).held_out
    rows = HeldOutRows.of(store, held_out, inputs_for(moments.pooled_mean(), moments.pooled_variance()))
    dictionary = Positional(features=32, k=3, groups=2).make(store.width, store.positions, torch.Generator().manual_seed(0))
    alone = rows.fve(dictionary)
    company = SimpleNamespace(rank=0, count=2, apart=False)  # without connections
    monkeypatch.setattr(processes, "_companies", [company])
    assert rows.fve(dictionary) == alone and processes.count() == 2


def test_a_training_that_goes_on_logs_each_step_once(store: ActivationStore, tmp_path: Path) -> None:
    def stop(name: str, step: int, values: Any) -> None:
        if step == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_arms(store, RUNS, watched_by("jsonl"), tmp_path, on_log=stop)
    log = tmp_path / "batchtopk" / "log.jsonl"
    assert [line["step"] for line in lines_of(log.parent)][-1] > CHECKPOINTS[0]
    with log.open("a") as file:
        file.write('{"step": 8')  # killed while it wrote
    train_arms(store, RUNS, watched_by("jsonl"), tmp_path)
    for run in RUNS:
        assert [line["step"] for line in lines_of(tmp_path / run.name)] == list(LINES)


def test_a_new_training_writes_over_the_lines_of_another(store: ActivationStore, tmp_path: Path) -> None:
    (tmp_path / "batchtopk").mkdir()
    (tmp_path / "batchtopk" / "log.jsonl").write_text('{"step": 0}\n')
    train_arms(store, RUNS[1:2], watched_by("jsonl"), tmp_path)
    assert [line["step"] for line in lines_of(tmp_path / "batchtopk")] == list(LINES)


def test_no_stage_but_the_report_which_shows_the_study_knows_of_loggers(write: Callable[..., Path], tmp_path: Path) -> None:
    plain, asked = (read_study(write(*change)) for change in ([], [("steps: 12", "steps: 12\n  loggers: [jsonl]")]))
    assert asked.study.training.loggers == ("jsonl",)
    before, after = ({stage.name: stage.fingerprint for stage in stages_of(*file)} for file in (plain, asked))
    assert {name for name in before if before[name] != after[name]} == {"report"}
    for study_file in (asked, read_study(write(("steps: 12", "steps: 12\n  loggers: [jsonl]")), model="other/model")):
        write_copy(tmp_path / "study.yaml", study_file.text)
        assert read_copy(tmp_path / "study.yaml").study.training.loggers == ("jsonl",)


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_done(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temporallens.training.loggers.find_spec", lambda name: None)
    check_loggers(("jsonl",))
    with pytest.raises(TemporalLensError, match=r"names 'wandb', which is not installed; pip install 'temporallens\[wandb\]'"):
        train_arms(store, RUNS, watched_by("jsonl", "wandb"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_logger_that_is_none_is_refused() -> None:
    with pytest.raises(TemporalLensError, match="loggers"):
        TrainingPolicy(loggers=("wandbi",))


class Recorded:
    """The functions of both Weights & Biases and Trackio that are used, keeping what they are called with."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(init=self._init, Histogram=lambda values: ("histogram", len(values)))

    def _init(self, *, project: str, name: str, group: str, config: dict[str, Any], **options: Any) -> SimpleNamespace:
        run: dict[str, Any] = {"project": project, "name": name, "group": group, "config": config, "lines": {}, "open": True, **options}
        self.runs.append(run)
        return SimpleNamespace(log=lambda data, step: run["lines"].update({step: data}), finish=lambda: run.update(open=False))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_one_run_per_arm_and_seed(
    store: ActivationStore, name: LoggerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded()
    monkeypatch.setitem(sys.modules, name, recorded.module())
    monkeypatch.setattr("temporallens.training.loggers.find_spec", lambda name: True)
    runs = [ArmRun(f"batchtopk-seed{seed}", ARMS["batchtopk"], seed) for seed in (0, 1)]
    train_arms(store, runs, watched_by(name), tmp_path)
    assert [run["name"] for run in recorded.runs] == ["batchtopk-seed0", "batchtopk-seed1"]
    assert {(run["project"], run["group"], run["open"]) for run in recorded.runs} == {("temporallens", str(tmp_path), False)}
    assert [run["config"]["seed"] for run in recorded.runs] == [0, 1]
    assert json.dumps(recorded.runs[0]["config"]) and recorded.runs[0]["config"]["arm"]["kind"] == "batchtopk"
    for run in recorded.runs:
        assert list(run["lines"]) == list(LINES)
        last = run["lines"][POLICY.steps]
        assert last["position_loss"] == ("histogram", store.positions - 1)  # of position 0 there is none
        assert isinstance(last["loss"], float) and isinstance(last[FVE], float)


VALUES = {"loss": 2.0, "position_loss": np.array([np.nan, 1.0, 3.0], np.float32)}


def watched(folder: Path) -> Watched:
    return Watched("arm-seed0", "group", folder, {"seed": 0}, 0)


@pytest.mark.slow
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = LOGGERS["tensorboard"].start(watched(tmp_path))
    logger.log(10, VALUES)
    logger.log(20, VALUES | {"loss": 1.0})
    logger.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0})
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(10, 2.0), (20, 1.0)]
    assert [event.histogram_value.num for event in found.Histograms("position_loss")] == [2.0, 2.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # its own
def test_wandb_takes_runs_side_by_side_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [LOGGERS["wandb"].start(watched(tmp_path / name)) for name in ("a", "b")]
    for logger in loggers:
        logger.log(10, VALUES)
    for logger in loggers:
        logger.close()
    assert [len(list((tmp_path / name).glob("wandb/offline-run-*/run-*.wandb"))) for name in ("a", "b")] == [1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # its own
def test_trackio_keeps_what_was_logged_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    logger = LOGGERS["trackio"].start(watched(tmp_path))
    assert isinstance(logger, Tracked)
    logger.log(10, VALUES)
    logger.close()
    (run,) = trackio.Api().runs("temporallens")
    assert run.name == "arm-seed0"
