"""sparsify: `cfg.json` and `sae.safetensors`, in a folder with the name of the point, under one with the settings of the training.

    z      the k largest of relu((x - b_dec) W_enc + b_enc) of each token; without taking b_dec off where it was trained to `transcode`
    x_hat  z W_dec + b_dec, + x W_skip^T with `skip_connection`

With `activation: groupmax` the largest of each of k groups of neighbouring features is kept. `multi_topk` was trained to serve with k codes
and with 4 k, and which of them is to be judged is for its user to say: give k. Codes of older files marked `signed` may be negative.
"""

from pathlib import Path
from typing import Any

from temporallens.activations.language.hooks import GIVEN
from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json
from temporallens.interop.assembling import agree, assemble, completed, expect, flag, mapping, number, settled, text
from temporallens.interop.foreign import open_tensors
from temporallens.interop.points import layer_of

FILES = ("cfg.json", "sae.safetensors")
BESIDE = ("../config.json",)


def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for what is refused above, and for files that contradict themselves."""
    path, weights = folder / FILES[0], folder / FILES[1]
    config = mapping(read_json(path, "the settings of a sparsify dictionary", foreign=True), path)
    activation, k = config.get("activation", "topk"), number(config, "k", path)
    if activation not in ("topk", "groupmax"):
        raise TemporalLensError(f"{path} says activation = {str(activation)[:60]}: it should be topk or groupmax")
    if flag(config, "signed", path):
        raise TemporalLensError(f"{path} is marked signed: its codes may be negative, and a feature fires here where its code is above 0")
    if k is None:
        raise TemporalLensError(f"{path} does not say k, the codes per token that its dictionary keeps")
    if flag(config, "multi_topk", path):
        if request.k is None:
            raise TemporalLensError(
                f"{path} was trained with multi_topk, to serve with {k} codes per token and with {4 * k}: "
                "give k, with which of them it is judged"
            )
        k = request.k
    skip, transcodes = flag(config, "skip_connection", path), flag(config, "transcode", path)
    tensors = open_tensors(weights)
    expect(weights, tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if skip else [])))
    parts = {ours: tensors[theirs] for ours, theirs in NAMES.items()}
    if skip:
        parts["skip"] = tensors["W_skip"].T
    agree(path, {"num_latents": _latents(config, path), "d_in": number(config, "d_in", path)}, parts["encoder"])
    said: dict[str, Any] = {
        "k": k,
        "grouped": activation == "groupmax",
        "subtracts_bias": not transcodes,
        "skip": skip,
        "transcodes": transcodes,
    }
    return completed(weights, assemble(weights, settled(request, path, _origin(folder, transcodes), **said), parts))


NAMES = {"encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "W_dec", "decoder_bias": "b_dec"}


def _latents(config: dict[str, Any], path: Path) -> int | None:
    """Width of the dictionary; 0 stands for a multiple of that of the input."""
    stated = number(config, "num_latents", path, least=0)
    width, factor = number(config, "d_in", path), number(config, "expansion_factor", path)
    return stated or (width * factor if width and factor else None)


def _origin(folder: Path, transcodes: bool) -> dict[str, Any]:
    """The folder's name is that of the point, which a transcoder gives, and takes what goes into it; the settings of the training lie
    above it."""
    above = folder.resolve().parent / "config.json"
    training = read_json(above, "the settings of a sparsify training", foreign=True) if above.is_file() else {}
    given = folder.resolve().name
    point = f"{given}{GIVEN}" if transcodes else given
    return {
        "format": "sparsify",
        "model": text(training, "model"),
        "point": point,
        "layer": layer_of(point),
        "target": given if transcodes else None,
        "context_length": number(training, "ctx_len", above),
    }
