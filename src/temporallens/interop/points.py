"""Which layer a point in a model is, as other projects name it. Ours are the residual stream behind a block, and `embed`."""

import re
from typing import Literal

Layer = int | Literal["embed"]

RESID_PRE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")
"""TransformerLens's name of the stream before a block, which is behind the one before."""
BEHIND_A_BLOCK = re.compile(
    r"blocks\.(\d+)\.hook_resid_post|(?:[a-z_]+\.)*(?:layers|layer|h|blocks)[._](\d+)(?:\.output)?|(?:resid|residual)_post_layer_(\d+)"
)
"""TransformerLens's name of it, the module's in transformers, and dictionary_learning's."""


def layer_of(point: str | None) -> Layer | None:
    """The layer of a point of the residual stream; None for any other, such as an MLP's output."""
    if point is None:
        return None
    if before := RESID_PRE.fullmatch(point):
        return int(before[1]) - 1 if int(before[1]) else "embed"
    found = BEHIND_A_BLOCK.fullmatch(point)
    return int(next(number for number in found.groups() if number is not None)) if found else None
