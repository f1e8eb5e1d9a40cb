"""What is known of activations before any code is read, at every layer: from position, from tokens, and from the past of the row.

With y = x less its mean, what is told predicts held-out documents from tables and maps that are fitted on the others, and

    share explained = 1 - sum |y - predicted|^2 / sum |y|^2.

Position is told as the shrunk mean of each value of a clock; tokens as in `dictionaries/expectations/tables.py`, by the same fit: linear
maps of embeddings, and shrunk means of tokens and of pairs of the token before and the token. The past is a ridge regression on the row
before and on the exponential mean of all earlier ones, on their leading principal directions: on true activations, so it is an upper
bound of what reconstructions can say.

Together, in this order: token, position (the index), token before, past. A clock is fitted on what the token leaves of training rows, pairs
on what position leaves, the past on what these leave, each row left out of its own means. What one adds there is its own; the rest of what
it explains alone it shares with them. Floors are the same numbers with labels permuted over training rows;
intervals are by bootstrap over documents.

Rows that are a sink at one layer are left out at all, as are the first token of a row and special tokens: so layers are compared on the
same tokens. They count as zero in the past.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from pydantic import Field
from torch import Tensor

from temporallens.activations.clocks import TokenRow
from temporallens.activations.context import UNKNOWN, Context
from temporallens.dictionaries.expectations.fitting import Chunk, Counted, Groups, count_tokens, decomposed, ridge
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.errors import TemporalLensError
from temporallens.evaluation.history import History, LayerHistory, earlier, history_of, looked_at
from temporallens.evaluation.statistics import estimate_of, resampled_documents
from temporallens.settings import Settings
from temporallens.wording import SPACE, UNKNOWN as NOT_KNOWN, listed, percent

FORMAT = "temporallens.beforehand/1"
TOKEN, BEFORE, PAST = "token", "previous token", "past"
PAIR, PERMUTED, PERMUTED_PAIR = "pair", "permuted token", "permuted pair"
LAST, MEAN, RUNNING = "activation before", "mean of earlier ones", "running mean"
INDEX = "index"
LADDER = (TOKEN, INDEX, BEFORE, PAST)
"""In the order in which they are told together."""

FLOORS_EVERY = 4
"""Floors of tokens and of the past are measured at one layer in so many."""
CHUNK = 2048
"""Rows that are added to sums at a time."""

Share = float | None
Left = Float64[np.ndarray, " H"]
"""Squares that are left of each held-out document."""


class BeforehandPolicy(Settings):
    """What is known before a code is read, in an entry under `scans:`."""

    held_out_every: int = Field(5, ge=2)
    """One document in so many is held out: measured, and not fitted on."""
    decay: float = Field(0.9, gt=0, lt=1)
    """Of the past's exponential mean, by token."""
    directions: int = Field(256, ge=1)
    """Leading principal directions of the past, at most."""
    resamples: int = Field(200, ge=0)
    """Bootstrap resamples of the held-out documents."""


@dataclass(frozen=True)
class Explained:
    """Shares of the variance of held-out documents, by layer; below 0 where the prediction is worse than the mean."""

    share: list[Share]  # [L]
    low: list[Share]  # [L] lower end of the 95 % interval over documents; None where there is none
    high: list[Share]  # [L]
    floor: list[Share]  # [L] the same with permuted labels; None where that is not measured


