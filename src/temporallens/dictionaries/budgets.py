"""Budgets of codes by position: how many codes each position of a batch gets, and which of its codes those are."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.dictionaries.sparse import CHUNK_ROWS, Block, Codes, Floor
from temporallens.processes import gathered, lowest


def rows_at(positions: Int[Tensor, " M"], known: int) -> Int[Tensor, " P"]:
    """How many rows each of so many known positions has."""
    return torch.zeros(known, dtype=torch.int64, device=positions.device).index_add_(0, positions, torch.ones_like(positions))


def blocks_of_rows(floors: Float[Tensor, " N"]) -> list[Block]:
    """Blocks in which every row has its own floor; one for each chunk of rows that is multiplied at once."""
    starts = range(0, len(floors), CHUNK_ROWS)
    chunks = [(first, min(first + CHUNK_ROWS, len(floors))) for first in starts]
    return [Block(None, [Floor(first, last, floors[first:last, None])]) for first, last in chunks]


def apportioned(weights: Float[Tensor, " P"], count: Int[Tensor, " P"], k: int) -> Int[Tensor, " P"]:
    """Codes for each position of a batch that has `count` rows there: in proportion to `weights * count`, k per row over all,
    rounded so that they sum to exactly that."""
    wanted = weights.double() * count
    share = (wanted.cumsum(0) / wanted.sum()).clamp(max=1)
    return (share * (k * count.sum())).round().long().diff(prepend=count.new_zeros(1))


def largest_by_position(
    codes: Codes, positions: Int[Tensor, " N"], budgets: Int[Tensor, " P"]
) -> tuple[Bool[Tensor, " M"], Float[Tensor, " P"]]:
    """Which entries are among the `budgets` largest positive ones of their position in the batch, of those tied the earliest, and the
    smallest chosen there at each position, 0 where there is none. Rows are in ascending order of position, so each position's entries stand
    together, and one sort by (position, value) puts its largest first without moving any into another's place."""
    position = positions.index_select(0, codes.pattern.row)
    values = codes.values.clamp(min=0)
    descending = (position + 1) * 2**32 - values.view(torch.int32)  # bits of positive floats are in the order of their values
    everywhere = gathered(descending)
    ordered, order = torch.sort(everywhere.values, stable=True)
    at = torch.div(ordered - 1, 2**32, rounding_mode="floor")  # positions, in order
    available = rows_at(at, len(budgets))
    first = available.cumsum(0) - available
    rank = torch.arange(len(order), device=order.device) - first.index_select(0, at)
    taken = order[rank < budgets.index_select(0, at)]
    chosen = torch.zeros_like(position, dtype=torch.bool)
    chosen[everywhere.ours(taken.sort().values)] = True
    chosen &= codes.values > 0
    least = torch.full_like(budgets, torch.inf, dtype=values.dtype)
    least.scatter_reduce_(0, position[chosen], values[chosen], "amin")
    least = lowest(least)
    return chosen, torch.where(least.isinf(), 0.0, least)
