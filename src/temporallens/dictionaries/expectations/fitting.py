"""Fitting what tokens say of activations, in closed form, from counts and sums over the training rows.

A first pass over tokens alone counts them and chooses the pairs; a second one sums activations by token, by the token before and by pair.
All of it is linear in the activations, so the maps of the embeddings and the means of what they leave follow without a third: with the rows
of the tables in place of single rows, the normal equations of the ridge, and the variances within and between tokens, need counts and sums
only. Sums are float64. Memory: two tables of
the vocabulary and one of the pairs.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from temporallens.activations.clocks import at_positions
from temporallens.activations.context import UNKNOWN, Context, context_of
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.expectations.tables import Expectation
from temporallens.errors import TemporalLensError
from temporallens.progress import progress

LARGEST = 1 << 22
"""No vocabulary is larger."""

SMALLEST_SHRINKAGE, LARGEST_SHRINKAGE = 1e-3, 1e9
"""In rows: means that all but count whole, and means that say nothing."""

Vocabulary = Callable[[], Float[Tensor, "V E"]]
"""Reads the embeddings of a model's tokens."""


class Pairs(NamedTuple):
    """Pairs of tokens that occur in training."""

    key: Int64[Tensor, " M"]  # token before * V + token, ascending
    count: Int64[Tensor, " M"]  # type: ignore[assignment]  # training rows (shadows a method of tuples)


class Sums(NamedTuple):
    """Activations less their mean, summed over training rows."""

    token: Float64[Tensor, "V D"]
    before: Float64[Tensor, "V D"]  # by the token before; without rows where that is not asked about
    pair: Float64[Tensor, "M D"]
    square: float = 0.0  # of all rows with a token
    pair_square: float = 0.0  # of the rows of those pairs


def fit_expectation(
    store: ActivationStore,
    entries: Int[np.ndarray, " n"],
    mean: Float[Tensor, "P D"],
    policy: ExpectationPolicy,
    vocabulary: Vocabulary,
) -> Expectation:
    """What tokens say of the rows of these entries of the sequence table, about the `mean` of their position.

    Raises TemporalLensError where the store holds no tokens, or `vocabulary` cannot be read.
    """
    embedding = vocabulary() if policy.embedding or policy.token == "embedding" else None
    size, counts, pairs = count_tokens(store, entries, policy, None if embedding is None else len(embedding))
    chosen = _most_frequent(pairs, policy.pairs)
    sums = sum_rows(store, entries, mean.double(), policy, size, chosen)
    maps = _Maps(torch.zeros_like(sums.token), torch.zeros_like(sums.before), sums.square)
    if embedding is not None:
        maps = fit_maps(embedding.double(), counts, pairs, sums, policy.token == "pair")
    if policy.token == "embedding":
        tables = _Tables(maps.token, sums.pair, (LARGEST_SHRINKAGE, LARGEST_SHRINKAGE))
    else:
        tables = _means(maps, counts, pairs, chosen, sums)
    return Expectation(
        token=tables.token.bfloat16(),
        previous=maps.previous.bfloat16(),
        pair=tables.pair.bfloat16(),
        pair_key=chosen.key,
        token_count=counts.int(),
        pair_count=chosen.count.int(),
        shrinkage=tables.shrinkage,
        closed=embedding is not None,
        fitted=not policy.permuted and policy.token != "embedding",
    )


class _Chunk(NamedTuple):
    """Kept rows."""

    y: Float[Tensor, "N D"]  # as stored
    position: Int[Tensor, " N"]
    context: Context