@dataclass(frozen=True)
class Beforehand:
    """Of every layer of a scan."""

    alone: dict[str, Explained]  # each clock, token, previous token, past; also what single parts of the past explain
    added: dict[str, Explained]  # of the ladder to what is told before it; of each clock to the token
    together: dict[str, Explained]  # of the ladder, with all that is told before it
    history: History
    encoder: bool  # whether a token sees those after it
    fitted_documents: int
    held_out_documents: int
    fitted_tokens: int
    held_out_tokens: int
    format: str = FORMAT

    @classmethod
    def from_json(cls, content: Any) -> "Beforehand":
        """Raises TemporalLensError when `content` is none of this version."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise TemporalLensError(f"what this scan knows beforehand is not in format '{FORMAT}'; run the scan again")
        try:
            parts = {part: {name: Explained(**one) for name, one in content[part].items()} for part in ("alone", "added", "together")}
            return cls(**{**content, **parts, "history": History(**content["history"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise TemporalLensError(f"what this scan knows beforehand is damaged ({error}); run the scan again") from error


class Told(NamedTuple):
    """A token of every row, or two, and what these give by themselves."""

    counted: Counted
    fitted: Context  # of training rows: as they are, or permuted
    held_out: Context


Labels = Int[Tensor, "2 N"]
"""What a clock says of every token, and what it says of other tokens: the floor."""


class Text(NamedTuple):
    """What the rows of a scan are at all layers: `R` rows of `S` tokens, padded."""

    kept: Bool[Tensor, "R S"]
    fitted: Int[Tensor, " n"]  # numbers of the kept tokens of training documents, rows flattened
    held_out: Int[Tensor, " m"]
    document: Int[np.ndarray, " m"]  # which of the held-out documents
    clocks: dict[str, Labels]
    told: dict[str, Told]
    fitted_documents: int
    policy: BeforehandPolicy
    seed: int


class Layer(NamedTuple):
    """What is found at one layer."""

    total: Left
    alone: dict[str, Left]
    alone_floor: dict[str, Left]
    after: dict[str, Left]  # of a clock behind the token, of the ladder behind what is told before
    after_floor: dict[str, Left]

    def before(self, name: str) -> Left:
        """What is left before a thing is told after others."""
        step = LADDER.index(name) if name in LADDER else 1
        return self.alone[TOKEN] if step == 1 else self.after[LADDER[step - 1]]

    history: LayerHistory


# What is told


def prepare(
    rows: Sequence[TokenRow],
    kept: Bool[np.ndarray, "R S"],
    clocks: Mapping[str, tuple[list[Int[np.ndarray, " _"]], list[Int[np.ndarray, " _"]]]],
    embeddings: Float[Tensor, "V E"] | None,
    policy: BeforehandPolicy,
    seed: int,
) -> Text:
    """Count what the labels of rows give by themselves: `clocks` are the labels of every clock by row, and shuffled ones.

    Raises TemporalLensError unless kept tokens are of several documents.
    """
    document = _grid([row.document for row in rows], kept.shape)
    documents = np.unique(document[kept])
    if len(documents) < 2:
        raise TemporalLensError(
            "what is known beforehand is fitted on some documents and measured on others, and this scan counts tokens of "
            f"{len(documents)}: give a text of several documents, or leave beforehand out"
        )
    every = min(policy.held_out_every, len(documents))
    apart_documents = documents[every - 1 :: every]
    out = np.isin(document, apart_documents)
    fitted, held = (torch.from_numpy(np.flatnonzero(kept & side)) for side in (~out, out))
    token = _grid([row.tokens for row in rows], kept.shape)
    known, token = np.unique(token, return_inverse=True)  # tables of the tokens that occur, not of the whole vocabulary
    context = _with_before(token.reshape(kept.shape) - (known[0] == UNKNOWN), document)
    used = None if embeddings is None else embeddings[torch.from_numpy(known[known != UNKNOWN])].float()
    permuted = context.rows(fitted[torch.randperm(len(fitted), generator=torch.Generator().manual_seed(seed))])
    own, apart = context.rows(fitted), context.rows(held)
    told = {
        TOKEN: _told("table", own, apart, used),
        PERMUTED: _told("table", permuted, apart, used),
        BEFORE: _told("table", own.of_before(), apart.of_before(), used),
        PAIR: _told("pair", own, apart, used),
        PERMUTED_PAIR: _told("pair", own._replace(token_before=permuted.token_before), apart, used),
    }
    labels = {name: torch.from_numpy(np.stack([_grid(which, kept.shape).reshape(-1) for which in both])) for name, both in clocks.items()}
    number = np.searchsorted(apart_documents, document.reshape(-1)[held.numpy()])
    return Text(torch.from_numpy(kept), fitted, held, number, labels, told, len(documents) - len(apart_documents), policy, seed)


def _grid(rows: Sequence[Int[np.ndarray, " _"]], shape: tuple[int, int]) -> Int[np.ndarray, "R S"]:
    """Rows side by side, -1 where they end."""
    grid = np.full(shape, UNKNOWN, dtype=np.int64)
    for place, row in zip(grid, rows, strict=True):
        place[: len(row)] = row
    return grid


def _with_before(token: Int[np.ndarray, "R S"], document: Int[np.ndarray, "R S"]) -> Context:
    before = np.full_like(token, UNKNOWN)
    before[:, 1:] = np.where(document[:, 1:] == document[:, :-1], token[:, :-1], UNKNOWN)
    return Context(torch.from_numpy(token).reshape(-1), torch.from_numpy(before).reshape(-1))


def _told(token: Literal["table", "pair"], fitted: Context, held_out: Context, embedding: Float[Tensor, "V E"] | None) -> Told:
    policy = ExpectationPolicy(token=token, embedding=embedding is not None)
    table = torch.empty(0, 0, dtype=torch.float32) if embedding is None else embedding  # which is not read then
    counted = count_tokens(lambda: _chunks(torch.zeros(len(fitted.token), 0, dtype=torch.float32), fitted), policy, lambda: table, "a scan")
    return Told(counted, fitted, held_out)


def _chunks(y: Float[Tensor, "n D"], context: Context) -> Iterator[Chunk]:
    """A few rows at a time, which stay in the processor's cache."""
    for first in range(0, len(y), CHUNK):
        own = slice(first, first + CHUNK)
        yield Chunk(y[own], torch.zeros(len(y[own]), dtype=torch.int64), Context(context.token[own], context.token_before[own]))


