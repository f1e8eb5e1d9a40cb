"""Whether masks and position weights follow how well positions are reconstructed, and whether masks agree with where features would
fire: the lab notes' open questions (`docs/method.md`, "Position metrics").

Correlations are Spearman's over positions. Their intervals come from resampled documents: they say how well each position's error is
known, not what other positions, of which there are no others, would have given.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from temporallens.activations.clocks import over_positions
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.firings import Profile
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.known.worlds import groups_of
from temporallens.evaluation.positions.specialisation import RESAMPLES, PositionsPolicy
from temporallens.evaluation.statistics import Estimate, correlation, estimate_of, ranks, resampled_documents


class PositionCorrelations(NamedTuple):
    """Over positions with enough tokens, how many is each estimate's n; without a value where one side does not vary."""

    openness_loss: Estimate  # mean openness of the mask and squared error per token
    openness_unexplained: Estimate  # mean openness and the share of the position's own variance that is left unexplained
    weight_loss: Estimate  # position weight and squared error per token
    weight_unexplained: Estimate  # position weight and the share unexplained: what weights are meant to follow
    documents: int


class MaskAgreement(NamedTuple):
    """Whether a mask is open where its features live; entries are (group of positions with equal gates, measured feature)."""

    auroc: float | None  # of gates, for entries where the feature fires often, with the mask; closed entries cannot fire
    auroc_ungated: float | None  # the same for where it would fire often if the mask were open everywhere
    closed_mass: float | None  # share of would-be activation that the mask removes
    closed_entries: float  # share of entries whose gate is below one half
    entries: int


def correlate_positions(
    errors: DocumentErrors,
    openness: Float[np.ndarray, " P"] | None,
    weights: Float[np.ndarray, " P"] | None,
    policy: PositionsPolicy,
) -> PositionCorrelations:
    """Correlate what a dictionary gives each position with what it leaves unexplained there; None for what it does not have."""
    known = errors.tokens.sum(0) >= policy.least_tokens
    documents = len(errors.tokens)
    times = resampled_documents(documents, policy.resamples, policy.generator(RESAMPLES))
    difficulty = {
        name: np.concatenate([of(None), of(times)])[:, known]
        for name, of in (("loss", errors.loss_by_position), ("unexplained", errors.unexplained_by_position))
    }
    sides = {"openness": openness, "weight": weights}
    found = {
        f"{name}_{measure}": _spearman(None if side is None else side[known], values)
        for name, side in sides.items()
        for measure, values in difficulty.items()
    }
    return PositionCorrelations(**found, documents=documents)


def mask_agreement(dictionary: Dictionary, documents: HeldOut, profile: Profile, policy: PositionsPolicy) -> MaskAgreement | None:
    """Compare gates with firing rates; `profile` is the dictionary's own on the same documents. None where nothing is masked."""
    gates, would = dictionary.gates_by_position(), documents.ungated(dictionary)
    if gates is None or would is None:
        return None
    table = over_positions(gates.double().cpu().numpy(), documents.store.positions)
    measured = profile.firings >= policy.least_firings
    start = 0 if profile.count[0] else 1  # position 0 is one of its own where tokens of it are kept
    group = groups_of(table, start)
    seen = np.bincount(group, weights=profile.count) >= policy.least_tokens
    first = np.unique(group, return_index=True)[1][seen]
    gate = table[np.maximum(first, min(start, len(table) - 1))][:, measured]
    lives = [
        _lives(counts[:, measured], profile.count, group, policy.agreement)[seen]
        for counts in (profile.rate * profile.count[:, None], would.fired)
    ]
    return MaskAgreement(
        auroc=_auroc(gate, lives[0]),
        auroc_ungated=_auroc(gate, lives[1]),
        closed_mass=would.closed_mass,
        closed_entries=float((gate < 0.5).mean()) if gate.size else 0.0,
        entries=int(gate.size),
    )


def _lives(
    counts: Float64[np.ndarray, "P f"], tokens: Int[np.ndarray, " P"], group: Int[np.ndarray, " P"], share: float
) -> Bool[np.ndarray, "G f"]:
    """Where each feature fires at least this share as often as in the group where it fires most."""
    member = (np.arange(int(group.max()) + 1)[:, None] == group).astype(np.float64)
    rate = (member @ counts) / np.maximum(member @ tokens, 1)[:, None]
    return np.asarray((rate >= share * rate.max(0)) & (rate > 0))


def _auroc(score: Float64[np.ndarray, "G f"], lives: Bool[np.ndarray, "G f"]) -> float | None:
    """Probability that an entry where its feature lives has the higher gate, ties counting half; None where there is one kind only."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(lives.ravel(), score.ravel())) if 0 < lives.sum() < lives.size else None


def _spearman(side: Float[np.ndarray, " p"] | None, values: Float64[np.ndarray, "B p"]) -> Estimate:
    """Of one side with the first row of values, and with each further one, which comes from resampled documents."""
    usable = np.isfinite(values).all(0)
    if side is None or usable.sum() < 2:
        return Estimate(None, None, None, int(usable.sum()) if side is not None else 0)
    ranked = ranks(side[None, usable]).repeat(len(values), 0)
    found = correlation(ranked, ranks(values[:, usable]))
    value = float(found[0])
    return estimate_of(value if math.isfinite(value) else math.nan, found[1:], int(usable.sum()), (-1.0, 1.0))
