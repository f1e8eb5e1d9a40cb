"""What every dictionary has and does: weights, encoding, decoding, and what one training step needs from it.

Weights are kept with one row per feature: `encoder [F, D]`, `decoder [F, D]` (unit rows; `[F, E]` where it
decodes to another width). A dictionary computes
`pre = (x - decoder_bias) @ encoder.T + encoder_bias`, turns it into codes in the way of its arm, and reconstructs
`codes @ decoder + decoder_bias`. While it is trained its inputs are centred and scaled; `fold` then moves it into raw units.
What its settings have in common stands in `config`, what it is given in `inputs` and `steps`, its centring in `centring`.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from temporallens.activations.context import Context, context_of_given
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.centring import Centred
from temporallens.dictionaries.config import ArmSettings
from temporallens.dictionaries.expectations.past import links_of, walk
from temporallens.dictionaries.expectations.tables import Expectation
from temporallens.dictionaries.inputs import (
    Positions,
    Tokens,
    known_policy,
    refuse_non_finite,
    refuse_unfit,
    refuse_worthless,
    whole_positions,
)
from temporallens.dictionaries.sparse import Entries, Pattern, dense_of, many_products, pattern_of
from temporallens.dictionaries.steps import Dead, Forward, Previous, Progress
from temporallens.errors import TemporalLensError
from temporallens.memory import CACHED_ROWS


class ArmConfig(ArmSettings):
    """The settings of an arm, which build its dictionary."""

    @abstractmethod
    def build(self, width: int, positions: int, generator: torch.Generator) -> "Dictionary":
        """A new dictionary of this arm for activations of `width` on a clock of `positions`."""

    def gives(self, width: int) -> int:
        """Width of what is decoded, where activations have `width`."""
        return width

    def make(self, width: int, positions: int, generator: torch.Generator) -> "Dictionary":
        """What `build` gives, with room for per-position means and scales where the arm is centred on them."""
        self.check(positions)
        dictionary = self.build(width, positions, generator)
        if self.centre != "pooled":
            dictionary.centre_by_position(torch.zeros(positions, width, dtype=torch.float32), torch.ones(positions, dtype=torch.float32))
        if self.expectation is not None and self.expectation.past:
            dictionary.past_map = torch.zeros(len(self.expectation.past) * width, width, dtype=torch.float32)
            dictionary.past_centre = torch.zeros(width, dtype=torch.float32)
        return dictionary

    def at_level(self, value: float) -> "ArmConfig":
        """The same arm with another value of the field that sets how many codes are in use."""
        if self.level is None:
            raise TemporalLensError(f"arms of kind '{type(self).__name__}' have no level to vary")
        return type(self)(**(self.model_dump() | {self.level: value}))


FEW = 16
"""One feature in so many: decoder rows of those that fire are then read faster than all of them are multiplied."""


class Reconstructed(NamedTuple):
    """What a dictionary makes of activations."""

    codes: Float[Tensor, "*batch F"]
    x: Float[Tensor, "*batch E"]


class Walk(NamedTuple):
    """What comes of rows that look back at each other."""

    codes: Float[Tensor, "N F"]
    left: Float[Tensor, "N D"]  # of the rows, when the past is taken off too
    features: Float[Tensor, "N JD"] | None  # what the past is read from, where it is asked for


class _GrowingCodes:
    """Codes of the rows of `x`, which are found some rows after the other, all of them dense or all of them sparse."""

    def __init__(self, x: Float[Tensor, "N D"], features: int) -> None:
        self._x, self._features = x, features
        self._dense: Tensor | None = None
        self._sparse: list[tuple[Tensor, Entries]] = []

    def put(self, rows: Int[Tensor, " n"], found: Entries | Float[Tensor, "n F"]) -> None:
        if isinstance(found, Entries):
            self._sparse.append((rows, found))
            return
        if self._dense is None:
            self._dense = found.new_empty(len(self._x), self._features)
        self._dense[rows] = found

    def whole(self) -> Float[Tensor, "N F"]:
        if self._dense is not None:
            return self._dense
        if not self._sparse:
            return self._x.new_zeros(len(self._x), self._features)
        row = torch.cat([rows.index_select(0, found.pattern.row) for rows, found in self._sparse])
        feature = torch.cat([found.pattern.feature for _, found in self._sparse])
        return dense_of(Pattern(row, feature, len(self._x), self._features), torch.cat([found.values for _, found in self._sparse]))


def _directions(features: int, width: int, generator: torch.Generator) -> Float[Tensor, "F D"]:
    """Random unit rows. On the meta device, where a dictionary is built for its shapes alone, nothing is drawn: that would import
    PyTorch's compiler, for a second."""
    if torch.get_default_device().type == "meta":
        return torch.empty(features, width, dtype=torch.float32)
    directions = torch.randn(features, width, generator=generator, dtype=torch.float32)
    return directions.div_(torch.linalg.vector_norm(directions, dim=1, keepdim=True))


