"""Out again: a dictionary in the files of another library, whose codes are then those that it has here.

    saelens               cfg.json, sae_weights.safetensors        standard, topk, and jumprelu for all that a threshold decides
    sparsify              cfg.json, sae.safetensors, under layers.N/ with config.json above      topk
    dictionary_learning   ae.pt, config.json      AutoEncoder, AutoEncoderTopK, BatchTopKSAE; JumpReluAutoEncoder where thresholds differ

A dictionary under a mask goes out as its base, which is open everywhere, with its own files in `temporallens/` beside it, and the card says
so. One that is centred by position, or has an expectation, has no such form. One that others trained goes out of one library's files into
another's. What these libraries cannot say is refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from temporallens.activations.language.loading import loading_in_words
from temporallens.dictionaries.arms.pretrained import PretrainedDictionary
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import SAELENS_VERSION, load_dictionary, read_config
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, refuse_full, user_path, write_atomically, write_tensors, write_text
from temporallens.interop.card import PICTURE, Card, Described, check_licence, written
from temporallens.wording import listed

MODULES = {
    "AutoEncoderTopK": "dictionary_learning.trainers.top_k",
    "BatchTopKSAE": "dictionary_learning.trainers.batch_top_k",
}
"""Where dictionary_learning has its classes; the others are in `dictionary_learning.dictionary`."""
KEPT = "temporallens"
"""Folder of our own files, where another library has a part of a dictionary only."""


class Base(NamedTuple):
    """What every library can say: `pre = (x - b_dec) W_enc + b_enc`, and what is kept of it."""

    tensors: dict[str, Tensor]  # encoder [F, D], encoder_bias, decoder [F, D], decoder_bias
    k: int | None  # the largest of each token
    threshold: Tensor | None  # [F]; neither: what is above 0
    about: dict[str, Any]  # model, layer, point, context_length, bos


class Written(NamedTuple):
    """What a library's files are."""

    loading: str  # the code that loads them, `folder` being theirs


def check_form(form: str) -> None:
    """Raise TemporalLensError for a library in whose files nothing is written."""
    if form not in WRITERS:
        raise TemporalLensError(f"the format is '{form}': it should be one of {', '.join(WRITERS)}")


def export(folder: Path | str, form: str, out: Path | str, card: Card = Card()) -> Path:  # noqa: B008 (frozen)
    """Write the dictionary saved in `folder` in the files of another library; returns the folder `out`, which may hold the picture of
    the card.

    Raises TemporalLensError where that library has no form for it, and for a folder that is not empty.
    """
    folder, out = user_path(folder), user_path(out)
    check_form(form)
    check_licence(card.licence)
    refuse_full(out, but=(PICTURE,))
    dictionary = load_dictionary(folder)
    base = _base(dictionary, folder)
    base = base._replace(about=base.about | {"model": _as_others_know(base.about["model"])})
    done = WRITERS[form](base, out)
    if dictionary.masked:
        shutil.copytree(folder, out / KEPT, ignore=shutil.ignore_patterns("soft", "snapshots"))
    write_text(out / "README.md", written(card, _described(dictionary, base, form, folder, done)))
    return out


def _as_others_know(model: str | None) -> str | None:
    """A model's name without the folders of this machine, which are nobody's business and no help elsewhere."""
    local = model is not None and (model.startswith(("/", ".", "~")) or user_path(model).exists())
    return PurePath(model).name if model is not None and local else model


