"""`results.json`: everything that a study found, in one versioned schema (`docs/formats.md`), and nothing that differs between two
runs of the same study: the times of a run stand beside its dictionary, in `timing.json`."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from temporallens.activations.expressions import clock_of
from temporallens.activations.position_names import names_in
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.kinds import ARMS
from temporallens.errors import TemporalLensError
from temporallens.evaluation.comparison import Comparison, Part, RunScores, common_levels, compare
from temporallens.evaluation.paired import Paired
from temporallens.evaluation.scan import Scan
from temporallens.evaluation.section import Section
from temporallens.evaluation.sections import SECTIONS
from temporallens.files import fingerprint, read_json, write_json
from temporallens.layout import RunFolder, RunId
from temporallens.settings import first_problem

FORMAT = "temporallens.results/3"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][^/\\\x00]*$")]
"""Of what has a folder of its own: nothing that a path could misread, whoever wrote the file."""


class Read(BaseModel):
    """A part of the study as it was run, of which only what readers need has a name."""

    model_config = ConfigDict(frozen=True)


class ArmSettings(Read, extra="allow"):
    """An arm of the study, with all of its settings."""

    k: int | None = None
    strictness: str | None = None
    position_weights: bool = False
    expectation: dict[str, JsonValue] | None = None


class TrainingSettings(Read):
    """What readers need to know of how every arm was trained."""

    steps: int
    batch_size: int
    held_out: float
    data_seed: int


class OneSeedSettings(Read):
    """Arms and activations that were trained with the first seed only."""

    arms: list[str] = []
    activations: list[str] = []


class StudySettings(Read):
    """The study as it was run. Written as it came; the fields are what readers need of it."""

    arms: dict[str, ArmSettings] = {}
    levels: dict[str, list[float]] = {}
    training: TrainingSettings
    seeds: list[int]
    one_seed: OneSeedSettings = OneSeedSettings()
    notes: dict[str, str] = {}
    _whole: dict[str, JsonValue] = PrivateAttr(default_factory=dict)

    @property
    def whole(self) -> dict[str, JsonValue]:
        """Every setting, as JSON."""
        return self._whole

    def policy_of(self, section: Section) -> Any:
        """The policy of a section of `evaluation:`, of defaults where the study does not ask for it."""
        asked = self._whole.get("evaluation")
        return section.policy.model_validate((asked.get(section.name) if isinstance(asked, dict) else None) or {})

    @model_validator(mode="wrap")
    @classmethod
    def _keep_all(cls, content: Any, handler: ModelWrapValidatorHandler["StudySettings"]) -> "StudySettings":
        settings = handler(content)
        if isinstance(content, Mapping):
            settings._whole = dict(content)
        return settings

    @model_serializer
    def _as_it_came(self) -> dict[str, JsonValue]:
        return self._whole


class RunResult(Part):
    """One dictionary: how it was trained and what it does on held-out documents (fields as in `Reconstruction`)."""

    activations: Name
    arm: Name
    family: str
    level: float | None
    kind: str
    seed: int
    features: int
    training_steps: int
    tokens_seen: int
    final_loss: float
    mse_loss: float
    sparsity_loss: float
    fve: float
    fve_within_position: float
    fve_first: float | None
    l0: float
    dead_features: int
    openness: float | None
    openness_by_position: list[float] | None
    position_loss: list[float | None]
    position_fve: list[float | None]
    position_l0: list[float | None]
    position_count: list[int]
    held_out_tokens: int
    world: dict[str, JsonValue] | None
    fields: dict[str, JsonValue] | None
    measures: dict[str, dict[str, JsonValue]]
    """By section of the study's evaluation; what there is of every feature is in the files under `measures/`."""

    @property
    def id(self) -> RunId:
        return RunId(self.activations, self.arm, self.seed)


class TimedRun(RunResult):
    """A run with what is in its `timing.json`, which differs from one time to the next."""

    seconds: float
    tokens_per_second: float


R = TypeVar("R", bound=RunResult)


def by_arm(runs: Iterable[R]) -> dict[str, list[R]]:
    """Runs of each arm at one level, its seeds, in order of appearance."""
    return _grouped(runs, lambda run: run.arm)


def marked(name: str, run: RunResult) -> str:
    """The name of a dictionary or of its arm, with a word where its reconstructions need more than codes, positions and tokens."""
    return f"{name} (open loop)" if run.kind in ARMS and ARMS[run.kind].open_loop else name


