"""Pretrained: a dictionary that others trained, as their file has it. Decoder rows keep their norms, and codes are the publisher's.

    x'     x, (x - mean) / (std + 1e-5), or sqrt(D) x / |x|                                                   (`input`)
    pre    (x' - b_dec) W_enc + b_enc, or x' W_enc + b_enc                                                    (`subtracts_bias`)
    z      pre [pre > theta_f], or of relu(pre) the k largest of a token, or the largest of each of k groups  (`k`, `grouped`)
    x_hat  z W_dec + b_dec, taken back from x' to x; with a skip connection, + x W_skip

A ReLU has thresholds of 0; what selects over a batch in training has one threshold for all features at inference; a gated encoder is a
JumpReLU of its magnitudes. How each format comes to these stands at the head of its reader in `interop/`. A constant scale of the input
is moved into the weights, where it changes no code. `fold` gives decoder rows unit norm and moves the norms into the codes.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from temporallens.dictionaries.arms.topk import largest_of_rows
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.sparse import Block, Floor, Scratch, chunk_rows, dense_of, entries_above, plain_product
from temporallens.dictionaries.steps import Forward, Previous
from temporallens.errors import TemporalLensError
from temporallens.settings import Settings, not_asked

LAYER_NORM_EPSILON = 1e-5
"""SAELens'."""
LONGEST_WORD = 1000
"""Of a file, in characters."""


class Origin(Settings):
    """What a file says of the activations that its dictionary is for. None where it does not say."""

    format: str | None = None
    """Of the file."""
    model: str | None = None
    """As the publisher calls it."""
    point: str | None = None
    """Where in the model the activations are, in the publisher's words: `blocks.5.hook_resid_post`, `layers.5.mlp`."""
    layer: int | str | None = None
    """The block behind which the residual stream is read, `embed` before the first, or the hook that is read; None for other points."""
    target: str | None = None
    """Of a transcoder: where the activations are that it gives."""
    context_length: int | None = None
    """Tokens of a row in training."""
    bos: bool | None = None
    """Whether rows began with BOS."""

    @field_validator("format", "model", "point", "layer", "target")
    @classmethod
    def _one_line(cls, name: int | str | None) -> int | str | None:
        """They are printed as they stand."""
        if isinstance(name, str) and not (name.isprintable() and len(name) <= LONGEST_WORD):
            raise ValueError(f"a name is one line of printable characters, {LONGEST_WORD:,} at most")
        return name