def _chunks(store: ActivationStore, entries: Int[np.ndarray, " n"], policy: ExpectationPolicy) -> Iterator[_Chunk]:
    """The rows that training sees, in chunks, and their tokens; permuted in the control."""
    generator = torch.Generator().manual_seed(policy.seed)
    with progress("reading tokens", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for rows in sequential(store, entries):
            kept = (rows.excluded == 0).nonzero()[:, 0]
            context = context_of(rows).rows(kept)
            if policy.permuted:
                context = context.rows(torch.randperm(len(kept), generator=generator))
            yield _Chunk(rows.x[kept], rows.position[kept].long(), context)
            advance(len(rows.x))


def count_tokens(
    store: ActivationStore, entries: Int[np.ndarray, " n"], policy: ExpectationPolicy, size: int | None
) -> tuple[int, Int64[Tensor, " V"], Pairs]:
    """The size of the vocabulary, the rows of each token, and all pairs that occur."""
    counts, found = torch.zeros(size or 0, dtype=torch.int64), Pairs(*torch.zeros(2, 0, dtype=torch.int64))
    for chunk in _chunks(store, entries, policy):
        token, before = chunk.context[:2]
        largest = int(torch.maximum(token, before).max()) if len(token) else UNKNOWN
        if largest >= (size or LARGEST):
            raise TemporalLensError(f"{store.folder} holds token {largest}, which is beyond a vocabulary of {size or LARGEST} tokens")
        if largest >= len(counts):
            counts = torch.nn.functional.pad(counts, (0, largest + 1 - len(counts)))
        counts += torch.bincount(token[token >= 0], minlength=len(counts))
        if policy.token == "pair":
            both = (token >= 0) & (before >= 0)
            found = _merged(found, before[both] * LARGEST + token[both])
    if not bool(counts.any()):
        raise TemporalLensError(f"{store.folder} holds no tokens, and an expectation is what tokens say: leave the expectation out")
    key = found.key // LARGEST * len(counts) + found.key % LARGEST
    return len(counts), counts, Pairs(key, found.count)


def _merged(found: Pairs, keys: Int64[Tensor, " n"]) -> Pairs:
    """The pairs so far and those of one more chunk."""
    key, where = torch.cat([found.key, keys]).unique(return_inverse=True)
    weights = torch.cat([found.count, torch.ones_like(keys)])
    return Pairs(key, torch.zeros_like(key).index_add_(0, where, weights))


def _most_frequent(pairs: Pairs, most: int) -> Pairs:
    """At most so many pairs, those that occur most often, in their order."""
    if len(pairs.key) <= most:
        return pairs
    chosen = torch.argsort(pairs.count, descending=True, stable=True)[:most].sort().values
    return Pairs(pairs.key[chosen], pairs.count[chosen])


def sum_rows(
    store: ActivationStore,
    entries: Int[np.ndarray, " n"],
    mean: Float64[Tensor, "P D"],
    policy: ExpectationPolicy,
    size: int,
    chosen: Pairs,
) -> Sums:
    """The second pass."""
    sizes = (size, size if policy.token == "pair" else 0, len(chosen.key))
    token_sums, before_sums, pair_sums = (torch.zeros(rows, store.width, dtype=torch.float64) for rows in sizes)
    sums = Sums(token_sums, before_sums, pair_sums)
    square, pair_square = 0.0, 0.0
    for chunk in _chunks(store, entries, policy):
        y = chunk.y.double() - at_positions(mean, chunk.position)
        token, before = chunk.context[:2]
        known = token >= 0
        sums.token.index_add_(0, token[known], y[known])
        square += float(y[known].square().sum())
        if policy.token == "pair":
            both = known & (before >= 0)
            sums.before.index_add_(0, before[both], y[both])
            key = before[both] * size + token[both]
            place = torch.searchsorted(chosen.key, key).clamp(max=len(chosen.key) - 1)
            found = chosen.key[place] == key
            of_pairs = y[both][found]
            sums.pair.index_add_(0, place[found], of_pairs)
            pair_square += float(of_pairs.square().sum())
    return sums._replace(square=square, pair_square=pair_square)


class _Groups(NamedTuple):
    """Rows by what they have in common, and what is left of them to say."""

    count: Float64[Tensor, " G"]  # type: ignore[assignment]  # rows (shadows a method of tuples)
    total: Float64[Tensor, "G D"]

    def shrinkage(self, square: float) -> float:
        """How many rows a group's mean has to be of to count half: the variance within groups over that of their true means, by the
        method of moments. `square` is the sum of squares of all rows."""
        rows, groups = float(self.count.sum()), int((self.count > 0).sum())
        means = float((self.total.square().sum(1) / self.count.clamp(min=1)).sum())
        within = max(square - means, 0.0) / max(rows - groups, 1.0)
        effective = rows - float(self.count.square().sum()) / rows
        between = max(means - groups * within, 0.0) / max(effective, 1.0)
        return min(max(within / max(between, 1e-300), SMALLEST_SHRINKAGE), LARGEST_SHRINKAGE)


def _square_left(square: float, groups: _Groups, said: Float64[Tensor, "G D"]) -> float:
    """The sum of squares of rows less what is said of their group."""
    return square - 2 * float((groups.total * said).sum()) + float((groups.count * said.square().sum(1)).sum())


class _Maps(NamedTuple):
    """What linear maps of embeddings say."""

    token: Float64[Tensor, "V D"]
    previous: Float64[Tensor, "_ D"]
    square: float  # sum of squares of what they leave


def fit_maps(embedding: Float64[Tensor, "V E"], counts: Int64[Tensor, " V"], pairs: Pairs, sums: Sums, both: bool) -> _Maps:
    """Maps of the embedding of a token and, with `both`, of the one before it: ridge over the training rows."""
    weights = counts.double()
    centred = embedding - (weights @ embedding) / weights.sum()
    size, width = centred.shape
    gram, target = centred.T @ (centred * weights[:, None]), centred.T @ sums.token
    if both:
        before, token = pairs.key // size, pairs.key % size
        weights_before = torch.zeros_like(weights).index_add_(0, before, pairs.count.double())
        gram_before = centred.T @ (centred * weights_before[:, None])
        cross = centred.T @ _neighbours(centred, token, before, pairs.count, size)
        gram = torch.cat([torch.cat([gram, cross], 1), torch.cat([cross.T, gram_before], 1)])
        target = torch.cat([target, centred.T @ sums.before])
    solved, square = _ridge(gram, target, sums.square, float(weights.sum()))
    return _Maps(centred @ solved[:width], centred @ solved[width:] if both else sums.before, square)


def _ridge(
    gram: Float64[Tensor, "E E"], target: Float64[Tensor, "E D"], square: float, rows: float
) -> tuple[Float64[Tensor, "E D"], float]:
    """The ridge regression whose penalty minimises generalised cross-validation, and the squares that it leaves."""
    values, vectors = torch.linalg.eigh(gram)
    values, rotated = values.clamp(min=0), vectors.T @ target
    power = rotated.square().sum(1)
    penalties = float(values.mean()) * torch.logspace(-6, 6, 49, dtype=torch.float64)[:, None] + torch.finfo(torch.float64).tiny
    left = square - (power * (values + 2 * penalties) / (values + penalties).square()).sum(1)
    spare = rows - (values / (values + penalties)).sum(1)
    best = int((left / spare.clamp(min=1).square()).argmin())
    return vectors @ (rotated / (values + penalties[best])[:, None]), float(left[best])


def _neighbours(
    values: Float64[Tensor, "V E"], token: Int64[Tensor, " M"], before: Int64[Tensor, " M"], count: Int64[Tensor, " M"], size: int
) -> Float64[Tensor, "V E"]:
    """For each token, the sum over its rows of what `values` has for the token before."""
    counted = torch.sparse_coo_tensor(torch.stack([token, before]), count.double(), (size, size), check_invariants=False)
    return torch.sparse.mm(counted, values)


class _Tables(NamedTuple):
    token: Float64[Tensor, "V D"]
    pair: Float64[Tensor, "M D"]
    shrinkage: tuple[float, float]


def _means(maps: _Maps, counts: Int64[Tensor, " V"], pairs: Pairs, chosen: Pairs, sums: Sums) -> _Tables:
    """The table of tokens with the shrunk mean of what the maps leave, and that of pairs with the shrunk mean of what it leaves."""
    size, previous = len(maps.token), maps.previous
    left = sums.token - counts[:, None] * maps.token
    if len(previous):
        left -= _neighbours(previous, pairs.key % size, pairs.key // size, pairs.count, size)
    tokens = _Groups(counts.double(), left)
    kappa = tokens.shrinkage(maps.square)
    single = maps.token + left / (counts[:, None] + kappa)
    before, behind = chosen.key // size, chosen.key % size
    if not len(chosen.key):
        return _Tables(single, sums.pair, (kappa, kappa))
    said_before = single[behind] + previous[before]
    square = _square_left(sums.pair_square, _Groups(chosen.count.double(), sums.pair), said_before)
    of_pairs = _Groups(chosen.count.double(), sums.pair - chosen.count[:, None] * said_before)
    lambda_ = of_pairs.shrinkage(square)
    return _Tables(single, of_pairs.total / (chosen.count[:, None] + lambda_), (kappa, lambda_))
