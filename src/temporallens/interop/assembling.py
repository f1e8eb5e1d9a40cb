"""From tensors and settings of a foreign file to a dictionary: what every reader of a format does.

Whatever precision a file has, the dictionary has float32. Sizes that a file states, and those of its tensors, must agree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from temporallens.dictionaries.arms.pretrained import Pretrained, PretrainedDictionary
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.interop.foreign import Entry
from temporallens.memory import CACHED_ROWS


def expect(path: Path, tensors: Mapping[str, Entry], needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise TemporalLensError unless a file holds the tensors that it should, and no other that would change the codes."""
    for name in needed:
        if name not in tensors:
            raise TemporalLensError(f"{path} has no tensor '{name}'{did_you_mean(name, tensors)}")
    surplus = sorted(tensors.keys() - {*needed, *optional})
    if surplus:
        raise TemporalLensError(f"{path} holds '{surplus[0]}', for which there is no place in such a dictionary")


def vector(entry: Entry, size: int | None = None) -> Tensor:
    """A vector or scalar as float32; one of a single number stands for `size` of them."""
    if len(entry.shape) > 1 or (size is not None and entry.shape not in {(), (1,), (size,)}):
        wanted = "a vector" if size is None else f"({size},)"
        raise TemporalLensError(f"the tensor '{entry.name}' should have shape {wanted}, and has {entry.shape}")
    if 0 in entry.shape:
        raise TemporalLensError(f"the tensor '{entry.name}' is empty")
    whole = torch.cat([piece.reshape(-1).to(torch.float32) for piece in entry.pieces()])
    return whole if size is None else whole.expand(size).clone()


def assemble(path: Path, config: Pretrained, parts: Mapping[str, Entry]) -> PretrainedDictionary:
    """A dictionary of these tensors, by our names of them; a threshold may be one number for all features. What is not given is 0.

    `config` says all but the number of features. Raises TemporalLensError where shapes do not belong together.
    """
    if len(parts["encoder"].shape) != 2 or 0 in parts["encoder"].shape:
        raise TemporalLensError(f"{path}: '{parts['encoder'].name}' should be a matrix, and has shape {parts['encoder'].shape}")
    features, width = parts["encoder"].shape
    if max(features, width) > 1 << 24:
        raise TemporalLensError(f"{path}: {features:,} features of width {width:,} are more than a dictionary can have here (16,777,216)")
    given = _output_width(path, parts["decoder"], features, width) if config.transcodes else None
    for name, found, asked in (("features", features, config.features), ("output_width", given or width, config.output_width)):
        if name in config.model_fields_set and asked not in (None, found):
            raise TemporalLensError(f"{path} has {name} = {found}, and {name} = {asked} was requested: leave it out")
    config = config.model_copy(update={"features": features, "output_width": given})
    with torch.device("meta"):
        dictionary = config.make(width, 1, torch.Generator())
    wanted = dictionary.state_dict()
    for name, entry in parts.items():
        if name not in wanted or (entry.shape != wanted[name].shape and not (name == "threshold" and entry.shape in {(), (1,)})):
            should = f"should have shape {tuple(wanted[name].shape)}, and has {entry.shape}" if name in wanted else "has no place here"
            raise TemporalLensError(
                f"{path}: '{entry.name}' {should}, beside '{parts['encoder'].name}' of {features} features, width {width}"
            )
    memory = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in wanted.items()}
    dictionary.load_state_dict(memory, assign=True)  # `to_empty` would import PyTorch's compiler, for a second
    with torch.no_grad():
        for name, tensor in dictionary.state_dict().items():
            _fill(tensor, parts[name]) if name in parts else tensor.zero_()
    assert isinstance(dictionary, PretrainedDictionary)
    return dictionary.eval()


def _output_width(path: Path, decoder: Entry, features: int, width: int) -> int | None:
    """Of a decoder that has a row for each feature; None where it is that of the input, or the matrix is misshapen, which is said later."""
    if len(decoder.shape) != 2 or decoder.shape[0] != features or decoder.shape[1] in (0, width):
        return None
    if decoder.shape[1] > 1 << 24:
        raise TemporalLensError(f"{path}: '{decoder.name}' decodes to width {decoder.shape[1]:,}, more than there can be here (16,777,216)")
    return decoder.shape[1]


def _fill(target: Tensor, entry: Entry) -> None:
    if entry.shape in {(), (1,)}:
        target.copy_(vector(entry).expand_as(target))
        return
    target, first = target.T if entry.turned else target, 0
    for piece in entry.pieces():
        target[first : first + len(piece)] = piece
        first += len(piece)


