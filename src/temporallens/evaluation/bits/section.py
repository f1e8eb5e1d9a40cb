"""Bits by clock: how many bits of a dictionary's support (which features fire) are known before its codes are read, and from where.

Lengths of a code for held-out documents (`lengths`) by rates alone, and when a row's position is known, its token, the token before it, or
which features fired on the row before it. Each stands beside its null, the same with what is told taken from elsewhere: positions turned
in a circle within their sequence, token ids permuted over all rows, the past of another sequence at the same index. Rows of which nothing
is told (the first of a sequence has no past) take their plain length. Intervals are by bootstrap over documents, counts as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int
from pydantic import Field, field_validator

from temporallens.activations.expressions import canonical, clock_of
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import profile_starts
from temporallens.evaluation.bits.clocks import reads_text, text_positions
from temporallens.evaluation.bits.lengths import Known, Labelled, Persistent, folds_of, known_lengths, own_rates
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.firings import ROW_COLUMNS, Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import SPACE, UNKNOWN, Row, Table, estimated, listed, minus, percent

POSITION, INDEX, DOCUMENT = "position", "index", "document"
CONTENT = {"token": "token", "previous_token": "previous token", "own_past": "own past"}
"""What can be known of a row beside clocks."""

ORDER = {name: number for number, name in enumerate((POSITION, INDEX, DOCUMENT, *CONTENT))}
"""Of the generators of nulls; those of clocks that a study adds come behind."""

TEXT_CLOCKS = ("sentence", "newline")
"""Of which no column of a store says anything."""

GROUPS = (8, 32)
"""Numbers of log-spaced groups in which a clock's positions are told, beside each alone; masks have 8."""

FOLDS, NULLS, RESAMPLES = range(3)
"""Purposes of the generators."""


class BitsPolicy(Settings):
    """The `bits` section of a study's `evaluation`."""

    training_tokens: int = Field(100_000, ge=0)
    """Tokens of training documents, evenly spaced, by whose counts held-out ones are scored: the rates of a token need many. They are
    encoded for it. 0: folds of the held-out documents are scored by counts of the others, which tells less of whatever has many values."""
    clocks: tuple[str, ...] = Field(TEXT_CLOCKS, json_schema_extra={"items": {"type": ["string", "object"]}})
    """Clocks beside the store's own that the text is read again for, by name or expression (`docs/method.md`, "Clocks"). The two of every
    text are left out where there is none to be read; others are refused there."""
    folds: int = Field(5, ge=3)
    """Parts of the documents that are counted; strengths are chosen on one that is left out."""
    draws: int = Field(2, ge=1, le=10_000)
    """Of each null; its mean is reported."""
    resamples: int = Field(1000, ge=20, le=100_000)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of folds, nulls and resamples."""

    @field_validator("clocks", mode="before")
    @classmethod
    def _known_clocks(cls, clocks: Any) -> tuple[str, ...]:
        if not isinstance(clocks, list | tuple):
            raise ValueError(f"clocks are a list, such as [{', '.join(TEXT_CLOCKS)}]")
        try:
            return tuple(dict.fromkeys(canonical(clock) for clock in clocks))
        except TemporalLensError as error:
            raise ValueError(str(error)) from error

    def generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *purpose))


class Saved(NamedTuple):
    """What knowing one thing saves; below zero it costs more than it tells."""

    bits: Estimate  # per token
    share: Estimate  # of the bits by rates alone
    null: Estimate  # the same share when it is taken from elsewhere
    over_null: Estimate  # the difference of the two


class BitsMeasures(NamedTuple):
    """Held-out bits of one dictionary's support."""

    plain: Estimate  # bits per token by each feature's own rate
    saved: dict[str, Saved | None]  # by what is known; None where the store does not know it
    documents: int  # held-out ones, which are scored
    tokens: int
    counted_tokens: int  # of training documents; 0 where held-out documents are scored by each other


class Source(NamedTuple):
    """Something that is known of N rows."""

    ways: Callable[[Firings, Int[np.ndarray, " N"]], list[Known]]  # in which it can be told
    label: Int[np.ndarray, " N"]  # -1 where it is not known
    elsewhere: Callable[[Int[np.ndarray, " N"], np.random.Generator], Int[np.ndarray, " N"]]  # the null


@own_defaults()
def measure_bits(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: BitsPolicy, cache: Path | None = None
) -> BitsMeasures:
    """Measure `dictionary` on the held-out sequences, whose encodings are kept in `cache`; all others are training sequences.

    Raises TemporalLensError where documents are too few to count on, or where nothing fires.
    """
    firings, entries = find_firings(dictionary, store, held_out, cache), held_out
    training = np.zeros(len(firings.position), dtype=bool)
    if len(counted := _training_entries(store, held_out, policy.training_tokens)):
        firings, entries = joined(firings, find_firings(dictionary, store, counted)), np.concatenate([held_out, counted])
        training = np.append(training, np.ones(len(firings.position) - len(training), dtype=bool))
    clocks = {DOCUMENT: _document_position(store, entries)}
    if policy.clocks and (policy.clocks != TEXT_CLOCKS or reads_text(store)):
        clocks |= text_positions(store, entries, policy.clocks)
    return bits_of(firings, clocks, training, policy)


