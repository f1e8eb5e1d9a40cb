"""What can be known of a study's models without loading or fetching them: their sizes, from the `config.json` at hand.

The plan reckons with them, and a layer or context that a model does not have is refused before anything is done for it.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from temporallens.activations.language.corpora import is_on_hub, open_corpus
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.model_files import check_at_hand, find_source, read_config
from temporallens.activations.language.models import check_layer
from temporallens.activations.language.shipped import TEXTS
from temporallens.errors import TemporalLensError
from temporallens.files import user_path
from temporallens.study.config import Study


class ModelSizes(NamedTuple):
    """What is known of a model that is not loaded."""

    width: int
    hidden: int  # of the feed-forward block
    layers: int
    context: int | None  # positions it has; None where its configuration gives none
    vocabulary: int = 0  # tokens that it has an embedding of; 0 where its configuration does not say


SHIPPED_MODELS = {"smollm2-135m": ModelSizes(576, 1536, 30, 8192, 49152), "minilm-l6": ModelSizes(384, 1536, 6, 512, 30522)}
PUBLISHED = {"google/gemma-2-2b": ModelSizes(2304, 9216, 26, 8192, 256000)}
"""From the `config.json` that stands on the hub, for plans that are made before it was fetched."""


def check_models(study: Study) -> None:
    """Raise TemporalLensError for a model that is not there, and for a layer or a context that a model at hand does not have."""
    for number, scan in enumerate(study.scans):
        check_at_hand(scan.model)
        _check_context(f"scans.{number}", scan.model, scan.context_length)
    for name, policy in study.from_models().items():
        check_at_hand(policy.model)
        _check_context(f"activations.{name}", policy.model, policy.context_length)
        if sizes := model_sizes(policy.model):
            check_layer(policy.layer, sizes.layers, policy.model)


def reach_models(models: Iterable[tuple[str, str | None]]) -> None:
    """Ask the hub for the configuration of those models (name, revision) that are only to be had there and were never fetched.

    A few kilobytes; raises TemporalLensError for a name that the hub does not know, or where it cannot be reached.
    """
    for model, revision in models:
        if model not in SHIPPED_MODELS and _in_hub_cache(model, revision) is None:
            source = find_source(model, revision)
            if not source.local:
                read_config(source)


def check_batches(study: Study) -> None:
    """Raise TemporalLensError where a batch is larger than all that an entry can give for training, as far as that is known."""
    training = study.training
    for name, entry in study.activations.items():
        most = entry.max_tokens if isinstance(entry, HarvestPolicy) else entry.tokens
        if most is not None and most * (1 - training.held_out) < training.batch_size:
            raise TemporalLensError(
                f"training.batch_size is {training.batch_size:,}, but activations.{name} holds at most {most:,} activations, of which "
                f"{training.held_out:g} are held out; give smaller batches or more activations"
            )


def _check_context(entry: str, model: str, context_length: int) -> None:
    sizes = model_sizes(model)
    if sizes is not None and sizes.context is not None and context_length > sizes.context:
        raise TemporalLensError(f"{entry}.context_length is {context_length}, too long: {model} has {sizes.context} positions")


def check_texts(study: Study) -> None:
    """Raise TemporalLensError for a text at hand that is empty, has not the requested column, or is one document where some are to be held
    out.

    Reads its first documents; what would have to be fetched is left alone.
    """
    scanned = {scan.text for scan in study.scans}
    requested = {(policy.text, policy.column, policy.split) for policy in study.from_models().values()}
    for text in sorted(scanned):
        if _is_at_hand(text):
            iter(open_corpus(text))
    for text, column, split in sorted(requested, key=str):
        if _is_at_hand(text) and len(list(islice(open_corpus(text, column, split), 2))) < 2:
            raise TemporalLensError(
                f"{text} is one document, and documents are divided into training and held-out ones: give a folder of texts, or a file "
                "with a document in each line (.jsonl) or row (.csv, .parquet)"
            )


def _is_at_hand(text: str) -> bool:
    return text not in TEXTS and not is_on_hub(text)


def model_sizes(model: str) -> ModelSizes | None:
    """Sizes of a shipped model, or from the `config.json` of a directory or of the hub's cache; those of `PUBLISHED`, or None, where there
    is none."""
    if model in SHIPPED_MODELS:
        return SHIPPED_MODELS[model]
    path = _configuration(model)
    if path is None:
        return PUBLISHED.get(model)
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TemporalLensError(f"{path} is not readable as the configuration of a model: {error}") from error
    return _sizes_of(config.get("text_config", config)) if isinstance(config, dict) else None


def is_assumed(model: str) -> bool:
    """Whether a model's sizes are those of `PUBLISHED`, without its own configuration being at hand."""
    return model in PUBLISHED and _configuration(model) is None


def _configuration(model: str) -> Path | None:
    folder = user_path(model)
    path = folder / "config.json" if folder.is_dir() else _in_hub_cache(model)
    return path if path is not None and path.is_file() else None


def _in_hub_cache(model: str, revision: str | None = None) -> Path | None:
    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # a path that is no hub name
        return None
    return Path(found) if isinstance(found, str) else None


def _sizes_of(config: dict[str, Any]) -> ModelSizes | None:
    """Sizes under the names that transformers' configurations give them; None where width or depth is missing."""

    def first(*names: str) -> int | None:
        return next((config[name] for name in names if isinstance(config.get(name), int)), None)

    width, layers = first("hidden_size", "n_embd"), first("num_hidden_layers", "n_layer")
    if width is None or layers is None:
        return None
    hidden, context = first("intermediate_size", "n_inner") or 4 * width, first("max_position_embeddings", "n_positions")
    return ModelSizes(width, hidden, layers, context, first("vocab_size") or 0)
