"""Which features depend on position, and how much: position information, specialisation and eta^2 of each, against circular shifts
(`shifts`), with split-half reliability over documents (`docs/method.md`, "Position metrics").

Everything here is a table in and a table out; `section` runs dictionaries and puts results together.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field

from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.positions.shifts import (
    Judgement,
    Trains,
    cells,
    chance_score,
    drawn_information,
    eta2,
    found_information,
    information,
    judge_positions,
    score,
    specialisation,
    trains_of,
)
from temporallens.evaluation.statistics import Estimate, correlation, estimate_of, half_samples, q_values
from temporallens.evaluation.threads import on_threads
from temporallens.settings import Seed, Settings

DIGITS = 5
"""Significant digits of per-feature numbers in files: more than sampling leaves of them, and half the size."""

TABLE_CELLS = 1 << 18
"""Entries of a table of documents by features by positions that is held at a time: 2 MB, which stay near the processor while every
resample is taken of them."""

FEATURES_TOGETHER = 16
"""Features are taken in multiples of this: the last few of a product with a matrix are rounded in another way."""

NULL, FURTHER, RESAMPLES, HALVES = range(4)
"""Purposes of the generators."""


class PositionsPolicy(Settings):
    """The `positions` section of a study's `evaluation`: how features are asked whether they depend on position."""

    least_firings: int = Field(200, ge=2)
    """Firings on held-out documents from which a feature is measured; below, its profile is mostly chance."""

    least_tokens: int = Field(20, ge=1)
    """Held-out tokens from which a position counts; the rare ends of a clock are left out."""

    draws: int = Field(200, ge=200, le=100_000)
    """Circular shifts behind the null of every feature."""

    further_draws: int = Field(2000, ge=200, le=1_000_000)
    """Fresh shifts for features that look promising, so that many tests can be told apart."""

    q: float = Field(0.05, gt=0, le=0.05)
    """False discovery rate (Benjamini-Hochberg) at which a feature is said to be specialised."""

    resamples: int = Field(200, ge=20, le=100_000)
    """Resamples or random halves of the documents behind every interval and behind split-half reliability."""

    agreement: float = Field(0.1, gt=0, lt=1)
    """For mask agreement: a feature lives where it fires at least this share as often as where it fires most."""

    seed: Seed = 0
    """Of shifts, resamples and halves."""

    def generator(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose))


class FeaturePositions(NamedTuple):
    """Every measured feature; one entry each."""

    feature: Int64[np.ndarray, " f"]  # its row in the dictionary, ascending
    firings: Int64[np.ndarray, " f"]
    information: Float64[np.ndarray, " f"]  # I_f in bits per token, less the mean of the null
    specialisation: Float64[np.ndarray, " f"]  # PSI_f, less the mean of the null
    eta2: Float64[np.ndarray, " f"]  # less the mean of the null
    p: Float64[np.ndarray, " f"]  # that chance gives as much information
    q: Float64[np.ndarray, " f"]  # Benjamini-Hochberg over measured features
    reliability: Float64[np.ndarray, " f"]  # correlation of profiles between halves of the documents; NaN where there is none

    def columns(self) -> "FeatureColumns":
        return FeatureColumns(*map(_plain, self))


class FeatureColumns(NamedTuple):
    """The same as lists of numbers of a few digits, None for NaN: as files hold it."""

    feature: list[int]
    firings: list[int]
    information: list[float | None]
    specialisation: list[float | None]
    eta2: list[float | None]
    p: list[float | None]
    q: list[float | None]
    reliability: list[float | None]


class Discoveries(NamedTuple):
    """The features that were asked whether they depend on position, and what they say: all that dictionaries are compared by."""

    feature: Int64[np.ndarray, " f"]  # row in the dictionary, ascending
    information: Float64[np.ndarray, " f"]  # as counted
    chance: Float64[np.ndarray, " f"]  # mean of the null
    halved: Float64[np.ndarray, "B f"]  # information in random halves of the documents
    p: Float64[np.ndarray, " f"]
    q: Float64[np.ndarray, " f"]
    specialised: Bool[np.ndarray, " f"]
    resampled: Bool[np.ndarray, "B f"]  # the same as each half has it


class Halves(NamedTuple):
    """What activations in random halves of the documents say, one row per half."""

    specialisation: Float64[np.ndarray, "B f"]  # as counted
    eta2: Float64[np.ndarray, "B f"]
    correlation: Float64[np.ndarray, "B f"]  # of mean activations by position with those of the other half; NaN where one does not vary