# One layer


def leading_directions(rows: Float32[Tensor, "n D"], count: int) -> Float32[Tensor, "D k"]:
    """Principal directions of rows about zero, those of the largest variance, at most so many."""
    return torch.linalg.eigh((rows.T @ rows).double()).eigenvectors[:, -count:].float()


class Parts(NamedTuple):
    """Kept tokens of one layer, less what was told of them."""

    fitted: Float32[Tensor, "n D"]
    held_out: Float32[Tensor, "m D"]


@torch.no_grad()
def measure(x: Float[Tensor, "R S D"], text: Text, *, floors: bool = True) -> Layer:
    """What is known of one layer's activations; with `floors`, also what permuted tokens and pasts say."""
    y = x.flatten(0, 1).to(torch.float32, copy=True)
    y.sub_(y[text.fitted].mean(0, dtype=torch.float64)).mul_(text.kept.reshape(-1, 1))
    whole = Parts(y[text.fitted], y[text.held_out])
    by_token = _Table(text.told[TOKEN], whole)
    alone, floor = _clocks(whole, text)
    after, after_floor = _clocks(by_token.left(whole), text)
    alone |= {TOKEN: by_token.left_held_out(whole), BEFORE: _Table(text.told[BEFORE], whole).left_held_out(whole)}
    directions = leading_directions(whole.fitted, text.policy.directions)
    past, running = _Past(y, directions, text, mean=True, floors=floors), _running(y, text)
    alone |= {name: past.leave(name, permuted=False) for name in (PAST, LAST, MEAN)} | {RUNNING: running[0]}
    floor[RUNNING] = running[1]

    without_index = _Clock(text.clocks[INDEX], whole, text).left(whole)
    without_pair = _Table(text.told[PAIR], without_index).left(without_index)
    beyond = _Past(_spread(without_pair, y, text), directions, text, mean=False, floors=floors)
    after |= {BEFORE: without_pair.held_out, PAST: beyond.leave(PAST, permuted=False)}
    if floors:
        floor |= {name: past.leave(name, permuted=True) for name in (PAST, LAST, MEAN)}
        after_floor[PAST] = beyond.leave(PAST, permuted=True)
        floor |= dict.fromkeys((TOKEN, BEFORE), _Table(text.told[PERMUTED], whole).left_held_out(whole))
        after_floor[BEFORE] = _Table(text.told[PERMUTED_PAIR], without_index).left_held_out(without_index)
    squares = _Squares(text)
    history = history_of(y.view(x.shape), text.kept, torch.Generator().manual_seed(text.seed))
    left, chance, told, told_chance = (squares.of(one) for one in (alone, floor, after, after_floor))
    return Layer(squares(whole.held_out), left, chance, told, told_chance, history)


class _Squares:
    """Sums of squares of each held-out document."""

    def __init__(self, text: Text) -> None:
        self._document = text.document
        self._documents = int(text.document.max()) + 1

    def __call__(self, left: Float32[Tensor, "m D"]) -> Left:
        squares = torch.linalg.vector_norm(left, dim=1).double().square().numpy()
        return np.bincount(self._document, weights=squares, minlength=self._documents)

    def of(self, left: Mapping[str, Float32[Tensor, "m D"]]) -> dict[str, Left]:
        return {name: self(one) for name, one in left.items()}


