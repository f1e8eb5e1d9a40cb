"""Gemma Scope (of Gemma 2): `params.npz` in a folder `layer_L/width_W/average_l0_N`.

    z = p [p > threshold],  p = x W_enc + b_enc;  x_hat = z W_dec + b_dec

b_dec is not taken off the input, and nothing is normalised. The file says neither model nor layer: the names of its folders do. SAEs of
the embeddings were trained on embeddings that were not scaled by sqrt(D) as those are that enter the first block: what scale the
activations have is for their user to say.
"""

import re
from pathlib import Path
from typing import Any

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError
from temporallens.interop.assembling import assemble, completed, expect, settled, vector
from temporallens.interop.foreign import Entries, open_tensors

FILES = ("params.npz",)
BESIDE: tuple[str, ...] = ()
NAMES = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec", "threshold": "threshold"}
RELEASE = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
POINTS = {
    "res": "the residual stream",
    "mlp": "the output of the MLP",
    "att": "what enters the attention's output matrix",
    "transcoders": "what enters the MLP",
}


def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for other tensors, and where the scale of embeddings is not given."""
    path = folder / FILES[0]
    tensors = _renamed(path, open_tensors(path))
    expect(path, tensors, list(NAMES.values()))
    names = f"{request.path} {folder.resolve()}"
    if "embedding" in names and request.input_scale is None:
        raise TemporalLensError(
            f"{path} is of embeddings before they are scaled: give input_scale, 1 where yours are not scaled either, and 1 / sqrt(D) where "
            "they are those that enter the first block"
        )
    parts = {ours: tensors[theirs] for ours, theirs in NAMES.items()}
    parts["encoder"] = parts["encoder"].T
    origin = _origin(names)
    said: dict[str, Any] = {"subtracts_bias": False, "k": None, "transcodes": origin["target"] is not None}
    return completed(path, assemble(path, settled(request, path, origin, **said), parts))


def _renamed(path: Path, tensors: Entries) -> Entries:
    """Older files write `w_enc` and `w_dec`. A scaling factor of 1 is none."""
    tensors = {f"W{name[1:]}" if name.startswith("w_") else name: entry for name, entry in tensors.items()}
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not bool(((vector(factor) - 1).abs() < 1e-5).all()):
        raise TemporalLensError(f"{path} has a scaling_factor other than 1, and nothing says what it multiplies")
    return tensors


def _origin(names: str) -> dict[str, Any]:
    """What the names of the release and of its folders say."""
    release, layer = RELEASE.search(names), re.search(r"layer_(\d+)", names)
    model = None if release is None else f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}"
    stream = release is not None and release[3] == "res"
    return {
        "format": "Gemma Scope",
        "model": model,
        "point": None if release is None else POINTS[release[3]],
        "target": POINTS["mlp"] if release is not None and release[3] == "transcoders" else None,
        "layer": "embed" if stream and "embedding" in names else int(layer[1]) if layer and stream else None,
    }