class Pretrained(ArmConfig):
    """A dictionary to be read from a file. What the file says itself need not be given, and is refused where it contradicts."""

    roles: ClassVar[tuple[Role, ...]] = ()
    trained: ClassVar[bool] = False
    kind: Literal["pretrained"] = "pretrained"

    path: str = ""
    """A folder or file, or `user/name/folder` on the hub."""
    revision: str | None = None
    """Of a hub name: a commit, tag or branch."""
    features: int = Field(1, ge=1, le=1 << 24)
    """Width of the dictionary: the file says it."""
    encoder: str | None = None
    """Of a file that is no library's: the name in it of the encoder's matrix."""
    decoder: str | None = None
    """The name in it of the decoder's matrix."""
    encoder_bias: str | None = None
    """The name in it of the encoder's bias; 0 without one."""
    decoder_bias: str | None = None
    """The name in it of the decoder's bias; 0 without one."""
    threshold: str | None = None
    """The name in it of the thresholds, one number or one for each feature; 0 without any, as of a ReLU."""
    subtracts_bias: bool | None = None
    """Whether the decoder's bias is taken off the input."""
    k: int | None = Field(None, ge=1)
    """Codes per token, where the largest are kept; None where thresholds decide."""
    grouped: bool = False
    """Whether the largest of each of k groups of neighbouring features is kept, not the k largest of all."""
    input: Literal["raw", "layer_norm", "unit_norm"] = "raw"
    """What is done to each token's activation first: nothing, its own mean and deviation taken off, or its norm made sqrt(D)."""
    input_scale: float | None = Field(None, gt=0)
    """By what activations are multiplied first, and reconstructions divided: it is in the weights once they are read."""
    transcodes: bool = False
    """Whether it gives activations of another point than it takes."""
    output_width: int | None = Field(None, ge=1, le=1 << 24, exclude_if=not_asked)
    """Width of what a transcoder gives; None: that of what it takes. The file says it."""
    skip: bool = False
    """Whether the input, through a matrix, is added to what is decoded."""
    origin: Origin = Origin()
    """What the file says of its model; what is given here stands over that."""

    @property
    def named(self) -> dict[str, str]:
        """The tensors that are named, by our names."""
        given = {name: getattr(self, name) for name in ("encoder", "decoder", "encoder_bias", "decoder_bias", "threshold")}
        return {name: theirs for name, theirs in given.items() if theirs is not None}

    @model_validator(mode="after")
    def _taken_as_it_is(self) -> "Pretrained":
        for name in ("centre", "expectation", "position_weights", "permuted"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"a pretrained dictionary is taken as it is, and is not trained: leave out {name}")
        if self.grouped and self.k is None:
            raise ValueError("grouped means k groups of features: give k")
        return self

    def gives(self, width: int) -> int:
        return width if self.output_width is None else self.output_width

    def build(self, width: int, positions: int, generator: torch.Generator) -> "PretrainedDictionary":
        if self.k is not None and (self.k > self.features or (self.grouped and self.features % self.k)):
            what = "groups of one size" if self.grouped else "codes per token"
            raise TemporalLensError(f"k = {self.k} {what} cannot come from {self.features} features")
        if self.gives(width) != width and (self.subtracts_bias or not self.transcodes):
            why = "has no bias that could be taken off what it takes too" if self.transcodes else "is a transcoder: say that it transcodes"
            raise TemporalLensError(f"what takes activations of width {width} and gives those of width {self.gives(width)} {why}")
        return PretrainedDictionary(width, self, generator)


class _Taken(NamedTuple):
    """What of the last rows that were encoded is needed to decode them."""

    x: Float[Tensor, "N D"] | None  # for a skip connection
    mean: Float[Tensor, "N 1"] | None
    scale: Float[Tensor, "N 1"] | None  # None where nothing was done to them


