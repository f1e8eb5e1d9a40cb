"""What every dictionary has and does: weights, encoding, decoding, and what one training step needs from it.

Weights are kept with one row per feature: `encoder [F, D]`, `decoder [F, D]` (unit rows). A dictionary computes
`pre = (x - decoder_bias) @ encoder.T + encoder_bias`, turns it into codes in the way of its arm, and reconstructs
`codes @ decoder + decoder_bias`. While it is trained its inputs are centred and scaled; `fold` then moves it into raw units.
"""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from temporallens.errors import TemporalLensError


class ArmConfig(BaseModel):
    """What every arm's configuration has; each arm adds its own fields and builds its dictionary."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    features: int = Field(2304, ge=1, le=1 << 24)
    """Width of the dictionary; the lab notes use 2304."""

    @property
    def penalty(self) -> float:
        """Weight of the L1 penalty in the objective; 0 where the arm chooses its codes by number."""
        return 0.0

    @abstractmethod
    def build(self, width: int, positions: int, generator: torch.Generator) -> "Dictionary":
        """A new dictionary of this arm for activations of `width` on a clock of `positions`."""


class Forward(NamedTuple):
    """What a dictionary hands to the objective for one batch."""

    reconstruction: Float[Tensor, "N D"]
    magnitude: Float[Tensor, " N"]  # sum of |code| over features: what L1 penalises
    active: Float[Tensor, " N"]  # codes in use
    fired: Float[Tensor, " F"]  # rows in which each feature is in use


class Dead(NamedTuple):
    """Features to revive."""

    features: Int[Tensor, " A"]
    certain: Float[Tensor, " A"]  # 1, or 0 for one that fired after the list was drawn up


class Progress(NamedTuple):
    """Where training is, for whatever follows a schedule."""

    step: int
    steps: int

    @property
    def share(self) -> float:
        return self.step / self.steps


class Dictionary(nn.Module):
    """Encodes activations into sparse non-negative codes and reconstructs them; arms say how."""

    kind: ClassVar[str]
    position_aware: ClassVar[bool] = False

    def __init__(self, width: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        directions = torch.randn(features, width, generator=generator)
        directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        self.encoder = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(features))
        self.decoder = nn.Parameter(directions)
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        self.encoder_dtype = torch.float32
        """In which the product with the encoder nominates candidates while training; codes are float32 all the same."""
        self.position_policy: int | Literal["mean"] | None = None
        """What `encode` of `[N, D]` without positions assumes: nothing (it raises), one position, or the mean mask."""

    @property
    def features(self) -> int:
        return self.encoder.shape[0]

    @property
    def width(self) -> int:
        return self.encoder.shape[1]

    def pre_activations(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N F"]:
        return torch.addmm(self.encoder_bias, x - self.decoder_bias, self.encoder.T)

    @abstractmethod
    def codes(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None) -> Float[Tensor, "N F"]:
        """Codes at inference; `positions` is None only for arms that are not position-aware, or under the policy `mean`."""

    @abstractmethod
    def training_forward(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Forward:
        """One differentiable pass over a batch whose rows are in ascending order of position."""

    def auxiliary(self, x: Float[Tensor, "N D"], residual: Float[Tensor, "N D"], dead: Dead) -> Tensor | None:
        """Loss that revives dead features, per row `[N]`; None where the arm has none."""
        return None

    def batch_threshold(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Tensor | None:
        """Smallest code that training would select in this batch; None where codes are not selected by number."""
        return None

    def advance(self, progress: Progress) -> None:
        """Follow the arm's schedules up to this step; called before each step."""

    @property
    def temperature(self) -> float:
        """Of the mask's sigmoid; 0 where there is no mask or it is hard."""
        return 0.0

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters with the multiple of the learning rate at which they learn."""
        return [(list(self.parameters()), 1.0)]

    def openness(self) -> Float[Tensor, " P"] | None:
        """Mean gate by position, None where nothing is masked."""
        return None

    def encode(self, x: Float[Tensor, "*batch width"], positions: Tensor | None = None) -> Float[Tensor, "*batch F"]:
        """Codes of activations. `[B, S, D]` without positions stands at 0 to S - 1; `[N, D]` without positions raises for a
        position-aware dictionary unless `position_policy` is set. Differentiable where gradients are enabled; under
        `torch.no_grad()` the arms with few codes skip what a closed mask makes needless."""
        if x.shape[-1] != self.width:
            raise TemporalLensError(f"activations of width {x.shape[-1]} do not fit this dictionary of width {self.width}")
        flat = x.reshape(-1, self.width).to(self.encoder.dtype)
        return self.codes(flat, self._flat_positions(x, positions)).reshape(*x.shape[:-1], self.features)

    def _flat_positions(self, x: Tensor, positions: Tensor | None) -> Tensor | None:
        if not self.position_aware:
            return None
        if positions is not None:
            if positions.shape != x.shape[:-1]:
                raise TemporalLensError(f"positions of shape {tuple(positions.shape)} do not fit activations of shape {tuple(x.shape)}")
            if bool((positions < 0).any()):
                raise TemporalLensError(f"positions start at 0; the smallest of these is {int(positions.min())}")
            return positions.reshape(-1).to(x.device)
        if x.ndim == 3:
            return torch.arange(x.shape[1], device=x.device).repeat(x.shape[0])
        if self.position_policy is None:
            raise TemporalLensError(
                f"a '{self.kind}' dictionary needs the positions of [N, D] activations: pass positions, "
                "or set position_policy to a position or 'mean'"
            )
        if self.position_policy == "mean":
            return None
        return torch.full((x.shape[0],), self.position_policy, device=x.device)

    def decode(self, z: Float[Tensor, "*batch F"], positions: Tensor | None = None) -> Float[Tensor, "*batch D"]:
        """Reconstruct from codes; `positions` is for arms whose decoding depends on them."""
        return z @ self.decoder + self.decoder_bias

    def forward(self, x: Float[Tensor, "*batch D"], positions: Tensor | None = None) -> Float[Tensor, "*batch D"]:
        return self.decode(self.encode(x, positions), positions)

    @torch.no_grad()
    def fold(self, centre: Float[Tensor, " D"], scale: float) -> None:
        """Move from inputs `(x - centre) * scale` to raw inputs, so that reconstructions come out in raw units too.

        Codes shrink by `scale`; encoder and unit decoder rows stay as they are.
        """
        self.encoder_bias.div_(scale)
        self.decoder_bias.div_(scale).add_(centre)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient what would only change the norms of its rows."""
        gradient = self.decoder.grad
        if gradient is not None:
            parallel = torch.bmm(gradient[:, None], self.decoder[:, :, None])[:, 0]  # one pass, where a product and a sum take three
            gradient.addcmul_(self.decoder, parallel, value=-1)
