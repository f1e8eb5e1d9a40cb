"""The stages of a study and what is known of them: a fingerprint of exactly what shaped each, and a record when it is done.

A stage is one piece of work with one output: the scan of one model, the store of one activations entry, one dictionary, its
evaluation, the results, the figures, the report. Its fingerprint covers its own section of the study, the content of the files
that section names, the fingerprints of the stages it builds on, and the version of the code's stage, so that a changed setting
invalidates just what depends on it. `stages/<stage>.json` is written when a stage starts and again when it is finished.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from temporallens.activations.expressions import clock_of
from temporallens.activations.language.contents import content_of
from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.stored import StoredPolicy
from temporallens.dictionaries.arms.pretrained import Pretrained
from temporallens.errors import TemporalLensError
from temporallens.evaluation.comparison import common_levels
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.scan import ScanPolicy
from temporallens.evaluation.sections import SECTIONS
from temporallens.files import explained, fingerprint, read_json, write_json
from temporallens.layout import RunFolder, RunId, as_file_name
from temporallens.study.config import Study, Variant
from temporallens.study.gains import COMPARED, partners

Kind = Literal["scan", "harvest", "train", "evaluate", "figures", "report"]
Contents = dict[str, str | None]
KINDS: tuple[Kind, ...] = get_args(Kind)

HEADLINE_FIGURE = "position_analysis.png"
"""The figure that is drawn last, and so proves that all are there."""

VERSIONS: dict[Kind, int] = {"scan": 2, "harvest": 1, "train": 2, "evaluate": 3, "figures": 7, "report": 8}
"""Raise a stage's number when its code gives other output for the same settings: finished ones are then done again."""

GAINS, PAIRED = "gains", "paired"
"""What is measured of all dictionaries of an activations entry together: what they gain over ordinary ones, and by position."""

OF_AN_ENTRY = {GAINS: 1, PAIRED: 2}
"""Their versions."""

PATHS = RunFolder()
"""Relative to the output folder."""


@dataclass(frozen=True)
class Stage:
    """One piece of work of a study."""

    kind: Kind
    name: str  # its record is stages/<name>.json
    fingerprint: str
    output: str  # file or folder in the run's folder, removed when another fingerprint takes its place
    proof: str  # the file of the output that is written last
    activations: str = ""  # entry of the study that it belongs to, where it belongs to one
    run: RunId | None = None  # the dictionary that it belongs to
    model: str = ""  # of a scan
    section: str = ""  # of the study's evaluation, or GAINS
    said: str = ""

    @property
    def title(self) -> str:
        """What users are told of it: its name, where that says what is done."""
        return self.said or self.name


def stages_of(study: Study, study_text: str) -> list[Stage]:
    """Every stage of a study in the order in which they are done."""
    names = {scan.model for scan in study.scans} | {policy.model for policy in study.from_models().values()}
    models = {name: content_of(name) for name in names}
    scans = [_scan_stage(study, policy, models) for policy in study.scans]
    harvests = {name: _harvest_stage(study, name, models) for name in study.activations}
    variants = study.variants()
    trainings = [_train_stage(study, harvests[run.activations], run, variants[run.arm]) for run in study.trainings()]
    evaluations = [_evaluate_stage(training) for training in trainings]
    measures = [stage for run in study.measured() for stage in _measure_stages(study, run, trainings)]
    gained = [stage for entry in study.activations if (stage := _gains_stage(study, entry, measures))]
    paired = [stage for entry in study.activations if (stage := _paired_stage(study, entry, evaluations))]
    before = [*scans, *harvests.values(), *trainings, *evaluations, *measures, *gained, *paired]
    results = _stage("evaluate", "results", PATHS.results, {"study": _as_json(study)}, before)
    figures = _stage("figures", "figures", PATHS.figures, None, [results], proof=PATHS.figures / HEADLINE_FIGURE)
    report = _stage("report", "report", PATHS.report, {"study_text": study_text}, [results, figures])
    return [*before, results, figures, report]


def _scan_stage(study: Study, policy: ScanPolicy, models: Contents) -> Stage:
    name = as_file_name(policy.model)
    shaped_by = {
        "policy": _as_json(policy),
        "threads": study.threads,
        "model": models[policy.model],
        "text": open_corpus(policy.text).fingerprint,
    }
    return _stage("scan", f"scan/{name}", PATHS.scan(policy.model), shaped_by, [], model=policy.model)


def _harvest_stage(study: Study, name: str, models: Contents) -> Stage:
    policy = study.activations[name]
    shaped_by: dict[str, Any] = {"policy": _as_json(policy), "threads": study.threads}
    if isinstance(policy, HarvestPolicy):
        if policy.compute_dtype == "auto":
            del shaped_by["policy"]["compute_dtype"]  # a store that was made on another machine, or before there was a choice, stays
        text = open_corpus(policy.text, policy.column, policy.split)
        shaped_by |= {"model": models[policy.model], "text": text.fingerprint, **clock_of(policy.clock).rule}
        if policy.rows == "packed":  # stores of earlier versions did not distinguish the documents of a row
            shaped_by["entries"] = "by document"
    if isinstance(policy, StoredPolicy):
        shaped_by["content"] = store_fingerprint(policy.opened)
    folder = PATHS.store(name)
    return _stage("harvest", f"harvest/{name}", folder, shaped_by, [], proof=folder / "manifest.json", activations=name)


