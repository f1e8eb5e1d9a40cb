"""Whether some positions are explained worse than others: FVE and L0 by octave of position, and the gap between the best and the worst.

With E the squared errors and S the squares about the mean of all held-out rows, both summed over the tokens of an octave, its FVE is
`1 - E / S`. A best and a worst octave there always are, so the gap is compared with what chance gives: the labels of every sequence are
turned in a circle (`shifts`), tokens keep their errors, and the gap is that of the octaves that then happen to be best and worst. Its
interval is over documents, of the two octaves that were found.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from pydantic import Field

from temporallens.activations.loader import with_targets
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import bands_of
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, fixed, span


class OctavesPolicy(Settings):
    """The `octaves` section of a study's evaluation."""

    least_tokens: int = Field(50, ge=2)
    """Held-out tokens that an octave needs."""
    draws: int = Field(400, ge=40, le=100_000)
    """Circular shifts behind the gap that chance gives."""
    resamples: int = Field(400, ge=20, le=100_000)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of shifts and resamples."""


class PositionOctave(NamedTuple):
    """Tokens at positions `first` to `last`."""

    first: int
    last: int
    fve: Estimate  # n tokens
    l0: Estimate


class OctaveMeasures(NamedTuple):
    """One dictionary on held-out documents."""

    octaves: list[PositionOctave]  # of all positions of which activations are kept; each by itself where they have names
    worst: int  # where in `octaves` FVE is lowest
    best: int
    gap: Estimate  # FVE of the best less that of the worst; n tokens of both
    chance_gap: float  # the same in the mean over the null, each draw with its own best and worst
    p: float  # share of draws, this one counted, whose gap is as large


class _Errors(NamedTuple):
    """By document and octave."""

    tokens: Float64[np.ndarray, "D O"]
    error: Float64[np.ndarray, "D O"]
    square: Float64[np.ndarray, "D O"]
    active: Float64[np.ndarray, "D O"]


@own_defaults()
def measure_octaves(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: OctavesPolicy, cache: Path | None = None
) -> OctaveMeasures:
    """Measure `dictionary` on held-out documents, whose encodings are kept in `cache`.

    Raises TemporalLensError where fewer than two octaves have tokens enough.
    """
    seen = HeldOut(store, held_out, cache)
    encoded, generator = seen.encoded(dictionary), np.random.default_rng(policy.seed)
    firings, square = encoded.firings, _squares(seen)
    octave, kept = _octave_of(firings.position, bands_of(store), policy.least_tokens, store)
    document = np.unique(firings.document, return_inverse=True)[1]
    active = np.bincount(firings.row, minlength=len(square))
    shape = int(document.max()) + 1, len(kept)
    inside = octave >= 0
    cell = (document * shape[1] + octave)[inside]
    values = (np.ones(len(square)), encoded.error, square, active)
    sums = _Errors(*(np.bincount(cell, value[inside], shape[0] * shape[1]).reshape(shape) for value in values))
    resamples = resampled_documents(shape[0], policy.resamples, generator)
    weights = np.concatenate([np.ones((1, shape[0])), resamples])
    fve = 1 - quotient(weights @ sums.error, weights @ sums.square)
    l0 = quotient(weights @ sums.active, weights @ sums.tokens)
    count = [int(tokens) for tokens in sums.tokens.sum(0)]
    found = [
        PositionOctave(first, end - 1, _estimate(fve[:, number], count[number]), _estimate(l0[:, number], count[number]))
        for number, (first, end) in enumerate(kept)
    ]
    worst, best = int(fve[0].argmin()), int(fve[0].argmax())
    gaps = _chance_gaps(octave, firings.stretch, encoded.error, square, shape[1], policy.draws, generator)
    gap = _estimate(fve[:, best] - fve[:, worst], count[best] + count[worst])
    reached = int((gaps >= fve[0].max() - fve[0].min()).sum())
    return OctaveMeasures(found, worst, best, gap, float(gaps.mean()), (1 + reached) / (1 + len(gaps)))


def _octave_of(
    position: Int[np.ndarray, " N"], runs: list[tuple[int, int]], least: int, store: ActivationStore
) -> tuple[Int[np.ndarray, " N"], list[tuple[int, int]]]:
    """The octave of each row, and those that have tokens enough; -1 for rows of no such octave."""
    kept = [run for run in runs if ((position >= run[0]) & (position < run[1])).sum() >= least]
    if len(kept) < 2:
        raise TemporalLensError(
            f"{len(kept)} octaves of positions of {store.folder} have {least} held-out tokens, and two are needed: hold out more "
            "documents, lower least_tokens, or leave octaves out"
        )
    octave = np.full(len(position), -1)
    for number, (first, end) in enumerate(kept):
        octave[(position >= first) & (position < end)] = number
    return octave, kept


@torch.inference_mode()
def _squares(seen: HeldOut) -> Float64[np.ndarray, " N"]:
    """Squared distance of each kept row from the mean of all."""
    mean, parts = seen.variation.moments.pooled_mean(), []
    for rows, wanted in with_targets(seen.store, seen.entries):
        parts.append((wanted[rows.excluded == 0].double() - mean).square().sum(1).numpy())
    return np.concatenate(parts)


def _chance_gaps(
    octave: Int[np.ndarray, " N"],
    stretch: Int[np.ndarray, " N"],
    error: Float64[np.ndarray, " N"],
    square: Float64[np.ndarray, " N"],
    octaves: int,
    draws: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, " R"]:
    """Gaps when the labels of every sequence are turned in a circle."""
    gaps = []
    for _ in range(draws):
        turned = rotated(octave, stretch, generator) + 1  # rows of no octave are counted apart
        lost, whole = (np.bincount(turned, values, octaves + 1)[1:] for values in (error, square))
        gaps.append(float(np.ptp(lost / whole)))
    return np.array(gaps)


def _estimate(values: Float64[np.ndarray, " B1"], tokens: int) -> Estimate:
    return estimate_of(float(values[0]), values[1:], tokens)


def _of_subject(subject: Subject, policy: OctavesPolicy) -> OctaveMeasures:
    return measure_octaves(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, OctaveMeasures]) -> list[Table]:
    """FVE and L0 by octave, and the gap beside that of chance."""
    rows = []
    for head, measured in found.items():
        rows += [
            Row(f"{head}: {span(octave.first, octave.last)}", [f"{octave.fve.n:,}", estimated(octave.fve, 4), estimated(octave.l0, 1), ""])
            for octave in measured.octaves
        ]
        best, worst = (measured.octaves[number] for number in (measured.best, measured.worst))
        between = f"{span(best.first, best.last)} less {span(worst.first, worst.last)}"
        gap = [f"{measured.gap.n:,}", estimated(measured.gap, 4), "", fixed(measured.chance_gap, 4)]
        rows.append(Row(f"{head}: {between}", gap, summary=True))
    note = (
        "By chance: the gap between the best and the worst octave when the labels of every sequence are turned in a circle, mean of draws."
    )
    return [Table("FVE by position", ["dictionary: positions", "tokens", "FVE", "L0", "gap by chance"], rows, note)]


SECTION = Section(
    name="octaves",
    policy=OctavesPolicy,
    version=2,
    measure=_of_subject,
    measures=OctaveMeasures,
    tables=tables,
)
