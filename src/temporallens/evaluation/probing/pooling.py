"""From tokens to items: what a probe sees of a text, or of one token of it.

Raw activations or the codes of a dictionary are pooled over the tokens of an item: their mean, their maximum, the last of them, or
the mean within each bin of positions, side by side (`docs/method.md`, "Order"). Rows are encoded a few thousand at a time, so memory
holds one chunk of codes and the pooled items, never the codes of every token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.activations.context import Context
from temporallens.activations.moments import beyond_norm
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import TextActivations

Pooling = Literal["mean", "last", "max", "bins"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
CHUNK_ROWS = 4096
NORM_MULTIPLE = 10.0
"""A token whose norm is more than so many times the median is a sink and in no item, as it is in no training batch."""

CodesAt = Callable[[Int[Tensor, " n"], Int[Tensor, " n"]], Float[Tensor, "n F"]]
Encode = Callable[[Float[Tensor, "N D"], Int[Tensor, " N"], Context], Float[Tensor, "N F"]]


class Members(NamedTuple):
    """Which tokens make up which item: one entry per token, ascending by item, and within an item by column."""

    text: Int[Tensor, " N"]
    column: Int[Tensor, " N"]
    item: Int[Tensor, " N"]
    items: int


def every_token(activations: TextActivations) -> Members:
    """Each text is an item, made up of its tokens without position 0 and sinks; a text of sinks alone, a word or two long, keeps them.

    Raises TemporalLensError for a text that has no token but the first.
    """
    counts = activations.live & (activations.position > 0)
    text, column = counts.nonzero(as_tuple=True)
    parts = zip(text.split(CHUNK_ROWS), column.split(CHUNK_ROWS), strict=True)
    norms = torch.cat([torch.linalg.vector_norm(activations.x[part].float(), dim=1) for part in parts])
    usual = ~beyond_norm(norms, torch.ones_like(norms, dtype=torch.bool), NORM_MULTIPLE)
    selected = usual | (torch.bincount(text[usual], minlength=len(counts)) == 0)[text]
    text, column = text[selected], column[selected]
    empty = (torch.bincount(text, minlength=len(counts)) == 0).nonzero()
    if len(empty):
        raise TemporalLensError(f"text {int(empty[0])} of {len(counts)} has no token to pool: it is empty, or all of it are special tokens")
    return Members(text, column, text, len(counts))


def single_tokens(text: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Members:
    """Each given token is an item of its own."""
    return Members(text, column, torch.arange(len(text)), len(text))


def pool_codes(
    dictionary: Dictionary, activations: TextActivations, members: Members, poolings: Sequence[Pooling], bin_of: Int[Tensor, " P"]
) -> dict[Pooling, Float[np.ndarray, "items _"]]:
    """Codes of `dictionary`, pooled in each of these ways; see `pool`. Raises TemporalLensError when widths differ."""
    if activations.width != dictionary.width:
        raise TemporalLensError(
            f"this dictionary of width {dictionary.width} is for another layer or model: activations have width {activations.width}"
        )
    if dictionary.config.looks_back:
        return _pooled(activations, members, poolings, bin_of, partial(_walked_codes, dictionary, activations), dictionary.features)
    return pool(activations, members, poolings, bin_of, dictionary.encode, dictionary.features)


def _walked_codes(
    dictionary: Dictionary, activations: TextActivations, text: Int[Tensor, " n"], column: Int[Tensor, " n"]
) -> Float[Tensor, "n F"]:
    """Codes of tokens by a dictionary that looks back, which reads all of their texts, some texts at a time."""
    texts, number = text.unique(return_inverse=True)
    codes = torch.empty(len(text), dictionary.features, dtype=torch.float32)
    at_once = max(1, CHUNK_ROWS // activations.live.shape[1])
    for first in range(0, len(texts), at_once):
        part = texts[first : first + at_once]
        whole = dictionary.encode(activations.x[part].float(), activations.position[part].long(), activations.sequences(part))
        here = (number >= first) & (number < first + at_once)
        codes[here] = whole[number[here] - first, column[here]]
    return codes


def pool_raw(
    activations: TextActivations, members: Members, poolings: Sequence[Pooling], bin_of: Int[Tensor, " P"]
) -> dict[Pooling, Float[np.ndarray, "items _"]]:
    """The activations themselves, pooled in each of these ways; see `pool`."""
    return pool(activations, members, poolings, bin_of, lambda x, position, context: x, activations.width)


def pool(
    activations: TextActivations, members: Members, poolings: Sequence[Pooling], bin_of: Int[Tensor, " P"], encode: Encode, features: int
) -> dict[Pooling, Float[np.ndarray, "items _"]]:
    """Pool `encode(x, position, context)` over the tokens of each item, in float32.

    `bin_of` holds the bin of each position (later positions belong to the last); `bins` gives an item the mean of every bin,
    one after the other, 0 where it has no token there. Items are as wide as there are features, for `bins` times
    that of bins.
    """

    def codes_at(text: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Float[Tensor, "n F"]:
        position = activations.position[text, column].long()
        return encode(activations.x[text, column].float(), position, activations.context(text, column))

    return _pooled(activations, members, poolings, bin_of, codes_at, features)


@torch.inference_mode()
def _pooled(
    activations: TextActivations, members: Members, poolings: Sequence[Pooling], bin_of: Int[Tensor, " P"], codes_at: CodesAt, features: int
) -> dict[Pooling, Float[np.ndarray, "items _"]]:
    """The same of codes that tokens are given by their texts and columns."""
    bins = int(bin_of[-1]) + 1
    pooled = {name: torch.zeros(members.items, (bins if name == "bins" else 1) * features, dtype=torch.float32) for name in poolings}
    for first, last in _chunks(members):
        text, column, item = (each[first:last] for each in members[:3])
        codes, groups = codes_at(text, column), at_positions(bin_of, activations.position[text, column].long())
        for name in poolings:
            _add(pooled[name], name, codes, item, groups)
    return {name: values.numpy() for name, values in pooled.items()}


def _add(out: Tensor, pooling: Pooling, codes: Float[Tensor, "n F"], item: Int[Tensor, " n"], group: Int[Tensor, " n"]) -> None:
    """Pool the tokens of a chunk of whole items into their rows of `out`."""
    items, lengths = torch.unique_consecutive(item, return_counts=True)
    if pooling == "last":
        out[items] = codes[lengths.cumsum(0) - 1]
    elif pooling == "max":
        out[items] = torch.segment_reduce(codes, "max", lengths=lengths, axis=0)
    else:
        bins = out.shape[1] // codes.shape[1]
        rows = out.view(-1, codes.shape[1])
        slots = item * bins + group if pooling == "bins" else item
        rows.index_add_(0, slots, codes)
        used, counts = slots.unique(return_counts=True)
        rows[used] /= counts[:, None]


def _chunks(members: Members) -> list[tuple[int, int]]:
    """Runs of about CHUNK_ROWS tokens that hold whole items."""
    starts = torch.cat([torch.tensor([0]), members.item.diff().nonzero()[:, 0] + 1, torch.tensor([len(members.item)])])
    cuts = [0]
    while cuts[-1] < len(members.item):
        index = int(torch.searchsorted(starts, cuts[-1] + CHUNK_ROWS, right=True)) - 1
        following = int(starts[index])
        cuts.append(following if following > cuts[-1] else int(starts[index + 1]))
    return list(pairwise(cuts))