def bits_of(
    firings: Firings, clocks: Mapping[str, Int[np.ndarray, " N"]], training: Bool[np.ndarray, " N"], policy: BitsPolicy
) -> BitsMeasures:
    """The same of firings, with what clocks beside the store's own say of each row, and which rows are of training documents.

    Raises TemporalLensError where documents are too few to count on.
    """
    folds = folds_of(firings.document, training, policy.folds, policy.generator(FOLDS))
    rates, plain = own_rates(firings, folds)
    sums = _Sums(firings.document[~training], policy)

    def lengths(source: Source, label: Int[np.ndarray, " N"]) -> Float64[np.ndarray, " n"]:
        return known_lengths(source.ways(firings, label), folds, rates, plain)[~training]

    saved: dict[str, Saved | None] = {}
    for number, (name, source) in enumerate(sources(firings, clocks).items()):
        if (source.label < 0).all():
            saved[name] = None
            continue
        generator = policy.generator(NULLS, ORDER.get(name, len(ORDER) + number))
        nulls = [lengths(source, source.elsewhere(source.label, generator)) for _ in range(policy.draws)]
        saved[name] = sums.saved(plain[~training], lengths(source, source.label), np.mean(nulls, axis=0))
    return BitsMeasures(sums.mean(plain[~training]), saved, sums.documents, int((~training).sum()), int(training.sum()))


def joined(first: Firings, second: Firings) -> Firings:
    """Firings of one dictionary on rows of two sets of sequences, one behind the other."""
    second = second._replace(row=second.row + np.int32(len(first.position)), stretch=second.stretch + first.stretch.max() + np.int32(1))
    names = ("row", "feature", "value", *ROW_COLUMNS)
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in (first, second)]) for name in names}
    return first._replace(**columns)


def sources(firings: Firings, clocks: Mapping[str, Int[np.ndarray, " N"]]) -> dict[str, Source]:
    """All that may be known, by name; a clock that tells the same as one before it is left out."""
    told: dict[str, Int[np.ndarray, " N"]] = {}
    for name, label in {POSITION: firings.position, INDEX: firings.index, **clocks}.items():
        if not any(np.array_equal(label, other) for other in told.values()):
            told[name] = label
    before = rows_before(firings)

    def turned(label: Int[np.ndarray, " N"], generator: np.random.Generator) -> Int[np.ndarray, " N"]:
        return rotated(label, firings.stretch, generator)

    def permuted(label: Int[np.ndarray, " N"], generator: np.random.Generator) -> Int[np.ndarray, " N"]:
        return generator.permutation(label)

    def exchanged(label: Int[np.ndarray, " N"], generator: np.random.Generator) -> Int[np.ndarray, " N"]:
        return of_others(label, firings.index, generator)

    return {name: Source(_grouped, label, turned) for name, label in told.items()} | {
        "token": Source(_alone, firings.token, permuted),
        "previous_token": Source(_alone, np.where(before >= 0, firings.token[before], -1), permuted),
        "own_past": Source(_past, before, exchanged),
    }


def _grouped(firings: Firings, position: Int[np.ndarray, " N"]) -> list[Known]:
    """Every position, or groups that widen with the logarithm: few tokens do not tell the rates of many positions."""
    first, last = int(position.min()), int(position.max())
    starts = [profile_starts(first, last, groups + 1) for groups in GROUPS if groups <= last - first]
    return [Labelled(firings, label) for label in (position, *(np.searchsorted(start, position, "right") for start in starts))]


def _alone(firings: Firings, label: Int[np.ndarray, " N"]) -> list[Known]:
    return [Labelled(firings, label)]


def _past(firings: Firings, before: Int[np.ndarray, " N"]) -> list[Known]:
    return [Persistent(firings, before)]


def rows_before(firings: Firings) -> Int[np.ndarray, " N"]:
    """The row that stands right before each one in its sequence; -1 where there is none, or a rule excludes it."""
    follows = (np.diff(firings.index) == 1) & (np.diff(firings.sequence) == 0)
    return np.append(-1, np.where(follows, np.arange(len(follows)), -1))


def of_others(before: Int[np.ndarray, " N"], index: Int[np.ndarray, " N"], generator: np.random.Generator) -> Int[np.ndarray, " N"]:
    """For each row that has one before it such a row of another sequence at the same index, each taken once; -1 where there is none."""
    having = np.flatnonzero(before >= 0)
    order = having[np.lexsort((generator.random(len(having)), index[having]))]
    starts = np.flatnonzero(np.diff(index[order], prepend=-1) != 0)
    ends = np.append(starts[1:], len(order)) - 1
    following = np.arange(1, len(order) + 1)
    following[ends] = starts
    taken = np.full_like(before, -1)
    taken[order] = np.where(following == np.arange(len(order)), -1, before[order[following]])
    return taken


