"""What features say of tokens: how far each is a detector of one token, whether it goes on firing, and what was known without any code.

    purity       share of a feature's activation that falls on its commonest token; of one token: more than half
    persistence  share of firings whose feature fired on the row before, too
    known        FVE of what a dictionary's expectation says, with no code in use

Chance is the same with token ids permuted over rows, and with a random row of the same sequence in place of the row before. Features that
fire too seldom have no purity. Intervals are by random halves of the documents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from pydantic import Field

from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut, without_codes
from temporallens.evaluation.passage import Passage, passage_of
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, half_samples, quotient
from temporallens.evaluation.threads import on_threads
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated

MAJORITY = 0.5
"""A feature with more than this share of its activation on one token is a detector of it."""


class TokensPolicy(Settings):
    """The `tokens` section of a study's evaluation."""

    least: int = Field(20, ge=2)
    """Firings that a feature needs, to be asked about its tokens."""
    resamples: int = Field(100, ge=20, le=10_000)
    """Random halves of the documents behind every interval."""
    seed: Seed = 0
    """Draws them, and chance."""


class TokenMeasures(NamedTuple):
    """One dictionary on held-out documents."""

    asked: int  # features that fire often enough
    purity: Estimate  # median over these
    chance_purity: float
    one_token: Estimate  # share of these with more than half of their activation on one token
    chance_one_token: float
    persistence: Estimate  # n firings that have a row before
    chance_persistence: float
    known: Estimate | None  # FVE without codes; None where nothing is known beforehand
    passage: Passage | None  # None where no words are known
    purities: list[float | None] | None  # of every feature; None where it is read from results.json
    tokens: list[int] | None  # the commonest one of every feature; -1 where it fires on none
    persistences: list[float | None] | None


@own_defaults()
def measure_tokens(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: TokensPolicy, cache: Path | None = None
) -> TokenMeasures:
    """Measure `dictionary` on held-out documents. Raises TemporalLensError where the store has no tokens."""
    seen = HeldOut(store, held_out, cache)
    firings = seen.encoded(dictionary).firings
    if not (firings.token >= 0).any():
        raise TemporalLensError(f"{store.folder} holds no tokens: leave the section tokens out")
    generator = np.random.default_rng(policy.seed)
    documents = np.unique(firings.document, return_inverse=True)[1]
    halves = half_samples(int(documents.max()) + 1, policy.resamples, generator)
    asked = firings.counts >= policy.least
    pairs = _Pairs(firings, firings.token)
    purity, tokens = pairs.purity(), pairs.commonest()
    chance = _Pairs(firings, generator.permutation(firings.token)).purity()[asked]
    owner = documents[firings.row]
    spread = list(on_threads(lambda half: pairs.purity(half[owner].astype(np.float64))[asked], halves))
    before = _row_before(firings)
    return TokenMeasures(
        asked=int(asked.sum()),
        purity=_over(_median(purity[asked]), np.array([_median(half) for half in spread]), int(asked.sum())),
        chance_purity=_median(chance),
        one_token=_over(_majority(purity[asked]), np.array([_majority(half) for half in spread]), int(asked.sum())),
        chance_one_token=_majority(chance),
        persistence=_persistence(firings, before, documents, halves),
        chance_persistence=float(_again(firings, _shuffled(firings, generator))[before[firings.row] >= 0].mean()),
        known=_known(dictionary, seen, halves),
        passage=passage_of(dictionary, seen),
        purities=[round(float(share), 4) if often and np.isfinite(share) else None for often, share in zip(asked, purity, strict=True)],
        tokens=tokens.tolist(),
        persistences=_by_feature(firings, before),
    )


class _Pairs:
    """Which feature fires on which token; every pair that occurs once, features and tokens ascending. Firings where the token is not
    known say nothing of it."""

    def __init__(self, firings: Firings, token: Int[np.ndarray, " N"]) -> None:
        self._features, most = firings.features, int(token.max()) + 1
        self._known = token[firings.row] >= 0
        self._value = firings.value[self._known].astype(np.float64)
        feature = firings.feature[self._known].astype(np.int64)
        key, self._cell = np.unique(feature * most + token[firings.row[self._known]], return_inverse=True)
        self._feature, self._token = key // most, key % most
        self._found, self._first = np.unique(self._feature, return_index=True)

    def purity(self, weight: Float64[np.ndarray, " K"] | None = None) -> Float64[np.ndarray, " F"]:
        """Share of each feature's activation, of which each firing counts by its weight, on its commonest token; NaN where it has none."""
        mass, features = self._mass(weight), self._features
        total = np.bincount(self._feature, weights=mass, minlength=features)[self._found]
        share = np.full(features, np.nan)
        share[self._found] = quotient(np.maximum.reduceat(mass, self._first), total)
        return share

    def commonest(self) -> Int64[np.ndarray, " F"]:
        """Each feature's commonest token, the first of several; -1 where it has none."""
        mass, found = self._mass(None), np.full(self._features, -1)
        order = np.lexsort((-mass, self._feature))
        found[self._found] = self._token[order[self._first]]
        return found

    def _mass(self, weight: Float64[np.ndarray, " K"] | None) -> Float64[np.ndarray, " M"]:
        value = self._value if weight is None else self._value * weight[self._known]
        return np.bincount(self._cell, weights=value, minlength=len(self._feature))


