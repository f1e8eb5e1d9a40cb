"""Walks a study: scan, harvest, train, evaluate, figures, report, each stage done once and recorded.

This is the one place where the study meets the functions of the lower floors; each `_do_...` below is the glue of one kind of
stage. They get the stages that are not finished and yield each as it is done, so that an interruption loses no finished one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from temporallens.activations.harvest import harvest_policy
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.evaluation.results import RunPlace, assemble, load_results, run_name
from temporallens.evaluation.scan import ScanPolicy, scan_policy
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan
from temporallens.files import explained, fingerprint, locked, read_json, write_json, write_text
from temporallens.report.page import write_report
from temporallens.study.config import Study
from temporallens.study.models import check_models, check_texts
from temporallens.study.reading import StudyFile, name_of
from temporallens.study.stages import HEADLINE_FIGURE, KINDS, Kind, Records, Stage, remove, scan_file, stages_of
from temporallens.training.checkpoint import checkpoint_file, other_checkpoints, training_settings
from temporallens.training.history import load_history
from temporallens.training.trainer import ArmRun, train_arms

STUDY_FILE = "study.yaml"
SCAN_FIGURE = "scan.png"

OF_THE_WHOLE = ("results", "figures", "report")
"""Stages whose output speaks of the whole study: that of other settings goes before anything else is done, for the new study
may fail or be stopped half way, and its folder must not show the numbers of another."""


@dataclass(frozen=True)
class Run:
    """A study on its way through its folder."""

    study: Study
    text: str  # of the study file
    folder: Path
    records: Records
    say: Callable[[str], None]  # told, in one line, what is done and what is skipped

    def path(self, stage: Stage) -> Path:
        return self.folder / stage.output


def refuse_foreign_folder(study: Study, folder: Path) -> None:
    """Raise TemporalLensError when `folder` holds another study, or anything that is not a study's run."""
    kept = folder / STUDY_FILE
    with explained(folder):
        holds_study, is_file = kept.exists(), folder.is_file()
        holds_more = folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())
    if is_file:
        raise TemporalLensError(f"{folder} is a file; choose another output folder with --out")
    if holds_study:
        if (name := name_of(kept)) != study.name:
            raise TemporalLensError(f"{folder} holds the study '{name}', not '{study.name}'; choose another output folder with --out")
    elif holds_more:
        raise TemporalLensError(f"{folder} is not empty and holds no study; choose an empty output folder with --out")


def run_study(study_file: StudyFile, folder: Path, up_to: Kind = "report", say: Callable[[str], None] = lambda line: None) -> None:
    """Do every stage up to and including those of the kind `up_to` that is not finished yet; raises TemporalLensError."""
    study, text = study_file
    refuse_foreign_folder(study, folder)
    check_models(study)
    check_texts(study)
    stages = stages_of(study, text)
    with locked(folder):
        write_text(folder / STUDY_FILE, text)
        _fix_threads(study.threads)
        run = Run(study, text, folder, Records(folder), say)
        for stage in stages:
            if stage.name in OF_THE_WHOLE:
                run.records.withdraw(stage)
        for kind in KINDS[: KINDS.index(up_to) + 1]:
            _do([stage for stage in stages if stage.kind == kind], run, kind)


def _fix_threads(threads: int | None) -> None:
    """The number of threads decides how sums are split, and so their last bits."""
    if threads is not None:
        torch.set_num_threads(threads)


def _do(stages: list[Stage], run: Run, kind: Kind) -> None:
    pending = [stage for stage in stages if not run.records.finished(stage)]
    if len(pending) < len(stages):
        run.say(f"{kind}: {len(stages) - len(pending)} of {len(stages)} finished before, skipped")
    for stage in pending:
        run.records.start(stage)
    for stage in WORK[kind](run, pending):
        run.records.finish(stage)
        run.say(f"{stage.name}: done")


