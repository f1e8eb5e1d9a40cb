"""What becomes of a dictionary on rows longer than those of its training: its features, and what the model makes of it.

Beside FVE and L0 by octave (`drift`) stand the features that fire otherwise on the tokens beyond the trained positions than on the same
tokens in rows of the trained length, and the share of the loss that its reconstructions recover there. With d_gf the firings of feature f
in document g beyond, less those of the same tokens as trained, `t_f = sum_g d_gf / sqrt(sum_g d_gf^2)`, judged by Student's distribution
and Benjamini-Hochberg. Chance is the same with the sign of each document's difference thrown.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator

from temporallens.activations.context import context_of
from temporallens.activations.language.model_files import content_stamp
from temporallens.activations.language.models import Layer
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.model.origin import choose_rows, harvest_of
from temporallens.evaluation.model.splicing import LEAST_TOKENS, Losses, Means, Splicer, Substitute, last_streams, losses_of, whole_model
from temporallens.evaluation.positions.drift import (
    DriftMeasures,
    DriftPolicy,
    later_half,
    longer_and_again,
    longer_store,
    measure_drift,
    runs_of,
)
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, q_values, quotient, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, plus, span


class LengthPolicy(Settings):
    """The `length` section of a study's evaluation."""

    contexts: tuple[int, ...] | None = Field(None, min_length=1)
    """Tokens in a row: the longest is read, and octaves beyond the trained context are reported up to it; None: four times that of
    training, or as many as the model takes."""
    documents: int = Field(32, ge=2)
    """Held-out documents at most, evenly spaced among those that have longer rows."""
    rows_per_document: int = Field(2, ge=1)
    """Longer rows of each document at most."""
    spliced: int = Field(16, ge=2)
    """Of the longer rows, and as many times four of those of the trained length, that go on through the model."""
    least: int = Field(20, ge=2)
    """Firings of a feature, on either side, from which it is asked."""
    times: float = Field(2.0, gt=1)
    """A feature fires more beyond when it does so as many times as often, and less when as many times more seldom (q < `q`)."""
    q: float = Field(0.05, gt=0, le=0.05)
    """False discovery rate."""
    resamples: int = Field(1000, ge=2)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Draws the resamples, and chance."""

    @field_validator("contexts")
    @classmethod
    def _ascend(cls, contexts: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if contexts is not None and (min(contexts) < 4 or sorted(set(contexts)) != list(contexts)):
            raise ValueError(f"contexts are numbers of tokens from 4 on, each larger than the one before; these are {list(contexts)}")
        return contexts

    @property
    def drift(self) -> DriftPolicy:
        """The rows that are read."""
        longest = None if self.contexts is None else max(self.contexts)
        return DriftPolicy(
            context_length=longest,
            documents=self.documents,
            rows_per_document=self.rows_per_document,
            resamples=self.resamples,
            seed=self.seed,
        )


class FeaturesBeyond(NamedTuple):
    """Features on the tokens beyond the trained positions, against the same tokens as trained."""

    asked: int  # with firings enough on either side
    more: int
    less: int
    silent: int  # of those that fire less: never
    by_chance: int  # more or less, with signs thrown
    dead: int  # on all longer rows, of those that fire on the rows as trained


class RecoveredRun(NamedTuple):
    """Loss recovered at positions `first` to `last`."""

    first: int
    last: int
    beyond: bool
    recovered_zero: Estimate
    recovered_mean: Estimate


class LengthMeasures(NamedTuple):
    """One dictionary on rows longer than those of its training."""

    drift: DriftMeasures
    features: FeaturesBeyond
    recovered: list[RecoveredRun]  # of the longer rows
    recovered_as_trained: RecoveredRun  # tokens of rows of the trained length that stand in their later half
    loss: str  # cross-entropy or hidden states


@own_defaults()
def measure_length(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: LengthPolicy,
    cache: Path,
) -> LengthMeasures:
    """Measure `dictionary`, trained on `layer` of `model`, on longer rows of held-out documents of `store`; the activations of these rows
    are kept in `cache`, as those of `drift`.

    Raises TemporalLensError as `measure_drift` does.
    """
    drift = measure_drift(dictionary, model, layer, store, held_out, policy.drift, cache)
    read = longer_store(store, held_out, policy.drift, cache)
    long, again = longer_and_again(read, drift.trained)
    harvest = harvest_of(store)
    network = whole_model(model, harvest.compute_dtype, harvest.revision, harvest.loading, content_stamp(model))
    place = layer if harvest.target is None else harvest.target
    splicers = [
        Splicer(network, place, read, choose_rows(read, entries, rows, LEAST_TOKENS, "length"), 1)
        for entries, rows in ((long, policy.spliced), (again, 4 * policy.spliced))
    ]
    beyond, before = (_Recovered(dictionary, splicer, store, policy, cache) for splicer in splicers)
    runs = runs_of(drift.trained, read.positions)
    return LengthMeasures(
        drift=drift,
        features=_features(dictionary, read, (long, again), drift.trained, policy, cache),
        recovered=[found for first, end in runs if (found := beyond.run(first, end, first >= drift.trained)) is not None],
        recovered_as_trained=before.run(later_half(drift.trained), drift.trained, False) or before.whole(drift.trained),
        loss="cross-entropy" if network.has_head else "hidden states",
    )


def _features(
    dictionary: Dictionary,
    read: ActivationStore,
    entries: tuple[Int[np.ndarray, " l"], Int[np.ndarray, " s"]],
    trained: int,
    policy: LengthPolicy,
    cache: Path,
) -> FeaturesBeyond:
    from scipy import stats

    long, again = (find_firings(dictionary, read, own, cache) for own in entries)
    documents, half = np.unique(np.concatenate([long.document, again.document])), later_half(trained)
    beyond, before = (_by_document(one, documents, one.index >= first) for one, first in ((long, trained), (again, half)))
    before = before * (np.count_nonzero(long.index >= trained) / np.count_nonzero(again.index >= half))
    once = before.sum(0)
    asked = np.maximum(beyond.sum(0), once) >= policy.least

    def found(difference: Float[np.ndarray, "D F"]) -> tuple[Bool[np.ndarray, " F"], Bool[np.ndarray, " F"]]:
        """Which features fire more, and which less, when their firings differ by so much in each document."""
        statistic = quotient(difference.sum(0), np.sqrt(np.square(difference).sum(0)))[asked]
        p = np.nan_to_num(2 * stats.t.sf(np.abs(statistic), max(1, len(documents) - 1)), nan=1.0)
        significant = np.zeros(len(asked), dtype=bool)
        significant[asked] = q_values(p) < policy.q if len(p) else False
        times = (np.maximum(once + difference.sum(0), 0) + 0.5) / (once + 0.5)
        return significant & (times >= policy.times), significant & (times <= 1 / policy.times)

    more, less = found(beyond - before)
    signs = np.random.default_rng((policy.seed, 1)).choice([-1.0, 1.0], len(documents))
    chance = sum(int(side.sum()) for side in found(signs[:, None] * (beyond - before)))
    return FeaturesBeyond(
        asked=int(asked.sum()),
        more=int(more.sum()),
        less=int(less.sum()),
        silent=int((less & (beyond.sum(0) == 0)).sum()),
        by_chance=chance,
        dead=int(((long.counts == 0) & (again.counts > 0)).sum()),
    )


def _by_document(firings: Firings, documents: Int[np.ndarray, " D"], own: Bool[np.ndarray, " N"]) -> Float[np.ndarray, "D F"]:
    """Firings of each feature in each document, on some rows."""
    row = firings.row[own[firings.row]]
    feature = firings.feature[own[firings.row]]
    cell = np.searchsorted(documents, firings.document[row]).astype(np.int64) * firings.features + feature
    counts = np.bincount(cell, minlength=len(documents) * firings.features)
    return counts.reshape(len(documents), firings.features).astype(np.float64)


class _Recovered:
    """Losses with reconstructions, zeros and the mean of the trained rows in place of the stream."""

    def __init__(self, dictionary: Dictionary, work: Splicer, store: ActivationStore, policy: LengthPolicy, cache: Path) -> None:
        mean = store.given.moments.pooled_mean().float()
        substitutes: dict[str, Substitute] = {
            "spliced": partial(_spliced, dictionary),
            "zero": lambda rows: mean.new_zeros(len(rows.x), len(mean)),
            "mean": lambda rows: mean.expand(len(rows.x), -1),
        }
        self._work = work
        self._losses: Losses = losses_of(work, last_streams(work, cache), substitutes, ("kept",))
        documents = int(work.document.max()) + 1
        times = resampled_documents(documents, policy.resamples, np.random.default_rng(policy.seed))
        self._means = Means(work.document, np.concatenate([np.ones((1, documents)), times]))

    def run(self, first: int, end: int, beyond: bool) -> RecoveredRun | None:
        """At indices `first` to `end - 1`; None where there is no token."""
        own = (self._work.index >= first) & (self._work.index < end)
        if not own.any():
            return None
        return RecoveredRun(first, end - 1, beyond, *(self._recovered(ablation, own) for ablation in ("zero", "mean")))

    def whole(self, end: int) -> RecoveredRun:
        """At all of its tokens."""
        own = np.ones(len(self._work.index), dtype=bool)
        return RecoveredRun(0, end - 1, False, *(self._recovered(ablation, own) for ablation in ("zero", "mean")))

    def _recovered(self, ablation: str, own: Bool[np.ndarray, " n"]) -> Estimate:
        clean, spliced, ablated = (self._means.of(self._losses[name], own) for name in ("clean", "spliced/kept", f"{ablation}/kept"))
        share = quotient(ablated - spliced, ablated - clean)
        return estimate_of(float(share[0]), share[1:], int(own.sum()))


def _spliced(dictionary: Dictionary, rows: Rows) -> torch.Tensor:
    return dictionary(rows.x.float(), rows.position.long(), context_of(rows))


def in_words(name: str, measured: LengthMeasures) -> str:
    """`beyond position 127 batchtopk explains .004 less (.003 to .005)`."""
    change, last = measured.drift.fve_change, measured.drift.trained - 1
    if change.value is None or change.low is None or change.high is None:
        return f"{name}: too few documents to say what becomes of it beyond position {last}."
    if change.low <= 0 <= change.high:
        said = f"explains as much as before ({plus(change.value, f'{change.value:.4f}')}; {change.low:.4f} to {change.high:.4f} FVE)"
    else:
        less = change.value < 0
        low, high = sorted(abs(bound) for bound in (change.low, change.high))
        said = f"explains {abs(change.value):.4f} {'less' if less else 'more'} ({low:.4f} to {high:.4f} FVE)"
    features = measured.features
    return (
        f"Beyond position {last} {name} {said} of the same tokens; {features.more} of {features.asked} features fire more there and "
        f"{features.less} less ({features.by_chance} by chance)."
    )


def _of_subject(subject: Subject, policy: LengthPolicy) -> LengthMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_length(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, LengthMeasures]) -> list[Table]:
    """FVE, L0 and loss recovered by octave; features that fire otherwise."""
    rows = [row for head, measured in found.items() for row in _rows(head, measured)]
    counts = [Row(head, [f"{value:,}" for value in measured.features._asdict().values()]) for head, measured in found.items()]
    note = "The same tokens stand beyond the trained positions and in rows of the trained length. Intervals are over documents. "
    columns = ["dictionary: positions", "FVE", "L0", "recovered (zeros)", "recovered (mean)"]
    return [
        Table("Length: beyond the trained context", columns, rows, note + " ".join(in_words(*one) for one in found.items())),
        Table(
            "Length: features beyond the trained context",
            ["dictionary", "asked", "fire more", "fire less", "of these never", "by chance", "silent on all longer rows"],
            counts,
            "Against the same tokens at trained positions.",
        ),
    ]


def _rows(head: str, measured: LengthMeasures) -> Iterator[Row]:
    recovered = {run.first: run for run in measured.recovered}
    for octave in measured.drift.octaves:
        run = recovered.get(octave.first)
        shares = ["", ""] if run is None else [estimated(run.recovered_zero), estimated(run.recovered_mean)]
        beyond = " (beyond)" if octave.beyond else ""
        yield Row(f"{head}: {span(octave.first, octave.last)}{beyond}", [estimated(octave.fve, 4), estimated(octave.l0, 1), *shares])
    again, run = measured.drift.as_trained, measured.recovered_as_trained
    shares = [estimated(run.recovered_zero), estimated(run.recovered_mean)]
    yield Row(f"{head}: at {span(again.first, again.last)} as trained", [estimated(again.fve, 4), estimated(again.l0, 1), *shares])


SECTION = Section(
    name="length",
    policy=LengthPolicy,
    version=1,
    measure=_of_subject,
    measures=LengthMeasures,
    reads_model=True,
    tables=tables,
)