class PretrainedDictionary(Dictionary):
    """Codes as the publisher computes them. Where the input is normalised by token, or skips the codes, `decode` belongs to the rows
    that `encode` has seen last."""

    config: Pretrained
    threshold: Tensor | None
    skip: Tensor | None

    def __init__(self, width: int, config: Pretrained, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        given = config.gives(width)
        if given != width:
            self.decoder = nn.Parameter(torch.zeros(config.features, given, dtype=torch.float32))
            self.decoder_bias = nn.Parameter(torch.zeros(given, dtype=torch.float32))
        self.register_buffer("threshold", torch.zeros(config.features, dtype=torch.float32) if config.k is None else None)
        self.register_buffer("skip", torch.zeros(width, given, dtype=torch.float32) if config.skip else None)
        self._taken: _Taken | None = None

    @property
    def transcodes(self) -> bool:
        return self.config.transcodes

    def layout(self) -> dict[str, Any]:
        said = {"d_out": self.output_width} if self.output_width != self.width else {}
        return {"apply_b_dec_to_input": bool(self.config.subtracts_bias), **said}

    def centre(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, known: Float[Tensor, "N D"] | None = None
    ) -> Float[Tensor, "N D"]:
        raw, mean, scale = x if self.config.skip else None, None, None
        if self.config.input == "layer_norm":
            mean = x.mean(1, keepdim=True)
            x = x - mean
            scale = x.std(1, keepdim=True)
            x = x / (scale + LAYER_NORM_EPSILON)
        elif self.config.input == "unit_norm":
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            scale = norm.clamp_min(torch.finfo(x.dtype).tiny) / self.width**0.5
            x = x / scale
        if raw is not None or scale is not None:
            self._taken = _Taken(raw, mean, scale)
        return x

    def uncentre(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, known: Float[Tensor, "N D"] | None = None
    ) -> Float[Tensor, "N D"]:
        if self.config.input == "raw" and self.skip is None:
            return x
        taken = self._taken
        rows = None if taken is None else len(next(part for part in (taken.x, taken.scale) if part is not None))
        if taken is None or rows != len(x):
            raise TemporalLensError(
                f"this dictionary needs the activations of the {len(x)} rows that it decodes, and has encoded "
                f"{rows or 'none'}: encode them right before"
            )
        if taken.scale is not None and not self.config.transcodes:  # a transcoder's output is in no unit of its input
            x = x * taken.scale if taken.mean is None else x * taken.scale + taken.mean
        return x if taken.x is None or self.skip is None else x + taken.x @ self.skip

    def pre_activations(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N F"]:
        return torch.addmm(self.encoder_bias, self._shifted(x), self.encoder.T)

    def _shifted(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return x - self.decoder_bias if self.config.subtracts_bias else x

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        if torch.is_grad_enabled() or x.is_cuda:
            return self._dense_codes(self.pre_activations(x))
        x, weights = self._shifted(x), (self.encoder, self.encoder_bias)
        if self.threshold is not None:
            return dense_of(*entries_above(x, *weights, [Block(None, [Floor(0, len(x), self.threshold)])]))
        assert self.config.k
        if not self.config.grouped:
            return dense_of(*largest_of_rows(x, *weights, self.config.k, torch.float32))
        memory = Scratch(x)
        largest = [self._of_groups(plain_product(rows, *weights, memory)) for rows in x.split(chunk_rows(self.features))]
        values, feature = (torch.cat([part[side] for part in largest]) for side in (0, 1))
        return x.new_zeros(len(x), self.features).scatter_(1, feature, values.relu())

    def _dense_codes(self, pre: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """The same codes, differentiably, or where one dense pass is quicker."""
        if self.threshold is not None:
            return pre * (pre > self.threshold)
        assert self.config.k
        values, feature = self._of_groups(pre) if self.config.grouped else pre.topk(self.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, feature, values.relu())

    def _of_groups(self, pre: Float[Tensor, "N F"]) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
        """The largest of each group: values and features."""
        groups = self.config.k or 1
        values, within = pre.view(len(pre), groups, -1).max(2)
        return values, within + torch.arange(groups, device=pre.device) * (self.features // groups)

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        raise TemporalLensError("a pretrained dictionary is taken as it is, and is not trained")

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"] | None = None, scale: float = 1.0) -> None:
        """Give decoder rows unit norm, as those of every other arm have, and move the norms into the codes; reconstructions stay.
        `centre` and `scale` are those of every other arm: from inputs `(x - centre) * scale` to raw ones.

        Raises TemporalLensError where that would change which codes are the largest.
        """
        if centre is not None or scale != 1.0:
            self._unscale(torch.zeros_like(self.decoder_bias) if centre is None else centre, scale)
        norms = torch.linalg.vector_norm(self.decoder, dim=1)
        norms[norms == 0] = 1.0
        if self.threshold is None and not torch.allclose(norms, norms[0].expand_as(norms)):
            raise TemporalLensError(
                "decoder rows of this dictionary have different norms, and moving them into the codes would change which of these are the "
                "largest: it cannot be folded"
            )
        self.decoder.div_(norms[:, None])
        self.encoder.mul_(norms[:, None])
        self.encoder_bias.mul_(norms)
        if self.threshold is not None:
            self.threshold.mul_(norms)

    def _unscale(self, centre: Float[Tensor, " D"], scale: float) -> None:
        if self.config.input != "raw" or self.skip is not None or self.transcodes:
            raise TemporalLensError(
                "what normalises its input by token, skips the codes or transcodes has no form for inputs that were not scaled"
            )
        super().fold(centre, scale)
        if not self.config.subtracts_bias:
            self.encoder_bias.sub_(self.encoder @ centre)
        if self.threshold is not None:
            self.threshold.div_(scale)
