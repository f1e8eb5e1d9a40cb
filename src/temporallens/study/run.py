"""Walks a study: scan, harvest, train, evaluate, figures, report, each stage done once and recorded.

Several processes walk it together: they share the work of the stages in `SHARED`, and process 0 does what is left and writes everything.
This is the one place where the study meets the functions of the lower floors; each `_do_...` below is the glue of one kind of
stage. They get the stages that are not finished and yield each as it is done, so that an interruption loses no finished one.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from temporallens import processes
from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.store import ActivationStore
from temporallens.defaults import fixed_threads, own_defaults
from temporallens.dictionaries.arms.pretrained import Pretrained
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import DivergedError, TemporalLensError, WorthlessError
from temporallens.evaluation.bins import bands_of
from temporallens.evaluation.comparison import RunScores, common_levels, compare
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.paired import banded, pair
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.evaluation.results import Results, RunResult, assemble, by_family, load_results
from temporallens.evaluation.scan import Scan, ScanPolicy, scan_policy
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.sections import SECTIONS
from temporallens.evaluation.stored_scan import scan_store
from temporallens.figures.beforehand import draw_beforehand
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan
from temporallens.files import explained, fingerprint, locked, read_json, write_json
from temporallens.layout import RunFolder, RunId
from temporallens.report.browser import Browsed
from temporallens.report.closed import best_first
from temporallens.report.page import write_report
from temporallens.report.side_by_side import Compared, write_side_by_side
from temporallens.serial import as_json
from temporallens.study.config import Study
from temporallens.study.dealing import divided
from temporallens.study.gains import COMPARED, gains
from temporallens.study.models import check_batches, check_models, check_texts, reach_models
from temporallens.study.pictures import beside_answers, captions, draw_pictures
from temporallens.study.pins import Pins, new_pins, pinned_study, read_pins, write_pins
from temporallens.study.pretrained import check_pretrained, save_pretrained
from temporallens.study.reading import StudyFile, name_of, write_copy
from temporallens.study.sources import make_store, scores_of
from temporallens.study.stages import GAINS, KINDS, OF_AN_ENTRY, PAIRED, Kind, Records, Stage, partners_of, stages_of
from temporallens.study.tuning import GRID, LAST, at_best_rates, give_up, grid_in, grid_of, studies_in, tuned_before
from temporallens.training.checkpoint import begun_trainings, checkpoint_file, remove_begun, remove_checkpoints, training_settings
from temporallens.training.loggers import check_loggers
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

T = TypeVar("T")

SHARED: tuple[Kind, ...] = ("scan", "harvest", "train", "evaluate")
"""Kinds of stages of which several processes share the work; the others are those of process 0, for which the rest wait."""

OF_THE_WHOLE = ("results", "figures", "report")
"""Stages whose output speaks of the whole study: that of other settings goes before anything else is done, for the new study
may fail or be stopped half way, and its folder must not show the numbers of another."""


@dataclass(frozen=True)
class Run:
    """A study on its way through its folder."""

    study: Study
    text: str  # of the study file
    folder: Path
    stages: list[Stage]
    records: Records
    say: Callable[[str], None]  # called with one line for each stage that is done or skipped

    @property
    def paths(self) -> RunFolder:
        return RunFolder(self.folder)

    def path(self, stage: Stage) -> Path:
        return self.folder / stage.output

    def held_out(self, store: ActivationStore) -> Int[np.ndarray, " n"]:
        """The entries of a store that no dictionary of this study is trained on."""
        return store.split(self.study.training.held_out, self.study.training.data_seed).held_out

    def pending(self, stages: Iterable[Stage]) -> list[Stage]:
        """Those that are not finished."""
        by_name = {stage.name: stage for stage in stages}
        names = processes.told(lambda: [name for name, stage in by_name.items() if not self.records.finished(stage)])
        return [by_name[name] for name in names]

    def measured(self) -> list[Stage]:
        """The stages that measure a section of one dictionary."""
        return [stage for stage in self.stages if stage.section and stage.section not in OF_AN_ENTRY]


def refuse_foreign_folder(study: Study, folder: Path) -> None:
    """Raise TemporalLensError when `folder` holds another study, or anything that is not a study's run."""
    copy = RunFolder(folder).study
    with explained(folder):
        holds_study, is_file = copy.exists(), folder.is_file()
        holds_more = folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())
    if is_file:
        raise TemporalLensError(f"{folder} is a file; choose another output folder with --out")
    if holds_study:
        if (name := name_of(copy)) != study.name:
            raise TemporalLensError(f"{folder} holds the study '{name}', not '{study.name}'; choose another output folder with --out")
    elif holds_more:
        raise TemporalLensError(f"{folder} is not empty and holds no study; choose an empty output folder with --out")


