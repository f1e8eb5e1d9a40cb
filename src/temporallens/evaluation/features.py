"""Every feature of a dictionary as a reader meets it: how often it fires, where in the sequence, under which mask, beyond what chance
would give, and on which words (`report`, the feature browser).

The band of chance is that of the circular-shift null (`docs/method.md`, "Position metrics"): the labels of every sequence are turned
in a circle, so that what fires together still does and nothing is tied to a position.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from pydantic import Field

from temporallens.activations.clocks import Tokenizer, over_positions
from temporallens.activations.language.model_files import read_tokenizer
from temporallens.activations.made.records import read_layout
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.bins import populated_bins
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.clusters.table import Context, Contexts
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.threads import on_threads
from temporallens.settings import Seed, Settings

DIGITS = 3
"""Significant digits of rates: more than sampling leaves of them."""

BAND = (0.025, 0.975)
"""Quantiles of the draws between which chance lies."""

CELLS = 1 << 20
"""Rates of one table of draws, by feature and bin; features are taken in parts that keep within it, one on each thread."""


class FeaturesPolicy(Settings):
    """The `features` section of a study's evaluation."""

    bins: int = Field(24, ge=2, le=256)
    """Bins of positions in a profile, at most, which widen with the logarithm; up to twice as many positions are bins of their own."""
    contexts: int = Field(4, ge=0, le=50)
    """Places where a feature fires most strongly, each in another sequence."""
    draws: int = Field(100, ge=40, le=10_000)
    """Circular shifts behind the band of chance."""
    seed: Seed = 0
    """Of the shifts."""


class FeatureTable(NamedTuple):
    """One entry, or row, for each of F features; rates are shares of a bin's tokens."""

    tokens: int
    documents: int
    first: list[int]  # positions of each of B bins
    last: list[int]  # inclusive
    bin_tokens: list[int]
    firings: list[int]
    mean: list[float]  # activation where it fires, 0 where it never does
    rate: list[list[float]]  # F x B
    low: list[list[float]]  # F x B, band of chance, bin by bin: one in twenty lies outside of it by chance alone
    high: list[list[float]]
    open: list[list[float]] | None  # F x B, mean gate; None where nothing is masked
    contexts: list[list[Context]]
    words: dict[int, str]  # of the tokens in contexts; empty where no tokenizer is known


@own_defaults()
def measure_features(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: FeaturesPolicy, cache: Path | None = None
) -> FeatureTable:
    """What there is to see of every feature on the held-out sequences; their encoding is kept in `cache`. Raises TemporalLensError where
    nothing fires."""
    firings = find_firings(dictionary, store, held_out, cache)
    first, last = populated_bins(np.unique(firings.position), policy.bins)
    bin_of = np.searchsorted(first, np.arange(store.positions), side="right") - 1
    tokens = np.bincount(bin_of[firings.position], minlength=len(first))
    low, high = _chance(firings, bin_of, tokens, policy)
    finder = Contexts(firings)
    contexts = [finder.strongest(feature, policy.contexts) for feature in range(firings.features)]
    sums = np.bincount(firings.feature, weights=firings.value, minlength=firings.features)
    return FeatureTable(
        tokens=len(firings.position),
        documents=len(np.unique(firings.document)),
        first=first.tolist(),
        last=last.tolist(),
        bin_tokens=tokens.tolist(),
        firings=firings.counts.tolist(),
        mean=rounded(sums / np.maximum(firings.counts, 1)),
        rate=rounded(_rates(firings, bin_of[firings.position], tokens)),
        low=rounded(low),
        high=rounded(high),
        open=_gates(dictionary, bin_of, firings.position, len(first)),
        contexts=contexts,
        words=words_of(store, {token for own in contexts for context in own for token in context.tokens}),
    )


