"""Feature activation positional fidelity: does a feature follow the index at which a token stands, or the token?

Held-out rows are run again behind `s` tokens of a neutral prefix (`prefixes.py`), so that every token stands `s` places further on; rows
take several passages in turn, and behind the longest prefix each is run once more with the next passage, which says what its words do.
With `l_f(p)` the mean activation of feature f at index p of the rows as they are, and `l_f^(s)(p)` behind the prefix,

    AI_f = rho(l_f, l_f^(s)) - rho(shift_s l_f, l_f^(s)),    (shift_s l)(p) = l(p - s),

rho being Spearman's correlation over the indices behind the prefix: positive for a feature that is tied to the index, negative for
one that is tied to content. Where a feature is silent behind the prefix (one that lives at the start of rows, tied to the index)
rho is undefined; the same question is therefore also put to distances, `D = (d_c - d_i) / (d_c + d_i)` with
`d_i = sum_p |l - l^(s)|` and `d_c = sum_p |shift_s l - l^(s)|`; a feature follows the index where D lies above 0, the text where it
lies below, at q < .05 over all features (D against how much it varies over resampled documents). Content fidelity is the Jaccard index
of the (token, feature) firings of the same tokens with and without the prefix, and FVE is compared on the same tokens, under the mask
and with the mask open. Intervals are by bootstrap over documents. Source: docs/method.md, "Fidelity and splicing".
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator

from temporallens.activations.language.models import Layer
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.model.origin import check_origin, choose_rows, harvest_of, model_of
from temporallens.evaluation.model.prefix_runs import PrefixRun, Spread, events_of, observe, spread_of, squared_errors
from temporallens.evaluation.model.prefixes import NEUTRAL, enclosing, parts_in, prefix_tokens, shifted_store
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, correlation, estimate_of, q_values, quotient, ranks, resampled_documents
from temporallens.evaluation.threads import on_threads
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, counted, estimated

LEAST_TEXT = 8
"""Tokens of text that a row must still have behind the longest prefix."""

LEAST_SHARE = 0.25
"""An index counts when at least so many of the rows have a token there that no rule excludes, with and without the prefix; of packed rows,
so many of those that have a held-out token at the index where most have one."""

DISCOVERED = 0.05
"""False discovery rate at which a feature is said to follow the index or the text."""

TINY = float(np.finfo(np.float64).tiny)

CELLS = 1 << 22
"""Numbers of one table of profiles by document or by resample; features are taken in parts that keep within it."""

Events = Int[np.ndarray, " E"]


class FidelityPolicy(Settings):
    """The `fidelity` section of a study's evaluation."""

    shifts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of tokens that are inserted before the text of a row."""
    rows: int = Field(128, ge=1)
    """Held-out rows to run again, evenly spaced among those that are long enough. For 128 rows of 128 tokens a 135 M model needs
    about a minute on two cores as far as its middle; other dictionaries of the layer use the same passes."""
    prefixes: tuple[str, ...] = Field(NEUTRAL, min_length=1)
    """Texts whose last tokens are inserted; rows take them in turn."""
    least_firings: int = Field(200, ge=1)
    """Features that fire less often in the unshifted rows are in no score by feature; where none fires so often, these are not known."""
    resamples: int = Field(100, ge=2)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Draws the resamples."""

    @field_validator("shifts")
    @classmethod
    def _ascending(cls, shifts: tuple[int, ...]) -> tuple[int, ...]:
        if not shifts or shifts[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(shifts)):
            raise ValueError(f"shifts are numbers of tokens from 1 on, in ascending order; got {list(shifts)}")
        return shifts


class Explained(NamedTuple):
    """FVE of the same tokens without and behind the prefix; lists have one entry per index at which a token stands behind it."""

    unshifted: Estimate
    shifted: Estimate
    change: Estimate  # shifted less unshifted
    position_unshifted: list[float | None]  # about the mean of the index; None where no token stands
    position_shifted: list[float | None]