def _train_stage(study: Study, harvest: Stage, run: RunId, variant: Variant) -> Stage:
    shaped_by = {"arm": _as_json(variant.arm), "seed": run.seed, "training": _as_json(study.training), "threads": study.threads}
    folder = PATHS.arm(run)
    if variant.arm.version > 1:
        shaped_by["version"] = variant.arm.version
    if isinstance(variant.arm, Pretrained):
        divided = study.training.model_dump(mode="json", include={"held_out", "data_seed", "batch_size"})
        shaped_by = {"arm": _as_json(variant.arm), "content": content_of(variant.arm.path), "training": divided, "threads": study.threads}
    said = "" if variant.arm.trained else f"read/{run.path}"
    return _stage("train", f"train/{run.path}", folder, shaped_by, [harvest], proof=folder / "training.json", said=said, **_of(run))


def _evaluate_stage(training: Stage) -> Stage:
    assert training.run
    run = training.run
    return _stage("evaluate", f"evaluate/{run.path}", PATHS.evaluation(run), None, [training], **_of(run))


def _measure_stages(study: Study, run: RunId, trainings: list[Stage]) -> list[Stage]:
    """One stage for each section of the evaluation of one dictionary."""
    alike = [stage for stage in trainings if stage.run and stage.run[:2] == run[:2]]
    alone = [stage for stage in alike if stage.run == run]
    stages = []
    for name, policy in study.evaluation.sections(of_model=run.activations in study.from_models()).items():
        section = SECTIONS[name]
        shaped_by = {"policy": _as_json(policy), "version": section.version, "text": section.content(policy)}
        builds_on = alike if section.across_seeds else alone
        output = PATHS.measurement(name, run)
        stages.append(_stage("evaluate", f"measure/{name}/{run.path}", output, shaped_by, builds_on, section=name, **_of(run)))
    return stages


def _of(run: RunId) -> dict[str, Any]:
    return {"activations": run.activations, "run": run}


def _gains_stage(study: Study, entry: str, measures: list[Stage]) -> Stage | None:
    """What dictionaries of one activations entry gain over an ordinary one; None where nothing of the kind is measured of two."""
    compared = [stage for stage in measures if stage.activations == entry and stage.section in COMPARED]
    against = partners_of(study, entry)
    if not compared or not against:
        return None
    shaped_by = {"against": against, "version": OF_AN_ENTRY[GAINS]}
    return _stage("evaluate", f"measure/{GAINS}/{entry}", PATHS.gains(entry), shaped_by, compared, activations=entry, section=GAINS)


def _paired_stage(study: Study, entry: str, evaluations: list[Stage]) -> Stage | None:
    """Families of one activations entry against baselines; None for a single one."""
    own = [stage for stage in evaluations if stage.activations == entry]
    variants = study.variants()
    if len({variants[stage.run.arm].family for stage in own if stage.run}) < 2:
        return None
    shaped_by = {"levels": common_levels(study.levels), "version": OF_AN_ENTRY[PAIRED]}
    return _stage("evaluate", f"measure/{PAIRED}/{entry}", PATHS.paired(entry), shaped_by, own, activations=entry, section=PAIRED)


def partners_of(study: Study, entry: str) -> dict[str, str]:
    """For each dictionary of one activations entry that is measured the ordinary one that it is compared with."""
    variants = study.variants()
    return partners([(run, variants[run.arm]) for run in study.measured() if run.activations == entry])


def _stage(
    kind: Kind, name: str, output: Path, shaped_by: Any, builds_on: Iterable[Stage], proof: Path | None = None, **belongs_to: Any
) -> Stage:
    whole = {"stage": name, "version": VERSIONS[kind], "shaped_by": shaped_by, "builds_on": [stage.fingerprint for stage in builds_on]}
    return Stage(kind, name, fingerprint(whole), output.as_posix(), (proof or output).as_posix(), **belongs_to)


def _as_json(section: Any) -> Any:
    return section.model_dump(mode="json")


class Records:
    """What the run's folder knows of its stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, stage: Stage) -> Path:
        return self.folder / "stages" / f"{stage.name}.json"

    def _recorded(self, stage: Stage) -> dict[str, Any]:
        path = self._path(stage)
        if not path.exists():
            return {}
        record = read_json(path, "the record of a stage (remove it to do the stage again)")
        if not isinstance(record, dict):
            raise TemporalLensError(f"{path} is not the record of a stage; remove it to do the stage again")
        return record

    def finished(self, stage: Stage) -> bool:
        """Whether the stage was finished as the study now has it, and its output is still there."""
        record = self._recorded(stage)
        return record.get("finished") is True and record.get("fingerprint") == stage.fingerprint and (self.folder / stage.proof).exists()

    def start(self, stage: Stage) -> None:
        """Clear away the output of other settings; the output of an interrupted try with the same settings stays, to go on from."""
        self.withdraw(stage)
        self._write(stage, finished=False)

    def withdraw(self, stage: Stage) -> None:
        """Remove the stage's output where it is that of other settings."""
        if self._recorded(stage).get("fingerprint") != stage.fingerprint:
            remove(self.folder / stage.output)

    def finish(self, stage: Stage) -> None:
        self._write(stage, finished=True)

    def diverged(self, stage: Stage) -> bool:
        """Whether this training was given up, as the study now has it."""
        record = self._recorded(stage)
        return "diverged" in record and record.get("fingerprint") == stage.fingerprint

    def give_up(self, stage: Stage, sentence: str) -> None:
        """A training that diverged, and what was said of it."""
        self._write(stage, finished=False, diverged=sentence)

    def _write(self, stage: Stage, *, finished: bool, **more: str) -> None:
        write_json(self._path(stage), {"stage": stage.name, "fingerprint": stage.fingerprint, "finished": finished, **more})


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    with explained(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
