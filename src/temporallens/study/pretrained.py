"""Arms that are trained already: a study reads them instead of training them, once for all seeds, and measures them like any other.

Whether one belongs to the activations that it is measured on is looked at before anything is harvested, and again when it is saved into the
run's folder, where it is a dictionary of ours from then on. It has no history but the line that says so, and no times.
"""

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from temporallens.activations.language import shipped
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.hooks import Layer
from temporallens.activations.loader import Loader
from temporallens.activations.store import ActivationStore
from temporallens.activations.stored import StoredPolicy
from temporallens.activations.writer import TARGET
from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.dictionaries.saving import save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.files import write_json
from temporallens.interop.loading import read_pretrained
from temporallens.interop.points import layer_of
from temporallens.study.config import Study
from temporallens.study.models import model_sizes
from temporallens.study.sources import target_in
from temporallens.study.stages import Stage
from temporallens.training.finishing import CALIBRATION_BATCHES
from temporallens.training.history import History
from temporallens.training.objective import inputs_for
from temporallens.training.policy import TrainingPolicy

ALIASES = {"gpt2-small": "gpt2"}
"""Names that TransformerLens has for models that the hub calls otherwise; most differ in their owner only."""


class Place(NamedTuple):
    """Activations, as far as they are known; None where they are not."""

    title: str
    width: int | None
    model: str | None  # where it is None, layer and target are no places in one either
    layer: tuple[Layer, ...] = ()  # by every name that it has
    target: tuple[Layer, ...] | None = None  # of a pair
    output_width: int | None = None  # of what is to be given back


def check_pretrained(study: Study, stages: Iterable[Stage]) -> None:
    """Raise TemporalLensError where a dictionary that these stages read cannot be read, or belongs to other activations."""
    for stage in stages:
        arm = None if stage.kind != "train" or stage.run is None else study.variants()[stage.run.arm].arm
        if isinstance(arm, Pretrained) and stage.run is not None:
            _check_fit(read_pretrained(arm), f"arms.{stage.run.arm}", _planned(study, stage.activations))


def _planned(study: Study, entry: str) -> Place:
    policy, given = study.activations[entry], target_in(study.activations[entry])
    target = None if given is None else (given,)
    if isinstance(policy, StoredPolicy):
        return _lying(policy.opened, Place(f"activations.{entry}", None, None, target=target))
    if not isinstance(policy, HarvestPolicy):
        return Place(f"activations.{entry}", policy.width, None, target=target, output_width=policy.width)
    sizes = model_sizes(policy.model)
    width = sizes and sizes.width
    return Place(f"activations.{entry}", width, policy.model, (policy.layer,), target, width)


def _stored(study: Study, store: ActivationStore, entry: str) -> Place:
    """As planned, and by the names that the model has for it."""
    return _lying(store, _planned(study, entry))


def _lying(store: ActivationStore, planned: Place) -> Place:
    """With what a store says of itself."""
    about = store.manifest.description
    model, layer, target = about.source.get("model"), about.source.get("layer"), about.policies.get(TARGET)
    if isinstance(model, str) and planned.model is None:
        planned = planned._replace(model=model)
    if isinstance(layer, int | str):
        planned = planned._replace(layer=(*planned.layer, layer))
    if planned.target is not None and isinstance(target, int | str):
        planned = planned._replace(target=(*planned.target, target))
    return planned._replace(width=store.width, output_width=store.given.width)


def _check_fit(dictionary: PretrainedDictionary, name: str, place: Place) -> None:
    """Raise TemporalLensError where a dictionary is for other activations than those of a place, as far as both are known."""
    origin = dictionary.config.origin
    where = f"{name} is {dictionary.config.path}"
    _check_target(dictionary, where, place)
    if place.width is not None and dictionary.width != place.width:
        raise TemporalLensError(f"{where}, for activations of width {dictionary.width}, and those of {place.title} have {place.width}")
    if place.output_width is not None and dictionary.output_width != place.output_width:
        raise TemporalLensError(
            f"{where}, which gives activations of width {dictionary.output_width}, and those of the target of {place.title} have "
            f"{place.output_width}"
        )
    if place.model is None:
        return
    if origin.model is not None and not _same_model(origin.model, place.model):
        raise TemporalLensError(
            f"{where}, for the model {origin.model}, and {place.title} is of {place.model}; if these are the same, say so with "
            f"origin: {{model: {place.model}}}"
        )
    found = f"layer {origin.layer}" if origin.layer is not None else f"the point {origin.point}"
    if (origin.layer is not None or origin.point is not None) and origin.layer not in place.layer:
        raise TemporalLensError(
            f"{where}, for {found}, and {place.title} is layer {place.layer[0]}; if these are the same, say so with "
            f"origin: {{layer: {place.layer[0]}}}"
        )


