"""Per-position mean and scale: BatchTopK on `(x - mu_p) / sigma_p`, which buys most of what position can buy (`docs/method.md`).

    z = BatchTopK((x - mu_p) * g_p),  x_hat = (z @ decoder + decoder_bias) / g_p + mu_p

It is the baseline that a positional arm must beat. Any other arm is centred so with `centre: position_scaled`, or the mean alone with
`centre: position`.
"""

from typing import ClassVar, Literal

import torch

from temporallens.dictionaries.arms.batchtopk import BatchTopKDictionary, TopKConfig
from temporallens.dictionaries.config import Role


class PositionMean(TopKConfig):
    """BatchTopK on activations that lost the mean and the scale of their position."""

    roles: ClassVar[tuple[Role, ...]] = ("baseline",)
    kind: Literal["position_mean"] = "position_mean"

    centre: Literal["position", "position_scaled"] = "position_scaled"
    """Always by position: that is what this arm is; `position` takes the mean alone."""

    def build(self, width: int, positions: int, generator: torch.Generator) -> BatchTopKDictionary:
        return BatchTopKDictionary(width, self, generator)
