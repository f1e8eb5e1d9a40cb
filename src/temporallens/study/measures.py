"""What a study measures of its dictionaries beyond reconstruction: the sections of `evaluation:`, and how each is done.

A section is the policy of the module that measures it. Every section of every dictionary that is measured is one stage with one
file, `measures/SECTION/ACTIVATIONS/RUN.json`; what does not depend on the dictionary (passes of the model, baselines) is kept in
`passes/` and used by all.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.kinds import Arm
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.clusters.section import measure_clusters
from temporallens.evaluation.features import FeaturesPolicy, measure_features
from temporallens.evaluation.model.fidelity import FidelityPolicy, measure_fidelity
from temporallens.evaluation.model.splicing import SplicingPolicy, measure_splicing
from temporallens.evaluation.order.scores import OrderMeasures, order_gains
from temporallens.evaluation.order.section import OrderPolicy, measure_order
from temporallens.evaluation.positions.section import PositionsPolicy, measure_positions
from temporallens.evaluation.probing.results import probing_gains
from temporallens.evaluation.probing.section import ProbingPolicy, measure_probing
from temporallens.files import read_json
from temporallens.settings import Settings
from temporallens.training.history import load_history
from temporallens.training.snapshots import snapshots_of, soft_of

VERSION = 1
"""Raise it when a measurement gives other output for the same settings."""

OF_MODELS = ("splicing", "fidelity", "order", "probing")
"""Sections that read the language model again; activations of another source have none."""

ACROSS_SEEDS = ("positions", "clusters")
"""Sections that compare a dictionary with the same arm trained from other seeds."""


class Evaluation(Settings):
    """What is measured beyond reconstruction; a section that is left out is not measured, `{}` takes its defaults."""

    runs: Literal["shown", "all"] = "shown"
    """Which dictionaries: of each arm on each activations entry the first seed at the middle one of its levels, or every one."""
    positions: PositionsPolicy | None = None
    """Which features depend on position, what of that hardening and other seeds keep, what masks and weights follow."""
    clusters: ClustersPolicy | None = None
    """Features grouped by when in the sequence they fire."""
    features: FeaturesPolicy | None = None
    """What there is to see of every feature: the report's feature browser."""
    splicing: SplicingPolicy | None = None
    """What the model loses when it goes on from reconstructions."""
    fidelity: FidelityPolicy | None = None
    """What features follow when a prefix pushes the text to later positions."""
    order: OrderPolicy | None = None
    """Probing on tasks that a bag of words cannot do."""
    probing: ProbingPolicy | None = None
    """Sparse probing on labelled sets."""

    def sections(self, *, of_model: bool) -> dict[str, BaseModel]:
        """The sections that are measured on activations of a model, or of another source, in order."""
        named = {name: getattr(self, name) for name in MEASURES}
        return {name: policy for name, policy in named.items() if policy is not None and (of_model or name not in OF_MODELS)}


