"""Which pictures a run gets, from which of its files, and under which names.

The headline run is the first positional one shown, or the first of these that weighs positions. Its activations entry has the plain
names of the lab notes' guide (`comparative_analysis.png`), every other entry its own name behind them
(`comparative_analysis-minilm-first.png`). What a picture is drawn from is read when it is drawn, so that the report can ask for names
and captions alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.kinds import ARMS, kinds_of
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.document_errors import errors_by_document
from temporallens.evaluation.firings import find_firings, profile
from temporallens.evaluation.positions.correlations import correlate_positions
from temporallens.evaluation.positions.specialisation import PositionsPolicy
from temporallens.evaluation.statistics import Estimate
from temporallens.figures.cluster_patterns import draw_cluster_patterns
from temporallens.figures.comparative import draw_comparative_analysis
from temporallens.figures.fidelity import draw_fidelity
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.masks import NO_SOFT, draw_masks
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.position_weights import draw_position_weights
from temporallens.figures.save import check_format, save
from temporallens.figures.scan import draw_scan
from temporallens.figures.sparsity import Activity, draw_sparsity_analysis
from temporallens.figures.steps import known_weights
from temporallens.figures.strictness import STRICTNESS, Kept, draw_mask_strictness
from temporallens.figures.style import array
from temporallens.figures.temporal_clustering import draw_temporal_clustering
from temporallens.files import read_json
from temporallens.layout import RunFolder, RunId
from temporallens.progress import progress
from temporallens.training.history import load_history
from temporallens.training.snapshots import soft_of

Result = Mapping[str, Any]
"""One of the `runs` of `results.json`."""
Arms = Mapping[str, Mapping[str, Any]]
"""The arms of the study, by family."""


class Picture(NamedTuple):
    """One file of `figures/`."""

    name: str  # without its ending
    caption: str
    draw: Callable[[], Figure]


def draw_pictures(folder: Path, results: Mapping[str, Any], format: str = "png") -> list[Path]:
    """Draw every picture of the run in `folder` into its `figures/`, the headline's last; `format` is png, svg or pdf."""
    check_format(format)
    pictures, drawn = pictures_of(folder, results), []
    with progress("drawing", len(pictures), "pictures") as advance:
        for picture in pictures:
            drawn.append(save(picture.draw(), folder / "figures" / f"{picture.name}.{format}", format))
            advance(1)
    return drawn


def captions(folder: Path, results: Mapping[str, Any]) -> dict[str, Path]:
    """The pictures as a report shows them, the headline's own once."""
    return {picture.caption: folder / "figures" / f"{picture.name}.png" for picture in pictures_of(folder, results)[:-1]}


def pictures_of(folder: Path, results: Mapping[str, Any]) -> list[Picture]:
    """Every picture of the run in `folder`; the last one proves that all are there."""
    runs, first = results["runs"], headline(results["runs"], results["study"]["arms"])
    run = _Run(folder, results)
    pictures = []
    if results["scans"]:
        pictures.append(Picture("scan", "Where position lives", lambda: draw_scan(list(results["scans"].values()))))
    pictures.append(Picture("frontier", "FVE against L0", lambda: draw_frontier(results)))
    for entry in sorted(results["activations"], key=lambda name: name != first["activations"]):
        suffix = "" if entry == first["activations"] else f"-{entry}"
        pictures += run.of_entry(entry, suffix)
    for result in shown(runs):
        pictures.append(Picture(f"position_analysis-{_file_name(result)}", run_title(result), partial(run.position_analysis, result)))
    return [*pictures, Picture("position_analysis", run_title(first), partial(run.position_analysis, first))]


