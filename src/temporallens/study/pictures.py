"""Which pictures a run gets, from which of its files, and under which names.

The headline run is the first positional one shown, or the first of these that weighs positions. Its activations entry has the plain
names of the lab notes' guide (`comparative_analysis.png`), every other entry its own name behind them
(`comparative_analysis-minilm-first.png`). What a picture is drawn from is read when it is drawn, so that the report can ask for names
and captions alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.kinds import ARMS, UNTRAINED, kinds_of
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.bits.section import SECTION as BITS
from temporallens.evaluation.clusters.section import SECTION as CLUSTERS, ClusterMeasures
from temporallens.evaluation.firings import profile
from temporallens.evaluation.heldout import errors_by_document, find_firings
from temporallens.evaluation.interventions.section import SECTION as INTERVENTIONS
from temporallens.evaluation.model.fidelity import SECTION as FIDELITY
from temporallens.evaluation.positions.correlations import correlate_positions
from temporallens.evaluation.positions.retention import ProfileRetention
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionMeasures
from temporallens.evaluation.positions.specialisation import PositionsPolicy
from temporallens.evaluation.results import Results, RunResult, StudySettings, by_arm, by_family
from temporallens.evaluation.section import Section
from temporallens.evaluation.statistics import Estimate
from temporallens.evaluation.tokens import SECTION as TOKENS, TokenMeasures
from temporallens.figures.beforehand import draw_beforehand
from temporallens.figures.bits import Arm as BitsArm, draw_bits
from temporallens.figures.card import draw_card
from temporallens.figures.cluster_patterns import draw_cluster_patterns
from temporallens.figures.comparative import draw_comparative_analysis
from temporallens.figures.fidelity import Arm, draw_fidelity
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.interventions import Arm as Changed, draw_interventions
from temporallens.figures.known import draw_known, expecting
from temporallens.figures.masks import NO_SOFT, draw_masks
from temporallens.figures.passage import Reading, draw_passage
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.position_weights import draw_position_weights
from temporallens.figures.save import check_format, save
from temporallens.figures.scan import draw_scan
from temporallens.figures.sparsity import Activity, draw_sparsity_analysis
from temporallens.figures.steps import History, known_weights
from temporallens.figures.strictness import STRICTNESS, Retained, draw_mask_strictness
from temporallens.figures.style import array, positions_called
from temporallens.figures.temporal_clustering import draw_temporal_clustering
from temporallens.files import read_json
from temporallens.layout import RunFolder
from temporallens.progress import progress
from temporallens.report.closed import best_first
from temporallens.training.history import load_history
from temporallens.training.snapshots import soft_of
from temporallens.wording import average

A = TypeVar("A")


class Picture(NamedTuple):
    """One file of `figures/`."""

    name: str  # without its ending
    caption: str
    draw: Callable[[], Figure]
    beside: str = ""  # the activations entry whose answer it stands beside, made small


def draw_pictures(folder: Path, results: Results, format: str = "png") -> list[Path]:
    """Draw every picture of the run in `folder` into its `figures/`, the headline's last; `format` is png, svg or pdf."""
    check_format(format)
    pictures, drawn = pictures_of(folder, results), []
    with progress("drawing", len(pictures), "pictures") as advance:
        for picture in pictures:
            drawn.append(save(picture.draw(), RunFolder(folder).figures / f"{picture.name}.{format}", format))
            advance(1)
    return drawn


def captions(folder: Path, results: Results) -> dict[str, Path]:
    """The pictures as a report shows them, the headline's own once."""
    return {picture.caption: RunFolder(folder).figures / f"{picture.name}.png" for picture in pictures_of(folder, results)[:-1]}


def beside_answers(folder: Path, results: Results) -> dict[str, str]:
    """The caption of the picture beside the answer on each activations entry."""
    return {picture.beside: picture.caption for picture in pictures_of(folder, results) if picture.beside}