def _base(dictionary: Dictionary, folder: Path) -> Base:
    if dictionary.position_offset is not None or dictionary.config.expectation is not None:
        what = "position says" if dictionary.position_offset is not None else "tokens say"
        raise TemporalLensError(f"{folder} takes off what {what} before it encodes, for which no other library has a form")
    if isinstance(dictionary, PretrainedDictionary):
        return _of_others(dictionary, folder)
    if dictionary.architecture is None and not dictionary.masked:
        raise TemporalLensError(f"{folder} is a '{dictionary.kind}' dictionary, for which no other library has a form")
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    tensors = {name: getattr(dictionary, name).detach().contiguous() for name in names}
    threshold = getattr(dictionary, "threshold", None)
    k = int(dictionary.config.k) if dictionary.architecture == "topk" else None  # type: ignore[attr-defined]
    kept = None if threshold is None or k is not None else threshold.detach().expand(dictionary.features).contiguous()
    ours = read_config(folder)["metadata"]["temporallens"]
    source, policies = ours.get("source") or {}, ours.get("policies") or {}
    layer = source.get("layer")
    about = {"model": source.get("model"), "layer": layer, "point": _point(layer), "context_length": policies.get("context_length")}
    return Base(tensors, k, kept, about | {"bos": policies.get("bos", True), "held": loading_in_words(policies)})


def _point(layer: int | str | None) -> str | None:
    """As TransformerLens names it."""
    return f"blocks.{layer}.hook_resid_post" if isinstance(layer, int) else "blocks.0.hook_resid_pre" if layer == "embed" else layer


def _of_others(dictionary: PretrainedDictionary, folder: Path) -> Base:
    """One that others trained, with codes of the same sizes. A bias that is not taken off the input is added to what is taken off again;
    without thresholds other than 0, and with rows of unit norm, it is a ReLU."""
    config, origin = dictionary.config, dictionary.config.origin
    odd = {
        "normalises each activation by itself": config.input != "raw",
        "is a transcoder": config.transcodes,
        "skips its codes": config.skip,
        "keeps the largest code of each group": config.grouped,
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise TemporalLensError(f"{folder} {listed(found)}, for which there is no form here: keep the files that it came in")
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    tensors = {name: getattr(dictionary, name).detach().contiguous() for name in names}
    if not config.subtracts_bias:
        tensors["encoder_bias"] = tensors["encoder_bias"] + tensors["encoder"] @ tensors["decoder_bias"]
    norms = torch.linalg.vector_norm(tensors["decoder"], dim=1)
    is_relu = dictionary.threshold is not None and not bool(dictionary.threshold.any()) and torch.allclose(norms, torch.ones_like(norms))
    about = {"model": origin.model, "layer": origin.layer, "point": _point(origin.layer) or origin.point}
    about |= {"context_length": origin.context_length, "bos": origin.bos is not False}
    return Base(tensors, config.k, None if is_relu else dictionary.threshold, about)


def _saelens(base: Base, out: Path) -> Written:
    t, about = base.tensors, base.about
    architecture = "topk" if base.k is not None else "jumprelu" if base.threshold is not None else "standard"
    weights = {"W_enc": t["encoder"].T.contiguous(), "b_enc": t["encoder_bias"], "W_dec": t["decoder"], "b_dec": t["decoder_bias"]}
    write_tensors(out / "sae_weights.safetensors", weights | ({} if base.threshold is None else {"threshold": base.threshold}))
    metadata = {"sae_lens_version": SAELENS_VERSION, "model_name": about["model"], "hook_name": about["point"]}
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": t["encoder"].shape[1],
        "d_sae": t["encoder"].shape[0],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata | {"context_size": about["context_length"], "prepend_bos": about["bos"]},
    }
    _write_settings(out / "cfg.json", config | ({} if base.k is None else {"k": base.k, "rescale_acts_by_decoder_norm": False}))
    return Written("from sae_lens import SAE\nsae = SAE.load_from_disk(folder)")


