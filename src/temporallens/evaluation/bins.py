"""Bins of positions that widen with the logarithm: one place for all of them, and why there are several.

A mask's groups are `dictionaries.masks.group_starts`; those of splicing and of probes are the same. Where nothing else is said, starts
are the first positions of bins, in order.
"""

import math

import numpy as np
from jaxtyping import Int, Shaped

from temporallens.activations.position_names import names_in
from temporallens.activations.store import ActivationStore

NAMED_APART = 24
"""Positions with names that are told apart, at most."""


def octaves(positions: int, first: int = 1) -> list[tuple[int, int]]:
    """First position and the one after the last of runs from `first` (0 or 1) on, each twice as long as the one before: for sentences
    and tables, which need round numbers."""
    starts = [start for start in (first, *(2**power for power in range(first, positions.bit_length()))) if start < positions]
    return list(zip(starts, [*starts[1:], positions], strict=True)) if starts else []


def bands(positions: int, first: int, named: bool) -> list[tuple[int, int]]:
    """Runs of positions that tables tell apart, as `octaves` has them: these, or each position by itself where positions have names, whose
    order need mean nothing, and there are few enough."""
    if named and positions <= NAMED_APART:
        return [(position, position + 1) for position in range(first, positions)]
    return octaves(positions, first)


def bands_of(store: ActivationStore) -> list[tuple[int, int]]:
    """Those of a store's positions, position 0 among them where activations of it are kept."""
    first = 0 if store.manifest.per_position.count[0] else 1
    return bands(store.positions, first, bool(names_in(store.manifest.description.policies)))


def log_edges(last: int, count: int) -> Int[np.ndarray, " E"]:
    """At most `count` whole numbers from 1 to `last`, evenly along the logarithm."""
    return np.unique(np.geomspace(1, last, count).round().astype(np.int64))


def log_spaced(positions: Shaped[np.ndarray, " n"], limit: int) -> Shaped[np.ndarray, " m"]:
    """At most `limit` of some positions, as many early as late ones on a logarithmic axis."""
    return positions[log_edges(len(positions), min(limit, len(positions))) - 1] if len(positions) else positions


def drawn_starts(positions: int, limit: int = 128) -> Int[np.ndarray, " B"]:
    """Of at most `limit` bins on the axis of pictures, `log(1 + p)`, which gives position 0 a place of its own; every position where
    there are no more than twice as many."""
    if positions <= 2 * limit:
        return np.arange(positions)
    return np.unique(np.concatenate([[0], np.expm1(np.linspace(0, math.log1p(positions), limit, endpoint=False)).round()]).astype(int))


def sink_starts(positions: int, edges: int) -> Int[np.ndarray, " B"]:
    """Position 0, and bins whose edges are rounded down, which makes the first ones single positions: where sinks are."""
    return np.append(0, np.unique(np.geomspace(1, positions, edges).astype(int))[:-1]) if positions > 1 else np.array([0])


def populated_bins(positions: Int[np.ndarray, " p"], most: int) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """First and last of those positions that occur, in at most so many bins, none of them without one; where there are no more than
    twice as many positions each is a bin of its own."""
    starts = np.arange(len(positions))
    if len(positions) > 2 * most:
        edges = log_edges(int(positions[-1] - positions[0]) + 2, most + 1) - 1 + positions[0]
        starts = np.unique(np.searchsorted(positions, edges[:-1]))
        starts = starts[starts < len(positions)]
    return positions[starts].astype(np.int64), np.append(positions[starts[1:]] - 1, positions[-1]).astype(np.int64)


def profile_starts(first: int, last: int, edges: int) -> Int[np.ndarray, " B"]:
    """Of positions `first` to `last`, the first of which counts as 1: clocks that begin at 0 have a logarithm too."""
    return log_edges(last - first + 2, edges)[:-1] + first - 1


def growing_starts(largest: int, exact: int, growth: float) -> Int[np.ndarray, " B"]:
    """First values of bins of a clock that knows no bound: single values below `exact`, then bins that begin `growth` times later than
    the one before, up to the one that holds `largest`."""
    starts = list(range(min(exact, largest + 1)))
    while starts[-1] < largest:
        following = max(starts[-1] + 1, round(starts[-1] * growth)) if len(starts) > exact else starts[-1] + 1
        if following > largest:
            break
        starts.append(following)
    return np.array(starts)
