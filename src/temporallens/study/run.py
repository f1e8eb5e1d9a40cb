"""Walks a study: scan, harvest, train, evaluate, figures, report, each stage done once and recorded.

This is the one place where the study meets the functions of the lower floors; each `_do_...` below is the glue of one kind of
stage. They get the stages that are not finished and yield each as it is done, so that an interruption loses no finished one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan
from temporallens.files import explained, fingerprint, locked, read_json, write_json, write_text
from temporallens.report.page import write_report
from temporallens.study.config import Study
from temporallens.study.models import check_batches, check_models, check_texts, reach_models
from temporallens.study.reading import StudyFile, name_of
from temporallens.study.sources import make_store, scores_of
from temporallens.study.stages import HEADLINE_FIGURE, KINDS, Kind, Records, Stage, remove, scan_file, stages_of
from temporallens.training.checkpoint import checkpoint_file, other_checkpoints, training_settings
from temporallens.training.history import load_history
from temporallens.training.trainer import ArmRun, train_arms

STUDY_FILE = "study.yaml"
SCAN_FIGURE, FRONTIER_FIGURE = "scan.png", "frontier.png"

TOGETHER = 16
"""Dictionaries that are trained side by side at most: it bounds the memory, and what an interruption can lose."""

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
    check_batches(study)
    stages, records = stages_of(study, text), Records(folder)
    reach_models(_models_read(study, (stage for stage in stages if not records.finished(stage))))
    with locked(folder):
        write_text(folder / STUDY_FILE, text)
        _fix_threads(study.threads)
        run = Run(study, text, folder, records, say)
        for stage in stages:
            if stage.name in OF_THE_WHOLE:
                run.records.withdraw(stage)
        for kind in KINDS[: KINDS.index(up_to) + 1]:
            _do([stage for stage in stages if stage.kind == kind], run, kind)


def _models_read(study: Study, stages: Iterable[Stage]) -> set[tuple[str, str | None]]:
    """The models (name, revision) that scans and harvests among these stages read."""
    policies = study.from_models()
    read: set[tuple[str, str | None]] = set()
    for stage in stages:
        if stage.kind == "scan":
            read.add((stage.model, None))
        elif stage.kind == "harvest" and stage.activations in policies:
            read.add((policies[stage.activations].model, policies[stage.activations].revision))
    return read


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


def _parts(stages: list[Stage], size: int) -> list[list[Stage]]:
    return [stages[first : first + size] for first in range(0, len(stages), size)]


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
    """Entries of a model that share everything but the layer are harvested in one pass; what is made is made entry by entry."""
    policies = run.study.from_models()
    harvested = [stage for stage in stages if stage.activations in policies]
    for group in _groups(harvested, lambda stage: policies[stage.activations].model_dump(mode="json", exclude={"layer"})):
        harvest_policy([policies[stage.activations] for stage in group], [run.path(stage) for stage in group])
        yield from group
    for stage in stages:
        if stage.activations not in policies:
            make_store(run.study.activations[stage.activations], run.path(stage))
            yield stage


def _do_trainings(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """Unfinished dictionaries of one store learn side by side from one pass over it, `TOGETHER` at a time: passes are all alike."""
    variants = run.study.variants()
    for group in [part for own in _groups(stages, lambda stage: stage.activations) for part in _parts(own, TOGETHER)]:
        arms = [ArmRun(stage.run, variants[stage.arm].arm, stage.seed) for stage in group]
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
            study, variants = run.study, run.study.variants()
            places = [RunPlace(*training, *variants[training.arm][:2]) for training in study.trainings()]
            scans = [run.folder / scan_file(policy.model) for policy in study.scans]
            assemble(run.folder, study.name, study.model_dump(mode="json"), places, scans)
        yield stage


def _evaluate(run: Run, stage: Stage) -> None:
    store = ActivationStore(run.folder / "stores" / stage.activations)
    folder = run.folder / "arms" / stage.activations / stage.run
    held_out = store.split(run.study.training.held_out, run.study.training.data_seed).held_out
    scale = read_json(folder / "training.json", "the summary of a training run")["scale"]
    dictionary = load_dictionary(folder)
    measured = evaluate_reconstruction(dictionary, store, held_out, scale)._asdict()
    scores = {
        name: score(dictionary, store, held_out)._asdict() for name, score in scores_of(run.study.activations[stage.activations]).items()
    }
    write_json(run.path(stage), {**measured, **scores})


def _do_figures(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    for stage in stages:
        results, folder = load_results(run.folder), run.path(stage)
        if results["scans"]:
            save(draw_scan(list(results["scans"].values())), folder / SCAN_FIGURE)
        if run.study.levels:
            save(draw_frontier(results), folder / FRONTIER_FIGURE)
        for result in shown(results["runs"]):
            _draw_run(run, result, folder / figure_name(result))
        _draw_run(run, headline(results["runs"]), folder / HEADLINE_FIGURE)
        yield stage


def _draw_run(run: Run, result: dict[str, Any], path: Path) -> None:
    history = load_history(run.folder / "arms" / result["activations"] / run_name(result["arm"], result["seed"]) / "history.safetensors")
    save(draw_position_analysis(history, figure_title(result), held_out=result["position_loss"]), path)


def shown(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that get a picture of their own: of each arm on each store, the first seed at the middle one of its levels."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in runs:
        families.setdefault((result["activations"], result["family"]), []).append(result)
    firsts = [[result for result in own if result["seed"] == own[0]["seed"]] for own in families.values()]
    return [own[len(own) // 2] for own in firsts]


def headline(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose picture is `position_analysis.png`: the first positional one shown, or the first of all."""
    return next((result for result in shown(runs) if result["kind"] == "positional"), runs[0])


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
        if run.study.levels:
            figures["FVE against L0"] = folder / FRONTIER_FIGURE
        figures |= {figure_title(result): folder / figure_name(result) for result in shown(results["runs"])}
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