def _groups(stages: list[Stage], key: Callable[[Stage], Any]) -> list[list[Stage]]:
    """Stages of equal keys together, in order of first appearance."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(fingerprint(key(stage)), []).append(stage)
    return list(groups.values())


def _do_scans(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    policies = {policy.model: policy for policy in run.study.scans}
    for stage in stages:
        write_json(run.path(stage), scan_model(policies[stage.model]))
        yield stage


def scan_model(policy: ScanPolicy) -> dict[str, Any]:
    """The scan of one model as the JSON that figures, tables and the report take."""
    return scan_policy(policy).to_json()


def scan_and_draw(policy: ScanPolicy, folder: Path) -> tuple[dict[str, Any], Path]:
    """Scan one model outside of a study: `scan.json` and `figures/scan.png` in `folder`."""
    result = scan_model(policy)
    write_json(folder / "scan.json", result)
    return result, save(draw_scan([result]), folder / "figures" / "scan.png")


def _do_harvests(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """Entries that share everything but the layer are harvested in one pass through the model."""
    for group in _groups(stages, lambda stage: run.study.activations[stage.activations].model_dump(mode="json", exclude={"layer"})):
        harvest_policy([run.study.activations[stage.activations] for stage in group], [run.path(stage) for stage in group])
        yield from group


def _do_trainings(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """All unfinished arms and seeds of one store learn from one pass over it."""
    for group in _groups(stages, lambda stage: stage.activations):
        arms = [ArmRun(stage.run, run.study.arms[stage.arm], stage.seed) for stage in group]
        store = ActivationStore(run.folder / "stores" / group[0].activations)
        folder = run.path(group[0]).parent
        settings = training_settings(store, arms, run.study.training)
        for abandoned in other_checkpoints(folder, checkpoint_file(folder, settings)):
            remove(abandoned)
        train_arms(store, arms, run.study.training, folder)
        yield from group


def _do_evaluations(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """Each dictionary on the held-out documents of its store; the last stage gathers everything into results.json."""
    for stage in stages:
        if stage.arm:
            _evaluate(run, stage)
        else:
            study = run.study
            places = [RunPlace(*place) for place in product(study.activations, study.arms, study.seeds)]
            scans = [run.folder / scan_file(policy.model) for policy in study.scans]
            assemble(run.folder, study.name, study.model_dump(mode="json"), places, scans)
        yield stage


def _evaluate(run: Run, stage: Stage) -> None:
    store = ActivationStore(run.folder / "stores" / stage.activations)
    folder = run.folder / "arms" / stage.activations / stage.run
    held_out = store.split(run.study.training.held_out, run.study.training.data_seed).held_out
    scale = read_json(folder / "training.json", "the summary of a training run")["scale"]
    write_json(run.path(stage), evaluate_reconstruction(load_dictionary(folder), store, held_out, scale)._asdict())


def _do_figures(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    for stage in stages:
        results, folder = load_results(run.folder), run.path(stage)
        if results["scans"]:
            save(draw_scan(list(results["scans"].values())), folder / SCAN_FIGURE)
        for result in results["runs"]:
            _draw_run(run, result, folder / figure_name(result))
        _draw_run(run, headline(results["runs"]), folder / HEADLINE_FIGURE)
        yield stage


def _draw_run(run: Run, result: dict[str, Any], path: Path) -> None:
    history = load_history(run.folder / "arms" / result["activations"] / run_name(result["arm"], result["seed"]) / "history.safetensors")
    save(draw_position_analysis(history, figure_title(result), held_out=result["position_loss"]), path)


def headline(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose picture is `position_analysis.png`: the first positional one, or the first of all."""
    return next((result for result in runs if result["kind"] == "positional"), runs[0])


def figure_name(result: dict[str, Any]) -> str:
    """File of one run's picture."""
    return f"position_analysis-{result['activations']}-{run_name(result['arm'], result['seed'])}.png"


def figure_title(result: dict[str, Any]) -> str:
    """Heading of one run's picture, and its caption in the report."""
    return f"{result['activations']}, {result['arm']}, seed {result['seed']}"


def _do_report(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    for stage in stages:
        results, folder = load_results(run.folder), run.folder / "figures"
        figures = {"Where position lives": folder / SCAN_FIGURE} if results["scans"] else {}
        figures |= {figure_title(result): folder / figure_name(result) for result in results["runs"]}
        write_report(results, figures, run.text, run.path(stage))
        yield stage


WORK: dict[Kind, Callable[[Run, list[Stage]], Iterator[Stage]]] = {
    "scan": _do_scans,
    "harvest": _do_harvests,
    "train": _do_trainings,
    "evaluate": _do_evaluations,
    "figures": _do_figures,
    "report": _do_report,
}