def shown(runs: Sequence[Result]) -> list[Result]:
    """The runs that get a picture of their own: of each arm on each store, the first seed at the middle one of its levels."""
    families: dict[tuple[str, str], list[Result]] = {}
    for result in runs:
        families.setdefault((result["activations"], result["family"]), []).append(result)
    firsts = [[result for result in own if result["seed"] == own[0]["seed"]] for own in families.values()]
    return [own[len(own) // 2] for own in firsts]


def headline(runs: Sequence[Result], arms: Arms) -> Result:
    """The run whose picture is `position_analysis.png`: the first positional one shown that weighs positions (lab notes, Run 5), or
    else the first positional one, or the first of all."""
    positional = [result for result in shown(runs) if result["kind"] in kinds_of("positional")]
    weighing = [result for result in positional if weighs(result, arms)]
    return (weighing or positional or list(runs))[0]


def weighs(result: Result, arms: Arms) -> bool:
    """Whether a run followed the losses of positions, to weigh them or to spend its codes by them."""
    return bool(arms[result["family"]].get("position_weights")) or ARMS[result["kind"]].wants_weights


def run_title(result: Result) -> str:
    """Heading of one run's picture, and its caption in the report."""
    return run_id(result).title


def run_id(result: Result) -> RunId:
    return RunId(result["activations"], result["arm"], result["seed"])


def _file_name(result: Result) -> str:
    own = run_id(result)
    return f"{own.activations}-{own.name}"


class _Run(NamedTuple):
    """A finished run: reads what a picture needs and hands it on."""

    folder: Path
    results: Mapping[str, Any]

    def of_entry(self, entry: str, suffix: str) -> list[Picture]:
        """The pictures of one activations entry."""
        runs = [result for result in self.results["runs"] if result["activations"] == entry]
        chosen = headline(runs, self.arms)
        weighing = next((result for result in shown(runs) if weighs(result, self.arms)), chosen)
        masked = chosen if chosen["openness"] is not None else next((own for own in shown(runs) if own["openness"] is not None), None)
        found = [
            Picture(f"comparative_analysis{suffix}", f"{entry}: all arms", lambda: self.comparative_analysis(entry, runs)),
            Picture(f"position_weights{suffix}", f"Position weights: {run_title(weighing)}", lambda: self.position_weights(weighing)),
            Picture(f"sparsity_analysis{suffix}", f"Sparsity: {run_title(chosen)}", lambda: self.sparsity_analysis(chosen)),
        ]
        heading, clusters = run_title(chosen), partial(self._clusters, chosen)
        found += [
            Picture(f"temporal_clustering{suffix}", f"Temporal clusters: {heading}", lambda: draw_temporal_clustering(clusters(), heading)),
            Picture(f"cluster_patterns{suffix}", f"Patterns of clusters: {heading}", lambda: draw_cluster_patterns(clusters(), heading)),
        ]
        if masked is not None:
            found.append(Picture(f"masks{suffix}", f"Mask: {run_title(masked)}", lambda: self.masks(masked)))
        strictnesses = {self._strictness(result) for result in runs} & set(STRICTNESS)
        if len(strictnesses) > 1 or (strictnesses and any(_measured(result, "positions") for result in runs)):
            found.append(Picture(f"mask_strictness{suffix}", f"{entry}: mask strictness", lambda: self.mask_strictness(entry, runs)))
        if any(_measured(result, "fidelity") for result in runs):
            title = f"{entry}: text pushed to later positions"
            found.append(Picture(f"fidelity{suffix}", title, lambda: draw_fidelity(runs, title)))
        return found

    # What one run holds

    @property
    def arms(self) -> Arms:
        return dict(self.results["study"]["arms"])

    def _strictness(self, result: Result) -> str | None:
        return self.arms[result["family"]].get("strictness")

    def _path(self, result: Result) -> Path:
        return RunFolder(self.folder).arm(run_id(result))

    def _history(self, result: Result) -> dict[str, np.ndarray]:
        return load_history(self._path(result) / "history.safetensors")

    def _clusters(self, result: Result) -> Any:
        """The whole measurement, with its drawing, which `results.json` leaves out; None where it was not asked."""
        if not _measured(result, "clusters"):
            return None
        return read_json(RunFolder(self.folder).measurement("clusters", run_id(result)), "a measurement of a dictionary")

    def _held_out(self, result: Result) -> tuple[ActivationStore, Int[np.ndarray, " n"]]:
        training = self.results["study"]["training"]
        store = ActivationStore(self.folder / "stores" / result["activations"])
        return store, store.split(training["held_out"], training["data_seed"]).held_out

    def _seeds(self, result: Result, what: str) -> list[list[float | None]]:
        """A quantity by position of every seed of the run's arm."""
        alike = [own for own in self.results["runs"] if (own["activations"], own["arm"]) == (result["activations"], result["arm"])]
        return [own[what] for own in alike]

    # Its pictures

    def position_analysis(self, result: Result) -> Figure:
        held_out = self._seeds(result, "position_loss")
        return draw_position_analysis(self._history(result), run_title(result), held_out, result["fve_first"])

    def comparative_analysis(self, entry: str, runs: Sequence[Result]) -> Figure:
        weights = {}
        for result in runs:
            known = known_weights(self._history(result)) if weighs(result, self.arms) else None
            if known is not None:
                weights[result["arm"], result["seed"]] = known[-1]
        return draw_comparative_analysis(runs, weights, f"{entry}: all arms")

    def position_weights(self, result: Result) -> Figure:
        history = self._history(result)
        correlation = self._correlation(result, history["position_weight"][-1]) if weighs(result, self.arms) else None
        return draw_position_weights(history, run_title(result), 1 - array(result["position_fve"]), correlation)

    def _correlation(self, result: Result, weights: Float[np.ndarray, " P"]) -> Estimate:
        """Of the last weights with what is left unexplained: as the run measured it, or measured now."""
        measured = _measured(result, "positions")
        if measured:
            return Estimate(**measured["correlations"]["weight_unexplained"])
        store, held_out = self._held_out(result)
        errors = errors_by_document(load_dictionary(self._path(result)), store, held_out)
        return correlate_positions(errors, None, weights, PositionsPolicy()).weight_unexplained

    def sparsity_analysis(self, result: Result) -> Figure:
        store, held_out = self._held_out(result)
        firings = find_firings(load_dictionary(self._path(result)), store, held_out)
        later = np.isin(firings.document, np.unique(firings.document)[1::2])
        halves = [profile(firings.of_rows(np.flatnonzero(half))) for half in (~later, later)]
        activity = Activity(np.stack([half.rate for half in halves]), np.stack([half.count for half in halves]), firings.counts)
        return draw_sparsity_analysis(self._history(result), run_title(result), self._seeds(result, "position_l0"), activity)

    def masks(self, result: Result) -> Figure:
        path, strictness = self._path(result), self._strictness(result)
        soft = soft_of(path)
        never = (
            f"this run's mask does not harden (strictness: {STRICTNESS[strictness]})"
            if strictness in STRICTNESS
            else "this mask was not learnt"
        )
        missing = NO_SOFT if strictness == "hard" else never
        before = None if soft is None else _gates(soft)
        return draw_masks(_gates(path), before, self._history(result), run_title(result), missing)

    def mask_strictness(self, entry: str, runs: Sequence[Result]) -> Figure:
        hardening, seeds = {}, {}
        for result in runs:
            measured, key = _measured(result, "positions") or {}, (result["arm"], result["seed"])
            if change := measured.get("hardening"):
                hardening[key] = _kept([change["pattern"]])._replace(fve_before=change["fve_before"])
            if others := measured.get("seeds"):
                seeds[key] = _kept([other["pattern"] for other in others])
        return draw_mask_strictness(runs, self.arms, hardening, seeds, f"{entry}: mask strictness")


def _measured(result: Result, section: str) -> Mapping[str, Any] | None:
    """What a section of the study's evaluation found for a run; None where it was not asked."""
    return (result.get("measures") or {}).get(section)


def _gates(folder: Path) -> Float[np.ndarray, "P F"] | None:
    gates = load_dictionary(folder).gates_by_position()
    return None if gates is None else gates.detach().numpy()


def _kept(patterns: Sequence[Mapping[str, Any]]) -> Kept:
    """One comparison, or the mean of several; the mean of several has no interval of its own."""
    return Kept(
        profile=_mean_estimate([pattern["profile"] for pattern in patterns]),
        specialised=_mean_estimate([pattern["set_retention"] for pattern in patterns]),
        chance=_mean([pattern["set_chance"] for pattern in patterns]),
    )


def _mean_estimate(estimates: Sequence[Mapping[str, Any]]) -> Estimate:
    if len(estimates) == 1:
        return Estimate(**estimates[0])
    return Estimate(_mean([estimate["value"] for estimate in estimates]), None, None, sum(estimate["n"] for estimate in estimates))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