@own_defaults()
def run_study(study_file: StudyFile, folder: Path, up_to: Kind = "report", say: Callable[[str], None] = lambda line: None) -> None:
    """Do every stage up to and including those of the kind `up_to` that is not finished yet; raises TemporalLensError."""
    study, text = study_file
    refuse_foreign_folder(study, folder)
    for one in studies_in(study):
        check_models(one)
        check_texts(one)
        check_batches(one)
    check_loggers(study.training.loggers)
    pins = processes.told(lambda: _pins(study_file, folder))
    study = tuned_before(pinned_study(study, pins), text, folder)
    run = Run(study, text, folder, stages_of(study, text), Records(folder), say)
    pending = run.pending(run.stages)
    processes.once(lambda: reach_models(_models_read(study, pending)))
    check_pretrained(study, pending)
    with locked(folder) if processes.rank() == 0 else nullcontext(), fixed_threads(study.threads):
        processes.once(lambda: _begin(run, pins))
        for kind in KINDS[: KINDS.index(up_to) + 1]:
            if kind == "train":
                run = _tuned(run)
            _do([stage for stage in run.stages if stage.kind == kind], run, kind)


def _tuned(run: Run) -> Run:
    """The run with each arm at the learning rate that the study's grid finds best; what is finished of the grid is not done again."""
    study = run.study
    if study.tuning is None:
        return run
    study = at_best_rates(study, grid_of(study, _grid_results(run)))
    return replace(run, study=study, stages=stages_of(study, run.text))


def _grid_results(run: Run) -> Results:
    """What the study's grid gives; where one of its trainings diverges, that is remembered, and the grid is done without it."""
    while True:
        grid, folder = grid_in(run.study, run.text, run.folder)
        try:
            run_study(StudyFile(grid, run.text), folder, LAST, lambda line: run.say(f"{GRID}{line}"))
            return load_results(folder)
        except DivergedError as error:
            processes.once(partial(give_up, run.study, run.text, run.folder, error))
            run.say(f"{GRID}{error}: this rate counts as the worst, and the grid goes on without it")


def _pins(study_file: StudyFile, folder: Path) -> dict[str, str]:
    """The commits of a study's data sets; new ones are asked for where anything is to be done."""
    study, text = study_file
    pins, records = read_pins(folder), Records(folder)
    finished = all(map(records.finished, stages_of(pinned_study(study, pins), text)))
    return dict(pins if finished else new_pins(study, pins))


def _begin(run: Run, pins: Pins) -> None:
    """Write what is known before any stage."""
    write_copy(run.paths.study, run.text)
    write_pins(run.folder, pins)
    for name, pinned in pins.items():
        run.say(f"{name}: read as {pinned}")
    for stage in run.stages:
        if stage.name in OF_THE_WHOLE:
            run.records.withdraw(stage)


def _models_read(study: Study, stages: Iterable[Stage]) -> set[tuple[str, str | None]]:
    """The models (name, revision) that these stages read."""
    policies = study.from_models()
    read: set[tuple[str, str | None]] = set()
    for stage in stages:
        if stage.kind == "scan":
            read.add((stage.model, None))
        elif (
            stage.kind == "harvest" or (stage.section in SECTIONS and SECTIONS[stage.section].reads_model)
        ) and stage.activations in policies:
            read.add((policies[stage.activations].model, policies[stage.activations].revision))
    return read


