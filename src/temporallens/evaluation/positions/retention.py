"""How much of its position specialisation a dictionary keeps: when its masks harden, while they are annealed, and from one training
seed to another (`docs/method.md`, "Position metrics").

Two dictionaries are compared on the same documents, feature by feature: with itself where they are two states of one training run;
where they are not, with the feature whose decoder row is its partner in the Hungarian matching of cosines.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.matching import directions_of, match_features
from temporallens.evaluation.positions.shifts import Trains, trains_of
from temporallens.evaluation.positions.specialisation import (
    HALVES,
    RESAMPLES,
    Discoveries,
    PositionsPolicy,
    discover,
    in_parts,
    known_mean,
    resampled_sums,
    rows_by_document,
    sums_by_document,
    usual_positions,
)
from temporallens.evaluation.statistics import Estimate, correlation, estimate_of, half_samples, ranks, resampled_documents
from temporallens.evaluation.threads import on_threads


class Examined(NamedTuple):
    """One dictionary on held-out documents."""

    firings: Firings
    found: Discoveries
    errors: DocumentErrors


class ProfileRetention(NamedTuple):
    """How alike position profiles are, before and after; `before` and `after` are states, or seeds."""

    pairs: int  # features measured in both
    profile: Estimate  # mean over pairs of Spearman's correlation, over positions, of mean activations before and after
    profile_specialised: Estimate  # the same over pairs that are specialised before
    specialised_before: int
    specialised_after: int
    set_retention: Estimate  # share of those specialised before that are so after; one that is not measured after counts as lost
    set_chance: float | None  # what it would be if pairs were specialised after by chance: their share among pairs


class Change(NamedTuple):
    """What became of a dictionary between two states of one training run."""

    pattern: ProfileRetention
    firing_overlap: Estimate  # Jaccard index of (token, feature) firings; n is how many there are before
    strength: Estimate  # of common firings, sum after over sum before; n is how many are common
    fve_before: float
    fve_after: float
    fve_gap: Estimate  # after less before; n tokens
    l0_before: float
    l0_after: float
    l0_gap: Estimate


class SeedAgreement(NamedTuple):
    """What two training runs that differ in their seed have in common."""

    measured: int  # features of the first
    matched: int  # those with a partner of cosine .9 or more among measured features of the other
    cosine: float | None  # mean over partners, however far apart
    pattern: ProfileRetention  # over all partners
    pattern_matched: ProfileRetention  # over matched ones; the others count as lost


def measure(dictionary: Dictionary, documents: HeldOut, policy: PositionsPolicy) -> Examined:
    """Everything that comparisons need of one dictionary."""
    encoded = documents.encoded(dictionary)
    firings = usual_positions(encoded.firings, policy.least_tokens)
    return Examined(firings, discover(firings, policy), documents.errors(encoded))


def compare_states(before: Examined, after: Examined, policy: PositionsPolicy) -> Change:
    """Compare two states of one dictionary: soft and hard, or a snapshot and the end."""
    paired = np.intersect1d(before.found.feature, after.found.feature)
    times = resampled_documents(len(after.errors.tokens), policy.resamples, policy.generator(RESAMPLES))
    overlap, strength = _overlap(before.firings, after.firings, policy)
    (fve_before,), (fve_after,) = before.errors.fve(), after.errors.fve()
    (l0_before,), (l0_after,) = before.errors.l0(), after.errors.l0()
    tokens = int(after.errors.tokens.sum())
    return Change(
        pattern=compare_patterns(before, after, paired, paired, policy),
        firing_overlap=overlap,
        strength=strength,
        fve_before=float(fve_before),
        fve_after=float(fve_after),
        fve_gap=estimate_of(fve_after - fve_before, after.errors.fve(times) - before.errors.fve(times), tokens),
        l0_before=float(l0_before),
        l0_after=float(l0_after),
        l0_gap=estimate_of(l0_after - l0_before, after.errors.l0(times) - before.errors.l0(times), tokens),
    )


def compare_seeds(first: tuple[Dictionary, Examined], second: tuple[Dictionary, Examined], policy: PositionsPolicy) -> SeedAgreement:
    """Compare dictionaries of two training seeds on the same documents."""
    (one, before), (other, after) = first, second
    rows, columns = before.found.feature, after.found.feature
    cosines = directions_of(one)[rows] @ directions_of(other)[columns].T
    match = match_features(cosines, np.ones(len(columns), dtype=bool))
    partner = columns[match.feature[match.assigned]], columns[match.feature[match.matched]]
    return SeedAgreement(
        measured=len(rows),
        matched=int(match.matched.sum()),
        cosine=float(match.cosine[match.assigned].mean()) if match.assigned.any() else None,
        pattern=compare_patterns(before, after, rows[match.assigned], partner[0], policy),
        pattern_matched=compare_patterns(before, after, rows[match.matched], partner[1], policy),
    )


def compare_patterns(
    before: Examined, after: Examined, left: Int64[np.ndarray, " n"], right: Int64[np.ndarray, " n"], policy: PositionsPolicy
) -> ProfileRetention:
    """Compare features `left` of one dictionary with features `right` of another, pair by pair; all are measured features."""
    (was, was_again), (now, now_again) = _specialised(before.found, left), _specialised(after.found, right)
    everywhere = before.found.resampled.sum(1)
    total = int(before.found.specialised.sum())
    kept = np.divide((was_again & now_again).sum(1), everywhere, out=np.full(len(everywhere), np.nan), where=everywhere > 0)
    alike, alike_again = _profile_correlations(before.firings, after.firings, left, right, policy)
    return ProfileRetention(
        pairs=len(left),
        profile=_mean_estimate(alike, alike_again),
        profile_specialised=_mean_estimate(alike[was], alike_again[:, was]),
        specialised_before=total,
        specialised_after=int(after.found.specialised.sum()),
        set_retention=estimate_of((was & now).sum() / total if total else math.nan, kept, total, (0.0, 1.0)),
        set_chance=float(now.mean()) if len(now) else None,
    )


def _specialised(found: Discoveries, features: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Whether these features are specialised `[n]`, and as each half has it `[B, n]`."""
    place = np.searchsorted(found.feature, features)
    return found.specialised[place], found.resampled[:, place]


