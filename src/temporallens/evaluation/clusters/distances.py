"""Distances between temporal profiles, all pairs at once and in blocks: 16,384 features are 134 million pairs.

`jensen_shannon` is the square root of the Jensen-Shannon divergence in bits, a metric between 0 and 1; `correlation` is 1 less Pearson's
correlation, from 0 to 2; `motif` is half the Euclidean distance of motif coordinates (`motifs.Motifs.coordinates`), 0 to 1.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from temporallens.evaluation.clusters.motifs import Motifs, motifs_of
from temporallens.evaluation.clusters.policy import DistanceName
from temporallens.evaluation.clusters.profiles import Bins, Table, profiles_of, standardised

ROWS, COLUMNS = 64, 2048
"""Of a tile of pairs."""
TERMS = 1 << 18
"""Of the sums of all pairs of a tile that are computed at a time: in calls of that size threads side by side seldom wait for the
interpreter."""


def vectors_of(table: Table, bins: Bins, smoothing: float, distance: DistanceName) -> Float[np.ndarray, "n V"]:
    """What the distance is measured between: profiles, standardised profiles, or motif coordinates."""
    if distance == "motif":
        return motifs_of(table, bins).coordinates()
    profiles = profiles_of(table, bins, smoothing)
    return profiles if distance == "jensen_shannon" else standardised(profiles)


def between(first: Float[np.ndarray, "n V"], second: Float[np.ndarray, "m V"], distance: DistanceName) -> Float[np.ndarray, "n m"]:
    """Distances of two sets of vectors, float32."""
    a, b = np.ascontiguousarray(first, dtype=np.float32), np.ascontiguousarray(second, dtype=np.float32)
    if distance == "correlation":
        return np.clip(1.0 - a @ b.T, 0.0, 2.0)
    if distance == "motif":
        squares = sum(np.square(left[:, None] - right) for left, right in zip(a.T, b.T, strict=True))
        return 0.5 * np.sqrt(squares)
    return _jensen_shannon(a, b)


def similarity(first: Motifs, second: Motifs) -> Float[np.ndarray, "n m"]:
    """How alike the shapes of two sets of features are: 1 less their motif distance."""
    return 1.0 - between(first.coordinates(), second.coordinates(), "motif")


def _jensen_shannon(a: Float[np.ndarray, "n V"], b: Float[np.ndarray, "m V"]) -> Float[np.ndarray, "n m"]:
    """`sqrt(H((p + q) / 2) - (H(p) + H(q)) / 2)`, the first term bin by bin over tiles of pairs."""
    out = np.zeros((len(a), len(b)), dtype=np.float32)
    left, right = np.ascontiguousarray(a.T) / 2, np.ascontiguousarray(b.T) / 2
    middle, logarithm = np.empty(TERMS, np.float32), np.empty(TERMS, np.float32)
    for row in range(0, len(a), ROWS):
        for column in range(0, len(b), COLUMNS):
            tile = out[row : row + ROWS, column : column + COLUMNS]
            bins = max(1, TERMS // tile.size)
            for first in range(0, len(left), bins):
                p, q = left[first : first + bins, row : row + ROWS, None], right[first : first + bins, None, column : column + COLUMNS]
                shape = (len(p), *tile.shape)
                m, log = (buffer[: math.prod(shape)].reshape(shape) for buffer in (middle, logarithm))
                np.add(p, q, out=m)
                np.log(m, out=log)
                log *= m
                for term in log:
                    tile -= term
    entropy = [-(values * np.log(values)).sum(1) / 2 for values in (a, b)]
    out -= entropy[0][:, None]
    out -= entropy[1]
    np.maximum(out, 0.0, out=out)
    out /= np.float32(np.log(2.0))
    return np.sqrt(out, out=out)


def condensed(vectors: Float[np.ndarray, "n V"], distance: DistanceName, block: int = 2 * ROWS) -> Float[np.ndarray, " pairs"]:
    """Distances of all pairs in the order of scipy's condensed matrices, float64: eight bytes a pair is all that it takes."""
    count = len(vectors)
    out = np.empty(count * (count - 1) // 2)
    filled = 0
    for first in range(0, count, block):
        part: Any = between(vectors[first : first + block], vectors[first:], distance)
        for row in range(len(part)):
            beyond = part[row, row + 1 :]
            out[filled : filled + len(beyond)] = beyond
            filled += len(beyond)
    return out
