"""What a dictionary found of a world with known answers: directions, firings, and where each feature may be active.

True features are assigned to decoder rows by the Hungarian method on cosines; an assigned feature is matched when its cosine
reaches `MATCH` and its row fires on held-out data. A mask is judged entry by entry, an entry being a position from 1 on and a
matched true feature: open is right where the true rate is above 1 % of its highest. Beside it stands the mask that the dictionary's
own firing rates on its training data would give (`posthoc_mask`), judged in the same way, at a fixed cut and at the best of a
grid: the comparator that a learned mask must beat. All sums are float64.
"""

from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from temporallens.activations.clocks import over_positions
from temporallens.activations.loader import sequential
from temporallens.activations.made.worlds import CLASSES, LIMITED, WINDOW, Truth, extent, read_truth, true_codes
from temporallens.activations.moments import MomentSums
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut, codes_of_usable, rows_at_once
from temporallens.evaluation.matching import MATCH, Match, directions_of, match_features
from temporallens.progress import progress

OPEN = 0.5
"""Gate from which an entry counts as open."""

CUT = 0.05
"""Of the post-hoc mask: an entry is closed where the feature fires less often than this share of its highest rate."""

CUTS = np.geomspace(0.005, 0.8, 40)
"""Grid from which the post-hoc mask's best cut is taken, knowing the answers."""

BINS = 10
"""Equal bins of the gate for the calibration error."""


class MaskScores(NamedTuple):
    """A mask against the truth over a set of entries, each of the same weight; None where there is nothing to divide by."""

    f1: float | None  # open entries as positives: what headlines quote
    precision: float | None
    recall: float | None
    f1_closed: float | None  # closed entries as positives
    auroc: float | None  # of the gate, for truly open against truly silent entries
    calibration: float | None  # expected calibration error: mean distance of gate and share open, over ten bins of the gate
    brier: float | None  # mean squared distance of gate and truth
    false_closed: float | None  # share of truly open entries that are closed
    closed_firings: float | None  # share of expected true firings that fall on closed entries
    entries: int


class WindowScores(NamedTuple):
    """Where matched window features are said to be, against where they are: mean absolute errors over those with an open entry."""

    centre: float | None  # positions
    centre_octaves: float | None  # log2 of the ratio
    width: float | None  # positions
    width_octaves: float | None
    windows: int
    closed: int  # windows without any open entry, which are in no mean


class WorldScores(NamedTuple):
    """All that is known of one dictionary in one world; every value is JSON."""

    mcc: float  # mean cosine of true features and their assigned rows; 0 for a feature without a row
    mcc_by_class: dict[str, Any]
    matched: float  # share of true features that are matched
    matched_by_class: dict[str, Any]
    precision: float | None  # share of living rows that are matched
    f1: float | None  # of that and `matched`
    duplicated: int  # true features that a second living row reaches with cosine MATCH
    dead: int  # rows that never fire on held-out data
    firing_f1: float | None  # of held-out firings against true ones, over every true feature and its assigned row
    firing_f1_matched: float | None  # over matched ones
    firing_f1_by_class: dict[str, Any]
    truth_fve: float  # FVE of the true codes, directions and offset on held-out data: what noise leaves
    closed_mass: float | None  # share of would-be activation on held-out data that the mask removes
    closed_truth: float | None  # share of true activation on held-out data, over every assigned feature, on closed entries
    mask: dict[str, Any] | None  # as `judge_mask` says; None where nothing is masked
    posthoc: dict[str, Any]  # `positions` and, for a mask in groups, `groups`; in each `fixed` and `best`, as `judge_mask` says


class Hits(NamedTuple):
    """Counts and sums over held-out rows."""

    both: Float[np.ndarray, " T"]  # rows where true feature and assigned row are both active
    true: Float[np.ndarray, " T"]
    found: Float[np.ndarray, " T"]
    mass: Float[np.ndarray, "P T"]  # true activation by position
    fve: float  # of the truth itself


