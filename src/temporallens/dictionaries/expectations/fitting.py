"""Fitting what tokens say of activations, in closed form, from counts and sums over the training rows.

A first pass over tokens alone counts them and chooses the pairs; a second one sums activations by token, by the token before and by pair.
All of it is linear in the activations, so the maps of the embeddings and the means of what they leave follow without a third: with the rows
of the tables in place of single rows, the normal equations of the ridge, and the variances within and between tokens, need counts and sums
only. Sums are float64. Memory: two tables of the vocabulary and one of the pairs. What the first pass gives serves several activations of
the same tokens, such as those of all layers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
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

SMALLEST_SHRINKAGE, LARGEST_SHRINKAGE = 1 / 16, 1e9
"""In rows: means that all but count whole, and means that say nothing. Without itself, of the only row of a token is left what the table
leaves of it times 1 + 1 / shrinkage, and tables are rounded to one part in 512: a smaller one would blow that up to the row's size."""

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


class Chunk(NamedTuple):
    """Training rows."""

    y: Float[Tensor, "N D"]  # as they are
    position: Int[Tensor, " N"]
    context: Context


Chunks = Callable[[], Iterable[Chunk]]
"""Goes through the training rows once; called again, through the same ones."""


def stored_chunks(store: ActivationStore, entries: Int[np.ndarray, " n"], policy: ExpectationPolicy) -> Chunks:
    """The kept rows of these entries of a store's sequence table, with their tokens; permuted in the control."""
    return partial(_stored, store, entries, policy)