def _profile_correlations(
    before: Firings, after: Firings, left: Int64[np.ndarray, " n"], right: Int64[np.ndarray, " n"], policy: PositionsPolicy
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "B n"]]:
    """Spearman's correlation of the mean activations of each pair, and in each half of the documents."""
    pair = trains_of(before, left), trains_of(after, right)
    documents = pair[0].documents
    every = np.ones((1, documents), dtype=np.int64)
    times = np.concatenate([every, half_samples(documents, policy.resamples, policy.generator(HALVES))])

    def alike(part: tuple[Trains, ...]) -> Float64[np.ndarray, "B n"]:
        levels = zip(*(_levels(trains, times) for trains in part), strict=True)
        return np.stack([correlation(ranks(one), ranks(other)) for one, other in levels])

    found = np.concatenate(list(on_threads(alike, zip(*map(in_parts, pair), strict=True))), axis=1)
    return found[0], found[1:]


def _levels(trains: Trains, times: Int64[np.ndarray, "B D"]) -> Float64[np.ndarray, "B n P"]:
    """Mean activation by position, when each document counts so many times."""
    sums = resampled_sums(times.astype(np.float64), sums_by_document(trains, trains.value))
    return sums / np.maximum(times @ rows_by_document(trains), 1)[:, None]


def _overlap(before: Firings, after: Firings, policy: PositionsPolicy) -> tuple[Estimate, Estimate]:
    """Of firings: the Jaccard index, and how strong the common ones are after in comparison with before."""
    documents, document = np.unique(before.document, return_inverse=True)
    left, right = (firings.row.astype(np.int64) * firings.features + firings.feature for firings in (before, after))
    common, at_left, at_right = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    of_common = document[common // before.features]
    sums = [
        np.bincount(owner, weights=weight, minlength=len(documents)).astype(np.float64)
        for owner, weight in (
            (of_common, None),
            (document[before.row], None),
            (document[after.row], None),
            (of_common, before.value[at_left]),
            (of_common, after.value[at_right]),
        )
    ]
    times = resampled_documents(len(documents), policy.resamples, policy.generator(RESAMPLES))
    once = np.ones((1, len(documents)), dtype=np.int64)
    (jaccard,), (strength,) = _overlaps(once, *sums)
    again, strength_again = _overlaps(times, *sums)
    return estimate_of(jaccard, again, len(left), (0.0, 1.0)), estimate_of(strength, strength_again, len(common))


def _overlaps(
    times: Int64[np.ndarray, "B D"],
    common: Float64[np.ndarray, " D"],
    before: Float64[np.ndarray, " D"],
    after: Float64[np.ndarray, " D"],
    strength_before: Float64[np.ndarray, " D"],
    strength_after: Float64[np.ndarray, " D"],
) -> tuple[Float64[np.ndarray, " B"], Float64[np.ndarray, " B"]]:
    shared, stronger = times @ common, times @ strength_before
    jaccard = shared / (times @ (before + after) - shared)
    return jaccard, np.divide(times @ strength_after, stronger, out=np.full(len(times), np.nan), where=stronger > 0)


def _mean_estimate(values: Float64[np.ndarray, " n"], again: Float64[np.ndarray, "B n"]) -> Estimate:
    """Mean over the pairs that have a correlation."""
    known = np.isfinite(values)
    if not known.any():
        return Estimate(None, None, None, 0)
    return estimate_of(float(values[known].mean()), known_mean(again[:, known].T), int(known.sum()), (-1.0, 1.0))