def pictures_of(folder: Path, results: Results) -> list[Picture]:
    """Every picture of the run in `folder`; the last one proves that all are there."""
    files, first = RunFiles(folder, results), headline(results.runs, results.study)
    pictures = []
    if results.scans:
        pictures.append(Picture("scan", "Where position lives", lambda: draw_scan(list(results.scans.values()))))
    known = [scan for scan in results.scans.values() if scan.beforehand is not None]
    if known:
        pictures.append(Picture("beforehand", "What is known before a code is read", lambda: draw_beforehand(known)))
    if len(results.runs) > 1 or first.kind not in UNTRAINED:  # of a single one that was trained elsewhere it is a point
        pictures.append(Picture("frontier", "FVE against L0", lambda: draw_frontier(results)))
    if expecting(results) and any(comparison.baselines for comparison in results.comparison.values()):
        pictures.append(Picture("known", "Codes needed, known beforehand", lambda: draw_known(results)))
    for entry in sorted(results.activations, key=lambda name: name != first.activations):
        suffix = "" if entry == first.activations else f"-{entry}"
        pictures += [files.named(entry, picture) for picture in files.of_entry(entry, suffix)]
    for run in shown(results.runs):
        name = f"position_analysis-{run.activations}-{run.id.name}"
        beside = run.activations if files.only_read(run.activations) else ""  # what is beside an answer on nothing that was trained
        pictures.append(files.named(run.activations, Picture(name, run.id.title, partial(files.position_analysis, run), beside)))
    last = Picture("position_analysis", first.id.title, partial(files.position_analysis, first))
    return [*pictures, files.named(first.activations, last)]