def _do(stages: list[Stage], run: Run, kind: Kind) -> None:
    pending = run.pending(stages)
    if len(pending) < len(stages):
        run.say(f"{kind}: {len(stages) - len(pending)} of {len(stages)} finished before, skipped")
    processes.once(lambda: _for_each(run.records.start, pending))
    if kind in SHARED:
        for stage in WORK[kind](run, pending):
            processes.once(partial(_finish, run, stage))
    else:
        processes.once(lambda: _for_each(partial(_finish, run), WORK[kind](run, pending)))


def _finish(run: Run, stage: Stage) -> None:
    run.records.finish(stage)
    run.say(f"{stage.title}: done")


def _for_each(do: Callable[[Stage], None], stages: Iterable[Stage]) -> None:
    for stage in stages:
        do(stage)


def _groups(stages: list[Stage], key: Callable[[Stage], Any]) -> list[list[Stage]]:
    """Stages of equal keys together, in order of first appearance."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(fingerprint(key(stage)), []).append(stage)
    return list(groups.values())


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _do_scans(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    policies = {policy.model: policy for policy in run.study.scans}
    for stage in stages:
        found = scan_policy(policies[stage.model])
        if processes.rank() == 0:
            write_json(run.path(stage), found.to_json())
        yield stage


SCANNED = ("beforehand", "scan")
"""The figures of a scan outside of a study."""


def scan_and_draw(policy: ScanPolicy, folder: Path) -> tuple[Scan, list[Path]]:
    """Scan one model outside of a study: `scan.json` and `figures/` in `folder`; returns the figures, the scan's own last."""
    result = scan_policy(policy)
    return result, _drawn(result, folder)


def scan_store_and_draw(store: Path, folder: Path, sequences: int) -> tuple[Scan, list[Path]]:
    """Scan a store: `scan.json` and `figures/` in `folder`."""
    result = scan_store(store, sequences)
    return result, _drawn(result, folder)


def _drawn(scan: Scan, folder: Path) -> list[Path]:
    """Write a scan and its figures, in the place of those of another scan."""
    figures = RunFolder(folder).figures
    drawn = {} if scan.beforehand is None else {"beforehand": draw_beforehand([scan])}
    for name in SCANNED:
        (figures / f"{name}.png").unlink(missing_ok=True)
    write_json(folder / "scan.json", scan.to_json())
    return [save(figure, figures / f"{name}.png") for name, figure in (drawn | {"scan": draw_scan([scan])}).items()]


