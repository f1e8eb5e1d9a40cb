"""Which share of a dictionary masks close, in a few runs of positions that a sentence can tell apart."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from temporallens.evaluation.bins import octaves
from temporallens.evaluation.results import RunResult

SEGMENTS = 4
"""Runs of positions that a sentence tells apart, at most."""
DIFFERS = 0.015
"""Runs of positions whose closed shares differ by no more are put together."""
NOTHING_CLOSED = 0.005
"""Share of a dictionary below which closing is nothing."""


class Segment(NamedTuple):
    """A run of positions."""

    first: int
    last: int
    share: float  # closed, mean over them


def closed_by(masked: Sequence[RunResult]) -> list[Segment]:
    """Of dictionaries of one arm, all masked, the mean over them."""
    closed = [1 - statistics.fmean(column) for column in zip(*(run.openness_by_position or [] for run in masked), strict=True)]
    return closed_by_position(closed, start=0 if masked[0].position_count[0] else 1)


def closed_by_position(closed: Sequence[float], start: int) -> list[Segment]:
    """Octaves of positions, neighbours that differ by little put together."""
    segments = [Segment(first, end - 1, statistics.fmean(closed[first:end])) for first, end in octaves(len(closed), start)]
    while len(segments) > 1:
        gaps = [abs(left.share - right.share) for left, right in pairwise(segments)]
        least = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[least] > DIFFERS and len(segments) <= SEGMENTS:
            break
        left, right = segments[least : least + 2]
        sizes = left.last - left.first + 1, right.last - right.first + 1
        share = (left.share * sizes[0] + right.share * sizes[1]) / sum(sizes)
        segments[least : least + 2] = [Segment(left.first, right.last, share)]
    return segments


def best_first(families: Mapping[str, Sequence[RunResult]]) -> list[str]:
    """By mean FVE."""
    return sorted(families, key=lambda family: -statistics.fmean(run.fve for run in families[family]))
