"""What earlier reconstructions say of an activation, in closed loop: from codes, tokens and positions alone.

    x_hat_t = static_t + P_t + z_t decoder,      P_t = sum_j u_j(t) W_j

`static` is what position and tokens say. Each u_j is made of how far earlier reconstructions of the row were from their own `static`: that
of the row before, an exponential mean, that at the last occurrence of the same token, or that of what followed the last occurrence of the
token before (an induction look-up; Elhage et al. 2021). The first rows of sequences, and rows that a rule excludes, count as zero, and so
does what lies before a sequence. A sequence is walked once, all sequences of a batch side by side.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from temporallens.activations.context import UNKNOWN, Context

PastKind = Literal["previous", "mean", "same_token", "induction", "attention"]
PAST_KINDS: tuple[PastKind, ...] = get_args(PastKind)

SHARPNESS = 10.0
"""Of attention: a row like the one before, at a cosine of .5, counts as much as 150 rows that have nothing to do with it."""


class Links(NamedTuple):
    """Which rows each of N rows looks back at. Rows go by their slots, `sequence * S + place` in a grid of B sequences of at most S rows;
    B * S for none."""

    levels: list[Int[Tensor, " n"]]  # rows by their place in their sequence: each looks back at rows of earlier levels only
    slot: Int[Tensor, " N"]
    usable: Bool[Tensor, "B S"]  # whose reconstructions count
    looked_at: dict[PastKind, Int[Tensor, " N"]]
    sequence: Int[Tensor, " N"]  # that each row looks back in


def links_of(context: Context, kinds: tuple[PastKind, ...], of_others: bool) -> Links:
    """What rows of whole sequences, one after the other, look back at; with `of_others`, a control, in the next sequence instead of their
    own, or the first one for the last; a sequence that is alone has no other, so nothing of it counts.

    Raises TemporalLensError where the rows are not those of sequences.
    """
    grid = context.grid()
    assert context.before is not None
    same, before = _last_alike(grid.sequence, context.token), context.before
    followed = torch.where(before < 0, UNKNOWN, same[before.clamp(min=0)])
    looked_at: dict[PastKind, Tensor] = {
        "previous": before,
        "mean": before,
        "same_token": same,
        "induction": torch.where(followed < 0, UNKNOWN, followed + 1),
        "attention": before,
    }
    sequence, usable = grid.sequence, grid.spread(grid.usable & (grid.place > 0))  # no first row, whether or not a rule excludes it
    if of_others:
        usable &= len(usable) > 1
        number = grid.spread(torch.arange(1, len(before) + 1, device=before.device))  # 0 where a sequence is shorter
        partner, sequence = grid.gathered(number.roll(-1, 0)) - 1, (sequence + 1) % len(number)
        looked_at = {kind: _through(partner, looked) for kind, looked in looked_at.items()}
    order = torch.argsort(grid.place, stable=True)
    levels = list(order.split(torch.bincount(grid.place).tolist()))
    slot = grid.sequence * usable.shape[1] + grid.place
    looked_at = {kind: _through(looked_at[kind], slot) for kind in kinds}
    nothing = usable.numel()
    return Links(levels, slot, usable, {kind: rows.masked_fill(rows < 0, nothing) for kind, rows in looked_at.items()}, sequence)


def _last_alike(sequence: Int[Tensor, " N"], token: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The last earlier row of the same sequence with the same token."""
    order = torch.argsort(token, stable=True)
    order = order[torch.argsort(sequence[order], stable=True)]
    follows = (sequence[order][1:] == sequence[order][:-1]) & (token[order][1:] == token[order][:-1]) & (token[order][1:] >= 0)
    found = torch.full_like(token, UNKNOWN)
    found[order[1:][follows]] = order[:-1][follows]
    return found


def _through(partner: Int[Tensor, " N"], rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    return torch.where(partner < 0, UNKNOWN, rows[partner.clamp(min=0)])


class Walked(NamedTuple):
    """What a walk over N rows gives."""

    said: Float[Tensor, "N D"]  # P
    features: Float[Tensor, "N JD"] | None  # the u_j side by side, where they are asked for


Decode = Callable[[Int[Tensor, " n"], Float[Tensor, "n D"]], Float[Tensor, "n D"]]
"""Rows and what the past says of them, to how far their reconstructions are from `static`."""


def walk(links: Links, past_map: Float[Tensor, "JD D"], decay: float, reconstructed: Decode, keep_features: bool = False) -> Walked:
    """Go through sequences, each row from what was reconstructed before it."""
    rows, width, usable = len(links.slot), past_map.shape[1], links.usable.flatten().to(past_map.dtype)[:, None]
    memory = Memory(*(past_map.new_zeros(len(usable) + 1, width) for _ in Memory._fields))
    turned = past_map.T.contiguous()  # a product of few rows is quicker so
    said = past_map.new_zeros(rows, width)
    features = past_map.new_zeros(rows, len(past_map)) if keep_features else None
    for place, level in enumerate(links.levels):
        u = torch.cat([_looked(memory, links, kind, level, place) for kind in links.looked_at], 1)
        if features is not None:
            features[level] = u
        now, slot = (turned @ u.T).T, links.slot.index_select(0, level)
        said.index_copy_(0, level, now)
        deviation = reconstructed(level, now) * usable.index_select(0, slot)
        memory.deviation.index_copy_(0, slot, deviation)
        if "mean" in links.looked_at:
            before = memory.mean.index_select(0, links.looked_at["mean"].index_select(0, level))
            memory.mean.index_copy_(0, slot, decay * before + (1 - decay) * deviation)
        if "attention" in links.looked_at:
            memory.direction.index_copy_(0, slot, functional.normalize(deviation, dim=1))
    return Walked(said, features)


class Memory(NamedTuple):
    """Of the slots that were walked, and last of nothing: zeros."""

    deviation: Float[Tensor, "BS1 D"]
    mean: Float[Tensor, "BS1 D"]  # exponential
    direction: Float[Tensor, "BS1 D"]  # of the deviation


def _looked(memory: Memory, links: Links, kind: PastKind, level: Int[Tensor, " n"], place: int) -> Float[Tensor, "n D"]:
    """u_j of rows that stand at this place of their sequences."""
    if kind == "attention":
        return _attended(memory, links, level, place)
    return (memory.mean if kind == "mean" else memory.deviation).index_select(0, links.looked_at[kind].index_select(0, level))


def _attended(memory: Memory, links: Links, level: Int[Tensor, " n"], place: int) -> Float[Tensor, "n D"]:
    """What followed rows like the row before: values are the rows from the second on, keys the rows before these."""
    query = memory.direction.index_select(0, links.looked_at["attention"].index_select(0, level))
    if place < 2:
        return torch.zeros_like(query)
    shape, sequence = links.usable.shape, links.sequence[level]
    deviation, direction = (part[:-1].view(*shape, -1) for part in (memory.deviation, memory.direction))
    usable = links.usable
    if torch.is_grad_enabled():  # a gradient needs them as they are now, and later rows are written beside them
        deviation, direction = deviation.clone(), direction.clone()
    if len(sequence) < shape[0] or not bool((sequence == torch.arange(shape[0], device=sequence.device)).all()):
        deviation, direction, usable = deviation[sequence, :place], direction[sequence, :place], usable[sequence, :place]
    score = SHARPNESS * torch.bmm(direction[:, : place - 1], query[:, :, None])[:, :, 0]
    weight = functional.pad(score.masked_fill(~usable[:, 1:place], -torch.inf), (1, 0)).softmax(1)[:, 1:]
    return torch.bmm(weight[:, None], deviation[:, 1:place])[:, 0]
