"""SAELens, version 6 and before: `cfg.json` and `sae_weights.safetensors`.

    x'       x; layer_norm: (x - mean) / (std + 1e-5); constant_norm_rescale: sqrt(D) x / |x|            (`normalize_activations`)
    p        (x' - b_dec) W_enc + b_enc, without b_dec where `apply_b_dec_to_input` is false
    standard relu(p)                                  topk      the k largest of relu(p) [times the norm of each decoder row]
    jumprelu relu(p) [p > threshold]                  gated     relu(e^r g + b_mag) [g + b_gate > 0], g = (x' - b_dec) W_enc
    x_hat    z W_dec + b_dec, taken back from x' to x; codes of `rescale_acts_by_decoder_norm` are divided by the norms again

BatchTopK and Matryoshka are saved as jumprelu; what its trainer keeps of them (`topk_threshold`, `log_threshold`) is read as what it would
save. `expected_average_only_in` and `covariance_whitening` stand in the file of a training that is not over: the first needs the factor,
which `activation_scaler.json` beside it has or `input_scale` gives, the second the matrices of `activation_whitening.safetensors`; both
are moved into the weights, as SAELens does at the end. Transcoders add x W_skip^T where they have it, and take back no normalisation.
Before version 6 settings had other names, and b_dec was taken off unless a file said otherwise.
"""

from pathlib import Path
from typing import Any

import torch

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.files import read_json
from temporallens.interop.assembling import (
    agree,
    assemble,
    completed,
    expect,
    flag,
    gate,
    mapping,
    norms_into_codes,
    number,
    settled,
    text,
    vector,
)
from temporallens.interop.foreign import Entries, open_tensors
from temporallens.interop.points import layer_of
from temporallens.memory import CACHED_ROWS

FILES = ("cfg.json", "sae_weights.safetensors")
BESIDE = ("activation_scaler.json", "activation_whitening.safetensors")

PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
GATED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
TENSORS: dict[str, tuple[str, ...]] = {
    "standard": PLAIN,
    "topk": PLAIN,
    "jumprelu": (*PLAIN, "threshold"),
    "batchtopk": (*PLAIN, "topk_threshold"),
    "matryoshka_batchtopk": (*PLAIN, "topk_threshold"),
    "gated": GATED,
    "transcoder": PLAIN,
    "skip_transcoder": (*PLAIN, "W_skip"),
    "jumprelu_transcoder": (*PLAIN, "threshold"),
    "jumprelu_skip_transcoder": (*PLAIN, "threshold", "W_skip"),
}
"""What is read, with the tensors of each."""
REFUSED = {
    "abstopk": "its codes may be negative, and a feature fires here where its code is above 0",
    "temporal": "its codes depend on the tokens before, and it decodes the new part of an activation only",
    "matching_pursuit": "its codes are found one after the other, by no encoder",
}
INPUTS = {
    "none": "raw",
    "expected_average_only_in": "raw",
    "covariance_whitening": "raw",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_norm",
}


