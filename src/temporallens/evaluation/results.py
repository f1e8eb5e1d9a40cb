"""`results.json`: everything that a study found, in one versioned schema (`docs/formats.md`), and nothing that differs between two
runs of the same study: the times of a run stand beside its dictionary, in `timing.json`."""

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import JsonValue, StringConstraints, ValidationError

from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.comparison import Comparison, Measured, Part, compare
from temporallens.evaluation.scan import Scan
from temporallens.evaluation.sections import SECTIONS
from temporallens.files import fingerprint, read_json, write_json
from temporallens.layout import RunFolder, RunId

FORMAT = "temporallens.results/3"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][^/\\\x00]*$")]
"""Of what has a folder of its own: nothing that a path could misread, whoever wrote the file."""


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
    measures: dict[str, JsonValue]
    """By section of the study's evaluation; what there is of every feature is in the files under `measures/`."""


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


class Results(Part):
    """The whole file."""

    format: Literal["temporallens.results/3"]
    name: str
    study: dict[str, JsonValue]
    study_fingerprint: str
    environment: dict[str, JsonValue]
    scans: dict[str, JsonValue]
    activations: dict[str, ActivationsResult]
    runs: list[RunResult]
    comparison: dict[str, Comparison]
    gains: dict[str, JsonValue]
    """By activations: what probes of each dictionary have over those of an ordinary one (`docs/formats.md`)."""


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
) -> Path:
    """Gather the files `scans`, the `measures` (by run and section) and `gains` (by activations), and `stores/`, `arms/` and `evaluation/`
    of an output folder, into its `results.json`; `runs` are its dictionaries with each one's arm in the study and its level.

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
        "scans": {scan.model: scan.to_json() for scan in map(_scan, scans)},
        "activations": {
            key: describe_store(store, training["held_out"], training["data_seed"]).model_dump() for key, store in stores.items()
        },
        "runs": [_run(paths, run, family, level) | {"measures": _measures(run, measures or {})} for run, (family, level) in runs.items()],
        "comparison": {},
        "gains": {key: read_json(path, "gains of dictionaries") for key, path in (gains or {}).items()},
    }
    try:
        results = Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise TemporalLensError(f"{folder} holds no valid results: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    results = results.model_copy(update={"comparison": {key: _comparison(results.runs, key, study) for key in stores}})
    write_json(paths.results, results.model_dump(mode="json"))
    return paths.results


def _scan(path: Path) -> Scan:
    return Scan.from_json(read_json(path, "the scan of a model"))


def _comparison(runs: Iterable[RunResult], activations: str, study: Mapping[str, Any]) -> Comparison:
    """Of the runs of one store, at the L0 values that the study's levels name."""
    levels = study.get("levels") or {}
    own = [Measured(*(getattr(run, name) for name in Measured._fields)) for run in runs if run.activations == activations]
    return compare(own, levels.get("k") or levels.get("l0") or ())


def _run(paths: RunFolder, run: RunId, family: str, level: float | None) -> dict[str, Any]:
    summary = read_json(paths.arm(run) / "training.json", "the summary of a training run")
    if summary["training_steps"] < 1:
        raise TemporalLensError(f"{run.path} was trained for {summary['training_steps']} steps: that is no result")
    measured = read_json(paths.evaluation(run), "the evaluation of a dictionary")
    trained = {name: summary[name] for name in ("training_steps", "tokens_seen", "final_loss", "mse_loss", "sparsity_loss")}
    arm, scores = summary["arm"], {"world": None, "fields": None}
    described = {"family": family, "level": level, "kind": arm["kind"], "features": arm["features"]}
    return {**scores, **run._asdict(), **described, **trained, **measured}


def _measures(run: RunId, files: Mapping[tuple[RunId, str], Path]) -> dict[str, Any]:
    """Measurements of one dictionary by section, without what there is of every feature."""
    own = {SECTIONS[name]: path for (other, name), path in files.items() if other == run and SECTIONS[name].in_results}
    return {section.name: section.summary(read_json(path, "a measurement of a dictionary")) for section, path in own.items()}


def load_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a run's folder, with each run's `seconds` and `tokens_per_second` from its `timing.json`.

    Raises TemporalLensError when the file is missing or is not of this version.
    """
    path = RunFolder(folder).results
    content = read_json(path, "the results of a study")
    try:
        results = Results.model_validate(content).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        raise TemporalLensError(
            f"{path} is not a results file of this version ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from error
    return {**results, "runs": [run | _timing(folder, run) for run in results["runs"]]}


def _timing(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    own = RunFolder(folder).arm(RunId(run["activations"], run["arm"], run["seed"]))
    return dict(read_json(own / "timing.json", "the times of a training run"))