class FiringCounts(NamedTuple):
    """How often a dictionary's features fire by position."""

    fired: Float[np.ndarray, "P F"]
    rows: Float[np.ndarray, " P"]

    def rates(self, groups: Int[np.ndarray, " P"] | None = None) -> Float[np.ndarray, "P F"]:
        """Firing rates by position, or those of each position's group; NaN where there was no row."""
        fired, rows = self.fired, self.rows
        if groups is not None:
            member = (np.arange(int(groups.max()) + 1)[:, None] == groups).astype(np.float64)
            fired, rows = (member @ fired)[groups], (member @ rows)[groups]
        return np.divide(fired, rows[:, None], out=np.full(fired.shape, np.nan), where=rows[:, None] > 0)


@own_defaults()
@torch.inference_mode()
def score_world(dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], cache: Path | None = None) -> WorldScores:
    """Compare `dictionary` with the truth beside `store`; `held_out` are entries of its sequence table, the rest is training data. What
    the dictionary makes of the first is kept in `cache`.

    Raises TemporalLensError when the store has no truth, or when nothing fires.
    """
    truth = read_truth(store.folder)
    profile = firing_profile(dictionary, store, np.setdiff1d(np.arange(store.sequences), held_out))
    documents = HeldOut(store, held_out, cache)
    found, would = documents.encoded(dictionary).firings, documents.ungated(dictionary)
    living = found.counts > 0
    cosines = true_cosines(dictionary, truth)
    match = match_features(cosines, living)
    hits = _hits(found, store, held_out, truth, match)
    kind = truth.profiles.kind
    precision = _share(match.matched.sum(), living.sum())
    gates = _gates(dictionary, truth.policy.positions)
    closed = None if gates is None else (gates[:, match.feature] < OPEN) & match.assigned
    return WorldScores(
        mcc=float(match.cosine.mean()),
        mcc_by_class=by_class(match.cosine, kind),
        matched=float(match.matched.mean()),
        matched_by_class=by_class(match.matched, kind),
        precision=precision,
        f1=_f1(match.matched.sum(), living.sum(), len(kind)),
        duplicated=int((((cosines >= MATCH) & living).sum(1) > 1).sum()),
        dead=int((~living).sum()),
        firing_f1=_firing_f1(hits, match.assigned),
        firing_f1_matched=_firing_f1(hits, match.matched),
        firing_f1_by_class={name: _firing_f1(hits, match.assigned & (kind == k)) for k, name in enumerate(CLASSES)},
        truth_fve=hits.fve,
        closed_mass=None if would is None else would.closed_mass,
        closed_truth=None if closed is None else _share(hits.mass[closed].sum(), hits.mass[:, match.assigned].sum()),
        mask=None if gates is None else judge_mask(gates[:, match.feature], gates[:, match.feature], truth, match),
        posthoc=_posthoc(profile, gates, truth, match),
    )


def true_cosines(dictionary: Dictionary, truth: Truth) -> Float[np.ndarray, "T F"]:
    """Cosines of true directions and decoder rows."""
    return truth.directions.astype(np.float64) @ directions_of(dictionary).T


