"""Temporal Feature Analysis (arXiv 2511.01836, code eslubana/TemporalFeatureAnalysis 0e1474e): what attention over earlier tokens of
the row predicts of an activation, and sparse codes of what is left.

    z_t     = relu(g * decoder (x_t - b))                       dense, of every token
    u_t     = relu(attention(query z_t; keys and values 0, z_0, ..., z_t-1)),      U = u decoder
    s_t     = <U_t, x_t - b> / |U_t|^2
    z_novel = the k N largest of relu(g * decoder (x - b - s U))
    x_hat   = (z_novel + s u) decoder + b

Attention has H heads, queries and keys of F / bottleneck dimensions, values of F, a bias in all four projections, and nothing of
positions; where nothing came before, there is the null slot. Query and scale read the current token: s u is no prediction in the sense
that it were known before x_t is. Settings make of it what is: `query: past` asks with the token before, `scale: learned` has one s for
all. Even so it is made of the true activations before, not of codes: no setting decodes from codes alone, and numbers are in open loop.

Published decoder rows are free, and the encoder is tied to them times 1 / 4D; a row of norm r then encodes and decodes its direction with
a gain of r^2 / 4D, 1/4 at first. Here rows have unit norm, as in every arm, and g, one number a feature that starts at 1/4, learns. With
inputs of root mean square norm sqrt(D), that is what keeps training from diverging, beside a small bottleneck, a low learning rate and 32
rows a batch. No dead feature is revived, as in the paper: all take part in attention.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from temporallens.activations.context import UNKNOWN, Context, Grid, context_of_given, in_sequences
from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, TopKConfig
from temporallens.dictionaries.base import Reconstructed
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.inputs import Positions, Tokens, refuse_worthless
from temporallens.dictionaries.sparse import largest_of
from temporallens.dictionaries.steps import Dead, Forward, Previous
from temporallens.errors import TemporalLensError
from temporallens.processes import gathered, total

GAIN = 0.25
"""Of the tied encoder, at first."""
SHORTEST = 1e-6
"""Added to the length of a prediction before anything is divided by it; in units of training."""
WAVELENGTH = 10_000
"""The longest of the sines of a position, as in Vaswani et al. 2017."""


class TFA(TopKConfig):
    """Attention over earlier tokens, and sparse codes of what it leaves."""

    roles: ClassVar[tuple[Role, ...]] = ("temporal",)
    wants_sequences: ClassVar[bool] = True
    open_loop: ClassVar[bool] = True
    kind: Literal["tfa"] = "tfa"

    novel: Literal["batchtopk", "topk"] = "batchtopk"
    """How the k codes per token are chosen."""

    heads: int = Field(4, ge=1)
    """Of the attention."""

    bottleneck: int = Field(8, ge=1)
    """By which queries and keys are narrower than the dictionary; the paper has 1, which diverges where batches are small."""

    query: Literal["current", "past"] = "current"
    """Whether the token itself asks what to look for, as published, or the last one before it."""

    scale: Literal["projection", "learned"] = "projection"
    """Whether the prediction is scaled so as to meet the activation best, as published, or by one number that learns and starts at 1."""

    context: Literal["row", "other"] = "row"
    """Where keys and values come from: `other`, a control, is another row of the batch, at the same positions, in training and after it."""

    positions: bool = False
    """Whether queries and keys know positions, as sines."""

    @model_validator(mode="after")
    def _fits(self) -> "TFA":
        if self.features % (self.bottleneck * self.heads):
            raise ValueError(
                f"{self.features} features do not divide into {self.heads} heads behind a bottleneck of {self.bottleneck}: give features "
                f"as a multiple of {self.bottleneck * self.heads}"
            )
        if self.expectation is not None:
            raise ValueError("a tfa arm predicts by itself: leave its expectation out")
        return self

    @property
    def mixes_rows(self) -> bool:
        return self.context == "other"

    def build(self, width: int, positions: int, generator: torch.Generator) -> "TFADictionary":
        return TFADictionary(width, self, generator)


class Parts(NamedTuple):
    """What becomes of N rows."""

    predicted: Float[Tensor, "N F"]  # u
    scale: Float[Tensor, "N 1"] | Float[Tensor, ""]  # s
    reconstruction: Float[Tensor, "N D"]  # s U
    novel: Float[Tensor, "N F"]  # relu(pre) of what is left, before any are chosen


class TFADictionary(BatchTopKDictionary):
    """Codes are the novel ones. Reads whole sequences, and has no `decode`."""

    architecture = None
    config: TFA
    unit: Tensor
    key_bias: Tensor
    value_bias: Tensor

    def __init__(self, width: int, config: TFA, generator: torch.Generator) -> None:
        super().__init__(width, config, generator)
        features, narrow = config.features, config.features // config.bottleneck
        del self.encoder, self.encoder_bias  # tied, and none: they learn nothing of their own
        self.register_buffer("encoder", GAIN * self.decoder.detach())
        self.register_buffer("encoder_bias", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("unit", torch.ones((), dtype=torch.float32))  # of training, in those of the inputs
        self.tied_gain = nn.Parameter(torch.full((features,), GAIN, dtype=torch.float32))
        self.predicted_scale = nn.Parameter(torch.ones((), dtype=torch.float32), requires_grad=config.scale == "learned")
        wide, each = (features // config.heads) ** -0.5, (narrow // config.heads) ** -0.5
        for name, rows, norm in (
            ("query", narrow, each),
            ("key", narrow, each),
            ("value", features, wide),
            ("out", features, features**-0.5),
        ):
            weight = torch.randn(rows, features, generator=generator, dtype=torch.float32)
            weight *= norm / torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            bias = (2 * torch.rand(rows, generator=generator, dtype=torch.float32) - 1) * features**-0.5
            self.register_parameter(f"{name}_weight", nn.Parameter(weight))
            self.register_parameter(f"{name}_bias", nn.Parameter(bias))

    @property
    def position_aware(self) -> bool:
        return super().position_aware or self.config.positions

    def context(self, x: Float[Tensor, "*batch _"], tokens: Tokens | None) -> Context | None:
        """Of `[B, S, D]` without tokens: sequences without padding, of whose tokens nothing is known."""
        if tokens is None and x.ndim == 3:
            token = torch.full(x.shape[:-1], UNKNOWN, device=x.device)
            return in_sequences(token, token, torch.ones_like(token, dtype=torch.bool))
        return None if tokens is None else context_of_given(tokens, x.shape[:-1], x.device)

    def _projected(self, name: str, rows: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch A"]:
        return functional.linear(rows, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))

    def _split(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, context: Context | None, encoder: Float[Tensor, "F D"]
    ) -> Parts:
        """Rows of whole sequences that `centre` has prepared, in any order."""
        if context is None:
            raise TemporalLensError(f"a '{self.kind}' dictionary reads whole rows of text: give activations [B, S, D]")
        x = x - self.decoder_bias
        u = self._predict((x @ encoder.T).relu(), positions, context.grid())
        said = u @ self.decoder
        s: Tensor = self.predicted_scale
        if self.config.scale == "projection":
            length = torch.linalg.vector_norm(said, dim=1, keepdim=True) + SHORTEST * self.unit
            s = torch.linalg.vecdot(said, x)[:, None] / length.square()
        reconstruction = s * said
        return Parts(u, s, reconstruction, ((x - reconstruction) @ encoder.T).relu())

    def _predict(self, z: Float[Tensor, "N F"], positions: Int[Tensor, " N"] | None, grid: Grid) -> Float[Tensor, "N F"]:
        """What attention makes of the codes before."""
        wave = self._waves(positions) if self.config.positions else None
        asking, offered, usable = grid.spread(z), grid.spread(z if wave is None else z + wave), grid.spread(grid.usable)
        values = self._projected("value", grid.spread(z))
        if self.config.query == "past":
            asking = _last_before(asking, usable)
        if wave is not None:
            asking = asking + grid.spread(wave)
        query, keys = self._projected("query", asking), self._projected("key", offered)
        if self.config.context == "other":
            keys, values, usable = (_of_others(rows) for rows in (keys, values, usable))
        found = self._attend(query, keys, values, usable)
        return grid.gathered(self._projected("out", found)).relu()

    def _attend(
        self,
        query: Float[Tensor, "B S A"],
        keys: Float[Tensor, "B S A"],
        values: Float[Tensor, "B S F"],
        usable: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "B S F"]:
        """Causal attention to the null slot and to what is usable earlier."""
        rows, length, heads = *query.shape[:2], self.config.heads
        earlier = torch.ones(length, length, dtype=torch.bool, device=query.device).tril(-1) & usable[:, None]
        mask = functional.pad(earlier, (1, 0), value=True)[:, None]
        null_key, null_value = (bias.expand(rows, 1, -1) for bias in (self.key_bias, self.value_bias))
        keys, values = torch.cat([null_key, keys], 1), torch.cat([null_value, values], 1)
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, keys, values))
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def _waves(self, positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """Sines and cosines of positions, in the units of the inputs."""
        if positions is None:
            raise TemporalLensError(f"this '{self.kind}' dictionary needs the position of every row")
        even = torch.arange(0, self.features, 2, device=positions.device)
        angle = positions[:, None] * torch.exp(even * (-math.log(WAVELENGTH) / self.features)).to(self.decoder)
        waves = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, : self.features]
        return waves * self.unit

    def _chosen(self, novel: Float[Tensor, "N F"]) -> tuple[Float[Tensor, "N F"], Float[Tensor, " M"]]:
        """The codes that a batch selects, and their values."""
        k, rows = self.config.k, novel.detach()
        if self.config.novel == "topk":
            values, places = rows.topk(k, dim=1, sorted=False)
            mask = torch.zeros_like(rows).scatter_(1, places, 1.0)
        else:
            count = k * total(len(rows))
            values, places = rows.flatten().topk(min(count, rows.numel()), sorted=False)
            everywhere = gathered(values)
            if len(everywhere.values) > count:  # several processes share the batch
                kept = everywhere.ours(largest_of(everywhere.values, count)[0])
                values, places = values[kept], places[kept]
            mask = torch.zeros_like(rows.flatten()).scatter_(0, places, 1.0).view_as(rows)
        values = values.flatten()
        return novel * mask, values[values > 0]

    def learn(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None, context: Context | None) -> Forward:
        parts = self._split(x, positions, context, self.tied_gain[:, None] * self.decoder)
        codes, values = self._chosen(parts.novel)
        self._follow_threshold(values)
        used = (codes.detach() > 0).float()
        reconstruction = codes @ self.decoder + parts.reconstruction + self.decoder_bias
        return Forward(reconstruction, codes.detach().sum(1), used.sum(1), used.sum(0))

    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        return self.learn(x, positions, previous, None)

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"] | None:
        return None

    @torch.no_grad()
    def look(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], context: Context | None) -> None:
        values = self._chosen(self._split(x, positions, context, self.encoder).novel)[1]
        self._note_threshold(values)

    def finish(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> None:
        self.look(x, positions, None)

    def _in_use(self, novel: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Codes at inference."""
        return self._chosen(novel)[0] if self.config.novel == "topk" else novel * (novel > self.threshold)

    def codes_among(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, context: Context | None) -> Float[Tensor, "N F"]:
        return self._in_use(self._split(x, positions, context, self.encoder).novel) if len(x) else x.new_zeros(0, self.features)

    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        return self.codes_among(x, positions, None)

    def decode(
        self, z: Float[Tensor, "*batch F"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch D"]:
        raise TemporalLensError(
            f"a '{self.kind}' dictionary cannot reconstruct from codes alone, for what it predicts it makes of activations: "
            "give it these, as in dictionary(x) or dictionary.reconstructed(x)"
        )

    def reconstructed(
        self, x: Float[Tensor, "*batch D"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Reconstructed:
        centred, where, context = self.seen(x, positions, tokens)
        if not len(centred):
            return Reconstructed(x.new_zeros(*x.shape[:-1], self.features), x)
        parts = self._split(centred, where, context, self.encoder)
        codes = self._in_use(parts.novel)
        found = self.uncentre(codes @ self.decoder + parts.reconstruction + self.decoder_bias, where)
        refuse_worthless(found, x.shape[:-1], "reconstructions hold")
        return Reconstructed(codes.view(*x.shape[:-1], -1), found.view(x.shape))

    def all_codes(
        self, x: Float[Tensor, "*batch D"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch F"]:
        parts = self._split(*self.seen(x, positions, tokens), self.encoder)
        return (self._in_use(parts.novel) + parts.scale * parts.predicted).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        super().normalise_decoder()
        self.encoder.copy_(self.tied_gain[:, None] * self.decoder)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        super().fold(centre, scale)
        for name, times in (("query_weight", scale), ("key_weight", scale), ("value_bias", 1 / scale), ("out_bias", 1 / scale)):
            getattr(self, name).mul_(times)
        self.unit /= scale


def _last_before(rows: Float[Tensor, "B S F"], usable: Bool[Tensor, "B S"]) -> Float[Tensor, "B S F"]:
    """Of every place the last usable row before it, zeros where there is none."""
    number = torch.where(usable, torch.arange(usable.shape[1], device=rows.device), UNKNOWN).cummax(1).values
    last = functional.pad(number[:, :-1], (1, 0), value=UNKNOWN)
    return rows.gather(1, last.clamp(min=0)[:, :, None].expand_as(rows)) * (last >= 0)[:, :, None]


def _of_others(rows: Tensor) -> Tensor:
    """Of another sequence of the batch, far from it; nothing where it is alone."""
    return rows.roll(len(rows) // 2, 0) if len(rows) > 1 else torch.zeros_like(rows)