class Specialisation(NamedTuple):
    """Features that were measured, and what resampled documents make of them."""

    features: FeaturePositions
    specialised: Bool[np.ndarray, " f"]
    share: Estimate  # of measured features that are specialised
    information: Estimate  # means over measured features
    specialisation: Estimate
    eta2: Estimate
    reliability: Estimate
    tokens: int
    positions: int
    sequences: int
    documents: int


def measure_specialisation(firings: Firings, policy: PositionsPolicy) -> Specialisation:
    """Ask every feature with enough firings whether it depends on position, and how much. Raises TemporalLensError where no position has
    tokens enough."""
    firings = usual_positions(firings, policy.least_tokens)
    return describe(firings, discover(firings, policy), policy)


def discover(firings: Firings, policy: PositionsPolicy) -> Discoveries:
    """Ask every feature with enough firings, at usual positions, whether it depends on position."""
    measured = np.flatnonzero(firings.counts >= policy.least_firings)
    trains = trains_of(firings, measured)
    _refuse_one(trains.documents)
    found, drawn = found_information(trains), drawn_information(trains, policy.draws, policy.generator(NULL))
    judged = judge_positions(trains, found, drawn, policy.further_draws, policy.generator(FURTHER))
    q, halved = q_values(judged.p), halved_information(trains, policy)
    again = found_again(found, halved, judged, q, policy.q)
    return Discoveries(measured, found, drawn.mean(0), halved, judged.p, q, q < policy.q, again)


def describe(firings: Firings, found: Discoveries, policy: PositionsPolicy) -> Specialisation:
    """How much the features that were asked depend on position."""
    trains = trains_of(firings, found.feature)
    scores, chance = score(trains), chance_score(trains, policy.draws, policy.generator(NULL))
    halves = halve(trains, policy)
    features = FeaturePositions(
        feature=found.feature,
        firings=firings.counts[found.feature],
        information=found.information - found.chance,
        specialisation=scores.specialisation - chance.specialisation,
        eta2=scores.eta2 - chance.eta2,
        p=found.p,
        q=found.q,
        reliability=known_mean(halves.correlation),
    )
    return Specialisation(
        features=features,
        specialised=found.specialised,
        share=_estimate(found.specialised, found.resampled, (0.0, 1.0)),
        information=_estimate(features.information, found.halved),
        specialisation=_estimate(features.specialisation, halves.specialisation),
        eta2=_estimate(features.eta2, halves.eta2),
        reliability=_estimate(features.reliability, halves.correlation, (-1.0, 1.0)),
        tokens=len(firings.position),
        positions=trains.positions,
        sequences=int(trains.sequence[-1]) + 1,
        documents=trains.documents,
    )


def usual_positions(firings: Firings, least_tokens: int) -> Firings:
    """Without the rows of positions that have fewer tokens."""
    count = np.bincount(firings.position, minlength=firings.positions)
    kept = np.flatnonzero(count[firings.position] >= least_tokens)
    _refuse_few(int(count.max()), least_tokens)
    return firings if len(kept) == len(firings.position) else firings.of_rows(kept)


def refuse_small(store: ActivationStore, held_out: Int64[np.ndarray, " n"], policy: PositionsPolicy) -> None:
    """Raise TemporalLensError where no position has held-out tokens enough, or one document alone is held out, before anything is
    trained."""
    _refuse_one(len(np.unique(store.documents_of(held_out))))
    _refuse_few(int(store.moments_of(held_out).count.max()), policy.least_tokens)


def _refuse_one(documents: int) -> None:
    if documents < 2:
        raise TemporalLensError(
            "one document alone is held out, and intervals of positions are over documents: hold out more documents, or give more of them"
        )


def _refuse_few(most: int, least_tokens: int) -> None:
    if most < least_tokens:
        raise TemporalLensError(
            f"no position has {least_tokens} held-out tokens (the largest number is {most}); hold out more documents, or lower least_tokens"
        )


def halved_information(trains: Trains, policy: PositionsPolicy) -> Float64[np.ndarray, "B f"]:
    """Information in random halves of the documents, some features at a time, to bound the memory."""
    times, count = halves_of(trains, policy), rows_by_document(trains)

    def of(part: Trains) -> Float64[np.ndarray, "B f"]:
        halves = zip(resampled_sums(times, sums_by_document(part)), times @ count, strict=True)
        return np.stack([information(fired.astype(np.int64), rows.astype(np.int64)) for fired, rows in halves])

    return np.concatenate(list(on_threads(of, in_parts(trains))), axis=1)