def _sparsify(base: Base, out: Path) -> Written:
    if base.k is None:
        raise TemporalLensError("sparsify keeps the k largest of each token, and this dictionary goes by thresholds: export another format")
    t, about = base.tensors, base.about
    point = f"layers.{about['layer']}" if isinstance(about["layer"], int) else str(about["point"] or "activations")
    weights = {"encoder.weight": t["encoder"], "encoder.bias": t["encoder_bias"], "W_dec": t["decoder"], "b_dec": t["decoder_bias"]}
    features, width = t["encoder"].shape
    write_tensors(out / point / "sae.safetensors", weights)
    settings = {"activation": "topk", "expansion_factor": max(1, features // width), "normalize_decoder": True, "num_latents": features}
    switches = {"multi_topk": False, "skip_connection": False, "transcode": False}
    _write_settings(out / point / "cfg.json", settings | switches | {"k": base.k, "d_in": width})
    _write_settings(out / "config.json", {"model": about["model"], "ctx_len": about["context_length"]})
    return Written(f'from sparsify import SparseCoder\nsae = SparseCoder.load_from_disk(f"{{folder}}/{point}")')


def _dictionary_learning(base: Base, out: Path) -> Written:
    t, about = base.tensors, base.about
    linear = {"encoder.weight": t["encoder"], "encoder.bias": t["encoder_bias"], "decoder.weight": t["decoder"].T.contiguous()}
    if base.k is not None:
        kind, state = "AutoEncoderTopK", linear | {"b_dec": t["decoder_bias"], "k": torch.tensor(base.k), "threshold": torch.tensor(-1.0)}
    elif base.threshold is None:
        kind, state = "AutoEncoder", linear | {"bias": t["decoder_bias"]}
    elif bool((base.threshold == base.threshold[0]).all()):
        kind, state = "BatchTopKSAE", linear | {"b_dec": t["decoder_bias"], "k": torch.tensor(1), "threshold": base.threshold[0].clone()}
    else:  # which takes no bias off its input
        kind, shifted = "JumpReluAutoEncoder", t["encoder_bias"] - t["encoder"] @ t["decoder_bias"]
        state = {"W_enc": t["encoder"].T.contiguous(), "b_enc": shifted, "W_dec": t["decoder"], "b_dec": t["decoder_bias"]}
        state |= {"threshold": base.threshold}
    write_atomically(out / "ae.pt", lambda place: torch.save(state, place))
    features, width = t["encoder"].shape
    trainer = {"dict_class": kind, "activation_dim": width, "dict_size": features, "lm_name": about["model"], "layer": about["layer"]}
    trainer |= {"submodule_name": "resid_post" if isinstance(about["layer"], int) else about["point"], "k": base.k}
    _write_settings(out / "config.json", {"trainer": trainer, "buffer": {"ctx_len": about["context_length"]}})
    given = f'"{{folder}}/ae.pt", k={base.k}' if base.k is not None else '"{folder}/ae.pt"'
    return Written(f"from {MODULES.get(kind, 'dictionary_learning.dictionary')} import {kind}\nsae = {kind}.from_pretrained(f{given})")


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    """As other programs write JSON: without the checksum that our own files carry."""
    write_text(path, json.dumps(settings, indent=1, allow_nan=False) + "\n")


WRITERS: dict[str, Callable[[Base, Path], Written]] = {
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary_learning": _dictionary_learning,
}


def _described(dictionary: Dictionary, base: Base, form: str, folder: Path, written: Written) -> Described:
    """What it is, what it was trained on, how to load it."""
    about, summary = base.about, folder / "training.json"
    facts = {"arm": dictionary.kind, "features": dictionary.features, "width": dictionary.width, "model": about["model"]}
    facts |= {"model held with": about.get("held")}  # activations of a model in eight bits are not those of the model
    facts |= {"layer": about["layer"], "hook": about["point"], "context length": about["context_length"]}
    if summary.is_file():
        facts |= {"tokens seen": read_json(summary, "the summary of a training run").get("tokens_seen")}
    masked = (
        f"It was trained under a mask by position, which {form} cannot say: these files are its base, open at every position, and its "
        f"codes are not those of its training. The dictionary itself is in `{KEPT}/`; TemporalLens reads it."
    )
    others = {
        other: f"`temporallens export DICTIONARY --format {other} --out FOLDER` writes the same dictionary for it."
        if other != "sparsify" or base.k is not None
        else "it keeps the k largest codes of each token, and this dictionary goes by thresholds, so that it has no form there."
        for other in WRITERS
        if other != form
    }
    return Described(facts, form, written.loading, others, [masked] if dictionary.masked else [])
