"""dictionary_learning: `ae.pt`, and `config.json` beside it.

    AutoEncoder             z = relu((x - b) W_enc + b_enc),  x_hat = z W_dec + b          (of standard and p-anneal trainings)
    AutoEncoderNew          the same without taking b off
    GatedAutoEncoder        g = (x - b) W_enc,  z = relu(e^r g + b_mag) [g + b_gate > 0]
    AutoEncoderTopK         z = the k largest of relu((x - b) W_enc + b_enc), of each token
    BatchTopKSAE            z = relu(..) [relu(..) > threshold], the batch's k N largest in training
    MatryoshkaBatchTopKSAE  the same, in `group_sizes` that all are in use; T-SAE's files are such
    JumpReluAutoEncoder     z = relu(p) [p > threshold],  p = x W_enc + b_enc without taking b_dec off

Classes are told by their tensors; those of TopK and BatchTopK are the same, which `config.json` tells apart. Its own `from_pretrained`
gives AutoEncoder's decoder rows unit norm and moves the norms into the codes: here that is `fold()`. A threshold below 0 was never
measured. The scale of a training's inputs is in the biases already.
"""

from pathlib import Path
from typing import Any

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError
from temporallens.files import read_json
from temporallens.interop.assembling import agree, assemble, completed, expect, gate, mapping, number, settled, text, vector
from temporallens.interop.foreign import Entries, Entry, open_tensors
from temporallens.interop.points import layer_of

FILES = ("ae.pt",)
BESIDE = ("config.json",)

LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
TENSORS = {
    "AutoEncoder": (*LINEAR, "bias"),
    "AutoEncoderNew": (*LINEAR, "decoder.bias"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
    "BatchTopKSAE": (*LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
}
"""What is read, with the tensors of each; AutoEncoderTopK's are those of BatchTopKSAE."""
BIASES = ("bias", "decoder.bias", "decoder_bias", "b_dec")


def read(folder: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in `folder`. Raises TemporalLensError for another file of tensors, and where one of the settings is missing."""
    path, about = folder / FILES[0], folder / BESIDE[0]
    tensors, config = open_tensors(path), _config(about)
    trainer = mapping(config.get("trainer", {}), about)
    kind = _kind(path, tensors, text(trainer, "dict_class"), request)
    said: dict[str, Any] = {"subtracts_bias": kind not in {"AutoEncoderNew", "JumpReluAutoEncoder"}, "k": None}
    if kind == "AutoEncoderTopK":
        said["k"] = int(vector(tensors["k"], 1)) if "k" in tensors else number(trainer, "k", about)
    parts = _parts(tensors)
    agree(
        about,
        {"dict_size": number(trainer, "dict_size", about), "activation_dim": number(trainer, "activation_dim", about)},
        parts["encoder"],
    )
    if said["k"] is not None:
        parts.pop("threshold", None)
    _check_groups(path, tensors, parts["encoder"])
    dictionary = assemble(path, settled(request, about, _origin(config, trainer, about), **said), parts)
    if "r_mag" in tensors:
        gate(dictionary, *(vector(tensors[name], dictionary.features) for name in ("r_mag", "gate_bias", "mag_bias")))
    elif kind.endswith("BatchTopKSAE") and dictionary.threshold is not None and float(dictionary.threshold[0]) < 0:
        raise TemporalLensError(f"{path} has a threshold below 0: its training ended before one was measured, and all codes would stay")
    return completed(path, dictionary)


def _config(path: Path) -> dict[str, Any]:
    return mapping(read_json(path, "the settings of a dictionary_learning training", foreign=True), path) if path.exists() else {}


def _kind(path: Path, tensors: Entries, named: str | None, request: Pretrained) -> str:
    """The class that has these tensors."""
    kind = next((kind for kind, names in TENSORS.items() if {*names} - {"k"} <= tensors.keys()), None)
    if kind == "JumpReluAutoEncoder" and "group_sizes" in tensors:
        kind = "MatryoshkaBatchTopKSAE"
    if kind is None:
        found = ", ".join(sorted(tensors)[:8])
        raise TemporalLensError(f"{path} holds the tensors of no dictionary of dictionary_learning that is read here: {found}")
    expect(path, tensors, [name for name in TENSORS[kind] if name != "k"], ["k"] if "k" in TENSORS[kind] else [])
    if kind != "BatchTopKSAE":
        return kind
    if named not in {"BatchTopKSAE", "AutoEncoderTopK"} and request.k is None:
        raise TemporalLensError(
            f"{path} may be a TopK or a BatchTopK dictionary, whose tensors are the same: put the config.json of its training beside it, "
            "or give k where it is TopK"
        )
    return "AutoEncoderTopK" if named == "AutoEncoderTopK" or (named is None and request.k is not None) else "BatchTopKSAE"


def _parts(tensors: Entries) -> dict[str, Entry]:
    """By our names. `nn.Linear` keeps a row for each of its outputs."""
    linear = "encoder.weight" in tensors
    parts = {
        "encoder": tensors["encoder.weight"] if linear else tensors["W_enc"].T,
        "decoder": tensors["decoder.weight"].T if linear else tensors["W_dec"],
        "decoder_bias": next(tensors[name] for name in BIASES if name in tensors),
    }
    others = {"encoder.bias": "encoder_bias", "b_enc": "encoder_bias", "threshold": "threshold"}
    return parts | {ours: tensors[theirs] for theirs, ours in others.items() if theirs in tensors}


def _check_groups(path: Path, tensors: Entries, encoder: Entry) -> None:
    if "group_sizes" in tensors and int(vector(tensors["group_sizes"]).sum()) != encoder.shape[0]:
        raise TemporalLensError(f"{path}: its group_sizes do not add up to its {encoder.shape[0]} features")


def _origin(config: dict[str, Any], trainer: dict[str, Any], path: Path) -> dict[str, Any]:
    point, layer = text(trainer, "submodule_name"), number(trainer, "layer", path, least=0)
    plain = point is None or point.startswith("resid_post")
    return {
        "format": "dictionary_learning",
        "model": text(trainer, "lm_name"),
        "point": point,
        "layer": layer if plain else layer_of(point),
        "context_length": number(config.get("buffer"), "ctx_len", path),
    }