def firing_profile(dictionary: Dictionary, store: ActivationStore, entries: Int[np.ndarray, " n"]) -> FiringCounts:
    """Count in which rows each feature fires, by position, over the kept rows of these sequences."""
    fired = torch.zeros(store.positions, dictionary.features, dtype=torch.float64)
    count = torch.zeros(store.positions, dtype=torch.float64)
    with progress("firing rates", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for rows in sequential(store, entries, rows_at_once(dictionary)):
            kept = rows.excluded == 0
            position = rows.position[kept].long()
            in_use = codes_of_usable(dictionary, rows, dictionary.encode) > 0
            fired.index_add_(0, position, in_use.double())
            count += torch.bincount(position, minlength=store.positions)
            advance(len(rows.x))
    return FiringCounts(fired.numpy(), count.numpy())


def _hits(firings: Firings, store: ActivationStore, held_out: Int[np.ndarray, " n"], truth: Truth, match: Match) -> Hits:
    """Held-out firings beside the true ones, which the world's policy gives back."""
    features = len(truth.directions)
    counts = np.zeros((3, features))
    mass = torch.zeros(store.positions, features, dtype=torch.float64)
    spread, error, read = MomentSums(store.positions, store.width), 0.0, 0
    for rows in sequential(store, held_out):
        kept = rows.excluded == 0
        x, position = rows.x[kept].float(), rows.position[kept].long()
        codes = torch.from_numpy(true_codes(truth.policy, torch.unique_consecutive(rows.sequence).numpy()))[kept]
        explained = codes @ torch.from_numpy(truth.directions) + torch.from_numpy(truth.offset)[position]
        spread.add(x, position, rows.excluded[kept])
        error += float((x - explained).square().sum(dtype=torch.float64))
        mass.index_add_(0, position, codes.double())
        found, true = torch.from_numpy(_fires(firings, read, read + len(x))[:, match.feature]), codes > 0
        read += len(x)
        counts += torch.stack([(found & true).sum(0), true.sum(0), found.sum(0)]).double().numpy()
    moments = spread.moments()
    total = float(moments.pooled_variance()) * int(moments.count.sum())
    return Hits(both=counts[0], true=counts[1], found=counts[2], mass=mass.numpy(), fve=1 - error / total)


def _fires(firings: Firings, first: int, stop: int) -> Bool[np.ndarray, "n F"]:
    """Which features fire on some consecutive rows."""
    own = slice(*np.searchsorted(firings.row, [first, stop]))
    fires = np.zeros((stop - first, firings.features), dtype=bool)
    fires[firings.row[own] - first, firings.feature[own]] = True
    return fires


def _gates(dictionary: Dictionary, positions: int) -> Float[np.ndarray, "P F"] | None:
    """The mask's gates at every position of the world; positions beyond those it knows are like its last."""
    gates = dictionary.gates_by_position()
    if gates is None:
        return None
    return over_positions(gates.double().cpu().numpy(), positions)


def posthoc_mask(rates: Float[np.ndarray, "P F"], cut: float) -> Bool[np.ndarray, "P F"]:
    """Open where a feature fires at least `cut` times as often as where it fires most (positions 1 and later), and where nothing
    says otherwise: a feature that never fires is open, and so is a position without rows."""
    highest = np.nanmax(rates[1:], axis=0)
    return ~(rates < cut * highest)


def groups_of(gates: Float[np.ndarray, "P F"], first: int = 1) -> Int[np.ndarray, " P"]:
    """Runs of positions at which every gate is the same, those before `first` (0 or 1) with the first: the groups that a mask shares
    entries over."""
    changes = (gates[first + 1 :] != gates[first:-1]).any(1)
    return np.concatenate([[0] * (first + 1), np.cumsum(changes)])[: len(gates)]


def _posthoc(profile: FiringCounts, gates: Float[np.ndarray, "P F"] | None, truth: Truth, match: Match) -> dict[str, Any]:
    groups = {"positions": None, **({} if gates is None else {"groups": groups_of(gates)})}
    return {name: _posthoc_scores(profile.rates(group)[:, match.feature], truth, match) for name, group in groups.items()}


def _posthoc_scores(rates: Float[np.ndarray, "P T"], truth: Truth, match: Match) -> dict[str, Any]:
    """The post-hoc mask at the fixed cut and at the cut with the best F1 over matched features."""
    highest = np.nanmax(rates[1:], axis=0)
    ranking = np.nan_to_num(rates / np.where(highest > 0, highest, np.nan), nan=1.0)
    wanted = truth.open[1:, match.matched]
    f1 = [
        _f1((wanted & found).sum(), found.sum(), wanted.sum()) or 0.0
        for found in (posthoc_mask(rates, cut)[1:, match.matched] for cut in CUTS)
    ]
    best = float(CUTS[int(np.argmax(f1))])
    judged = {
        name: judge_mask(posthoc_mask(rates, cut).astype(np.float64), ranking, truth, match)
        for name, cut in (("fixed", CUT), ("best", best))
    }
    return {"fixed": {"cut": CUT, **judged["fixed"]}, "best": {"cut": best, **judged["best"]}}


def judge_mask(gates: Float[np.ndarray, "P T"], ranking: Float[np.ndarray, "P T"], truth: Truth, match: Match) -> dict[str, Any]:
    """Scores of the gates of assigned rows: over `matched` features (the headline), matched features of `limited` classes, all
    `assigned` ones, and matched ones by class; and of `windows`. `ranking` orders entries for the AUROC."""
    kind = truth.profiles.kind
    chosen = {"matched": match.matched, "limited": match.matched & np.isin(kind, LIMITED), "assigned": match.assigned}
    by_class = {name: match.matched & (kind == k) for k, name in enumerate(CLASSES)}
    scores = {name: _mask_scores(gates, ranking, truth, features)._asdict() for name, features in (chosen | by_class).items()}
    return {
        **{name: scores[name] for name in chosen},
        "by_class": {name: scores[name] for name in by_class},
        "windows": _window_scores(gates, truth, match)._asdict(),
    }


def _mask_scores(
    gates: Float[np.ndarray, "P T"], ranking: Float[np.ndarray, "P T"], truth: Truth, features: Bool[np.ndarray, " T"]
) -> MaskScores:
    gate, rank, wanted = gates[1:, features].ravel(), ranking[1:, features].ravel(), truth.open[1:, features].ravel()
    rate = truth.profiles.rate.T[1:, features].ravel()
    found = gate >= OPEN
    right = (found & wanted).sum()
    return MaskScores(
        f1=_f1(right, found.sum(), wanted.sum()),
        precision=_share(right, found.sum()),
        recall=_share(right, wanted.sum()),
        f1_closed=_f1((~found & ~wanted).sum(), (~found).sum(), (~wanted).sum()),
        auroc=_auroc(rank, wanted),
        calibration=_calibration_error(gate, wanted),
        brier=_share(np.square(gate - wanted).sum(), len(gate)),
        false_closed=_share((wanted & ~found).sum(), wanted.sum()),
        closed_firings=_share(rate[~found].sum(), rate.sum()),
        entries=len(gate),
    )


def _window_scores(gates: Float[np.ndarray, "P T"], truth: Truth, match: Match) -> WindowScores:
    profiles = truth.profiles
    chosen = match.matched & (profiles.kind == WINDOW) & ~np.isnan(profiles.centre)
    centre, width = extent(gates[:, chosen] >= OPEN)
    seen = width > 0
    true_centre, true_width = profiles.centre[chosen][seen], profiles.width[chosen][seen]
    centre, width = centre[seen], width[seen]
    return WindowScores(
        centre=_mean(np.abs(centre - true_centre)),
        centre_octaves=_mean(np.abs(np.log2(centre / true_centre))),
        width=_mean(np.abs(width - true_width)),
        width_octaves=_mean(np.abs(np.log2(width / true_width))),
        windows=int(chosen.sum()),
        closed=int((~seen).sum()),
    )


def _calibration_error(gate: Float[np.ndarray, " n"], wanted: Bool[np.ndarray, " n"]) -> float | None:
    if not len(gate):
        return None
    place = np.minimum((gate * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(place, weights=values.astype(np.float64), minlength=BINS) for values in (gate, wanted)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(gate))


def _auroc(score: Float[np.ndarray, " n"], wanted: Bool[np.ndarray, " n"]) -> float | None:
    """Probability that a truly open entry scores above a truly silent one, ties counting half."""
    from scipy.stats import rankdata

    positives, negatives = int(wanted.sum()), int((~wanted).sum())
    if positives == 0 or negatives == 0:
        return None
    return float((rankdata(score)[wanted].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def by_class(values: np.ndarray, kind: Int[np.ndarray, " T"]) -> dict[str, Any]:
    """Mean of a value of each true feature by class, None for a class without features."""
    return {name: _mean(values[kind == k]) for k, name in enumerate(CLASSES)}


def _firing_f1(hits: Hits, features: Bool[np.ndarray, " T"]) -> float | None:
    return _f1(hits.both[features].sum(), hits.found[features].sum(), hits.true[features].sum())


def _f1(right: SupportsFloat, found: SupportsFloat, wanted: SupportsFloat) -> float | None:
    return _share(2 * float(right), float(found) + float(wanted))


def _share(part: SupportsFloat, whole: SupportsFloat) -> float | None:
    return float(part) / float(whole) if float(whole) > 0 else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
