"""Places in a model where activations are read, by the names that TransformerLens and SAELens (`blocks.12.hook_mlp_out`) or
transformers and sparsify (`model.layers.12.mlp`) give them.

The residual stream after a block is a layer, named by its number. That before block n is the one after block n - 1 and has that name
here; before block 0 it is `embed`. What a block adds to the stream by its attention or by its MLP is a hook, after a norm where one
follows them, as in TransformerLens; `additions.py` finds and proves which module gives it. What an MLP reads is one in two places:
`blocks.12.hook_mlp_in` is the stream to which its output will be added, before the norm in front of it, as TransformerLens has it;
`blocks.12.mlp.hook_in`, or `model.layers.12.mlp.input`, is what its module is given, behind that norm.
"""

import re
from typing import Literal, NamedTuple

from temporallens.errors import TemporalLensError

Layer = int | str
"""A number: the residual stream after that block, counted from 0; `embed`: that before block 0; or the name of a Hook."""
Site = Literal["attn_out", "mlp_out"]
"""What a block adds: by its attention, by its MLP."""
Entrance = Literal["mlp_in", "mlp.hook_in"]
"""What an MLP reads: the stream before its norm, and what is behind that."""
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out")
"""What stands behind `hook_` in the names of TransformerLens that are known here."""
BEHIND_NORM: Entrance = "mlp.hook_in"
GIVEN = ".input"
"""Ends the name of a module where what it is given is meant."""
OTHER_NAMES = {"mlp.hook_out": "mlp", "mlp.input": BEHIND_NORM}
NORMALISED = re.compile(r"ln\d\w*\.hook_\w+")
"""TransformerLens' places inside a norm, before its weights."""
PLACE = re.compile(r"(?:[\w.]+?\.)?(?:layers?|h|blocks?)\.([0-9]{1,6})(?:\.([\w.]+))?", re.ASCII)
"""A module in a list of blocks, however the list is called and wherever it stands."""


class Hook(NamedTuple):
    """What a block adds to the residual stream in one place, or reads there."""

    block: int  # counted from 0
    site: str  # a Site or Entrance, or the path in the block of a module that must prove to be one

    def __str__(self) -> str:
        if self.site == BEHIND_NORM:
            return f"blocks.{self.block}.{self.site}"
        known = self.site in SITES
        return f"blocks.{self.block}.hook_{self.site}" if known else f"layers.{self.block}.{self.site}"


def layer_named(name: str) -> Layer:
    """The layer or the hook that `name` stands for, by its one name here. Raises TemporalLensError where it stands for none."""
    if name == "embed":
        return name
    place = PLACE.fullmatch(f"layers.{name}" if name.isdecimal() else name)
    if place is not None:
        block, rest = int(place[1]), place[2]
        site = "resid_post" if rest is None else OTHER_NAMES.get(rest, rest.removeprefix("hook_"))
        if site == "resid_post":
            return block
        if site == "resid_pre":
            return block - 1 if block else "embed"
        if site in (*SITES, BEHIND_NORM) or rest in OTHER_NAMES or "hook_" not in rest:
            return str(Hook(block, site))
        if NORMALISED.fullmatch(rest):
            raise TemporalLensError(
                f"'{name}' is inside a norm, before its weights, where no model of transformers can be read: what the MLP is given behind "
                f"them is blocks.{block}.{BEHIND_NORM}, and what the norm is given blocks.{block}.hook_mlp_in"
            )
    raise TemporalLensError(
        f"'{name}' names no place in a model: a number is the residual stream after that block, `embed` the one before block 0, and of "
        f"names {', '.join(f'blocks.12.hook_{site}' for site in SITES)}, layers.12 and such as model.layers.12.mlp are known, "
        "and blocks.12.mlp.hook_in and such as model.layers.12.mlp.input"
    )


def hook_of(layer: Layer) -> Hook | None:
    """The hook that `layer` names; None for the residual stream. Raises TemporalLensError for what is no name of any."""
    known = layer_named(layer) if isinstance(layer, str) else layer
    place = PLACE.fullmatch(known) if isinstance(known, str) else None
    return None if place is None else Hook(int(place[1]), place[2].removeprefix("hook_"))


def block_of(layer: Layer) -> int:
    """The deepest block that must be run for `layer`; -1 for `embed`."""
    known = layer_named(layer) if isinstance(layer, str) else layer
    hook = hook_of(known)
    return hook.block if hook is not None else -1 if isinstance(known, str) else known


def site_of(layer: Layer) -> str:
    """What is read there: `embed`, `resid_post`, or what a block adds."""
    hook = hook_of(layer)
    return hook.site if hook is not None else "embed" if layer == "embed" else "resid_post"