class Subject(NamedTuple):
    """One trained dictionary with what it is measured on."""

    folder: Path  # of the trained arm
    dictionary: Dictionary
    store: ActivationStore
    held_out: Int[np.ndarray, " n"]
    others: list[Path]  # folders of the same arm from other seeds
    cache: Path

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the activations came from: `model`, `layer`, `revision`."""
        return self.store.manifest.description.source

    def other_seeds(self) -> list[Dictionary]:
        return [load_dictionary(folder) for folder in self.others]


def _positions(subject: Subject, policy: PositionsPolicy) -> Any:
    soft = soft_of(subject.folder)
    history = load_history(subject.folder / "history.safetensors")
    return measure_positions(
        subject.dictionary,
        subject.store,
        subject.held_out,
        policy,
        soft=None if soft is None else load_dictionary(soft),
        weights=history["position_weight"][-1],
        snapshots=snapshots_of(subject.folder),
        other_seeds=subject.other_seeds(),
    )


def _clusters(subject: Subject, policy: ClustersPolicy) -> Any:
    snapshots, others = snapshots_of(subject.folder), subject.other_seeds()
    return measure_clusters(subject.dictionary, subject.store, subject.held_out, policy, snapshots, others)


def _features(subject: Subject, policy: FeaturesPolicy) -> Any:
    return measure_features(subject.dictionary, subject.store, subject.held_out, policy)


def _splicing(subject: Subject, policy: SplicingPolicy) -> Any:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_splicing(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def _fidelity(subject: Subject, policy: FidelityPolicy) -> Any:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_fidelity(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def _order(subject: Subject, policy: OrderPolicy) -> Any:
    model, layer, revision = (subject.source[name] for name in ("model", "layer", "revision"))
    return measure_order(subject.dictionary, model, layer, policy, subject.cache, revision)


def _probing(subject: Subject, policy: ProbingPolicy) -> Any:
    model, layer, revision = (subject.source[name] for name in ("model", "layer", "revision"))
    return measure_probing(subject.dictionary, model, layer, policy, subject.cache, revision)


MEASURES: dict[str, Callable[[Subject, Any], Any]] = {
    "positions": _positions,
    "clusters": _clusters,
    "features": _features,
    "splicing": _splicing,
    "fidelity": _fidelity,
    "order": _order,
    "probing": _probing,
}
"""Each gives a NamedTuple with `to_json`."""


COMPARED = ("order", "probing")
"""Sections in which a dictionary's gain over an ordinary one is told."""

ORDINARY = ("batchtopk", "topk", "jumprelu", "matryoshka", "standard")
"""Kinds of ordinary dictionaries, the one to be compared with first."""


class Measured(NamedTuple):
    """A dictionary that is measured, and what decides which other it is compared with."""

    run: str
    family: str
    arm: Arm
    seed: int

    @property
    def alike(self) -> tuple[Any, ...]:
        """Equal for dictionaries that differ in their kind only."""
        level = self.arm.level
        return self.seed, level, getattr(self.arm, level) if level else None


def compared(measured: Sequence[Measured]) -> dict[str, str]:
    """For each dictionary the ordinary one that it is compared with: of the first ordinary arm the one of its own level and seed, or
    the only one that there is. Dictionaries without such a partner are left out, and so are all where no arm is ordinary."""
    family = next((own.family for kind in ORDINARY for own in measured if own.arm.kind == kind), None)
    ordinary = [own for own in measured if own.family == family]
    partners = {}
    for own in measured:
        same = ordinary if len(ordinary) == 1 else [other for other in ordinary if other.alike == own.alike]
        if own.family != family and same:
            partners[own.run] = same[0].run
    return partners


def gains(partners: Mapping[str, str], files: Mapping[str, Mapping[str, Path]], cache: Path) -> dict[str, Any]:
    """What each dictionary's probes have over those of its partner, pooled by position bins; `files` are the measurements by section
    and dictionary. Raises TemporalLensError where two were not measured alike."""
    found: dict[str, Any] = {"against": dict(partners)}
    for section, own in files.items():
        compare = _order_gains if section == "order" else partial(_probing_gains, cache=cache)
        read = {name: read_json(path, "a measurement of a dictionary") for name, path in own.items()}
        found[section] = {name: compare(read[name], read[partner]) for name, partner in partners.items()}
    return found


def _order_gains(arm: Any, ordinary: Any) -> list[dict[str, Any]]:
    told = order_gains(OrderMeasures.from_json(arm), OrderMeasures.from_json(ordinary))
    return [gain._asdict() | {"against_bins": gain.against_bins._asdict(), "against_same": gain.against_same._asdict()} for gain in told]


def _probing_gains(arm: Any, ordinary: Any, cache: Path) -> list[dict[str, Any]]:
    told = probing_gains(arm["kept"], ordinary["kept"], cache)
    return [gain._asdict() | {"auc": gain.auc._asdict()} for gain in told]


def measure(section: str, subject: Subject, policy: BaseModel) -> dict[str, Any]:
    """One section of one dictionary, as JSON. Raises TemporalLensError as the section's own function does."""
    return dict(MEASURES[section](subject, policy).to_json())
