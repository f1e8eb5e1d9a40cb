"""Gemma Scope 2 (of Gemma 3): `params.safetensors`, and mostly `config.json`.

    z = p [p > threshold],  p = x w_enc + b_enc;  x_hat = z w_dec + b_dec, + x affine_skip_connection of transcoders that have it

b_dec is not taken off the input, and nothing is normalised. Cross-layer transcoders, whose decoder has a matrix for each layer,
are refused.
"""

import re
from pathlib import Path
from typing import Any

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json
from temporallens.interop.assembling import assemble, completed, expect, mapping, settled, text
from temporallens.interop.foreign import open_tensors
from temporallens.interop.points import layer_of

FILES = ("params.safetensors",)
BESIDE = ("config.json",)
NAMES = {"encoder": "w_enc", "encoder_bias": "b_enc", "decoder": "w_dec", "decoder_bias": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"


def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for another architecture, and for cross-layer transcoders."""
    path, about = folder / FILES[0], folder / BESIDE[0]
    config = mapping(read_json(about, "the settings of a Gemma Scope 2 dictionary", foreign=True), about) if about.exists() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise TemporalLensError(f"{about} says architecture = {str(config['architecture'])[:60]}: it should be jump_relu")
    tensors = open_tensors(path)
    skip = SKIP in tensors
    expect(path, tensors, list(NAMES.values()), [SKIP])
    if len(tensors["w_dec"].shape) == 3:
        raise TemporalLensError(f"{path} is a cross-layer transcoder: it decodes into several layers at once, which is not judged here")
    parts = {ours: tensors[theirs] for ours, theirs in NAMES.items()}
    parts["encoder"] = parts["encoder"].T
    if skip:
        parts["skip"] = tensors[SKIP]
    origin = _origin(config, f"{request.path} {folder.resolve()}")
    said: dict[str, Any] = {"subtracts_bias": False, "k": None, "skip": skip, "transcodes": origin["target"] is not None}
    return completed(path, assemble(path, settled(request, about, origin, **said), parts))


def _origin(config: dict[str, Any], names: str) -> dict[str, Any]:
    """What the settings say, or else the names of the folders."""
    taken, given = text(config, "hf_hook_point_in"), text(config, "hf_hook_point_out")
    layer = re.search(r"layer_(\d+)", names)
    if taken is None and layer is not None and "resid_post" in names:
        taken = f"model.layers.{layer[1]}.output"
    if "transcoder" in names and given is None and layer is not None:
        taken, given = (f"model.layers.{layer[1]}.{side}_feedforward_layernorm.output" for side in ("pre", "post"))
    return {
        "format": "Gemma Scope 2",
        "model": text(config, "model_name"),
        "point": taken,
        "layer": layer_of(taken),
        "target": None if given == taken else given,
    }