def halve(trains: Trains, policy: PositionsPolicy) -> Halves:
    """Score activations in random halves of the documents, and compare each with the other half."""
    times, count = halves_of(trains, policy), rows_by_document(trains)
    parts = on_threads(lambda part: _halve(part, times, count), in_parts(trains))
    return Halves(*(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))


def halves_of(trains: Trains, policy: PositionsPolicy) -> Float64[np.ndarray, "B D"]:
    """Which documents are in each half."""
    return half_samples(trains.documents, policy.resamples, policy.generator(HALVES)).astype(np.float64)


def in_parts(trains: Trains) -> Iterator[Trains]:
    """Trains of as many features at a time as a table has room for; of none, where there are none."""
    number, most = np.arange(trains.features), TABLE_CELLS // (trains.documents * trains.positions)
    at_once = max(1, most // FEATURES_TOGETHER * FEATURES_TOGETHER or most)
    for first in range(0, max(1, trains.features), at_once):
        yield trains if at_once >= trains.features else trains.of_features((number >= first) & (number < first + at_once))


def _halve(trains: Trains, times: Float64[np.ndarray, "B D"], count: Int64[np.ndarray, "D P"]) -> Halves:
    masses = sums_by_document(trains, trains.value)
    squares = np.bincount(
        trains.document[trains.row] * trains.features + trains.feature, trains.value**2, trains.documents * trains.features
    ).reshape(trains.documents, trains.features)
    every, whole = masses.sum(0), count.sum(0)
    found = []
    for mass, rows, square in zip(resampled_sums(times, masses), (times @ count).astype(np.int64), times @ squares, strict=True):
        other = (every - mass) / np.maximum(whole - rows, 1)
        alike = correlation(mass / np.maximum(rows, 1), other)
        found.append(Halves(specialisation(mass, rows), eta2(mass, rows, square), alike))
    return Halves(*map(np.stack, zip(*found, strict=True)))


def rows_by_document(trains: Trains) -> Int64[np.ndarray, "D P"]:
    """Rows of each document at each position."""
    cell = trains.document * trains.positions + trains.number
    return np.bincount(cell, minlength=trains.documents * trains.positions).reshape(trains.documents, trains.positions)


def sums_by_document(trains: Trains, weight: Float64[np.ndarray, " K"] | None = None) -> Float64[np.ndarray, "D f P"]:
    """Firings of each document, each counting as much as its weight, or once."""
    shape = trains.documents, trains.features, trains.positions
    cell = trains.document[trains.row] * math.prod(shape[1:]) + cells(trains, trains.number)
    return np.bincount(cell, weight, math.prod(shape)).astype(np.float64).reshape(shape)


def resampled_sums(times: Float64[np.ndarray, "B D"], sums: Float64[np.ndarray, "D f P"]) -> Float64[np.ndarray, "B f P"]:
    """Sums over documents, each of which counts so many times."""
    return (times @ sums.reshape(len(sums), -1)).reshape(len(times), *sums.shape[1:])


def found_again(
    found: Float64[np.ndarray, " f"], resampled: Float64[np.ndarray, "B f"], judged: Judgement, q: Float64[np.ndarray, " f"], level: float
) -> Bool[np.ndarray, "B f"]:
    """Which features are specialised as each half has it: those whose information, moved as far as the half lies from the mean of
    halves, still exceeds what the largest p-value among discoveries asks for."""
    accepted = judged.p[q < level]
    largest = float(accepted.max()) if len(accepted) else level / max(1, len(q))
    moved = found + resampled - (resampled.mean(0) if len(resampled) else 0.0)
    return np.asarray(moved >= judged.tail.at(largest))


def known_mean(draws: Float64[np.ndarray, "B f"]) -> Float64[np.ndarray, " f"]:
    """Means over draws that have a value; NaN where none has."""
    known = np.isfinite(draws)
    return np.divide(np.where(known, draws, 0.0).sum(0), known.sum(0), out=np.full(draws.shape[1], np.nan), where=known.any(0))


def _estimate(values: np.ndarray, draws: np.ndarray, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean over the features that have a value, and over the same ones in every draw."""
    known = np.isfinite(values)
    value = float(values[known].mean()) if known.any() else math.nan
    return estimate_of(value, known_mean(draws[:, known].T.astype(np.float64)), int(known.sum()), limits)


def _plain(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "i":
        return values.tolist()
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values]