class ShiftFidelity(NamedTuple):
    """What a prefix of one length does; estimates by feature are means over the features that are measured."""

    shift: int
    absolute_index: Estimate  # AI
    index_correlation: Estimate  # rho(l, l^(s))
    content_correlation: Estimate  # rho(shift_s l, l^(s))
    absolute_index_distance: Estimate  # D
    tied_to_index: int  # features whose own interval of AI lies above 0, not corrected for their number: 2.5 % do by chance, and below
    tied_to_content: int  # below 0
    undecided: int  # around 0
    follows_index: Estimate  # share of the features that have a D for which it lies above 0, q < .05 over all of them
    follows_text: Estimate  # below 0
    content: Estimate  # Jaccard index of firings; n is the number of firings with or without the prefix
    fve: Explained  # as the dictionary is
    open_fve: Explained | None  # with its mask open everywhere; None where nothing is masked
    mask_change: Estimate | None  # how much more FVE changes under the mask than with it open
    feature_absolute_index: list[float | None] | None  # AI of each measured feature; None where a correlation is undefined
    feature_distance: list[float | None] | None  # D of each; None where it is silent
    feature_q: list[float | None] | None  # that D is not 0, over the features that have one
    feature_content: list[float | None] | None  # Jaccard index of each
    position_content: list[float | None]  # Jaccard index by index behind the prefix
    position_count: list[int]  # tokens by index behind the prefix that no rule excludes with or without it


class FidelityMeasures(NamedTuple):
    """One dictionary under all shifts."""

    shifts: list[ShiftFidelity]
    control_content: Estimate  # Jaccard index when the same rows are only run again: what rounding leaves
    control_fve_change: Estimate
    control_passage: Estimate | None  # behind one passage and behind another, both of the longest prefix's length; None for one passage
    features: list[int] | None  # measured: those that fire often enough in the unshifted rows
    prefixes: list[list[str]]  # the tokens of the longest prefix of each passage, in order; shorter ones are its last tokens
    rows: int
    documents: int
    tokens: int  # of the unshifted rows, that no rule excludes


class _Scores(NamedTuple):
    """By feature; the first row is the measurement, the others are its resamples, where there are any."""

    index_correlation: Float[np.ndarray, "*B1 F"]
    content_correlation: Float[np.ndarray, "*B1 F"]
    distance: Float[np.ndarray, "*B1 F"]


class _Followed(NamedTuple):
    """What features follow, told from chance."""

    of_index: Estimate
    of_text: Estimate
    q: Float[np.ndarray, " F"]  # NaN where there is no distance


@own_defaults()
def measure_fidelity(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: FidelityPolicy,
    cache: Path,
) -> FidelityMeasures:
    """Put prefixes before held-out rows of `store` and see what its features follow; the model's passes are kept in `cache`.

    Raises TemporalLensError when dictionary, store and model do not belong together, or rows are too short for the largest shift.
    """
    check_origin(dictionary, store, model, layer)
    opening, closing = enclosing(store)
    longest = policy.shifts[-1]
    chosen = choose_rows(store, held_out, policy.rows, opening + closing + longest + LEAST_TEXT, f"a shift of {longest} tokens")
    harvest = harvest_of(store)
    network = model_of(store, harvest)
    prefixes = [prefix_tokens(network, text, longest) for text in policy.prefixes]
    documents = np.unique(chosen.document, return_inverse=True)[1]
    resamples = resampled_documents(int(documents.max()) + 1, policy.resamples, np.random.default_rng(policy.seed))
    weights = np.concatenate([np.ones((1, int(documents.max()) + 1)), resamples])
    indices = int(chosen.length.max())
    base = observe(dictionary, store, chosen.entry, 0, opening, indices)
    features = np.flatnonzero(np.bincount(base.feature, minlength=dictionary.features) >= policy.least_firings)
    most = int(torch.bincount(chosen.rows.index[chosen.selected]).max())
    comparison = _Comparison(dictionary, base, documents, weights, features, LEAST_SHARE * most)

    def behind(shift: int, passages: Sequence[Sequence[int]] = prefixes) -> PrefixRun:
        shifted = shifted_store(network, store, chosen, [passage[longest - shift :] for passage in passages], cache)
        return observe(dictionary, shifted, parts_in(shifted, chosen), shift, opening, indices)

    control, furthest = behind(0), behind(longest)
    other = behind(longest, [*prefixes[1:], prefixes[0]]) if len(prefixes) > 1 else None
    return FidelityMeasures(
        shifts=[comparison.measure(furthest if shift == longest else behind(shift)) for shift in policy.shifts],
        control_content=comparison.content(control)[0],
        control_fve_change=comparison.explained(control)[0].change,
        control_passage=None if other is None else comparison.kept(furthest, other)[0],
        features=features.tolist(),
        prefixes=[network.tokenizer.convert_ids_to_tokens(prefix) for prefix in prefixes],
        rows=len(chosen.length),
        documents=weights.shape[1],
        tokens=int(base.usable.sum()),
    )


