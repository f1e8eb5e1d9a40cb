"""The tokens of N rows, and which of these rows stands before each.

Where the rows are those of whole sequences, one after the other, it is also known which row stands before each.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from temporallens.activations.writer import Rows
from temporallens.errors import TemporalLensError

UNKNOWN = -1
"""In place of a token, or of a row, that is not known."""


class Context(NamedTuple):
    """What is known of rows beside their positions."""

    token: Int[Tensor, " N"]  # id
    token_before: Int[Tensor, " N"]  # of the row before, in its sequence and document
    before: Int[Tensor, " N"] | None = None  # number of that row among these
    usable: Bool[Tensor, " N"] | None = None  # whether later rows may look back at the row

    def to(self, device: torch.device) -> "Context":
        before, usable = (None if column is None else column.to(device) for column in (self.before, self.usable))
        return Context(self.token.to(device), self.token_before.to(device), before, usable)

    def rows(self, chosen: Tensor) -> "Context":
        """Of some of the rows, which are no sequences."""
        return Context(self.token[chosen], self.token_before[chosen])

    def reordered(self, order: Int[Tensor, " N"]) -> "Context":
        """Of all rows, or of those of some whole sequences, in another order: those of sequences stay so."""
        plain = self.rows(order)
        if self.before is None or self.usable is None:
            return plain
        number, before = torch.full_like(self.before, UNKNOWN), self.before[order]
        number[order] = torch.arange(len(order), device=order.device)
        before = torch.where(before < 0, UNKNOWN, number[before.clamp(min=0)])
        return plain._replace(before=before, usable=self.usable[order])

    def grid(self) -> "Grid":
        """Where each row stands, whatever their order. Raises TemporalLensError where they are not those of sequences."""
        if self.before is None or self.usable is None:
            raise TemporalLensError("this dictionary looks back at earlier rows, so it reads whole sequences: give activations [B, S, D]")
        first = torch.where(self.before < 0, torch.arange(len(self.before), device=self.before.device), self.before)
        place = (self.before >= 0).long()
        while not torch.equal(first, beyond := first[first]):  # each round looks twice as far back
            place, first = place + place[first], beyond
        return Grid(torch.unique(first, return_inverse=True)[1], place, self.usable)

    def of_before(self) -> "Context":
        """Of the rows before; what stood before those is not known."""
        return Context(self.token_before, torch.full_like(self.token_before, UNKNOWN))


class Grid(NamedTuple):
    """Rows of B sequences as `[B, S]`, S being the length of the longest."""

    sequence: Int[Tensor, " N"]  # 0 to B - 1, in the order of their first rows
    place: Int[Tensor, " N"]  # in it, from 0
    usable: Bool[Tensor, " N"]

    def spread(self, rows: Tensor) -> Tensor:
        """`[N, ...]` as `[B, S, ...]`, zeros where there is no row."""
        shape = (int(self.sequence.max()) + 1, int(self.place.max()) + 1) if len(rows) else (0, 0)
        return rows.new_zeros(*shape, *rows.shape[1:]).index_put((self.sequence, self.place), rows)

    def gathered(self, spread: Tensor) -> Tensor:
        """What `spread` undid."""
        return spread[self.sequence, self.place]


def context_of(rows: Rows) -> Context:
    """Of consecutive rows of a store: the token before is that of the same sequence and document."""
    follows = (rows.sequence[1:] == rows.sequence[:-1]) & (rows.document[1:] == rows.document[:-1])
    follows &= rows.index[1:] == rows.index[:-1] + 1
    before, token_before = torch.full((2, len(rows.token)), UNKNOWN)
    before[1:] = torch.where(follows, torch.arange(len(follows)), UNKNOWN)
    token_before[1:] = torch.where(follows, rows.token[:-1], UNKNOWN)
    return Context(rows.token.long(), token_before, before, rows.excluded == 0)


def context_of_given(tokens: Any, shape: torch.Size, device: torch.device) -> Context:
    """Of what users give in the place of tokens: ids, or what is known of rows already. Raises TemporalLensError where it does not fit."""
    if not isinstance(tokens, Context):
        return context_of_tokens(tokens, shape, device)
    if len(tokens.token) != shape.numel() or len(tokens.token_before) != shape.numel():
        raise TemporalLensError(f"a context of {len(tokens.token)} rows does not fit activations of shape {tuple(shape)} and their width")
    return tokens


def context_of_tokens(tokens: Any, shape: torch.Size, device: torch.device) -> Context:
    """Of token ids in the shape of activations without their width: `[B, S]` are sequences, of `[N]` it is not known what stood before.

    A token of -1 is not known, and before or behind all of its sequence that are, it is padding, which is not looked back at.

    Raises TemporalLensError for what are no whole numbers of this shape, and below -1.
    """
    found = _whole(tokens)
    if found.shape != shape:
        raise TemporalLensError(f"tokens of shape {tuple(found.shape)} do not fit activations of shape {tuple(shape)} and their width")
    if found.numel() and int(found.min()) < UNKNOWN:
        raise TemporalLensError(f"tokens are ids from 0, or {UNKNOWN} where not known; the smallest of these is {int(found.min())}")
    found = found.to(device)
    token_before = torch.full_like(found, UNKNOWN)
    if found.ndim < 2:
        return Context(found.reshape(-1), token_before.reshape(-1))
    token_before[..., 1:] = found[..., :-1]
    known = found != UNKNOWN
    padding = (known.cumsum(-1) == 0) | (known.flip(-1).cumsum(-1).flip(-1) == 0)
    return in_sequences(found, token_before, ~padding | ~known.any(-1, keepdim=True))  # where no token is known, -1 tells of no padding


def _whole(tokens: Any) -> Int[Tensor, "*shape"]:
    """Ids in int64, whatever type of whole numbers they come in; what is masked is not known."""
    if isinstance(tokens, Tensor):
        found = tokens.detach()
        if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
            raise _no_ids(str(found.dtype).removeprefix("torch."))
        return found.long()
    try:
        array = np.asanyarray(tokens)
    except ValueError as error:
        raise _no_ids("lists of different lengths") from error
    if array.size and (array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.max() >= 1 << 63)):
        raise _no_ids(str(array.dtype))
    whole = np.ma.filled(array.astype(np.int64), UNKNOWN)
    return torch.from_numpy(np.array(whole))  # a copy: torch reads no rows that run backwards


def _no_ids(kind: str) -> TemporalLensError:
    return TemporalLensError(f"tokens should be whole numbers, the ids of a vocabulary; these are {kind}")


def in_sequences(token: Int[Tensor, "*B S"], token_before: Int[Tensor, "*B S"], live: Bool[Tensor, "*B S"]) -> Context:
    """Of padded sequences: the first row of each is not looked back at, and neither is padding."""
    before = torch.arange(token.numel(), device=token.device).view(token.shape) - 1
    first = torch.arange(token.shape[-1], device=token.device) == 0
    return Context(
        token.reshape(-1).long(),
        token_before.reshape(-1).long(),
        torch.where(first, UNKNOWN, before).reshape(-1),
        (live & ~first).reshape(-1),
    )
