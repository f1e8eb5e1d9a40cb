"""Any file of named tensors: .safetensors, .npz or .pt, whose names are given.

    z      p [p > threshold], or of relu(p) the k largest of each token;  p = (x - b_dec) W_enc + b_enc, or x W_enc + b_enc
    x_hat  z W_dec + b_dec

Without a threshold, and without k, codes are relu(p). Whether b_dec is taken off the input has to be said where there is one. Which side of
a matrix is the features' follows from the biases, or else from their being more than the dimensions of an activation.
"""

from pathlib import Path

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.interop.assembling import assemble, completed, settled
from temporallens.interop.foreign import Entry, open_tensors


def read(path: Path, request: Pretrained) -> PretrainedDictionary:
    """The dictionary in a file. Raises TemporalLensError where a name is missing or unknown, or a setting that nothing says."""
    tensors, parts = open_tensors(path), {}
    for ours, theirs in request.named.items():
        if theirs not in tensors:
            raise TemporalLensError(f"{path} has no tensor '{theirs}'{did_you_mean(theirs, tensors)}")
        parts[ours] = tensors[theirs]
    if not {"encoder", "decoder"} <= parts.keys():
        held = ", ".join(f"'{name}'" for name in sorted(tensors)[:12])
        raise TemporalLensError(f"{path} is no format that is known here: name its encoder and its decoder, which are among {held}")
    if "decoder_bias" in parts and request.subtracts_bias is None:
        raise TemporalLensError(f"{path} has a bias of the decoder: say with subtracts_bias whether it is taken off the input too")
    if request.k is not None and "threshold" in parts:
        raise TemporalLensError(f"of {path} both k and a threshold are given: codes are kept by number or by threshold")
    features = _features(path, parts)
    for name in ("encoder", "decoder"):
        if len(parts[name].shape) == 2 and parts[name].shape[0] != features:
            parts[name] = parts[name].T
    config = settled(request, path, {"format": f"tensors of a {path.suffix} file"}, subtracts_bias=bool(request.subtracts_bias))
    return completed(path, assemble(path, config, parts))


def _features(path: Path, parts: dict[str, Entry]) -> int:
    """How many there are."""
    shape = parts["encoder"].shape
    for name, rest in (("encoder_bias", 0), ("threshold", 0), ("decoder_bias", 1)):
        if name in parts and len(parts[name].shape) == 1 and parts[name].shape[0] in shape and len(shape) == 2 and shape[0] != shape[1]:
            size = parts[name].shape[0]
            return size if rest == 0 else shape[1 - shape.index(size)]
    if len(shape) != 2 or shape[0] == shape[1]:
        raise TemporalLensError(
            f"{path}: '{parts['encoder'].name}' has shape {shape}, in which features and dimensions cannot be told apart"
        )
    return max(shape)