class _Table:
    """Tables of what tokens say, fitted on training rows."""

    def __init__(self, told: Told, parts: Parts) -> None:
        self._told = told
        zero = parts.fitted.new_zeros(1, parts.fitted.shape[1])
        self._expectation = told.counted.fit(lambda: _chunks(parts.fitted, told.fitted), zero)

    def left_held_out(self, parts: Parts) -> Float32[Tensor, "m D"]:
        return parts.held_out - self._expectation.known(self._told.held_out)

    def left(self, parts: Parts) -> Parts:
        """Also of training rows, each left out of its own means."""
        said = [self._expectation.left_out(chunk.y, chunk.context) for chunk in _chunks(parts.fitted, self._told.fitted)]
        return Parts(parts.fitted - torch.cat(said), self.left_held_out(parts))


def _clocks(parts: Parts, text: Text) -> tuple[dict[str, Float32[Tensor, "m D"]], dict[str, Float32[Tensor, "m D"]]]:
    """What every clock leaves of held-out tokens, and what it leaves where it is fitted on shuffled times."""
    tables = {name: _Clock(labels, parts, text) for name, labels in text.clocks.items()}
    left, floor = ({name: clock.left_held_out(parts, which) for name, clock in tables.items()} for which in (0, 1))
    return left, floor


class _Clock:
    """The shrunk mean of each value of a clock, and (second) that of its shuffled values."""

    def __init__(self, labels: Labels, parts: Parts, text: Text) -> None:
        self._fitted, self._held_out = labels[:, text.fitted], labels[0, text.held_out]
        size, square = int(labels.max()) + 1, float(torch.linalg.vector_norm(parts.fitted)) ** 2
        self._count = torch.stack([torch.bincount(own, minlength=size) for own in self._fitted]).double()
        self._kappa, self._tables = [], []
        for own, count in zip(self._fitted, self._count, strict=True):
            groups = Groups(count, parts.fitted.new_zeros(size, parts.fitted.shape[1]).index_add_(0, own, parts.fitted).double())
            self._kappa.append(groups.shrinkage(square))
            self._tables.append((groups.total / (count[:, None] + self._kappa[-1])).float())

    def left_held_out(self, parts: Parts, which: int = 0) -> Float32[Tensor, "m D"]:
        return parts.held_out - self._tables[which][self._held_out]

    def left(self, parts: Parts) -> Parts:
        """Also of training rows, each left out of its own mean."""
        own, count, kappa = self._fitted[0], self._count[0], self._kappa[0]
        alone = ((count + kappa) / (count - 1 + kappa)).float()[own, None]
        return Parts((parts.fitted - self._tables[0][own]).mul_(alone), self.left_held_out(parts))


def _spread(parts: Parts, like: Float32[Tensor, "N D"], text: Text) -> Float32[Tensor, "N D"]:
    """Where they stand in the text, zero where tokens are left out."""
    spread = torch.zeros_like(like)
    spread[text.fitted], spread[text.held_out] = parts.fitted, parts.held_out
    return spread


class _Past:
    """Ridge regressions of tokens on the past of their rows."""

    def __init__(self, y: Float32[Tensor, "N D"], directions: Float32[Tensor, "D k"], text: Text, *, mean: bool, floors: bool) -> None:
        """With `mean`, also on the mean of all earlier ones; with `floors`, also on the past of other tokens."""
        own, self._held_out = y[text.fitted], y[text.held_out]
        low = (y @ directions).view(*text.kept.shape, -1)
        last = torch.zeros_like(low)
        last[:, 1:] = low[:, :-1]
        past = [last, earlier(low, text.kept, text.policy.decay), *([earlier(low, text.kept)] if mean else [])]
        regressors = torch.cat(past, 2).flatten(0, 1)
        given, self._given = regressors[text.fitted], regressors[text.held_out]
        permuted = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(text.seed))]
        self._products, self._square, self._rows = (given.T @ given).double(), float(own.double().square().sum()), float(len(own))
        self._targets = [(one.T @ own).double() for one in ((given, permuted) if floors else (given,))]
        width = low.shape[2]
        self._columns = {PAST: slice(0, 2 * width), LAST: slice(0, width), MEAN: slice(2 * width, 3 * width)}

    def leave(self, name: str, *, permuted: bool) -> Float32[Tensor, "m D"]:
        """What is left of held-out tokens; with `permuted`, of a regression on the past of other tokens."""
        columns = self._columns[name]
        equations = decomposed(self._products[columns, columns], self._rows)
        solved, _ = ridge(equations, self._targets[permuted][columns], self._square)
        return self._held_out - self._given[:, columns] @ solved.float()