class _Comparison:
    """The unshifted rows, with which all shifted ones are compared."""

    def __init__(
        self,
        dictionary: Dictionary,
        base: PrefixRun,
        documents: Int[np.ndarray, " R"],
        weights: Float[np.ndarray, "B1 M"],
        features: Int[np.ndarray, " F"],
        least: float,  # rows that must have a token at an index
    ) -> None:
        self.dictionary, self.base, self.documents, self.weights, self.features = dictionary, base, documents, weights, features
        self.least = least
        self.errors = squared_errors(dictionary, base)

    def measure(self, run: PrefixRun) -> ShiftFidelity:
        """All scores of one prefix."""
        scores = self.scores(run)
        absolute = scores.index_correlation - scores.content_correlation
        low, high = _interval_ends(absolute)
        defined = np.isfinite(absolute[0])
        content, feature_content, position_content = self.content(run)
        followed = _followed(scores.distance)
        fve, open_fve, mask_change = self.explained(run)
        return ShiftFidelity(
            shift=run.shift,
            absolute_index=_mean_over_features(absolute),
            index_correlation=_mean_over_features(np.where(defined, scores.index_correlation, np.nan)),
            content_correlation=_mean_over_features(np.where(defined, scores.content_correlation, np.nan)),
            absolute_index_distance=_mean_over_features(scores.distance),
            tied_to_index=int((low > 0).sum()),
            tied_to_content=int((high < 0).sum()),
            undecided=int((defined & ~(low > 0) & ~(high < 0)).sum()),
            follows_index=followed.of_index,
            follows_text=followed.of_text,
            content=content,
            fve=fve,
            open_fve=open_fve,
            mask_change=mask_change,
            feature_absolute_index=_finite_or_none(absolute[0]),
            feature_distance=_finite_or_none(scores.distance[0]),
            feature_q=_finite_or_none(followed.q),
            feature_content=feature_content,
            position_content=position_content,
            position_count=_behind((self.base.usable & run.usable).sum(0), run.shift).tolist(),
        )

    def content(self, run: PrefixRun) -> tuple[Estimate, list[float | None], list[float | None]]:
        """Jaccard index of the firings on tokens that are usable with and without the prefix: of all, by feature, by index behind it."""
        return self.kept(self.base, run)

    def kept(self, one: PrefixRun, run: PrefixRun) -> tuple[Estimate, list[float | None], list[float | None]]:
        """The same of two runs, by index behind the second one's prefix."""
        both, features = one.usable & run.usable, self.dictionary.features
        before, after = (events_of(side, both, features) for side in (one, run))
        shared = np.intersect1d(before, after, assume_unique=True)

        def counts(number: Callable[[Events], Events], groups: int) -> tuple[np.ndarray, np.ndarray]:
            first, second, common = (np.bincount(number(events), minlength=groups) for events in (before, after, shared))
            return common, first + second - common

        common, union = counts(lambda events: self.documents[events // features // both.shape[1]], self.weights.shape[1])
        overall = quotient(self.weights @ common, self.weights @ union)
        by_feature = quotient(*counts(lambda events: events % features, features))[self.features]
        by_index = quotient(*counts(lambda events: events // features % both.shape[1], both.shape[1]))
        estimate = estimate_of(float(overall[0]), overall[1:], int(union.sum()), limits=(0, 1))
        return estimate, _finite_or_none(by_feature), _finite_or_none(_behind(by_index, run.shift))

    def explained(self, run: PrefixRun) -> tuple[Explained, Explained | None, Estimate | None]:
        """FVE on the tokens that are usable with and without the prefix, the same with the mask open, and what the mask adds to the
        change."""
        both = self.base.usable & run.usable
        spreads = [spread_of(one, both, self.documents) for one in (self.base, run)]
        found = []
        for before, after in zip(self.errors, squared_errors(self.dictionary, run), strict=True):
            pairs = list(zip((before, after), spreads, strict=True))
            overall = [self._fve(np.where(both, error, 0.0), spread) for error, spread in pairs]
            by_index = [_finite_or_none(_behind(_index_fve(np.where(both, error, 0.0), spread), run.shift)) for error, spread in pairs]
            estimates = [estimate_of(float(fve[0]), fve[1:], int(both.sum())) for fve in (*overall, overall[1] - overall[0])]
            found.append((Explained(estimates[0], estimates[1], estimates[2], by_index[0], by_index[1]), overall[1] - overall[0]))
        if len(found) == 1:
            return found[0][0], None, None
        more = found[0][1] - found[1][1]
        return found[0][0], found[1][0], estimate_of(float(more[0]), more[1:], int(both.sum()))

    def _fve(self, error: Float[np.ndarray, "R S"], spread: Spread) -> Float[np.ndarray, " B1"]:
        """Pooled, as measured and in every resample."""
        errors = self.weights @ np.bincount(self.documents, weights=error.sum(1))
        count, total = self.weights @ spread.tokens, self.weights @ spread.total
        squares = self.weights @ spread.square - quotient((total**2).sum(1), count)
        return 1 - quotient(errors, squares)

    def scores(self, run: PrefixRun) -> _Scores:
        """Correlations and distances of profiles, some features at a time."""
        length = run.usable.shape[1]
        shifted_usable = np.zeros_like(run.usable)
        shifted_usable[:, run.shift :] = run.usable[:, : length - run.shift]
        reached = (self.base.usable.sum(0) >= self.least, shifted_usable.sum(0) >= self.least)
        index = np.array([p for p in range(run.shift, length) if reached[0][p] and reached[0][p - run.shift] and reached[1][p]], dtype=int)
        size = max(1, CELLS // (length * max(self.weights.shape)))
        parts = []
        for first in range(0, max(len(self.features), 1), size):
            features = self.features[first : first + size]
            before, after = (
                self._profiles(self.base, self.base.usable, 0, features),
                self._profiles(run, shifted_usable, run.shift, features),
            )
            compared = on_threads(
                lambda pair: _compared(pair[0][:, index], pair[0][:, index - run.shift], pair[1][:, index]), zip(before, after, strict=True)
            )
            parts.append(_Scores(*map(np.stack, zip(*compared, strict=True))))
        return _Scores(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))

    def _profiles(
        self, run: PrefixRun, usable: Bool[np.ndarray, "R S"], shift: int, features: Int[np.ndarray, " f"]
    ) -> Float[np.ndarray, "B1 f S"]:
        """Mean activation by index in the run's own rows, zeros included, as measured and in every resample."""
        documents, length, cells = self.weights.shape[1], usable.shape[1], len(features) * usable.shape[1]
        number = np.full(self.dictionary.features, -1)
        number[features] = np.arange(len(features))
        counted = number[run.feature] >= 0
        cell = (self.documents[run.row[counted]] * len(features) + number[run.feature[counted]]) * length + run.text_index[counted] + shift
        sums = np.bincount(cell, weights=run.value[counted], minlength=documents * cells).reshape(documents, cells)
        counts = np.zeros((documents, length))
        np.add.at(counts, self.documents, usable)
        rows = np.maximum(self.weights @ counts, 1)
        return (self.weights @ sums).reshape(len(self.weights), len(features), length) / rows[:, None]


def _index_fve(error: Float[np.ndarray, "R S"], spread: Spread) -> Float[np.ndarray, " S"]:
    """About the mean of each index."""
    squares = spread.index_square - quotient((spread.index_total**2).sum(1), spread.index_tokens)
    return 1 - quotient(error.sum(0), np.where(spread.index_tokens > 1, squares, 0.0))


def _compared(same: Float[np.ndarray, "f n"], moved: Float[np.ndarray, "f n"], found: Float[np.ndarray, "f n"]) -> _Scores:
    """Profiles behind a prefix against those at the same indices and against those that moved with their tokens."""
    ranked = ranks(found)
    apart, apart_moved = (np.abs(other - found).sum(1) for other in (same, moved))
    return _Scores(
        index_correlation=correlation(ranks(same), ranked),
        content_correlation=correlation(ranks(moved), ranked),
        distance=quotient(apart_moved - apart, apart_moved + apart),
    )


def _mean_over_features(values: Float[np.ndarray, "B1 F"]) -> Estimate:
    """Mean over the features for which the measurement is defined."""
    values = values[:, np.isfinite(values[0])]
    if not values.shape[1]:
        return Estimate(None, None, None, 0)
    known = np.isfinite(values)
    means = quotient(np.where(known, values, 0.0).sum(1), known.sum(1))
    return estimate_of(float(means[0]), means[1:], values.shape[1])


def _followed(distance: Float[np.ndarray, "B1 F"]) -> _Followed:
    """Which distances lie above or below 0 by more than their resamples vary: normal tails, Benjamini-Hochberg over features. What a
    resample finds is what was found, moved as far as the resample lies from the mean of resamples."""
    from scipy import stats

    found, resampled = distance[0], distance[1:]
    q = np.full(len(found), np.nan)
    if len(resampled) < 2:  # one document, of which nothing varies
        return _Followed(Estimate(None, None, None, 0), Estimate(None, None, None, 0), q)
    known = np.isfinite(distance).all(0)
    spread = resampled[:, known].std(0, ddof=1)
    ratio = np.divide(found[known], spread, out=np.where(found[known] == 0, 0.0, np.copysign(np.inf, found[known])), where=spread > 0)
    p = 2 * stats.norm.sf(np.abs(ratio))
    q[known] = q_values(p)
    accepted = p[q[known] < DISCOVERED]
    least = -stats.norm.ppf(max(accepted.max(), TINY) / 2) * spread if len(accepted) else np.full(len(spread), np.inf)
    moved = found[known] + resampled[:, known] - resampled[:, known].mean(0)

    def share(side: float) -> Estimate:
        discovered = (q[known] < DISCOVERED) & (side * found[known] > 0)
        if not len(discovered):
            return Estimate(None, None, None, 0)
        again = (side * moved >= np.maximum(least, TINY)).mean(1)
        return estimate_of(float(discovered.mean()), again, len(discovered), (0.0, 1.0))

    return _Followed(share(1.0), share(-1.0), q)


def _interval_ends(values: Float[np.ndarray, "B1 F"]) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """Each feature's own interval; NaN where there is none."""
    estimates = [estimate_of(float(column[0]), column[1:], 1) for column in values.T]
    low, high = ([getattr(estimate, end) for estimate in estimates] for end in ("low", "high"))
    return np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)  # None becomes NaN


def _behind(values: np.ndarray, shift: int) -> np.ndarray:
    """Values by index in the unshifted row, as values by index behind the prefix; nothing (0, NaN) before it."""
    moved = np.full(values.shape, np.nan if values.dtype.kind == "f" else 0, dtype=values.dtype)
    moved[shift:] = values[: len(values) - shift]
    return moved


def _finite_or_none(values: Float[np.ndarray, " n"]) -> list[float | None]:
    """As JSON holds it."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _of_subject(subject: Subject, policy: FidelityPolicy) -> FidelityMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_fidelity(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, FidelityMeasures]) -> list[Table]:
    """What features follow when a prefix pushes the text to later positions."""
    rows = []
    for head, measure in found.items():
        for shift in measure.shifts:
            rows.append(
                Row(
                    f"{head}: {counted(shift.shift, 'token', 'tokens')}",
                    [
                        estimated(shift.absolute_index, 2),
                        f"{shift.tied_to_index:,} / {shift.tied_to_content:,} / {shift.undecided:,}",
                        estimated(shift.follows_index, 1, 100, " %"),
                        estimated(shift.follows_text, 1, 100, " %"),
                        estimated(shift.content, 1, 100, " %"),
                        estimated(shift.fve.change, 4),
                        estimated(shift.mask_change, 4),
                    ],
                )
            )
        if measure.control_passage is not None:
            cells = ["–", "–", "–", "–", estimated(measure.control_passage, 1, 100, " %"), "–", "–"]
            rows.append(Row(f"{head}: another passage in place of {counted(measure.shifts[-1].shift, 'token', 'tokens')}", cells))
    columns = [
        "dictionary, prefix",
        "absolute index (AI)",
        "tied to index / content / neither",
        "follow the index",
        "follow the text",
        "firings that stay",
        "FVE change",
        "of it by the mask",
    ]
    note = (
        "AI above 0: a feature's profile stays with the index; below: it moves with the text. Follow: the same by the distance of "
        "profiles, q < .05 over all features that have one, those silent behind the prefix among them."
    )
    return [Table("Positional fidelity", columns, rows, note)]


SECTION = Section(
    name="fidelity",
    policy=FidelityPolicy,
    version=3,
    measure=_of_subject,
    measures=FidelityMeasures,
    details=("features", "shifts.feature_absolute_index", "shifts.feature_distance", "shifts.feature_q", "shifts.feature_content"),
    reads_model=True,
    tables=tables,
)