def _rates(firings: Firings, row_bin: Int[np.ndarray, " N"], tokens: Int[np.ndarray, " B"]) -> Float32[np.ndarray, "F B"]:
    cell = firings.feature.astype(np.int64) * len(tokens) + row_bin[firings.row]
    counts = np.bincount(cell, minlength=firings.features * len(tokens)).reshape(firings.features, len(tokens))
    return (counts / np.maximum(tokens, 1)).astype(np.float32)


def _chance(
    firings: Firings, bin_of: Int[np.ndarray, " P"], tokens: Int[np.ndarray, " B"], policy: FeaturesPolicy
) -> tuple[Float32[np.ndarray, "F B"], Float32[np.ndarray, "F B"]]:
    """The band in which rates lie when positions mean nothing. Each part of the features is drawn anew from the same seed: turning
    positions costs little, and all draws of all features would fill the memory."""
    size = max(1, CELLS // (policy.draws * len(tokens)))

    def band(first: int) -> Float32[np.ndarray, "2 f B"]:
        part = _part(firings, first, min(first + size, firings.features))
        generator = np.random.default_rng(policy.seed)
        turned = (bin_of[rotated(firings.position, firings.stretch, generator)] for _ in range(policy.draws))
        return np.quantile(np.stack([_rates(part, row_bin, tokens) for row_bin in turned]), BAND, axis=0).astype(np.float32)

    low, high = np.concatenate(list(on_threads(band, range(0, firings.features, size))), axis=1)
    return low, high


def _part(firings: Firings, first: int, stop: int) -> Firings:
    """The firings of some consecutive features, which are numbered from 0."""
    own = (firings.feature >= first) & (firings.feature < stop)
    return firings._replace(row=firings.row[own], feature=firings.feature[own] - first, value=firings.value[own], features=stop - first)


def _gates(dictionary: Dictionary, bin_of: Int[np.ndarray, " P"], position: Int[np.ndarray, " N"], bins: int) -> list[list[float]] | None:
    """Mean gate over the tokens of each bin."""
    gates = dictionary.gates_by_position()
    if gates is None:
        return None
    table = over_positions(gates.double().cpu().numpy(), len(bin_of))
    weight = np.bincount(position, minlength=len(bin_of)).astype(np.float64)
    sums = np.zeros((bins, table.shape[1]))
    live = weight > 0
    np.add.at(sums, bin_of[live], table[live] * weight[live, None])
    return rounded((sums / np.bincount(bin_of[live], weights=weight[live], minlength=bins)[:, None]).T)


def rounded(values: Float[np.ndarray, "..."]) -> Any:
    """Nested lists of numbers of a few significant digits."""
    wide = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore"):
        scale = np.where(wide != 0, 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.abs(wide)))), 1.0)
    return (np.round(wide * scale) / scale).tolist()


def words_of(store: ActivationStore, tokens: set[int]) -> dict[int, str]:
    """The text of tokens; nothing for activations whose tokenizer is not known."""
    known = sorted(token for token in tokens if token >= 0)
    decode = _decoder(store)
    return {token: decode(token) for token in known} if decode is not None else {}


@lru_cache(maxsize=1)
def _tokenizer(model: str, revision: str | None) -> Tokenizer:
    """Read once for all dictionaries of a model."""
    return read_tokenizer(model, revision)


def _decoder(store: ActivationStore) -> Callable[[int], str] | None:
    source = store.manifest.description.source
    if source.get("kind") == "records":
        vocabulary = read_layout(store.folder).vocabulary
        return lambda token: vocabulary[token]
    if "tokenizer_sha256" not in source:
        return None
    tokenizer = _tokenizer(str(source["model"]), None if source["revision"] is None else str(source["revision"]))
    return lambda token: str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _of_subject(subject: Subject, policy: FeaturesPolicy) -> FeatureTable:
    return measure_features(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


SECTION = Section(
    name="features",
    policy=FeaturesPolicy,
    version=1,
    measure=_of_subject,
    measures=FeatureTable,
    in_results=False,
)