class Dictionary(Centred):
    """Encodes activations into sparse non-negative codes and reconstructs them; arms say how."""

    architecture: ClassVar[str | None] = None
    """SAELens' name of the ordinary SAE that has the same codes; None where there is none."""
    masked: ClassVar[bool] = False
    """Whether codes depend on positions."""
    wants_previous: ClassVar[bool] = False
    """Whether a training step needs the activation of the token before each row."""

    config: ArmConfig
    """What it was made by."""
    encoder: Tensor
    encoder_bias: Tensor
    past_map: Tensor | None
    past_centre: Tensor | None

    def __init__(self, width: int, config: ArmConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, features = config, config.features
        directions = _directions(features, width, generator)
        self.encoder = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(features, dtype=torch.float32))
        self.decoder = nn.Parameter(directions)
        self.decoder_bias = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        self.encoder_dtype = torch.float32
        """In which the product with the encoder nominates candidates while training; codes are float32 all the same."""
        self.expectation: Expectation | None = None
        """What tokens say of inputs: taken off before they are encoded, added to what is decoded. No weight: dictionaries share it."""
        self.register_buffer("past_map", None)
        self.register_buffer("past_centre", None)
        self.position_policy: int | Literal["mean"] | None = None
        """What `encode` of `[N, D]` without positions assumes: nothing (it raises), one position, or the mean mask."""

    @property
    def kind(self) -> str:
        """Of its arm."""
        return self.config.kind

    @property
    def transcodes(self) -> bool:
        """Whether it gives activations of another point than it takes."""
        return False

    @property
    def features(self) -> int:
        return self.encoder.shape[0]

    @property
    def width(self) -> int:
        return self.encoder.shape[1]

    @property
    def output_width(self) -> int:
        """Of what is decoded: that of what is encoded, but of some transcoders."""
        return self.decoder.shape[1]

    @property
    def position_aware(self) -> bool:
        """Whether `encode` and `decode` need positions."""
        return self.masked or self.position_offset is not None

    def _apply(self, fn: Any, recurse: bool = True) -> "Dictionary":
        super()._apply(fn, recurse)
        if self.expectation is not None:
            self.expectation = self.expectation.to(self.encoder.device)
        return self

    def pre_activations(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N F"]:
        return torch.addmm(self.encoder_bias, x - self.decoder_bias, self.encoder.T)

    @abstractmethod
    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """Codes at inference; `positions` is None only for arms that are not position-aware, or under the policy `mean`."""

    def sparse_codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> "Entries | None":
        """`codes` that are not 0, row by row, where the arm finds them without the others; else None, as where somebody learns from it."""
        return None

    @abstractmethod
    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None = None) -> Forward:
        """One differentiable pass over a batch that `centre` has prepared, whose rows are in ascending order of position."""

    def learn(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], previous: Previous | None, context: Context | None) -> Forward:
        """`training_forward`, for arms whose reconstructions depend on tokens, or on other rows, too; others need not know."""
        return self.training_forward(x, positions, previous)

    def auxiliary(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], residual: Float[Tensor, "N D"], dead: Dead
    ) -> Float[Tensor, " N"] | None:
        """Loss that revives dead features, per row; None where the arm has none."""
        return None

    def follow_weights(self, weights: Float[Tensor, " P"]) -> None:
        """Take note of the current position weights, of mean 1; for arms that spend their codes by them."""

    def observe(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], forward: Forward, residual: Float[Tensor, "N D"], progress: Progress
    ) -> None:
        """Look at what a step left unexplained, of a batch that `centre` has prepared; called after the step, without gradients."""

    def finish(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> None:
        """Look at one more batch with the final weights, for what is measured once training is over."""

    def look(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], context: Context | None) -> None:
        """`finish`, for arms whose codes depend on other rows; others need not know."""
        self.finish(x, positions)

    def finished(self) -> None:
        """Settle what `finish` measured."""

    def begin(self, store: ActivationStore, entries: Int[np.ndarray, " n"], centre: Float[Tensor, " D"], scale: float) -> None:
        """Look at the training data, which steps see as `(x - centre) * scale`, before the first step: for weights that start from it."""

    def advance(self, progress: Progress) -> None:
        """Follow the arm's schedules up to this step; called before each step."""

    def hardens_at(self, steps: int) -> int | None:
        """After how many of so many steps the mask becomes exactly 0 or 1; None where there is no such moment."""
        return None

    @property
    def temperature(self) -> float:
        """Of the mask's sigmoid; 0 where there is no mask or it is hard."""
        return 0.0

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters with the multiple of the learning rate at which they learn."""
        return [(list(self.parameters()), 1.0)]

    def gates_by_position(self) -> Float[Tensor, "P F"] | None:
        """How open each feature is at each position, 0 to 1; None where nothing is masked."""
        return None

    def ungated(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], tokens: Tokens | None = None) -> Float[Tensor, "N F"]:
        """Codes as they would be if the mask were open everywhere; those of `encode` where nothing is masked."""
        return self.encode(x, positions, tokens)

    def openness(self) -> Float[Tensor, " P"] | None:
        """Mean gate by position, None where nothing is masked."""
        gates = self.gates_by_position()
        return None if gates is None else gates.mean(1)

    def layout(self) -> dict[str, Any]:
        """Further keys of `cfg.json` that its architecture has."""
        return {}

    def record(self) -> dict[str, Any]:
        """State that is no tensor, as JSON; saved with the dictionary."""
        return {}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Take back what `record` gave."""

    def encode(
        self, x: Float[Tensor, "*batch width"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch F"]:
        """Codes of activations. `[B, S, D]` without positions stands at 0 to S - 1; `[N, D]` without positions raises for a
        position-aware dictionary unless `position_policy` is set. Positions may be a tensor, an array or a list of whole numbers.
        A dictionary with an `expectation` needs the `tokens` too: ids in the shape of `x` without its width, -1 where not known; of
        `[N, D]` what stood before is not known, unless they are a `Context`. Differentiable where gradients are enabled; under
        `torch.no_grad()` the arms with few codes skip what a closed mask makes needless. Raises TemporalLensError for NaN and infinity
        either way."""
        centred, where, context = self.seen(x, positions, tokens)
        codes = self.codes_among(centred, where, context) if self.past_map is None else self.walked(centred, where, context).codes
        return codes.reshape(*x.shape[:-1], self.features)

    def seen(
        self, x: Float[Tensor, "*batch width"], positions: Positions | None, tokens: Tokens | None
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"] | None, Context | None]:
        """Rows as `centre` gives them, with their positions and what else is known of them, where the dictionary asks."""
        refuse_unfit(x, self.width, "activations", f"width {self.width}")
        flat = x.reshape(-1, self.width).to(self.encoder.dtype)
        refuse_non_finite(flat, x.shape[:-1], "the activations hold")
        where, context = self._flat_positions(x, positions), self.context(x, tokens)
        return self.centre(flat, where, self.known(context)), where, context

    def codes_among(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, context: Context | None) -> Float[Tensor, "N F"]:
        """`codes`, for arms whose codes depend on other rows; others need not know."""
        return self.codes(x, positions)

    def prepared(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"], tokens: Tokens | None) -> Float[Tensor, "N D"]:
        """Rows as the encoder sees them: less what position, tokens and past say."""
        context = self.context(x, tokens)
        centred = self.centre(x, positions, self.known(context))
        return centred if self.past_map is None else self.walked(centred, positions, context).left

    def context(self, x: Float[Tensor, "*batch _"], tokens: Tokens | None) -> Context | None:
        """What is known of the rows of `x`; None where no expectation asks for it."""
        if self.config.expectation is None:
            return None
        if tokens is None:
            raise TemporalLensError(
                f"this '{self.kind}' dictionary takes off what tokens say: pass tokens, the ids in the shape {tuple(x.shape[:-1])} "
                "(-1 where one is not known)"
            )
        return context_of_given(tokens, x.shape[:-1], x.device)

    def known(self, context: Context | None) -> Float[Tensor, "N D"] | None:
        """What tokens say of rows; None where nothing is asked of them."""
        return None if self.expectation is None or context is None else self.expectation.known(context)

    def walked(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, context: Context | None, keep: bool = False) -> "Walk":
        """Rows of whole sequences that `centre` has prepared, each less what the reconstructions before it say."""
        policy = self.config.expectation
        past_map, centre = self.past_map, self.past_centre
        if policy is None or context is None or past_map is None or centre is None:
            raise TemporalLensError(f"this '{self.kind}' dictionary has no past to walk through")
        codes, left = _GrowingCodes(x, self.features), torch.empty_like(x)

        def reconstructed(rows: Tensor, said: Tensor) -> Tensor:
            own, where = x.index_select(0, rows) - said, None if positions is None else positions.index_select(0, rows)
            left.index_copy_(0, rows, own)
            sparse = self.sparse_codes(own, where)
            found = self.codes(own, where) if sparse is None else sparse
            codes.put(rows, found)
            return self._decoded(found) + said - centre

        links = links_of(context, policy.past, policy.past_of == "other")
        with many_products():
            features = walk(links, past_map, policy.decay, reconstructed, keep).features
        return Walk(codes.whole(), left, features)

    def _replayed(self, reconstruction: Float[Tensor, "N D"], context: Context | None) -> Float[Tensor, "N D"]:
        """What codes decode to, and what the past says beside them."""
        policy, past_map, centre = self.config.expectation, self.past_map, self.past_centre
        if policy is None or context is None or past_map is None or centre is None:
            return reconstruction
        links = links_of(context, policy.past, policy.past_of == "other")
        found = walk(links, past_map, policy.decay, lambda rows, said: reconstruction[rows] + said - centre)
        return reconstruction + found.said

    def _flat_positions(self, x: Tensor, positions: Positions | None) -> Int[Tensor, " N"] | None:
        """Positions of the rows of `x`, checked even where the dictionary does not need them; None where it does not, or under the
        policy `mean`."""
        if positions is not None:
            found = whole_positions(positions)
            if found.shape != x.shape[:-1]:
                raise TemporalLensError(f"positions of shape {tuple(found.shape)} do not fit activations of shape {tuple(x.shape)}")
            return found.reshape(-1).to(x.device) if self.position_aware else None
        if not self.position_aware:
            return None
        if x.ndim == 3:
            return torch.arange(x.shape[1], device=x.device).repeat(x.shape[0])
        policy = known_policy(self.position_policy)
        if policy is None:
            raise TemporalLensError(
                f"a '{self.kind}' dictionary needs the positions of [N, D] activations: pass positions, "
                "or set position_policy to a position or 'mean'"
            )
        return None if policy == "mean" else torch.full(x.shape[:-1], policy, device=x.device).reshape(-1)

    def reconstruct(self, z: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch D"]:
        """What `centre` gave, from codes."""
        return z @ self.decoder + self.decoder_bias

    def _decoded(self, z: "Entries | Tensor") -> Float[Tensor, "N D"]:
        """`reconstruct`, up to the order of sums: where nobody learns from it and few features fire, from their decoder rows alone."""
        if isinstance(z, Tensor):
            if torch.is_grad_enabled() or z.is_cuda:  # a GPU would have to say how many fire
                return self.reconstruct(z)
            used = z.flatten().nonzero()[:, 0]
            z = Entries(pattern_of(used, *z.shape), z.flatten().index_select(0, used))
        if FEW * len(z.values) < z.pattern.rows * self.features:
            return z.pattern.combine(z.values, self.decoder) + self.decoder_bias
        return self.reconstruct(dense_of(*z))

    def added(self, reconstruction: Float[Tensor, "N D"], context: Context | None) -> Float[Tensor, "N D"]:
        """What codes decode to, and what the arm adds to it for tokens."""
        return reconstruction

    def decode(
        self, z: Float[Tensor, "*batch F"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch D"]:
        """Reconstruct from codes. Positions and tokens, as `encode` takes them, matter to a dictionary with per-position centring, or
        with an expectation, only. Raises TemporalLensError where the result would hold NaN or infinity."""
        refuse_unfit(z, self.features, "codes", f"{self.features} features")
        z = z.to(self.decoder.dtype)
        where = None if self.position_offset is None and positions is None else self._flat_positions(z, positions)
        context = self.context(z, tokens)
        flat = self._replayed(self.added(self.reconstruct(z).reshape(-1, self.output_width), context), context)
        flat = self.uncentre(flat, where, self.known(context))
        refuse_worthless(flat, z.shape[:-1], "the codes decode to")
        return flat.reshape(*z.shape[:-1], self.output_width)

    def forward(
        self, x: Float[Tensor, "*batch D"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch E"]:
        return self.reconstructed(x, positions, tokens).x

    def reconstructed(
        self, x: Float[Tensor, "*batch D"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Reconstructed:
        """Codes of activations and what comes of them: `encode`, then `decode`, where a dictionary has one."""
        codes = self.encode(x, positions, tokens)
        return Reconstructed(codes, self.decode(codes, positions, tokens))

    def all_codes(
        self, x: Float[Tensor, "*batch D"], positions: Positions | None = None, tokens: Tokens | None = None
    ) -> Float[Tensor, "*batch F"]:
        """Everything that is multiplied by the decoder: the codes, and what an open loop predicts of them."""
        return self.encode(x, positions, tokens)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        """Move from inputs `(x - centre) * scale` to raw inputs, so that reconstructions come out in raw units too.

        Codes shrink by `scale`; encoder and unit decoder rows stay as they are.
        """
        self.encoder_bias.div_(scale)
        self.decoder_bias.div_(scale)
        if self.expectation is not None:
            self.expectation = self.expectation.scaled(1.0)
        if self.past_centre is not None and self.position_offset is None:
            self.past_centre.add_(centre)
        if self.position_offset is None:
            self.decoder_bias.add_(centre)
        else:
            self.position_offset.div_(scale).add_(centre)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient what would only change the norms of its rows."""
        gradient = self.decoder.grad
        if gradient is not None:
            for part, rows in zip(gradient.split(CACHED_ROWS), self.decoder.split(CACHED_ROWS), strict=True):
                part.addcmul_(rows, torch.linalg.vecdot(part, rows)[:, None], value=-1)