def _stored(store: ActivationStore, entries: Int[np.ndarray, " n"], policy: ExpectationPolicy) -> Iterator[Chunk]:
    generator = torch.Generator().manual_seed(policy.seed)
    with progress("reading tokens", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for rows in sequential(store, entries):
            kept = (rows.excluded == 0).nonzero()[:, 0]
            context = context_of(rows).rows(kept)
            if policy.permuted:
                context = context.rows(torch.randperm(len(kept), generator=generator))
            yield Chunk(rows.x[kept], rows.position[kept].long(), context)
            advance(len(rows.x))


@dataclass(frozen=True)
class Counted:
    """What the tokens of the training rows give by themselves."""

    policy: ExpectationPolicy
    counts: Int64[Tensor, " V"]
    pairs: Pairs  # all that occur
    embedding: Float64[Tensor, "V E"] | None

    @cached_property
    def chosen(self) -> Pairs:
        """Those in the table."""
        return _most_frequent(self.pairs, self.policy.pairs)

    @cached_property
    def equations(self) -> "Equations":
        assert self.embedding is not None
        return equations_of(self.embedding, self.counts, self.pairs, self.policy.token == "pair")

    def fit(self, chunks: Chunks, mean: Float[Tensor, "P D"]) -> Expectation:
        """What tokens say of these rows, whose tokens are those that were counted, about the `mean` of their position."""
        policy, chosen = self.policy, self.chosen
        sums = sum_rows(chunks, mean.double(), policy, len(self.counts), chosen)
        maps = Maps(torch.zeros_like(sums.token), torch.zeros_like(sums.before), sums.square)
        if self.embedding is not None:
            maps = fit_maps(self.equations, sums)
        if policy.token == "embedding":
            tables = _Tables(maps.token, sums.pair, (LARGEST_SHRINKAGE, LARGEST_SHRINKAGE))
        else:
            tables = _means(maps, self.counts, self.pairs, chosen, sums)
        return Expectation(
            token=tables.token.bfloat16(),
            previous=maps.previous.bfloat16(),
            pair=tables.pair.bfloat16(),
            pair_key=chosen.key,
            token_count=self.counts.int(),
            pair_count=chosen.count.int(),
            shrinkage=tables.shrinkage,
            closed=self.embedding is not None,
            fitted=not policy.permuted and policy.token != "embedding",
        )


def fit_expectation(
    chunks: Chunks, mean: Float[Tensor, "P D"], policy: ExpectationPolicy, vocabulary: Vocabulary, where: object
) -> Expectation:
    """What tokens say of training rows, about the `mean` of their position; `where` are these rows in sentences.

    Raises TemporalLensError where the rows have no tokens, or `vocabulary` cannot be read.
    """
    return count_tokens(chunks, policy, vocabulary, where).fit(chunks, mean)


def count_tokens(chunks: Chunks, policy: ExpectationPolicy, vocabulary: Vocabulary, where: object) -> Counted:
    """The rows of each token, and all pairs that occur.

    Raises TemporalLensError as `fit_expectation` does.
    """
    embedding = vocabulary().double() if policy.embedding or policy.token == "embedding" else None
    size = None if embedding is None else len(embedding)
    counts, found = torch.zeros(size or 0, dtype=torch.int64), Pairs(*torch.zeros(2, 0, dtype=torch.int64))
    for chunk in chunks():
        token, before = chunk.context[:2]
        largest = int(torch.maximum(token, before).max()) if len(token) else UNKNOWN
        if largest >= (size or LARGEST):
            raise TemporalLensError(f"{where} holds token {largest}, which is beyond a vocabulary of {size or LARGEST} tokens")
        if largest >= len(counts):
            counts = torch.nn.functional.pad(counts, (0, largest + 1 - len(counts)))
        counts += torch.bincount(token[token >= 0], minlength=len(counts))
        if policy.token == "pair":
            both = (token >= 0) & (before >= 0)
            found = _merged(found, before[both] * LARGEST + token[both])
    if not bool(counts.any()):
        raise TemporalLensError(f"{where} holds no tokens, and an expectation is what tokens say: leave the expectation out")
    key = found.key // LARGEST * len(counts) + found.key % LARGEST
    return Counted(policy, counts, Pairs(key, found.count), embedding)


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


def sum_rows(chunks: Chunks, mean: Float64[Tensor, "P D"], policy: ExpectationPolicy, size: int, chosen: Pairs) -> Sums:
    """The second pass."""
    sizes = (size, size if policy.token == "pair" else 0, len(chosen.key))
    token_sums, before_sums, pair_sums = (torch.zeros(rows, mean.shape[1], dtype=torch.float64) for rows in sizes)
    sums = Sums(token_sums, before_sums, pair_sums)
    square, pair_square = 0.0, 0.0
    for chunk in chunks():
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


class Groups(NamedTuple):
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


def _square_left(square: float, groups: Groups, said: Float64[Tensor, "G D"]) -> float:
    """The sum of squares of rows less what is said of their group."""
    return square - 2 * float((groups.total * said).sum()) + float((groups.count * said.square().sum(1)).sum())


class Maps(NamedTuple):
    """What linear maps of embeddings say."""

    token: Float64[Tensor, "V D"]
    previous: Float64[Tensor, "_ D"]
    square: float  # sum of squares of what they leave


class Decomposed(NamedTuple):
    """The normal equations of a ridge regression, whatever it is a regression of."""

    values: Float64[Tensor, " E"]  # of the sum of products of the regressors
    vectors: Float64[Tensor, "E E"]
    rows: float


class Equations(NamedTuple):
    """Those of maps of embeddings."""

    centred: Float64[Tensor, "V E"]  # embeddings less their mean over the training rows
    decomposed: Decomposed
    both: bool  # whether the embedding of the token before is a regressor too


def equations_of(embedding: Float64[Tensor, "V E"], counts: Int64[Tensor, " V"], pairs: Pairs, both: bool) -> Equations:
    """Of the embedding of a token and, with `both`, of the one before it, over the training rows."""
    weights = counts.double()
    centred = embedding - (weights @ embedding) / weights.sum()
    size = len(centred)
    gram = centred.T @ (centred * weights[:, None])
    if both:
        before, token = pairs.key // size, pairs.key % size
        weights_before = torch.zeros_like(weights).index_add_(0, before, pairs.count.double())
        gram_before = centred.T @ (centred * weights_before[:, None])
        cross = centred.T @ _neighbours(centred, token, before, pairs.count, size)
        gram = torch.cat([torch.cat([gram, cross], 1), torch.cat([cross.T, gram_before], 1)])
    return Equations(centred, decomposed(gram, float(weights.sum())), both)


def fit_maps(equations: Equations, sums: Sums) -> Maps:
    """Maps of the embedding of a token and of the one before it: ridge over the training rows."""
    centred, both = equations.centred, equations.both
    target = centred.T @ sums.token
    if both:
        target = torch.cat([target, centred.T @ sums.before])
    solved, square = ridge(equations.decomposed, target, sums.square)
    width = centred.shape[1]
    return Maps(centred @ solved[:width], centred @ solved[width:] if both else sums.before, square)


def decomposed(gram: Float64[Tensor, "E E"], rows: float) -> Decomposed:
    """From the sum over `rows` rows of the products of their regressors."""
    values, vectors = torch.linalg.eigh(gram)
    return Decomposed(values.clamp(min=0), vectors, rows)


def ridge(equations: Decomposed, target: Float64[Tensor, "E D"], square: float) -> tuple[Float64[Tensor, "E D"], float]:
    """The ridge regression whose penalty minimises generalised cross-validation, and the squares that it leaves, from the products of
    regressors with what is regressed on them, and the squares of that."""
    values, vectors, rows = equations
    rotated = vectors.T @ target
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


def _means(maps: Maps, counts: Int64[Tensor, " V"], pairs: Pairs, chosen: Pairs, sums: Sums) -> _Tables:
    """The table of tokens with the shrunk mean of what the maps leave, and that of pairs with the shrunk mean of what it leaves."""
    size, previous = len(maps.token), maps.previous
    left = sums.token - counts[:, None] * maps.token
    if len(previous):
        left -= _neighbours(previous, pairs.key % size, pairs.key // size, pairs.count, size)
    tokens = Groups(counts.double(), left)
    kappa = tokens.shrinkage(maps.square)
    single = maps.token + left / (counts[:, None] + kappa)
    before, behind = chosen.key // size, chosen.key % size
    if not len(chosen.key):
        return _Tables(single, sums.pair, (kappa, kappa))
    said_before = single[behind] + previous[before]
    square = _square_left(sums.pair_square, Groups(chosen.count.double(), sums.pair), said_before)
    of_pairs = Groups(chosen.count.double(), sums.pair - chosen.count[:, None] * said_before)
    lambda_ = of_pairs.shrinkage(square)
    return _Tables(single, of_pairs.total / (chosen.count[:, None] + lambda_), (kappa, lambda_))