def shown(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs that get a picture of their own: of each arm on each store, the first seed at the middle one of its levels."""
    chosen = []
    for entry in dict.fromkeys(run.activations for run in runs):
        for alike in by_family(run for run in runs if run.activations == entry).values():
            first = [run for run in alike if run.seed == alike[0].seed]
            chosen.append(first[len(first) // 2])
    return chosen


def headline(runs: Sequence[RunResult], study: StudySettings) -> RunResult:
    """The run whose picture is `position_analysis.png`: the first positional one shown that weighs positions (lab notes, Run 5), or
    else the first positional one, or the first of all."""
    positional = [run for run in shown(runs) if run.kind in kinds_of("positional")]
    weighing = [run for run in positional if weighs(run, study)]
    return (weighing or positional or list(runs))[0]


def weighs(run: RunResult, study: StudySettings) -> bool:
    """Whether a run followed the losses of positions, to weigh them or to spend its codes by them."""
    return study.arms[run.family].position_weights or ARMS[run.kind].wants_weights


class RunFiles(NamedTuple):
    """The folder of a finished study: reads what a picture needs and hands it on."""

    folder: Path
    results: Results

    def named(self, entry: str, picture: Picture) -> Picture:
        """The same picture, whose axes carry the names of the entry's positions, and begin at its first."""
        of = self.results.activations[entry]

        def draw() -> Figure:
            with positions_called(of.position_names, of.first_position):
                return picture.draw()

        return picture._replace(draw=draw)

    def of_entry(self, entry: str, suffix: str) -> list[Picture]:
        """The pictures of one activations entry."""
        study, runs = self.results.study, [run for run in self.results.runs if run.activations == entry]
        chosen = headline(runs, study)
        weighing = next((run for run in shown(runs) if weighs(run, study)), chosen)
        masks = best_first(by_family(run for run in runs if run.openness is not None))
        masked = next((run for run in shown(runs) if run.family in masks[:1]), None)  # of which the answer beside the picture speaks
        heading, clusters, trained = chosen.id.title, partial(self.clusters, chosen), not self.only_read(entry)
        found = []
        if trained or len(by_arm(runs)) > 1:
            title = f"{entry}: all arms"
            found.append(Picture(f"comparative_analysis{suffix}", title, lambda: self.comparative_analysis(entry, runs), entry))
        if trained and weighs(weighing, study):
            title = f"Position weights: {weighing.id.title}"
            found.append(Picture(f"position_weights{suffix}", title, lambda: self.position_weights(weighing)))
        found.append(Picture(f"sparsity_analysis{suffix}", f"Sparsity: {heading}", lambda: self.sparsity_analysis(chosen)))
        if CLUSTERS.name in chosen.measures:
            grouped, patterns = f"Temporal clusters: {heading}", f"Patterns of clusters: {heading}"
            found.append(Picture(f"temporal_clustering{suffix}", grouped, lambda: draw_temporal_clustering(clusters(), heading)))
            found.append(Picture(f"cluster_patterns{suffix}", patterns, lambda: draw_cluster_patterns(clusters(), heading)))
        if masked is not None:
            found.append(Picture(f"masks{suffix}", f"Mask: {masked.id.title}", lambda: self.masks(masked), entry))
        strictnesses = {self._strictness(run) for run in runs} & set(STRICTNESS)
        if len(strictnesses) > 1 or (strictnesses and any(POSITIONS.name in run.measures for run in runs)):
            found.append(Picture(f"mask_strictness{suffix}", f"{entry}: mask strictness", lambda: self.mask_strictness(entry, runs)))
        if any(BITS.name in run.measures for run in runs):
            known = f"{entry}: what is known of codes beforehand"
            found.append(Picture(f"bits{suffix}", known, lambda: draw_bits(arms_of(BITS, runs, BitsArm), known)))
        if any(INTERVENTIONS.name in run.measures for run in runs):
            used = f"{entry}: is what is encoded of position used?"
            found.append(Picture(f"interventions{suffix}", used, lambda: draw_interventions(arms_of(INTERVENTIONS, runs, Changed), used)))
        knowing, ordinary = self._passages(runs)
        if knowing is not None:
            title = f"{entry}: a sentence, and what was known of it before a code was read"
            found.append(Picture(f"passage{suffix}", title, lambda: draw_passage(ordinary, knowing, title)))
        if any(FIDELITY.name in run.measures for run in runs):
            title = f"{entry}: text pushed to later positions"
            found.append(Picture(f"fidelity{suffix}", title, lambda: draw_fidelity(arms_of(FIDELITY, runs, Arm), title)))
        return found

    def only_read(self, entry: str) -> bool:
        """Whether every dictionary of an activations entry was trained elsewhere."""
        return all(run.kind in UNTRAINED for run in self.results.runs if run.activations == entry)

    def _passages(self, runs: Sequence[RunResult]) -> tuple[Reading | None, Reading | None]:
        """What an arm with an expectation makes of the passage, and what an ordinary one does, at the level that is shown."""
        known, expects = expecting(self.results), {name for name, arm in self.results.study.arms.items() if arm.expectation}
        asked = [(run, found) for run in shown(runs) if TOKENS.name in run.measures and (found := _reading(run)) is not None]
        knowing = [found for run, found in asked if run.family in known and found.passage.token is not None]
        ordinary = [found for run, found in asked if run.kind in kinds_of("ordinary") and run.family not in expects]
        return next(iter(knowing), None), next(iter(ordinary), None)

    # What one run holds

    def _strictness(self, run: RunResult) -> str | None:
        return self.results.study.arms[run.family].strictness

    def _path(self, run: RunResult) -> Path:
        return RunFolder(self.folder).arm(run.id)

    def _history(self, run: RunResult) -> History:
        return load_history(self._path(run) / "history.safetensors")

    def clusters(self, run: RunResult) -> ClusterMeasures:
        """With their drawing, which `results.json` leaves out."""
        path = RunFolder(self.folder).measurement(CLUSTERS.name, run.id)
        return cast(ClusterMeasures, CLUSTERS.read(read_json(path, "a measurement of a dictionary")))

    def _held_out(self, run: RunResult) -> tuple[ActivationStore, Int[np.ndarray, " n"]]:
        training = self.results.study.training
        store = ActivationStore(RunFolder(self.folder).store(run.activations))
        return store, store.split(training.held_out, training.data_seed).held_out

    def _seeds(self, run: RunResult) -> list[RunResult]:
        """The runs of the same arm from every seed."""
        return [other for other in self.results.runs if (other.activations, other.arm) == (run.activations, run.arm)]

    # Its pictures

    def position_analysis(self, run: RunResult) -> Figure:
        """One run by position; of what was trained elsewhere, FVE and L0, as there is no history."""
        if run.kind in UNTRAINED:
            return draw_card(run.position_fve, run.position_l0, run.id.title)
        held_out = [seed.position_loss for seed in self._seeds(run)]
        return draw_position_analysis(self._history(run), run.id.title, held_out, run.fve_first)

    def comparative_analysis(self, entry: str, runs: Sequence[RunResult]) -> Figure:
        weights = {}
        for run in runs:
            known = known_weights(self._history(run)) if weighs(run, self.results.study) else None
            if known is not None:
                weights[run.arm, run.seed] = known[-1]
        return draw_comparative_analysis(runs, weights, f"{entry}: all arms")

    def position_weights(self, run: RunResult) -> Figure:
        history = self._history(run)
        correlation = self._correlation(run, history["position_weight"][-1]) if weighs(run, self.results.study) else None
        return draw_position_weights(history, run.id.title, 1 - array(run.position_fve), correlation)

    def _correlation(self, run: RunResult, weights: Float[np.ndarray, " P"]) -> Estimate:
        """Of the last weights with what is left unexplained: as the run measured it, or from the errors that it saved."""
        measured = positions_of(run)
        if measured is not None:
            return measured.correlations.weight_unexplained
        store, held_out = self._held_out(run)
        errors = errors_by_document(load_dictionary(self._path(run)), store, held_out, RunFolder(self.folder).passes)
        return correlate_positions(errors, None, weights, PositionsPolicy()).weight_unexplained

    def sparsity_analysis(self, run: RunResult) -> Figure:
        store, held_out = self._held_out(run)
        firings = find_firings(load_dictionary(self._path(run)), store, held_out, RunFolder(self.folder).passes)
        later = np.isin(firings.document, np.unique(firings.document)[1::2])
        halves = [profile(firings.of_rows(np.flatnonzero(half))) for half in (~later, later)]
        activity = Activity(np.stack([half.rate for half in halves]), np.stack([half.count for half in halves]), firings.counts)
        return draw_sparsity_analysis(self._history(run), run.id.title, [seed.position_l0 for seed in self._seeds(run)], activity)

    def masks(self, run: RunResult) -> Figure:
        path, strictness = self._path(run), self._strictness(run)
        soft = soft_of(path)
        never = (
            f"this run's mask does not harden (strictness: {STRICTNESS[strictness]})"
            if strictness in STRICTNESS
            else "this mask was not learnt"
        )
        missing = NO_SOFT if strictness == "hard" else never
        before = None if soft is None else _gates(soft)
        return draw_masks(_gates(path), before, self._history(run), run.id.title, missing)

    def mask_strictness(self, entry: str, runs: Sequence[RunResult]) -> Figure:
        hardening, seeds = {}, {}
        for run in runs:
            measured = positions_of(run)
            if measured is not None and (change := measured.hardening):
                hardening[run.arm, run.seed] = _retained([change.pattern])._replace(fve_before=change.fve_before)
            if measured is not None and measured.seeds:
                seeds[run.arm, run.seed] = _retained([other.pattern for other in measured.seeds])
        return draw_mask_strictness(runs, self.results.study.arms, hardening, seeds, f"{entry}: mask strictness")


def positions_of(run: RunResult) -> PositionMeasures | None:
    """What the section `positions` found for a run; None where it was not requested."""
    return POSITIONS.read(run.measures[POSITIONS.name]) if POSITIONS.name in run.measures else None


def arms_of(section: Section, runs: Sequence[RunResult], arm: Callable[[str, list[Any]], A]) -> list[A]:
    """What a section found in each seed, arm by arm, of those for which it was requested."""
    measured = by_arm(run for run in runs if section.name in run.measures)
    return [arm(name, [section.read(run.measures[section.name]) for run in seeds]) for name, seeds in measured.items()]


def _reading(run: RunResult) -> Reading | None:
    passage = cast(TokenMeasures, TOKENS.read(run.measures[TOKENS.name])).passage
    return None if passage is None else Reading(run.family, passage)


def _gates(folder: Path) -> Float[np.ndarray, "P F"] | None:
    gates = load_dictionary(folder).gates_by_position()
    return None if gates is None else gates.detach().numpy()


def _retained(patterns: Sequence[ProfileRetention]) -> Retained:
    """One comparison, or the mean of several; the mean of several has no interval of its own."""
    return Retained(
        profile=_mean_estimate([pattern.profile for pattern in patterns]),
        specialised=_mean_estimate([pattern.set_retention for pattern in patterns]),
        chance=average(pattern.set_chance for pattern in patterns),
    )


def _mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    if len(estimates) == 1:
        return estimates[0]
    return Estimate(average(estimate.value for estimate in estimates), None, None, sum(estimate.n for estimate in estimates))