def _do_harvests(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """Entries of a model that share everything but the layer are harvested in one pass; what is made is made entry by entry."""
    policies = run.study.from_models()
    harvested = [stage for stage in stages if stage.activations in policies]
    for group in _groups(harvested, lambda stage: policies[stage.activations].without_place.model_dump(mode="json")):
        harvest_policy([policies[stage.activations] for stage in group], [run.path(stage) for stage in group])
        yield from group
    for stage in stages:
        if stage.activations not in policies:
            processes.once(partial(make_store, run.study.activations[stage.activations], run.path(stage)))
            yield stage


def _do_trainings(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """What is trained already is read; what is not finished is trained, store by store."""
    variants = run.study.variants()
    read = {stage.name: variants[stage.run.arm].arm for stage in stages if stage.run}
    for entry in dict.fromkeys(stage.activations for stage in stages):
        processes.once(partial(_check_measurable, run, entry))
    for stage in stages:
        if isinstance(arm := read[stage.name], Pretrained):
            store = ActivationStore(run.paths.store(stage.activations))
            processes.once(partial(save_pretrained, run.study, stage, arm, store, run.path(stage)))
            yield stage
    trained = [stage for stage in stages if read[stage.name].trained]
    processes.once(partial(_forget_begun, run, {stage.activations for stage in trained}))
    for alike in _groups(trained, lambda stage: stage.activations):
        yield from _trained(run, alike)


def _forget_begun(run: Run, entries: set[str]) -> None:
    """Remove the checkpoints of entries of which everything is trained: each of another dictionary, which learnt in a process of its own
    and is no longer asked for, such as one that diverged. Of `entries` something is left to train, and `_dealt` looks at theirs."""
    for entry in run.study.activations:
        if entry not in entries:
            remove_begun(run.paths.arms(entry))


def _trained(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """The dictionaries of one store. Those of one part learn side by side from one pass over it. Of several processes each learns a part of
    its own, to the bits that one process learns, where there are parts enough; they share the batches of a part that is alone, and of a
    stream."""
    stream = run.study.stream_of(stages[0].activations)
    count = 1 if stream else processes.count()
    dealt = [[stages[number] for number in part] for part in processes.told(partial(_dealt, run, stages, count))]
    yield from dealt[0]
    for parts in _parts(dealt[1:], count):
        if len(parts) == 1 and (stream or not any(arm.arm.mixes_rows for arm in _arms(run, parts[0]))):
            _train(run, parts[0], stream)
            yield from parts[0]
            continue
        own = parts[processes.rank()] if processes.rank() < len(parts) else []
        found = processes.collected(_trained_apart(run, own))
        for part, diverged in zip(parts, found, strict=False):  # processes beyond the parts have found nothing
            yield from [] if diverged else part
        for diverged in filter(None, found):
            raise DivergedError(*diverged)


def _trained_apart(run: Run, stages: list[Stage]) -> list[str]:
    """Train in this process alone; returns what is said of a dictionary that diverged, and its name."""
    try:
        with processes.apart():
            _train(run, stages)
    except DivergedError as error:
        return [str(error), error.run]
    return []


def _train(run: Run, stages: list[Stage], stream: HarvestPolicy | None = None) -> None:
    """Train dictionaries of one store side by side; what is there already was trained by a process that was killed before it said so."""
    if stages and not processes.told(partial(_are_there, run, stages)):
        entry = stages[0].activations
        train_arms(ActivationStore(run.paths.store(entry)), _arms(run, stages), run.study.training, run.paths.arms(entry), stream=stream)


def _arms(run: Run, stages: Sequence[Stage]) -> list[ArmRun]:
    variants = run.study.variants()
    return [ArmRun(stage.run.name, variants[stage.run.arm].arm, stage.run.seed) for stage in stages if stage.run]


def _are_there(run: Run, stages: Sequence[Stage]) -> bool:
    """Whether these dictionaries are trained and written."""
    return all((run.folder / stage.proof).exists() for stage in stages)


def _dealt(run: Run, stages: list[Stage], count: int) -> list[list[int]]:
    """The dictionaries of one store, by their numbers: first those that are there already, then parts that learn side by side, of at most
    `TOGETHER`, one for each of so many processes where there are dictionaries enough. What was interrupted goes on as it was, with whatever
    number of processes; checkpoints of other settings are removed."""
    entry, arms = stages[0].activations, _arms(run, stages)
    store, folder = ActivationStore(run.paths.store(entry)), run.paths.arms(entry)
    left = {number for number, stage in enumerate(stages) if not _are_there(run, [stage])}
    parts = []
    for checkpoint, names in begun_trainings(folder).items():
        part = [number for number, arm in enumerate(arms) if arm.name in names]
        settings = training_settings(store, [arms[number] for number in part], run.study.training)
        if left.isdisjoint(part) or checkpoint != checkpoint_file(folder, settings):
            remove_checkpoints(checkpoint)
        else:
            parts.append(part)
    begun = set(itertools.chain.from_iterable(parts))
    over, new = sorted(set(range(len(stages))) - left - begun), sorted(left - begun)
    return [over, *parts, *divided(new, count)]


def _check_measurable(run: Run, entry: str) -> None:
    """Raise TemporalLensError where what is held out of an entry is too little for what is to be measured on it."""
    store = ActivationStore(run.paths.store(entry))
    for name, policy in run.study.evaluation.sections(of_model=entry in run.study.from_models()).items():
        SECTIONS[name].fits(store, run.held_out(store), policy)


def _do_evaluations(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    """Each dictionary on the held-out documents of its store, then every section; the last stages compare, and gather everything into
    results.json. Several processes measure so many dictionaries at a time, and process 0 writes what they found."""
    own = [stage for stage in stages if stage.run]
    for alike in ([stage for stage in own if not stage.section], [stage for stage in own if stage.section]):
        for turn in _turns(alike, processes.count()):
            yield from _measured_together(run, turn)
    for stage in stages:
        if not stage.run:
            processes.once(partial(_compare_or_gather, run, stage))
            yield stage


def _turns(stages: list[Stage], together: int) -> Iterator[tuple[Stage | None, ...]]:
    """Stages of so many dictionaries, one of each; those of one dictionary are always in the same place, where what is made of it is."""
    for group in _parts(list(dict.fromkeys(stage.run for stage in stages)), together):
        of_each = [[stage for stage in stages if stage.run == run_id] for run_id in group]
        yield from itertools.zip_longest(*of_each, *([[]] * (together - len(group))))


def _measured_together(run: Run, turn: Sequence[Stage | None]) -> Iterator[Stage]:
    """One stage for each process, or none. Where a dictionary has nothing that could be measured every process has to raise, for the grid
    of a study goes on without it."""
    for stage, (content, worthless) in zip(turn, processes.collected(_found(run, turn[processes.rank()])), strict=True):
        if worthless:
            raise DivergedError(*worthless)
        if stage is None:
            continue
        if processes.rank() == 0:
            write_json(run.path(stage), content)
        yield stage


def _found(run: Run, stage: Stage | None) -> tuple[Any, list[str]]:
    """What this process finds; or what is said of a dictionary that was trained to nothing, and its name."""
    if stage is None or stage.run is None:
        return None, []
    try:
        with processes.apart():
            return (_measure(run, stage.run, SECTIONS[stage.section]) if stage.section else _evaluate(run, stage.run)), []
    except DivergedError as error:
        return None, [str(error), error.run]


def _compare_or_gather(run: Run, stage: Stage) -> None:
    if stage.section == GAINS:
        _compare(run, stage)
    elif stage.section == PAIRED:
        _pair(run, stage)
    else:
        _assemble(run)


def _evaluate(run: Run, run_id: RunId) -> dict[str, Any]:
    store, folder = ActivationStore(run.paths.store(run_id.activations)), run.paths.arm(run_id)
    scale = read_json(folder / "training.json", "the summary of a training run")["scale"]
    dictionary, held_out = load_dictionary(folder), run.held_out(store)
    try:
        measured = evaluate_reconstruction(dictionary, store, held_out, scale, run.paths.passes)._asdict()
    except WorthlessError as error:
        if not run.study.variants()[run_id.arm].arm.trained:
            raise
        raise DivergedError(f"the training of '{run_id.name}' left nothing that can be measured: {error}", run_id.name) from error
    scores = {
        name: score(dictionary, store, held_out, cache=run.paths.passes)._asdict()
        for name, score in scores_of(run.study.activations[run_id.activations]).items()
    }
    return {**measured, **scores}


def _measure(run: Run, run_id: RunId, section: Section) -> Any:
    """One section of the evaluation of one dictionary."""
    store = ActivationStore(run.paths.store(run_id.activations))
    subject = Subject(
        folder=run.paths.arm(run_id),
        dictionary=load_dictionary(run.paths.arm(run_id)),
        store=store,
        held_out=run.held_out(store),
        others=[run.paths.arm(other) for other in run.study.trainings() if other[:2] == run_id[:2] and other != run_id],
        cache=run.paths.passes,
    )
    return as_json(section.measure(subject, getattr(run.study.evaluation, section.name)))


def _compare(run: Run, stage: Stage) -> None:
    """What dictionaries of one activations entry gain over an ordinary one."""
    files: dict[str, dict[str, Path]] = {}
    for measured in run.measured():
        if measured.run and measured.activations == stage.activations and measured.section in COMPARED:
            files.setdefault(measured.section, {})[measured.run.name] = run.path(measured)
    write_json(run.path(stage), gains(partners_of(run.study, stage.activations), files, run.paths.passes))


def _pair(run: Run, stage: Stage) -> None:
    """Families of one activations entry against baselines on the same tokens, by position."""
    store, variants, runs = ActivationStore(run.paths.store(stage.activations)), run.study.variants(), []
    documents, bands = HeldOut(store, run.held_out(store), run.paths.passes), [*bands_of(store), (0, store.positions)]
    for run_id in run.study.trainings():
        if run_id.activations == stage.activations:
            variant, measured = variants[run_id.arm], read_json(run.paths.evaluation(run_id), "the evaluation of a dictionary")
            l0, fve, within = (float(measured[name]) for name in ("l0", "fve", "fve_within_position"))
            scores = RunScores(variant.family, variant.arm.kind, run_id.seed, l0, fve, within, variant.arm.expectation is None)
            errors = documents.errors(documents.encoded(load_dictionary(run.paths.arm(run_id))))
            runs.append((scores, banded(errors, bands)))
    comparison = compare([scores for scores, _ in runs], common_levels(run.study.levels))
    write_json(run.path(stage), {"paired": [one.model_dump(mode="json") for one in pair(runs, comparison, bands)]})


def _assemble(run: Run) -> None:
    study, variants = run.study, run.study.variants()
    assemble(
        run.folder,
        study.name,
        study.model_dump(mode="json"),
        {run_id: (variants[run_id.arm].family, variants[run_id.arm].level) for run_id in study.trainings()},
        [run.paths.scan(policy.model) for policy in study.scans],
        {(stage.run, stage.section): run.path(stage) for stage in run.measured() if stage.run},
        gains={stage.activations: run.path(stage) for stage in run.stages if stage.section == GAINS},
        paired={stage.activations: run.path(stage) for stage in run.stages if stage.section == PAIRED},
        tuning=None if study.tuning is None else grid_of(study, load_results(run.paths.tuning)),
    )


def _do_figures(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    for stage in stages:
        draw_pictures(run.folder, load_results(run.folder))
        yield stage


def _do_report(run: Run, stages: list[Stage]) -> Iterator[Stage]:
    for stage in stages:
        results = load_results(run.folder)
        figures, beside = captions(run.folder, results), beside_answers(run.folder, results)
        write_report(results, figures, run.text, run.path(stage), browsed_in(run, results), beside)
        yield stage


def browsing_order(results: Results) -> list[RunResult]:
    """Runs with masks first, entry by entry, and of these the arm first that explains most: that of which the verdict speaks."""
    entries = list(results.activations)
    best = {
        entry: best_first(by_family(run for run in results.runs if run.activations == entry and run.openness is not None))
        for entry in entries
    }

    def place(result: RunResult) -> tuple[bool, int, int]:
        families = best[result.activations]
        masked = result.family in families
        return not masked, entries.index(result.activations) if masked else 0, families.index(result.family) if masked else 0

    return sorted(results.runs, key=place)


def browsed_in(run: Run, results: Results) -> list[Browsed]:
    """The dictionaries whose features this study looks at, in the order in which they are browsed; files that an earlier form of it
    left are none of these."""
    files = {(stage.run, stage.section): run.path(stage) for stage in run.measured()}

    def read(result: RunResult, section: str) -> Any:
        path = files.get((result.id, section))
        return None if path is None else read_json(path, "a measurement of a dictionary")

    found = []
    for result in browsing_order(results):
        if (features := read(result, "features")) is not None:
            positions, clusters, tokens = (read(result, name) for name in ("positions", "clusters", "tokens"))
            names = results.activations[result.activations].position_names
            found.append(Browsed(result.id.title, features, positions, clusters, tokens, names))
    return found


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """One page for several finished runs, with the picture of FVE against L0 of each. Raises TemporalLensError where one is not
    finished, or stands there twice, or where the page would take the place of a run's own report."""
    with explained(out.parent):
        is_run = RunFolder(out.parent).study.exists()
    if is_run:
        raise TemporalLensError(f"{out.parent} holds a run, whose own report this page would replace; choose another folder with --out")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise TemporalLensError("a run stands here twice; name each run once")
    runs = []
    for folder in folders:
        results, frontier = load_results(folder), RunFolder(folder).figures / "frontier.png"
        runs.append(Compared(results.name, results, {"FVE against L0": frontier} if frontier.exists() else {}))
    titles = [run.title for run in runs]
    if len(set(titles)) < len(titles):  # two runs of one study are told apart by their folders
        runs = [run._replace(title=f"{run.title} ({folder})") for run, folder in zip(runs, folders, strict=True)]
    write_side_by_side(runs, out)
    return out


WORK: dict[Kind, Callable[[Run, list[Stage]], Iterator[Stage]]] = {
    "scan": _do_scans,
    "harvest": _do_harvests,
    "train": _do_trainings,
    "evaluate": _do_evaluations,
    "figures": _do_figures,
    "report": _do_report,
}
