"""Which features live on the first tokens of rows, or on sinks: more than half of their firings fall there.

Every other measurement leaves out what stands first in its row, and sinks; here they are encoded too. A token is of the first place that
fits: first of its row; a sink (outlying norm) further on; at positions 1 to 3; elsewhere. Chance turns the places of every sequence in
a circle, which leaves every feature as many firings, and every place as many tokens. Intervals are over documents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from pydantic import Field
from torch import Tensor

from temporallens.activations.loader import sequential
from temporallens.activations.moments import FIRST, NORM
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import HeldOut, codes_of
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, resampled_documents
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, fixed

Where = Literal["first", "sink", "early", "elsewhere"]
PLACES: dict[Where, str] = {"first": "first of the row", "sink": "sinks further on", "early": "positions 1 to 3"}
"""Places that a feature may live at, in words; a token is of the first that fits, or elsewhere."""

EARLY = 3
"""The last of the early positions."""

MAJORITY = 0.5
"""A feature lives where more than this share of its firings is."""


class SinksPolicy(Settings):
    """The `sinks` section of a study's evaluation."""

    least: int = Field(20, ge=2)
    """Firings that a feature needs, to be asked where it lives."""
    draws: int = Field(40, ge=10, le=10_000)
    """Circular shifts behind what chance gives."""
    resamples: int = Field(100, ge=20, le=10_000)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of shifts and resamples."""


class Place(NamedTuple):
    """Tokens of one place, and the features that live there."""

    where: Where
    tokens: int
    l0: float  # codes in use per token; 0 without tokens
    features: int  # with more than half of their firings there
    share: Estimate  # of the features asked
    chance: float  # mean share over the null


class SinkMeasures(NamedTuple):
    """One dictionary on held-out documents, what other measurements leave out included."""

    asked: int  # features that fire often enough
    places: list[Place]
    homes: list[int] | None  # of every feature: 0 first, 1 sink, 2 early, -1 for none of them; None where it is read from results.json


class _Everything(NamedTuple):
    """N rows, and firings on all of them."""

    place: Int64[np.ndarray, " N"]  # 0 to 2 as in PLACES, 3 elsewhere
    document: Int64[np.ndarray, " N"]
    sequence: Int64[np.ndarray, " N"]
    row: Int64[np.ndarray, " K"]
    feature: Int64[np.ndarray, " K"]


@own_defaults()
def measure_sinks(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: SinksPolicy, cache: Path | None = None
) -> SinkMeasures:
    """Ask every feature of `dictionary` that fires often enough where it lives. Raises TemporalLensError where no row can be used, or
    nothing fires."""
    rows = _everything(dictionary, store, held_out, HeldOut(store, held_out, cache).encoded(dictionary).firings)
    generator, features, documents = np.random.default_rng(policy.seed), dictionary.features, int(rows.document.max()) + 1
    counts = np.bincount(rows.feature, minlength=features)
    asked = np.flatnonzero(counts >= policy.least)
    found = _firings_at(rows, rows.place, features)
    lives = _lives(found, counts)
    resamples = resampled_documents(documents, policy.resamples, generator)
    shares = _resampled_shares(rows, asked, features, resamples)
    drawn = [
        _lives(_firings_at(rows, rotated(rows.place, rows.sequence, generator), features), counts)[:, asked] for _ in range(policy.draws)
    ]
    chance = np.mean([draw.mean(1) if len(asked) else np.zeros(len(PLACES)) for draw in drawn], axis=0)
    tokens = np.bincount(rows.place, minlength=len(PLACES) + 1)
    places = [
        Place(
            where=where,
            tokens=int(tokens[number]),
            l0=float(found[number].sum() / max(tokens[number], 1)),
            features=int(lives[number, asked].sum()),
            share=estimate_of(
                float(lives[number, asked].mean()) if len(asked) else float("nan"), shares[:, number], len(asked), (0.0, 1.0)
            ),
            chance=float(chance[number]),
        )
        for number, where in enumerate(PLACES)
    ]
    homes = np.where(lives.any(0) & (counts >= policy.least), lives.argmax(0), -1)
    return SinkMeasures(len(asked), places, homes.tolist())


@torch.inference_mode()
def _everything(dictionary: Dictionary, store: ActivationStore, entries: Int[np.ndarray, " n"], firings: Firings) -> _Everything:
    """All rows, with the firings of those that are kept, which are known, and of the others, which are encoded here."""
    parts: list[tuple[Tensor, Tensor]] = []
    fired: list[tuple[Tensor, Tensor]] = []
    read = 0
    for rows in sequential(store, entries):
        left_out = rows.excluded != 0
        if left_out.any():
            row, feature = (codes_of(dictionary, rows, left_out, dictionary.encode) > 0).nonzero(as_tuple=True)
            fired.append((left_out.nonzero()[:, 0][row] + read, feature))
        parts.append((_places(rows.excluded.long(), rows.index.long()), rows.excluded == 0))
        read += len(rows.x)
    place, kept = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    length = store.sequence_table.length[entries]
    of_kept = np.flatnonzero(kept)[firings.row]
    others = [torch.cat(column).numpy() for column in zip(*fired, strict=True)] if fired else [np.zeros(0, dtype=np.int64)] * 2
    return _Everything(
        place=place,
        document=np.unique(np.repeat(store.documents_of(entries), length), return_inverse=True)[1],
        sequence=np.repeat(entries, length).astype(np.int64),
        row=np.concatenate([of_kept, others[0]]),
        feature=np.concatenate([firings.feature.astype(np.int64), others[1]]),
    )


def _places(excluded: Int[Tensor, " n"], index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    first, sink, early = (excluded & FIRST) > 0, (excluded & NORM) > 0, (index >= 1) & (index <= EARLY)
    return torch.where(first, 0, torch.where(sink, 1, torch.where(early, 2, 3)))


def _firings_at(rows: _Everything, place: Int[np.ndarray, " N"], features: int) -> Int64[np.ndarray, "3 F"]:
    """Of each feature at each place but elsewhere."""
    size = len(PLACES) + 1
    return np.bincount(place[rows.row] * features + rows.feature, minlength=size * features).reshape(size, features)[: len(PLACES)]


def _lives(found: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(found > MAJORITY * counts)


def _resampled_shares(
    rows: _Everything, asked: Int[np.ndarray, " f"], features: int, resamples: Int[np.ndarray, "B D"]
) -> Float64[np.ndarray, "B 3"]:
    """Shares of the features asked that live at each place, when each document counts so many times."""
    from scipy.sparse import coo_array

    if not len(asked):
        return np.full((len(resamples), len(PLACES)), np.nan)
    number = np.full(features, -1)
    number[asked] = np.arange(len(asked))
    own = np.flatnonzero(number[rows.feature] >= 0)
    where = number[rows.feature[own]], rows.document[rows.row[own]]

    def resampled(chosen: np.ndarray) -> Float64[np.ndarray, "f B"]:
        """Firings of each feature."""
        once = np.ones(np.count_nonzero(chosen))
        table = coo_array((once, (where[0][chosen], where[1][chosen])), shape=(len(asked), resamples.shape[1]))
        return np.asarray(table.tocsr() @ resamples.T.astype(np.float64))

    place, whole = rows.place[rows.row[own]], resampled(np.ones(len(own), dtype=bool))
    return np.stack([(resampled(place == at) > MAJORITY * whole).mean(0) for at in range(len(PLACES))], 1)


def _of_subject(subject: Subject, policy: SinksPolicy) -> SinkMeasures:
    return measure_sinks(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, SinkMeasures]) -> list[Table]:
    """Where features live."""
    rows = [
        Row(
            f"{head}: {PLACES[place.where]}",
            [
                f"{place.tokens:,}",
                fixed(place.l0, 1) if place.tokens else "",
                f"{place.features:,} of {measured.asked:,}",
                estimated(place.share, 2, 100, " %"),
                f"{fixed(100 * place.chance, 2)} %",
            ],
        )
        for head, measured in found.items()
        for place in measured.places
    ]
    columns = ["dictionary: place", "tokens", "L0", "features that live there", "share", "by chance"]
    note = (
        "A feature lives where more than half of its firings are. First tokens and sinks, which no other table knows, are encoded for "
        "this one."
    )
    return [Table("First tokens and sinks", columns, rows, note)]


SECTION = Section(
    name="sinks",
    policy=SinksPolicy,
    version=1,
    measure=_of_subject,
    measures=SinkMeasures,
    details=("homes",),
    tables=tables,
)
