"""Llama Scope (OpenMOSS): `hyperparams.json` and `checkpoints/final.safetensors`.

    x'     x s_in,  s = sqrt(D) / the data set's average norm (`dataset_average_activation_norm`, of input and output)
    p      x' W_enc + b_enc
    z      p [p |W_dec row| > theta s_out], without the norm where `sparsity_include_decoder_norm` is false
    x_hat  (z W_dec + b_dec) / s_out

theta, `jump_relu_threshold`, is one number in units of the output: stored values differ a hundredfold between layers, and theta s_out
hardly. Both scales are moved into the weights, where they change no code; thresholds take the norms. SAELens multiplies theta by s_in and
leaves out the norms, which is the same where both norms and all rows are (SAEs with unit rows).
"""

from pathlib import Path
from typing import Any

import torch

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json
from temporallens.interop.assembling import agree, assemble, completed, expect, flag, mapping, number, scale_by, settled, text
from temporallens.interop.foreign import open_tensors
from temporallens.interop.points import layer_of

FILES = ("hyperparams.json", "checkpoints/final.safetensors")
BESIDE: tuple[str, ...] = ()
NAMES = {"encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "decoder.weight", "decoder_bias": "decoder.bias"}
UNSCALED = ("inference", "no-norm", None)


@torch.no_grad()
def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for other activations and norms than those above."""
    path, weights = folder / FILES[0], folder / FILES[1]
    config = mapping(read_json(path, "the settings of a Llama Scope dictionary", foreign=True), path)
    if config.get("act_fn", "jumprelu") != "jumprelu":
        raise TemporalLensError(f"{path} says act_fn = {str(config['act_fn'])[:60]}: only jumprelu is read")
    tensors = open_tensors(weights)
    expect(weights, tensors, list(NAMES.values()))
    parts = {ours: tensors[theirs] for ours, theirs in NAMES.items()}
    parts["decoder"] = parts["decoder"].T
    agree(path, {"d_sae": number(config, "d_sae", path), "d_model": number(config, "d_model", path)}, parts["encoder"])
    origin, threshold = _origin(config), number(config, "jump_relu_threshold", path, float, 0)
    if threshold is None:
        raise TemporalLensError(f"{path} does not say its jump_relu_threshold")
    said: dict[str, Any] = {"subtracts_bias": False, "k": None, "transcodes": origin["target"] is not None}
    dictionary = assemble(weights, settled(request, path, origin, **said), parts)
    taken, given = _scales(config, path, dictionary.width, dictionary.output_width)
    assert dictionary.threshold is not None
    dictionary.threshold.fill_(threshold * given)
    if flag(config, "sparsity_include_decoder_norm", path, default=True):
        dictionary.threshold.div_(torch.linalg.vector_norm(dictionary.decoder, dim=1).clamp_min(torch.finfo(torch.float32).tiny))
        dictionary.threshold.clamp_(max=torch.finfo(torch.float32).max)  # of a row of zeros, which nothing can exceed
    if flag(config, "apply_decoder_bias_to_pre_encoder", path):
        if dictionary.output_width != dictionary.width:
            raise TemporalLensError(f"{path} says that the decoder's bias is taken off the input, and the two have different widths")
        dictionary.encoder_bias.sub_(dictionary.encoder @ dictionary.decoder_bias)
    scale_by(dictionary, taken, given)
    return completed(weights, dictionary)


def _scales(config: dict[str, Any], path: Path, width: int, output_width: int) -> tuple[float, float]:
    """Of input and output."""
    how = config.get("norm_activation", "dataset-wise")
    if how in UNSCALED:
        return 1.0, 1.0
    norms = config.get("dataset_average_activation_norm")
    if how != "dataset-wise" or not isinstance(norms, dict):
        raise TemporalLensError(
            f"{path} says norm_activation = {str(how)[:60]}: only dataset-wise is read, with the average norms in and out"
        )
    found = [number(norms, side, path, float, 0) for side in ("in", "out")]
    if not all(found):
        raise TemporalLensError(f"{path} does not say both of dataset_average_activation_norm: in and out")
    return width**0.5 / found[0], output_width**0.5 / found[1]


def _origin(config: dict[str, Any]) -> dict[str, Any]:
    taken, given = text(config, "hook_point_in"), text(config, "hook_point_out")
    return {
        "format": "Llama Scope",
        "model": text(config, "model_name"),
        "point": taken,
        "layer": layer_of(taken),
        "target": None if given == taken else given,
    }