@torch.no_grad()
def completed(path: Path, dictionary: PretrainedDictionary) -> PretrainedDictionary:
    """The dictionary with the scale of its inputs in its weights, thresholds that are not negative, and finite throughout."""
    config = dictionary.config
    if dictionary.threshold is not None:
        dictionary.threshold.clamp_(min=0.0)  # codes are above 0 as it is
    if config.input_scale is not None:
        scale_by(dictionary, config.input_scale, config.input_scale)
    for name, tensor in dictionary.state_dict().items():
        if not all(bool(torch.isfinite(rows).all()) for rows in tensor.split(CACHED_ROWS)):
            raise TemporalLensError(
                f"{path} holds NaN or infinity, or numbers beyond float32, in what becomes the {name.replace('_', ' ')}"
            )
    return dictionary


@torch.no_grad()
def scale_by(dictionary: PretrainedDictionary, taken: float, given: float) -> None:
    """Let the dictionary take activations that were not multiplied by `taken`, and give ones that are not multiplied by `given`. Codes
    stay: the scales go into the weights."""
    if dictionary.config.subtracts_bias and taken != given:
        raise TemporalLensError("a bias that is taken off the input and added to the output has one scale, and this one would have two")
    dictionary.encoder.mul_(taken)
    dictionary.decoder.div_(given)
    dictionary.decoder_bias.div_(given)
    if dictionary.skip is not None:
        dictionary.skip.mul_(taken / given)


@torch.no_grad()
def gate(dictionary: PretrainedDictionary, r_mag: Tensor, gate_bias: Tensor, mag_bias: Tensor) -> None:
    """A gated encoder as the JumpReLU that it is: with g = (x - b_dec) W_enc, a code is relu(e^r g + b_mag) where g + b_gate > 0, that is
    where its pre-activation exceeds b_mag - e^r b_gate, and 0."""
    assert dictionary.threshold is not None
    magnitude = r_mag.exp()
    dictionary.encoder.mul_(magnitude[:, None])
    dictionary.encoder_bias.copy_(mag_bias)
    dictionary.threshold.copy_(mag_bias - magnitude * gate_bias)


@torch.no_grad()
def norms_into_codes(dictionary: PretrainedDictionary) -> None:
    """What selects by pre-activations times the norms of decoder rows, and gives these as its codes: unit rows and a scaled encoder."""
    norms = torch.linalg.vector_norm(dictionary.decoder, dim=1)
    norms[norms == 0] = 1.0
    dictionary.decoder.div_(norms[:, None])
    dictionary.encoder.mul_(norms[:, None])
    dictionary.encoder_bias.mul_(norms)


# What configurations say


def number(config: Any, key: str, path: Path, kind: type[int] | type[float] = int, least: float = 1) -> Any:
    """A number of a configuration; None where it has none. Raises TemporalLensError for another value."""
    value = config.get(key) if isinstance(config, dict) else None
    if value is None:
        return None
    right = isinstance(value, int) if kind is int else isinstance(value, int | float)
    if not right or isinstance(value, bool) or not least <= value < 1 << 62:
        raise TemporalLensError(
            f"{path} says {key} = {repr(value)[:60]}: it should be a {'whole ' if kind is int else ''}number from {least:g}"
        )
    return value


def text(config: Any, key: str) -> str | None:
    """What a configuration says under a key, where that is a word."""
    value = config.get(key) if isinstance(config, dict) else None
    return value if isinstance(value, str) and value else None


def flag(config: Any, key: str, path: Path, default: bool = False) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise TemporalLensError(f"{path} says {key} = {str(value)[:60]}: it should be true or false")
    return value


def mapping(config: Any, path: Path) -> dict[str, Any]:
    """A configuration that is a mapping."""
    if not isinstance(config, dict):
        raise TemporalLensError(f"{path} should hold settings by name")
    return config


def agree(path: Path, stated: Mapping[str, Any], entry: Entry) -> None:
    """Raise TemporalLensError where a configuration states other sizes than the encoder `[F, D]` has."""
    for (key, value), size in zip(stated.items(), entry.shape, strict=False):
        if value is not None and value != size:
            raise TemporalLensError(f"{path} says {key} = {value}, and the weights beside it have {size}")


def settled(request: Pretrained, path: Path, origin: Mapping[str, Any], **said: Any) -> Pretrained:
    """The request with what the file says. Raises TemporalLensError where the two contradict; of the origin, what was requested stands."""
    for name, value in said.items():
        asked = getattr(request, name)
        if name in request.model_fields_set and asked is not None and asked != value:
            found = f"says {name} = {value}" if value is not None else f"has no {name}"
            raise TemporalLensError(f"{path} {found}, and {name} = {asked} was requested: leave it out")
    over = request.origin.model_dump(exclude_unset=True)
    try:
        return request.model_copy(update={**said, "origin": type(request.origin)(**{**origin, **over})})
    except TemporalLensError as error:
        raise TemporalLensError(f"{path} says something odd of its model: {error}") from error
