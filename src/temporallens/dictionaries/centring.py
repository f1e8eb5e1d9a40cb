"""What inputs lose before they are encoded because of where they stand, and get back once they are decoded.

`centre` gives `(x - known - offset[p]) * gain[p]`; `known` is what tokens say, where a dictionary has an expectation.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from temporallens.activations.clocks import at_positions


class Centred(nn.Module):
    """A module with an offset and a gain for each position, or with neither."""

    position_offset: Tensor | None
    position_gain: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position_offset", None)
        self.register_buffer("position_gain", None)

    def centre_by_position(self, offset: Float[Tensor, "P D"], gain: Float[Tensor, " P"]) -> None:
        """Take `offset` off inputs, by position, and multiply by `gain`, before they are encoded; undo both after decoding."""
        self.position_offset, self.position_gain = offset, gain

    def _centring(self, positions: Int[Tensor, " N"] | None) -> tuple[Tensor, Tensor] | None:
        """Offsets `[N, D]` and gains `[N, 1]` of rows; their means under the policy `mean`; None without centring by position."""
        if self.position_offset is None or self.position_gain is None:
            return None
        if positions is None:
            return self.position_offset.mean(0, keepdim=True), self.position_gain.mean().view(1, 1)
        return at_positions(self.position_offset, positions), at_positions(self.position_gain, positions)[:, None]

    def centre(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, known: Float[Tensor, "N D"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Inputs as the encoder sees them: `(x - known - offset[p]) * gain[p]`."""
        centring = self._centring(positions)
        x = x if known is None else x - known
        return x if centring is None else (x - centring[0]).mul_(centring[1])

    def uncentre(
        self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"] | None, known: Float[Tensor, "N D"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Undo `centre`."""
        centring = self._centring(positions)
        x = x if centring is None else x / centring[1] + centring[0]
        return x if known is None else x + known

    def offset(self, x: Float[Tensor, "N D"], positions: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Inputs less what their position says alone."""
        return x if self.position_offset is None else x - at_positions(self.position_offset, positions)

    def gain(self, positions: Int[Tensor, " N"]) -> Float[Tensor, " N"] | None:
        """By how much `centre` scales each row; None for 1."""
        return None if self.position_gain is None else at_positions(self.position_gain, positions)