def _check_target(dictionary: PretrainedDictionary, where: str, place: Place) -> None:
    """Raise TemporalLensError for a transcoder where nothing is harvested that it should give, or something else; and for any other
    dictionary where that is."""
    origin = dictionary.config.origin
    if not dictionary.transcodes:
        if place.target is not None:
            raise TemporalLensError(
                f"{where}, which gives back what it takes, and {place.title} has the target {place.target[0]}, which is for transcoders: "
                "leave one of them out"
            )
        return
    given = layer_of(origin.target)
    if place.target is None:
        named = origin.target if given is None else given
        raise TemporalLensError(
            f"{where}, a transcoder: it gives activations at {named or 'another point'}, and {place.title} has none to compare them with; "
            f"give that entry a target{'' if given is None else f': {given}'}"
        )
    if place.model is not None and origin.target is not None and given not in place.target:
        raise TemporalLensError(
            f"{where}, which gives activations at {origin.target}, and the target of {place.title} is {place.target[0]}; if these are the "
            f"same, say so with origin: {{target: {place.target[0]}}}"
        )


def _same_model(first: str, second: str) -> bool:
    names = {_short(first), *([_short(shipped.MODELS[first].title)] if first in shipped.MODELS else [])}
    return bool(names & {_short(second), *([_short(shipped.MODELS[second].title)] if second in shipped.MODELS else [])})


def _short(model: str) -> str:
    """A model's name without its owner or folder."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return ALIASES.get(name, name)


@torch.inference_mode()
def save_pretrained(study: Study, stage: Stage, arm: Pretrained, store: ActivationStore, folder: Path) -> None:
    """Read the dictionary of a stage into the run's `folder`, as training leaves one there; `training.json`, the proof, comes last.

    Its losses are the squared error on as many batches of the training documents as trained arms are calibrated on, in their units.
    """
    began, policy = time.perf_counter(), study.training
    assert stage.run is not None
    dictionary = read_pretrained(arm)
    _check_fit(dictionary, f"arms.{stage.run.arm}", _stored(study, store, stage.activations))
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.given.moments_of(split.train)
    scale = inputs_for(moments.pooled_mean(), moments.pooled_variance()).scale
    loss = _squared_error(dictionary, store, policy) * scale**2
    summary = {
        "arm": dictionary.config.model_dump(mode="json"),
        "seed": stage.run.seed,
        "training_steps": 0,
        "tokens_seen": 0,
        "final_loss": loss,
        "mse_loss": loss,
        "sparsity_loss": 0.0,
        "scale": scale,
        "training": policy.model_dump(mode="json"),
    }
    source = store.manifest.description
    about = {"source": source.source, "policies": source.policies, "training": summary}
    save_dictionary(dictionary, folder, dictionary.config, store.positions, about)
    history = History()
    history.append({"step": 0, "tokens": 0, "position_weight": torch.ones(store.positions, dtype=torch.float32).numpy()})
    history.save(folder / "history.safetensors")
    write_json(folder / "timing.json", {"seconds": time.perf_counter() - began, "tokens_per_second": 0.0})
    write_json(folder / "training.json", summary)


def _squared_error(dictionary: PretrainedDictionary, store: ActivationStore, policy: TrainingPolicy) -> float:
    """Per token, on documents that trained arms learn from."""
    loader = Loader(store, store.split(policy.held_out, policy.data_seed).train, policy.batch_size, policy.data_seed)
    errors = []
    for batch in islice(loader, CALIBRATION_BATCHES):
        wanted = batch.x if batch.target is None else batch.target
        errors.append(float((wanted.float() - dictionary(batch.x.float())).square().sum(1).mean()))
    loader.close()
    return sum(errors) / len(errors)