def by_family(runs: Iterable[R]) -> dict[str, list[R]]:
    """Runs of each arm of the study at all its levels."""
    return _grouped(runs, lambda run: run.family)


def _grouped(runs: Iterable[R], name_of: Callable[[R], str]) -> dict[str, list[R]]:
    groups: dict[str, list[R]] = {}
    for run in runs:
        groups.setdefault(name_of(run), []).append(run)
    return groups


class ActivationsResult(Part):
    """One store: what it holds, by which policies, and how much of its variance position explains."""

    model: str | None
    layer: int | str | None
    width: int
    rows: int
    sequences: int
    documents: int
    held_out_documents: int
    positions: int
    clock: str
    policies: dict[str, JsonValue]
    eta2: float
    eta2_floor: float
    excluded: dict[str, int]
    norm: list[float]

    @property
    def position_names(self) -> dict[int, str]:
        """Names of positions, where these have any."""
        return names_in(self.policies)

    @property
    def first_position(self) -> int:
        """The first position that is like any other: 1 where 0 is the index of attention sinks, else 0."""
        return int(self.clock == "index" and (self.model is not None or self.excluded["first"] > 0))

    @property
    def clock_name(self) -> str:
        """The clock, as a sentence has it."""
        return clock_of(self.clock).name if self.clock.startswith("{") else self.clock


class Tuned(Part):
    """What a grid of learning rates found of one arm."""

    learning_rate: float
    """The best one."""
    fve: dict[str, float | None]
    """By rate, on the grid's own held-out documents, the mean over its entries and seeds; None where a training diverged."""

    @property
    def at_the_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried, so that one beyond it may be better."""
        rates = [float(rate) for rate in self.fve]
        return float(f"{self.learning_rate:g}") in (min(rates), max(rates))  # as they are written there


class Results(Part):
    """The whole file."""

    format: Literal["temporallens.results/3"]
    name: str
    study: StudySettings
    study_fingerprint: str
    environment: dict[str, JsonValue]
    scans: dict[str, Scan]
    activations: dict[str, ActivationsResult]
    runs: Sequence[RunResult]
    comparison: dict[str, Comparison]
    gains: dict[str, dict[str, Any]]
    """By activations: what probes of each dictionary have over those of an ordinary one (`docs/formats.md`)."""
    paired: Annotated[dict[str, list[Paired]], Field(default_factory=dict, exclude_if=lambda paired: not paired)]
    """By activations: families against baselines on the same tokens, by position; none in files of earlier versions."""
    tuning: Annotated[dict[str, Tuned], Field(default_factory=dict, exclude_if=lambda tuning: not tuning)]
    """By arm: where the study has a grid of learning rates, what that found."""


class TimedResults(Results):
    """The whole file, and the times of its runs."""

    runs: Sequence[TimedRun]

    def runs_of(self, activations: str) -> list[TimedRun]:
        """The runs of one activations entry."""
        return [run for run in self.runs if run.activations == activations]


def environment() -> dict[str, JsonValue]:
    """What the numbers may depend on."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def describe_store(store: ActivationStore, held_out: float, data_seed: int) -> ActivationsResult:
    """What a report needs to know of a store."""
    manifest, moments = store.manifest, store.moments
    source, policies = manifest.description.source, manifest.description.policies
    share, floor = moments.position_share()
    split = store.split(held_out, data_seed)
    layer = source.get("layer")
    return ActivationsResult(
        model=None if source.get("model") is None else str(source["model"]),
        layer=layer if isinstance(layer, int | str) else None,
        width=store.width,
        rows=store.rows,
        sequences=store.sequences,
        documents=store.documents,
        held_out_documents=len(np.unique(store.documents_of(split.held_out))),
        positions=store.positions,
        clock=str(policies.get("clock")),
        policies=policies,
        eta2=share,
        eta2_floor=floor,
        excluded={name: int(getattr(moments, f"excluded_{name}").sum()) for name in ("first", "norm", "special")},
        norm=moments.all_norm.tolist(),
    )