class _Sums:
    """Means over tokens with their spread over resamples of the documents."""

    def __init__(self, document: Int[np.ndarray, " N"], policy: BitsPolicy) -> None:
        numbers, self._document = np.unique(document, return_inverse=True)
        self.documents = len(numbers)
        times = resampled_documents(self.documents, policy.resamples, policy.generator(RESAMPLES))
        self._weights = np.concatenate([np.ones((1, self.documents)), times])  # the first row: each document once
        self._tokens = self._summed(np.ones(len(document)))

    def mean(self, bits: Float64[np.ndarray, " N"]) -> Estimate:
        return self._estimate(self._summed(bits) / self._tokens)

    def saved(self, plain: Float64[np.ndarray, " N"], known: Float64[np.ndarray, " N"], null: Float64[np.ndarray, " N"]) -> Saved:
        whole, found, chance = (self._summed(bits) for bits in (plain, plain - known, plain - null))
        return Saved(
            bits=self._estimate(found / self._tokens),
            share=self._estimate(quotient(found, whole)),
            null=self._estimate(quotient(chance, whole)),
            over_null=self._estimate(quotient(found - chance, whole)),
        )

    def _summed(self, values: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " B1"]:
        return np.asarray(self._weights @ np.bincount(self._document, weights=values, minlength=self.documents))

    def _estimate(self, values: Float64[np.ndarray, " B1"]) -> Estimate:
        return estimate_of(float(values[0]), values[1:], len(self._document))


def _training_entries(store: ActivationStore, held_out: Int[np.ndarray, " n"], tokens: int) -> Int[np.ndarray, " m"]:
    """Evenly spaced entries of about so many tokens, of documents that are not held out."""
    others = np.flatnonzero(~np.isin(store.sequence_table.document, store.documents_of(held_out)))
    share = min(1.0, tokens / max(1, int(store.sequence_table.length[others].sum())))
    count = math.ceil(share * len(others))
    return others[np.arange(count) * len(others) // max(1, count)]


def _document_position(store: ActivationStore, entries: Int[np.ndarray, " n"]) -> Int[np.ndarray, " N"]:
    """Index in its document of every row that no rule excludes."""
    return np.concatenate([rows.document_position[rows.excluded == 0].numpy() for rows in sequential(store, entries)])


def _of_subject(subject: Subject, policy: BitsPolicy) -> BitsMeasures:
    return measure_bits(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, BitsMeasures]) -> list[Table]:
    """What each thing that is known saves of each dictionary's bits."""
    rows = [
        Row(f"{head}: {name_of(name)}", [estimated(measured.plain, 1), *_cells(saved)])
        for head, measured in found.items()
        for name, saved in measured.saved.items()
    ]
    columns = ["dictionary: what is known", "bits by rates alone", "bits saved", "saved", "saved by the null", "saved less null"]
    note = (
        f"Bits per held-out token of which features fire. Saved of those by rates alone, less the null: {in_words(list(found.values()))}. "
        "The null takes what is known from elsewhere: positions turned in their sequence, tokens permuted, the past of another sequence."
    )
    return [Table("Bits that are known beforehand", columns, rows, note)]


def _cells(saved: Saved | None) -> list[str]:
    if saved is None:
        return [UNKNOWN] * 4
    return [estimated(saved.bits, 2), *(estimated(share, 2, 100, " %") for share in (saved.share, saved.null, saved.over_null))]


def in_words(found: Sequence[BitsMeasures]) -> str:
    """`position 0.6 %, token 43 % and own past 2.6 %`, less what the null saves; least and greatest of several dictionaries, nothing where
    no interval lies above zero."""
    saved = {name: [known for measured in found if (known := measured.saved.get(name)) is not None] for name in names_in(found)}
    return listed([f"{name_of(name)} {_from_to([known.over_null for known in found])}" for name, found in saved.items() if found])


def names_in(found: Sequence[BitsMeasures]) -> list[str]:
    """What is known in any of several measurements: clocks first, in the order of the first that has them."""
    names = dict.fromkeys(name for measured in found for name in measured.saved)
    return [*(name for name in names if name not in CONTENT), *(name for name in CONTENT if name in names)]


def name_of(name: str) -> str:
    """As tables and pictures call what is known."""
    if name == POSITION:
        return name
    return CONTENT.get(name) or clock_of(name).label


def _from_to(shares: Sequence[Estimate]) -> str:
    known = [share.value for share in shares if share.value is not None]
    if not known or all(share.low is not None and share.low <= 0 for share in shares):
        return "nothing"
    least, greatest = minus(percent(min(known))), minus(percent(max(known)))
    return greatest if least == greatest else f"{least.removesuffix(f'{SPACE}%')} to {greatest}"


SECTION = Section(name="bits", policy=BitsPolicy, version=2, measure=_of_subject, measures=BitsMeasures, tables=tables)