def _running(y: Float32[Tensor, "N D"], text: Text) -> list[Float32[Tensor, "m D"]]:
    """What the mean of earlier tokens leaves, times one number that is fitted; and that of another row of text."""
    mean = earlier(y.view(*text.kept.shape, -1), text.kept)
    left = []
    for given in (mean, mean.roll(len(mean) // 2, 0)):
        flat = given.flatten(0, 1)
        own = flat[text.fitted]
        weight = float((own * y[text.fitted]).sum()) / max(float(own.square().sum()), torch.finfo(torch.float32).tiny)
        left.append(y[text.held_out] - weight * flat[text.held_out])
    return left


# All layers


def gather(layers: Sequence[Layer], text: Text, *, encoder: bool) -> Beforehand:
    """Shares, their intervals and floors, by layer."""
    documents = len(layers[0].total)
    times = resampled_documents(documents, text.policy.resamples, np.random.default_rng([text.seed, 2]))
    weights = np.concatenate([np.ones((1, documents)), times])

    def explained(before: list[Left], after: list[Left], floors: list[Left | None]) -> Explained:
        found = [_share(weights, layer.total, more, less) for layer, more, less in zip(layers, before, after, strict=True)]
        chance = [
            None if floor is None else _share(weights[:1], layer.total, more, floor).value
            for layer, more, floor in zip(layers, before, floors, strict=True)
        ]
        return Explained([one.value for one in found], [one.low for one in found], [one.high for one in found], chance)

    totals = [layer.total for layer in layers]
    alone = {
        name: explained(totals, [layer.alone[name] for layer in layers], [layer.alone_floor.get(name) for layer in layers])
        for name in layers[0].alone
    }
    added, together = {}, {TOKEN: alone[TOKEN]}
    for name in layers[0].after:
        after = [layer.after[name] for layer in layers]
        added[name] = explained([layer.before(name) for layer in layers], after, [layer.after_floor.get(name) for layer in layers])
        if name in LADDER:
            together[name] = explained(totals, after, [None] * len(layers))
    lags, lengths = looked_at(text.kept.shape[1])
    by_layer = [[_numbers(part) for part in layer.history] for layer in layers]
    lists: list[Any] = [list(part) for part in zip(*by_layer, strict=True)]
    return Beforehand(
        alone=alone,
        added=added,
        together={name: together[name] for name in LADDER},
        history=History(lags, lists[0], lists[1], lengths, lists[2], lists[3]),
        encoder=encoder,
        fitted_documents=text.fitted_documents,
        held_out_documents=documents,
        fitted_tokens=len(text.fitted),
        held_out_tokens=len(text.held_out),
    )


def _share(weights: Float64[np.ndarray, "B H"], total: Left, more: Left, less: Left) -> Any:
    whole = weights @ total
    share = np.divide(weights @ (more - less), whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return estimate_of(float(share[0]), share[1:], len(total))


def _numbers(values: Float64[np.ndarray, " n"]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


# In words


def in_words(model: str, layers: Sequence[str], found: Beforehand, depth: int | None = None) -> str:
    """What is known at one layer, the middle one where nothing else is said: `after layer 12: token 60 %, previous token 4 % more, ...`."""
    place = len(layers) // 2 if depth is None else depth
    said = [f"{TOKEN} {_said(found.alone[TOKEN], place)}", f"{BEFORE} {_said(found.added[BEFORE], place)} more"]
    said += [f"{'position' if name == INDEX else f'{name} clock'} {_said(found.alone[name], place)}" for name in (INDEX, "sentence")]
    past = f"the true past at most {_said(found.added[PAST], place)} more"
    sides = "; this model sees both sides, so tokens that follow explain a part too" if found.encoder else ""
    where = "at the embedding" if layers[place] == "embed" else f"after layer{SPACE}{layers[place]}"
    whole = _said(found.together[PAST], place)
    return f"{model}, {where}: {listed([*said, past])}; {whole} in all, of held-out documents' variance{sides}."


def _said(found: Explained, place: int) -> str:
    """Nothing, where the interval does not lie above zero."""
    share, low = found.share[place], found.low[place]
    return NOT_KNOWN if share is None else "nothing" if share <= 0 or (low is not None and low <= 0) else percent(share)