def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for what is refused above, and for files that contradict themselves."""
    path, weights = folder / FILES[0], folder / FILES[1]
    config = _of_version_6(mapping(read_json(path, "the settings of a SAELens dictionary", foreign=True), path))
    kind, normalised = config["architecture"], config["normalize_activations"]
    if isinstance(kind, str) and kind in REFUSED:
        raise TemporalLensError(f"{path} is a dictionary of the kind '{kind}', which cannot be read: {REFUSED[kind]}")
    for value, known, what in ((kind, TENSORS, "architecture"), (normalised, INPUTS, "normalize_activations")):
        if not isinstance(value, str) or value not in known:
            raise TemporalLensError(f"{path} says {what} = {str(value)[:60]}, which is not known{did_you_mean(str(value), known)}")
    tensors = _renamed(weights, open_tensors(weights))
    expect(weights, tensors, TENSORS[kind])
    transcodes = kind.endswith("transcoder")
    said: dict[str, Any] = {
        "subtracts_bias": flag(config, "apply_b_dec_to_input", path, default=True) and not transcodes,
        "k": number(config, "k", path) if kind == "topk" else None,
        "input": INPUTS[normalised],
        "transcodes": transcodes,
        "skip": "W_skip" in TENSORS[kind],
    }
    if kind == "topk" and said["k"] is None:
        raise TemporalLensError(f"{path} does not say k, the codes per token that its dictionary keeps")
    if normalised == "expected_average_only_in" and request.input_scale is None:
        request = request.model_copy(update={"input_scale": _scale(folder, path)})
    agree(path, {"d_sae": number(config, "d_sae", path), "d_in": number(config, "d_in", path)}, tensors["W_enc"].T)
    agree(path, {"d_out": number(config, "d_out", path)}, tensors["W_dec"].T)
    dictionary = _assembled(weights, settled(request, path, _origin(config), **said), tensors)
    if flag(config, "rescale_acts_by_decoder_norm", path):
        norms_into_codes(dictionary)
    if normalised == "covariance_whitening":
        _unwhiten(dictionary, folder / BESIDE[1])
    return completed(weights, dictionary)


def _of_version_6(config: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names of version 6, with the defaults of the version that wrote them."""
    metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    config = {"architecture": "standard", "metadata": metadata, **config}
    if not version.partition(".")[0].isdecimal() or int(version.partition(".")[0]) < 6:
        config["metadata"] = {**config, "hook_name": config.get("hook_name") or config.get("hook_point")}
        chosen = config.get("activation_fn_kwargs")
        if "topk" in (config.get("activation_fn"), config.get("activation_fn_str")) and isinstance(chosen, dict):
            config |= {"architecture": "topk", "k": chosen.get("k", config.get("k"))}
    normalised = config.get("normalize_activations")
    if normalised is None or isinstance(normalised, bool):
        config["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    return config


def _renamed(path: Path, tensors: Entries) -> Entries:
    """Without the factor of a fine-tuning that was never made. No class of version 6 has a place for one that was."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not bool(((vector(factor) - 1).abs() < 1e-5).all()):
        raise TemporalLensError(f"{path} has a scaling_factor of each feature from a fine-tuning, which SAELens itself no longer applies")
    if "log_threshold" in tensors and "threshold" not in tensors:
        tensors["threshold"] = tensors.pop("log_threshold")
    return tensors


def _scale(folder: Path, path: Path) -> float:
    """The factor of a training's inputs, which its checkpoints keep in a file of their own."""
    scaler = folder / BESIDE[0]
    found = (
        number(read_json(scaler, "the scale of SAELens' inputs", foreign=True), "scaling_factor", scaler, float, 0)
        if scaler.exists()
        else None
    )
    if not found:
        raise TemporalLensError(
            f"{path} says that activations were scaled to norm sqrt(D) in training, and nothing says by what factor: give input_scale "
            "(1 is what SAELens computes with this file as it stands)"
        )
    return float(found)


def _assembled(path: Path, config: Pretrained, tensors: Entries) -> PretrainedDictionary:
    parts = {"encoder": tensors["W_enc"].T, "decoder": tensors["W_dec"], "decoder_bias": tensors["b_dec"]}
    optional = {"encoder_bias": "b_enc", "threshold": "threshold", "skip": "W_skip"}
    parts |= {ours: tensors[theirs] for ours, theirs in optional.items() if theirs in tensors}
    if "topk_threshold" in tensors:
        parts["threshold"] = tensors["topk_threshold"]
    if config.skip:
        parts["skip"] = tensors["W_skip"].T
    dictionary = assemble(path, config, parts)
    if dictionary.threshold is not None and tensors.get("threshold") and tensors["threshold"].name == "log_threshold":
        dictionary.threshold.exp_()
    if "r_mag" in tensors:
        gate(dictionary, *(vector(tensors[name], dictionary.features) for name in ("r_mag", "b_gate", "b_mag")))
    return dictionary


@torch.no_grad()
def _unwhiten(dictionary: PretrainedDictionary, path: Path) -> None:
    """From inputs (x - mean) M to raw ones, and back to them with the inverse of M."""
    if not path.is_file():
        raise TemporalLensError(f"{path} does not exist: it should hold the matrices with which this dictionary's inputs were whitened")
    tensors = open_tensors(path)
    expect(path, tensors, ("mean", "matrix", "inverse_matrix"))
    mean, width = vector(tensors["mean"], dictionary.width), dictionary.width
    if dictionary.output_width != width:
        raise TemporalLensError(f"{path} whitens activations of width {width}, and those that the dictionary gives have another")
    for name in ("matrix", "inverse_matrix"):
        if tensors[name].shape != (width, width):
            raise TemporalLensError(f"{path}: '{name}' should have shape {(width, width)}, and has {tensors[name].shape}")
    matrix, inverse = (torch.cat([piece.float() for piece in tensors[name].pieces()]) for name in ("matrix", "inverse_matrix"))
    for rows in (*dictionary.encoder.split(CACHED_ROWS),):
        rows.copy_(rows @ matrix.T)
    for rows in (*dictionary.decoder.split(CACHED_ROWS),):
        rows.copy_(rows @ inverse)
    if not dictionary.config.subtracts_bias:
        dictionary.encoder_bias.sub_(dictionary.encoder @ mean)
    dictionary.decoder_bias.copy_(dictionary.decoder_bias @ inverse + mean)


def _origin(config: dict[str, Any]) -> dict[str, Any]:
    about = config["metadata"]
    point, target, begun = text(about, "hook_name"), text(about, "hook_name_out"), about.get("prepend_bos")
    if target is not None:  # of releases that it converts, these are the publisher's, and its own are others
        point, target = text(about, "hf_hook_name") or point, text(about, "hf_hook_name_out") or target
    length = about.get("context_size")
    return {
        "format": "SAELens",
        "model": text(about, "model_name"),
        "point": point,
        "layer": layer_of(point),
        "target": target,
        "context_length": length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None,
        "bos": begun if isinstance(begun, bool) else None,
    }