def _median(shares: Float64[np.ndarray, " n"]) -> float:
    return float(np.nanmedian(shares)) if np.isfinite(shares).any() else float("nan")


def _majority(shares: Float64[np.ndarray, " n"]) -> float:
    known = shares[np.isfinite(shares)]
    return float((known > MAJORITY).mean()) if len(known) else float("nan")


def _over(value: float, halves: Float64[np.ndarray, " B"], n: int) -> Estimate:
    return estimate_of(value, halves, n, (0.0, 1.0))


def _row_before(firings: Firings) -> Int64[np.ndarray, " N"]:
    """The row that stands right before each in its sequence, -1 where that is not kept."""
    follows = (np.diff(firings.sequence) == 0) & (np.diff(firings.index) == 1)
    return np.where(np.append(False, follows), np.arange(len(firings.index)) - 1, -1)


def _shuffled(firings: Firings, generator: np.random.Generator) -> Int64[np.ndarray, " N"]:
    """Another row of the same sequence for each."""
    order = np.lexsort((generator.random(len(firings.sequence)), firings.sequence))
    other = np.empty(len(order), dtype=np.int64)
    other[np.lexsort((np.arange(len(order)), firings.sequence))] = order
    return other


def _again(firings: Firings, before: Int[np.ndarray, " N"]) -> np.ndarray:
    """Of each firing, whether its feature fires on the row `before`, too."""
    key = firings.row.astype(np.int64) * firings.features + firings.feature
    wanted = before[firings.row] * firings.features + firings.feature
    place = np.searchsorted(key, wanted).clip(max=len(key) - 1)
    return np.asarray((before[firings.row] >= 0) & (key[place] == wanted))


def _persistence(
    firings: Firings, before: Int[np.ndarray, " N"], documents: Int[np.ndarray, " N"], halves: Int[np.ndarray, "B D"]
) -> Estimate:
    there, again = before[firings.row] >= 0, _again(firings, before)
    weights = np.concatenate([np.ones((1, halves.shape[1])), halves])
    of, size = documents[firings.row], halves.shape[1]
    shares = quotient(*(weights @ np.bincount(of, weights=which, minlength=size) for which in (again, there)))
    return _over(float(shares[0]), shares[1:], int(there.sum()))


def _by_feature(firings: Firings, before: Int[np.ndarray, " N"]) -> list[float | None]:
    there = np.bincount(firings.feature, weights=before[firings.row] >= 0, minlength=firings.features)
    again = np.bincount(firings.feature, weights=_again(firings, before), minlength=firings.features)
    return [round(float(a / t), 4) if t else None for a, t in zip(again, there, strict=True)]


@torch.inference_mode()
def _known(dictionary: Dictionary, seen: HeldOut, halves: Int[np.ndarray, "B D"]) -> Estimate | None:
    """FVE of what is decoded where no code is in use."""
    if dictionary.config.expectation is None:
        return None
    error, document, variation = [], [], seen.variation
    for rows in sequential(seen.store, seen.entries):
        kept = rows.excluded == 0
        error.append((rows.x.float() - without_codes(dictionary, rows)).square().sum(1, dtype=torch.float64)[kept].numpy())
        document.append(rows.document[kept].numpy())
    number = np.unique(np.concatenate(document), return_inverse=True)[1]
    left = np.bincount(number, weights=np.concatenate(error), minlength=halves.shape[1])
    weights = np.concatenate([np.ones((1, halves.shape[1])), halves])
    shares = 1 - quotient(weights @ left, weights @ variation.square.sum(1))
    return estimate_of(float(shares[0]), shares[1:], len(number))


def _of_subject(subject: Subject, policy: TokensPolicy) -> TokenMeasures:
    return measure_tokens(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, TokenMeasures]) -> list[Table]:
    """Features that detect one token, features that go on, and what is known without codes."""
    rows = [
        Row(
            head,
            [
                f"{measured.asked:,}",
                estimated(measured.one_token, 1, 100, " %"),
                f"{100 * measured.chance_one_token:.1f} %",
                estimated(measured.purity, 3),
                f"{measured.chance_purity:.3f}",
                estimated(measured.persistence, 3),
                f"{measured.chance_persistence:.3f}",
                "" if measured.known is None else estimated(measured.known, 3),
            ],
        )
        for head, measured in found.items()
    ]
    columns = ["dictionary", "features", "of one token", "by chance", "purity, median", "by chance"]
    columns += ["fired before, too", "by chance", "FVE without codes"]
    note = (
        "Of one token: more than half of a feature's activation falls on one token. Fired before, too: share of firings whose feature "
        "fired on the row before; by chance: on another row of the sequence. FVE without codes: of what an expectation says alone."
    )
    return [Table("Features and tokens", columns, rows, note)]


SECTION = Section(
    name="tokens",
    policy=TokensPolicy,
    version=3,  # 2 took rows without a token for rows of one more token
    measure=_of_subject,
    measures=TokenMeasures,
    details=("purities", "tokens", "persistences"),
    tables=tables,
)
