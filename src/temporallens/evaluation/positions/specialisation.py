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

from temporallens.errors import TemporalLensError
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.positions.shifts import (
    Judgement,
    Trains,
    cells,
    draw_null,
    eta2,
    information,
    judge_positions,
    score,
    specialisation,
    trains_of,
)
from temporallens.evaluation.statistics import Estimate, correlation, estimate_of, half_samples, q_values
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


class Halves(NamedTuple):
    """What random halves of the documents say, one row per half."""

    information: Float64[np.ndarray, "B f"]  # as counted, like those that follow
    specialisation: Float64[np.ndarray, "B f"]
    eta2: Float64[np.ndarray, "B f"]
    correlation: Float64[np.ndarray, "B f"]  # of mean activations by position with those of the other half; NaN where one does not vary


class Specialisation(NamedTuple):
    """Features that were measured, and what resampled documents make of them."""

    features: FeaturePositions
    specialised: Bool[np.ndarray, " f"]
    resampled: Bool[np.ndarray, "B f"]  # the same as half-samples of the documents have it
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
    """Ask every feature with enough firings whether it depends on position. Raises TemporalLensError where no position has tokens
    enough."""
    firings = usual_positions(firings, policy.least_tokens)
    measured = np.flatnonzero(firings.counts >= policy.least_firings)
    trains = trains_of(firings, measured)
    found, null = score(trains), draw_null(trains, policy.draws, policy.generator(NULL))
    judged = judge_positions(trains, found.information, null, policy.further_draws, policy.generator(FURTHER))
    halves = halve(trains, policy)
    features = FeaturePositions(
        feature=measured,
        firings=firings.counts[measured],
        information=found.information - null.mean.information,
        specialisation=found.specialisation - null.mean.specialisation,
        eta2=found.eta2 - null.mean.eta2,
        p=judged.p,
        q=q_values(judged.p),
        reliability=known_mean(halves.correlation),
    )
    specialised = features.q < policy.q
    again = found_again(found.information, halves.information, judged, features.q, policy.q)
    return Specialisation(
        features=features,
        specialised=specialised,
        resampled=again,
        share=_estimate(specialised, again, (0.0, 1.0)),
        information=_estimate(features.information, halves.information),
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
    if not len(kept):
        raise TemporalLensError(
            f"no position has {least_tokens} held-out tokens (the largest number is {count.max()}); "
            "hold out more documents, or lower least_tokens"
        )
    return firings if len(kept) == len(firings.position) else firings.of_rows(kept)


def halve(trains: Trains, policy: PositionsPolicy) -> Halves:
    """Score random halves of the documents, and compare each with the other half; some features at a time, to bound the memory."""
    times = half_samples(trains.documents, policy.resamples, policy.generator(HALVES))
    parts = [_halve(part, times) for part in in_parts(trains)]
    return Halves(*(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))


def in_parts(trains: Trains) -> Iterator[Trains]:
    """Trains of as many features at a time as a table has room for; of none, where there are none."""
    number, most = np.arange(trains.features), TABLE_CELLS // (trains.documents * trains.positions)
    at_once = max(1, most // FEATURES_TOGETHER * FEATURES_TOGETHER or most)
    for first in range(0, max(1, trains.features), at_once):
        yield trains if at_once >= trains.features else trains.of_features((number >= first) & (number < first + at_once))


def _halve(trains: Trains, times: Int64[np.ndarray, "B D"]) -> Halves:
    tables = document_tables(trains)
    out = Halves(*(np.empty((len(times), trains.features)) for _ in Halves._fields))
    every = tables.count.sum(0), tables.mass.sum(0)
    for number, half in enumerate(times.astype(np.float64)):
        count, mass = half @ tables.count, np.tensordot(half, tables.mass, 1)
        counted = count.astype(np.int64)
        out.information[number] = information(np.tensordot(half, tables.fired, 1).astype(np.int64), counted)
        out.specialisation[number] = specialisation(mass, counted)
        out.eta2[number] = eta2(mass, counted, half @ tables.squares)
        other = (every[1] - mass) / np.maximum(every[0] - count, 1)
        out.correlation[number] = correlation(mass / np.maximum(count, 1), other)
    return out


class DocumentTables(NamedTuple):
    """Sums of each of D documents, from which those of any resample are one product."""

    count: Float64[np.ndarray, "D P"]  # type: ignore[assignment]  # rows (shadows a method of tuples)
    fired: Float64[np.ndarray, "D f P"]
    mass: Float64[np.ndarray, "D f P"]
    squares: Float64[np.ndarray, "D f"]


def document_tables(trains: Trains) -> DocumentTables:
    """What each document adds to counts and sums."""
    documents, features, positions = trains.documents, trains.features, trains.positions
    of_firing = trains.document[trains.row]
    cell = of_firing * (features * positions) + cells(trains, trains.number)

    def summed(cell: np.ndarray, weight: np.ndarray | None, *shape: int) -> np.ndarray:
        return np.bincount(cell, weights=weight, minlength=math.prod(shape)).astype(np.float64).reshape(shape)

    return DocumentTables(
        count=summed(trains.document * positions + trains.number, None, documents, positions),
        fired=summed(cell, None, documents, features, positions),
        mass=summed(cell, trains.value, documents, features, positions),
        squares=summed(of_firing * features + trains.feature, trains.value**2, documents, features),
    )


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
