"""What a mask made after training would close for nothing: entries [group of positions, feature] that can be shut at equal FVE.

    z' = z * m[g(p), f],  m = [rate[g, f] >= cut * max_g rate[g, f]]

which is the comparator of learned masks (`dictionaries/arms/posthoc.py`), made here for a dictionary as it stands. The rates of one half
of the held-out documents give the mask, with the largest cut of a grid that costs these documents no more FVE than `loss`; the other half
says what it closes and costs there; then the halves change places. A feature that fires seldom is silent in some group by chance: the same
is done with the labels of every sequence turned in a circle (`shifts`), and what that closes is no matter of position. Entries are counted
over the features that fire on the documents which gave the mask.

With r the residual of a token and c the part of its reconstruction that the closed codes were, its squared error rises by `2 r c + |c|²`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from pydantic import Field
from torch import Tensor

from temporallens.activations.context import context_of
from temporallens.activations.loader import with_targets
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.masks import group_of_position, group_starts
from temporallens.dictionaries.sparse import Pattern
from temporallens.errors import TemporalLensError
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.heldout import HeldOut, rows_at_once
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, fixed

CUTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Grid of cuts; below the first, only entries close that never fire."""


class ClosingPolicy(Settings):
    """The `closing` section of a study's evaluation."""

    groups: int = Field(8, ge=2)
    """Log-spaced groups of positions, as a mask has them; fewer where there are fewer positions."""
    loss: float = Field(0.001, ge=0, lt=1)
    """FVE that the documents which give the mask may lose."""
    draws: int = Field(3, ge=1, le=1000)
    """Circular shifts behind what closes by chance."""
    resamples: int = Field(400, ge=20, le=100_000)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of halves, shifts and resamples."""


class ClosingMeasures(NamedTuple):
    """One dictionary; means of both halves of the held-out documents."""

    groups: int
    features: int  # that fire
    closed: float  # share of entries, of features that fire
    chance: float  # the same where positions mean nothing, mean of draws
    cuts: list[float]  # one for each half that gave a mask; 0 where only what never fires closes
    codes: Estimate  # share of the codes in use, on documents that did not give the mask, that it takes away; n codes
    fve_change: Estimate  # on these documents; n tokens


class _Entries(NamedTuple):
    """K codes in use on N rows, in row order, and what taking them away does."""

    row: Int64[np.ndarray, " K"]
    feature: Int64[np.ndarray, " K"]
    value: Float[np.ndarray, " K"]
    along: Float64[np.ndarray, " K"]  # inner product of the residual with what the code decodes to
    scale: Float64[np.ndarray, " N"]  # of the row's reconstruction, against codes times decoder
    document: Int64[np.ndarray, " N"]
    sequence: Int64[np.ndarray, " N"]
    group: Int64[np.ndarray, " N"]
    square: Float64[np.ndarray, " M"]  # squares about the mean, by document


class _Closed(NamedTuple):
    """What a mask does to some documents."""

    harm: Float64[np.ndarray, " M"]  # squared error that it adds, by document
    codes: Float64[np.ndarray, " M"]  # that it takes away


class _Mask(NamedTuple):
    closed: Bool[np.ndarray, "G F"]
    cut: float
    share: float  # closed, of the entries of features that fire


@own_defaults()
def measure_closing(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: ClosingPolicy, cache: Path | None = None
) -> ClosingMeasures:
    """Close entries of `dictionary` by half of the held-out documents, and see what that does to the other half.

    Raises TemporalLensError for fewer than two documents, and where reconstructions are fed back.
    """
    if dictionary.past_map is not None:
        raise TemporalLensError(f"what this '{dictionary.kind}' dictionary reconstructs goes into later codes: leave closing out")
    starts = group_starts(store.positions, min(policy.groups, store.positions - 1))
    entries = _entries(dictionary, HeldOut(store, held_out, cache), group_of_position(store.positions, len(starts)).numpy())
    documents, generator = len(entries.square), np.random.default_rng(policy.seed)
    if documents < 2:
        raise TemporalLensError(f"{documents} held-out document of {store.folder}: closing takes a mask from one half of two and more")
    half = generator.permutation(documents) < documents // 2
    closing = _Closing(entries, dictionary, len(starts), policy.loss)
    masks = [closing.mask(own, entries.group) for own in (half, ~half)]
    done = [closing.done(mask.closed, other, entries.group) for mask, other in zip(masks, (~half, half), strict=True)]
    chance = [
        closing.mask(own, rotated(entries.group, entries.sequence, generator)).share for _ in range(policy.draws) for own in (half, ~half)
    ]
    harm, taken = (sum(column) for column in zip(*done, strict=True))
    weights = np.concatenate([np.ones((1, documents)), resampled_documents(documents, policy.resamples, generator)])
    change = -quotient(weights @ harm, weights @ entries.square)
    codes = quotient(weights @ taken, weights @ np.bincount(entries.document[entries.row], minlength=documents))
    return ClosingMeasures(
        groups=len(starts),
        features=len(np.unique(entries.feature)),
        closed=float(np.mean([mask.share for mask in masks])),
        chance=float(np.mean(chance)),
        cuts=[mask.cut for mask in masks],
        codes=estimate_of(float(codes[0]), codes[1:], len(entries.row), (0.0, 1.0)),
        fve_change=estimate_of(float(change[0]), change[1:], len(entries.document)),
    )


class _Closing:
    """Masks of one dictionary, and what they do."""

    def __init__(self, entries: _Entries, dictionary: Dictionary, groups: int, loss: float) -> None:
        self.entries, self.decoder, self.groups, self.loss = entries, dictionary.decoder.detach(), groups, loss

    def mask(self, own: Bool[np.ndarray, " M"], group: Int64[np.ndarray, " N"]) -> _Mask:
        """The mask with the largest cut that costs these documents no more than is allowed, were the rows in these groups."""
        fired = self._fired(own, group)
        rate = fired / np.maximum(np.bincount(group[own[self.entries.document]], minlength=self.groups), 1)[:, None]
        live, highest, chosen = fired.any(0), rate.max(0), 0.0
        allowed = self.loss * self.entries.square[own].sum()
        for cut in CUTS:
            if self.done(rate < cut * highest, own, group).harm.sum() > allowed:
                break
            chosen = cut
        closed = (rate < chosen * highest) if chosen else (fired == 0) & live
        return _Mask(closed, chosen, float(closed[:, live].mean()) if live.any() else 0.0)

    def done(self, closed: Bool[np.ndarray, "G F"], own: Bool[np.ndarray, " M"], group: Int64[np.ndarray, " N"]) -> _Closed:
        """What a mask does to these documents."""
        entries, documents = self.entries, len(own)
        taken = np.flatnonzero(closed[group[entries.row], entries.feature] & own[entries.document[entries.row]])
        row, number = np.unique(entries.row[taken], return_inverse=True)
        harm = 2 * np.bincount(number, entries.along[taken], len(row)).astype(np.float64)
        pattern = Pattern(torch.from_numpy(number), torch.from_numpy(entries.feature[taken]), len(row), closed.shape[1])
        part = pattern.combine(torch.from_numpy(entries.value[taken]), self.decoder)
        harm += part.square().sum(1, dtype=torch.float64).numpy() * entries.scale[row] ** 2
        by_document = np.bincount(entries.document[row], harm, documents).astype(np.float64)
        return _Closed(by_document, np.bincount(entries.document[entries.row[taken]], minlength=documents).astype(np.float64))

    def _fired(self, own: Bool[np.ndarray, " M"], group: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, "G F"]:
        entries, features = self.entries, len(self.decoder)
        chosen = own[entries.document[entries.row]]
        cell = group[entries.row[chosen]] * features + entries.feature[chosen]
        return np.bincount(cell, minlength=self.groups * features).reshape(self.groups, features)


@torch.inference_mode()
def _entries(dictionary: Dictionary, seen: HeldOut, group_of: Int[np.ndarray, " P"]) -> _Entries:
    """One more pass over the held-out documents, for the residuals."""
    parts = [_of_chunk(dictionary, *chunk) for chunk in with_targets(seen.store, seen.entries, rows_at_once(dictionary))]
    rows_of = np.cumsum([0] + [len(part.scale) for part in parts])
    firings = seen.encoded(dictionary).firings
    return _Entries(
        row=np.concatenate([part.row + first for part, first in zip(parts, rows_of, strict=False)]),
        feature=np.concatenate([part.feature for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        along=np.concatenate([part.along for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        document=np.unique(firings.document, return_inverse=True)[1],
        sequence=firings.stretch.astype(np.int64),
        group=group_of[firings.position].astype(np.int64),
        square=seen.variation.square.sum(1),
    )


class _Chunk(NamedTuple):
    row: Int64[np.ndarray, " k"]
    feature: Int64[np.ndarray, " k"]
    value: Float[np.ndarray, " k"]
    along: Float64[np.ndarray, " k"]
    scale: Float64[np.ndarray, " n"]


def _of_chunk(dictionary: Dictionary, rows: Rows, wanted: Float[Tensor, "N D"]) -> _Chunk:
    """The kept rows of a chunk. What codes decode to is a constant of the row, and codes times decoder, scaled where the dictionary scales
    its input."""
    kept = rows.excluded == 0
    x, position, context = rows.x[kept].float(), rows.position[kept].long(), context_of(rows).rows(kept)
    codes, found = dictionary.reconstructed(x, position, context)
    row, feature = (codes > 0).nonzero(as_tuple=True)
    pattern, value = Pattern(row, feature, len(x), dictionary.features), codes[row, feature]
    plain = pattern.combine(value, dictionary.decoder)
    whole = found - dictionary.decode(torch.zeros_like(codes), position, context)
    scale = torch.linalg.vector_norm(whole, dim=1) / torch.linalg.vector_norm(plain, dim=1).clamp_min(torch.finfo(plain.dtype).tiny)
    along = pattern.inner(wanted[kept].float() - found, dictionary.decoder) * value * scale[row]
    return _Chunk(row.numpy(), feature.numpy(), value.numpy(), along.double().numpy(), scale.double().numpy())


def _of_subject(subject: Subject, policy: ClosingPolicy) -> ClosingMeasures:
    return measure_closing(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, ClosingMeasures]) -> list[Table]:
    """What a mask made after training closes at equal FVE."""
    rows = [
        Row(
            head,
            [
                f"{measured.features:,}",
                str(measured.groups),
                f"{fixed(100 * measured.closed, 1)} %",
                f"{fixed(100 * measured.chance, 1)} %",
                estimated(measured.codes, 2, 100, " %"),
                estimated(measured.fve_change, 4),
            ],
        )
        for head, measured in found.items()
    ]
    columns = ["dictionary", "features that fire", "groups", "entries closed", "by chance", "codes taken away", "FVE change"]
    note = (
        "A mask made after training from firing rates: half of the held-out documents give it, the other half says what it costs, and the "
        "other way round. By chance: with the labels of every sequence turned in a circle."
    )
    return [Table("What a post-hoc mask closes for free", columns, rows, note)]


SECTION = Section(
    name="closing",
    policy=ClosingPolicy,
    version=1,
    measure=_of_subject,
    measures=ClosingMeasures,
    tables=tables,
    apart=True,
)