def assemble(
    folder: Path,
    name: str,
    study: Mapping[str, Any],
    runs: Mapping[RunId, tuple[str, float | None]],
    scans: Iterable[Path] = (),
    measures: Mapping[tuple[RunId, str], Path] | None = None,
    gains: Mapping[str, Path] | None = None,
    paired: Mapping[str, Path] | None = None,
    tuning: Mapping[str, Tuned] | None = None,
) -> Path:
    """Gather the files `scans`, the `measures` (by run and section), `gains` and `paired` (by activations), and `stores/`, `arms/` and
    `evaluation/` of an output folder, into its `results.json`; `runs` are its dictionaries with each one's arm in the study and its level,
    `tuning` what its grid of learning rates found.

    Raises TemporalLensError when a dictionary saw no training step or when a number is missing or not finite.
    """
    paths, training = RunFolder(folder), study["training"]
    stores = {run.activations: ActivationStore(paths.store(run.activations)) for run in runs}
    content = {
        "format": FORMAT,
        "name": name,
        "study": dict(study),
        "study_fingerprint": fingerprint(study),
        "environment": environment(),
        "scans": {scan.model: scan for scan in map(_scan, scans)},
        "activations": {
            key: describe_store(store, training["held_out"], training["data_seed"]).model_dump() for key, store in stores.items()
        },
        "runs": [_run(paths, run, family, level) | {"measures": _measures(run, measures or {})} for run, (family, level) in runs.items()],
        "comparison": {},
        "gains": {key: read_json(path, "gains of dictionaries") for key, path in (gains or {}).items()},
        "paired": {key: read_json(path, "a comparison by position")["paired"] for key, path in (paired or {}).items()},
        "tuning": {family: tuned.model_dump(mode="json") for family, tuned in (tuning or {}).items()},
    }
    results = _valid(content, f"{folder} holds no valid results: ")
    results = results.model_copy(update={"comparison": {key: _comparison(results, key) for key in stores}})
    write_json(paths.results, results.model_dump(mode="json"))
    return paths.results


def _scan(path: Path) -> Scan:
    return Scan.from_json(read_json(path, "the scan of a model"))


def _comparison(results: Results, activations: str) -> Comparison:
    """Of the runs of one store, at the L0 values that the study's levels name."""
    known = {family for family, arm in results.study.arms.items() if arm.expectation}
    runs = [
        RunScores(run.family, run.kind, run.seed, run.l0, run.fve, run.fve_within_position, run.family not in known)
        for run in results.runs
        if run.activations == activations
    ]
    return compare(runs, common_levels(results.study.levels))


def _run(paths: RunFolder, run: RunId, family: str, level: float | None) -> dict[str, Any]:
    summary = read_json(paths.arm(run) / "training.json", "the summary of a training run")
    if summary["training_steps"] < 1 and ARMS[summary["arm"]["kind"]].trained:
        raise TemporalLensError(f"{run.path} was trained for {summary['training_steps']} steps: that is no result")
    measured = read_json(paths.evaluation(run), "the evaluation of a dictionary")
    trained = {name: summary[name] for name in ("training_steps", "tokens_seen", "final_loss", "mse_loss", "sparsity_loss")}
    arm, scores = summary["arm"], {"world": None, "fields": None}
    described = {"family": family, "level": level, "kind": arm["kind"], "features": arm["features"]}
    return {**scores, **run._asdict(), **described, **trained, **measured}


def _measures(run: RunId, files: Mapping[tuple[RunId, str], Path]) -> dict[str, Any]:
    """Measurements of one dictionary by section, without what there is of every feature."""
    measured = {SECTIONS[name]: path for (other, name), path in files.items() if other == run and SECTIONS[name].in_results}
    return {section.name: section.summary(read_json(path, "a measurement of a dictionary")) for section, path in measured.items()}


def load_results(folder: Path) -> TimedResults:
    """`results.json` of a run's folder, with each run's times from its `timing.json`.

    Raises TemporalLensError when a file is missing or `results.json` is not of this version.
    """
    paths = RunFolder(folder)
    content = read_json(paths.results, "the results of a study")
    results = _valid(content, f"{paths.results} is not a results file of this version (", ")")
    return TimedResults.model_construct(**dict(results) | {"runs": [_timed(paths, run) for run in results.runs]})


def _valid(content: Any, before: str, after: str = "") -> Results:
    """Raises TemporalLensError with what is wrong first, between `before` and `after`."""
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        raise TemporalLensError(f"{before}{first_problem(error)}{after}") from error


def _timed(paths: RunFolder, run: RunResult) -> TimedRun:
    times = read_json(paths.arm(run.id) / "timing.json", "the times of a training run")
    return TimedRun.model_construct(**dict(run) | times)
