"""Which layer or hook a point in a model is, as other projects name it."""

import re

from temporallens.activations.language.hooks import BEHIND_NORM, GIVEN, Layer, hook_of, layer_named
from temporallens.errors import TemporalLensError

BEHIND_A_BLOCK = re.compile(r"(?:resid|residual)_post_layer_(\d+)")
"""dictionary_learning's name of the stream behind a block; others' names are those of `hooks`."""

ADDED = ("attn_out", "mlp_out", "attn", "self_attn", "attention", "mlp", "post_feedforward_layernorm")
"""Hooks, and modules, that may be what a block adds to the stream: the harvest proves it."""
READ = ("mlp_in", BEHIND_NORM, "pre_feedforward_layernorm")
"""What an MLP may read."""


def layer_of(point: str | None) -> Layer | None:
    """The layer or hook of a point; None for one that has no name here, such as the values inside attention."""
    if point is None:
        return None
    if found := BEHIND_A_BLOCK.fullmatch(point):
        return int(found[1])
    try:
        layer = layer_named(point.removesuffix(".output"))
    except TemporalLensError:
        return None
    hook = hook_of(layer)
    known = hook is None or hook.site in READ or hook.site.removesuffix(GIVEN).rpartition(".")[2] in ADDED
    return layer if known else None
