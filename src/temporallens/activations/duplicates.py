"""Documents that are mostly copies of each other, by their tokens: a held-out one would have been trained on.

Two documents are twins where at least a quarter (SHARED) of the shingles of the shorter one, runs of five tokens, stand in the other too.
Shingles of more than RARE documents are what many have in common, a letterhead or a table's header, and count for no pair. Of large
stores a share of all shingles is looked at, the same in every document, so that memory is bounded.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Int64, UInt64

LENGTH = 5
"""Tokens of a shingle."""

SHARED = 0.25
RARE = 8
FEWEST = 16
"""Shingles that a document needs, to be the twin of another."""

MOST = 1 << 22
"""Shingles that are held at a time, about."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiples of it are spread evenly (Knuth, Fibonacci hashing)


def twins(
    parts: Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]], tokens: int
) -> Int64[np.ndarray, "E 2"]:
    """Pairs of documents that are twins, of parts of a store's rows (token, sequence and document; `tokens` in all)."""
    limit = np.uint64((2**64 - 1) * MOST // max(tokens, MOST))
    documents, shingles = zip(*(_shingles(*part, limit) for part in parts), strict=True)
    owner, shingle = np.concatenate(documents), np.concatenate(shingles)
    pairs = np.unique(np.stack([shingle, owner.astype(np.uint64)], 1), axis=0)  # in the order of shingles, each document once
    shingle, owner = pairs[:, 0], pairs[:, 1].astype(np.int64)
    count = np.bincount(owner)
    begins = np.flatnonzero(np.diff(shingle, prepend=~shingle[:1]))
    runs = np.diff(begins, append=len(shingle))
    found: dict[tuple[int, int], int] = {}
    for size in range(2, RARE + 1):
        rows = owner[begins[runs == size][:, None] + np.arange(size)]
        for first, second in zip(*np.triu_indices(size, 1), strict=True):
            both, times = np.unique(rows[:, [first, second]], axis=0, return_counts=True)
            for pair, often in zip(map(tuple, both.tolist()), times.tolist(), strict=True):
                found[pair] = found.get(pair, 0) + often
    alike = [
        (one, other)
        for (one, other), common in found.items()
        if (least := min(count[one], count[other])) >= FEWEST and common >= SHARED * least
    ]
    return np.array(sorted(alike), dtype=np.int64).reshape(-1, 2)


def with_twins(chosen: Int[np.ndarray, " n"], pairs: Int64[np.ndarray, "E 2"]) -> Int[np.ndarray, " m"]:
    """Documents, their twins, the twins of these, and so on."""
    found = np.unique(chosen)
    while len(pairs):
        inside = np.isin(pairs, found)
        more = np.union1d(found, pairs[inside.any(1)])
        if len(more) == len(found):
            break
        found = more
    return found


def _shingles(
    token: Int[np.ndarray, " n"], sequence: Int[np.ndarray, " n"], document: Int[np.ndarray, " n"], limit: np.uint64
) -> tuple[Int64[np.ndarray, " m"], UInt64[np.ndarray, " m"]]:
    """The document and the hash of every run of tokens of one sequence and document, of those below the limit."""
    last = len(token) - LENGTH + 1
    if last < 1:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    value = np.zeros(last, dtype=np.uint64)
    for place in range(LENGTH):
        value = (value ^ (token[place : place + last].astype(np.uint64) + np.uint64(1))) * MULTIPLIER
        value ^= value >> np.uint64(29)
    alike = (sequence[:last] == sequence[LENGTH - 1 :]) & (document[:last] == document[LENGTH - 1 :]) & (value <= limit)
    return document[:last][alike].astype(np.int64), value[alike]
