"""Whether masks know the fields of a record: each field as a group of features, against the layout that is known by construction, or from
the names of positions, those of one name being the columns of one field.

A feature's columns are where its mask is open (for a dictionary without masks: where it fires). A feature of which more than half of
the columns lie in one field is that field's own; the others are shared. Precision says how well the columns of a field's own features
keep to the field, recall how many of the field's columns they reach, and the own share how much of what fires there is theirs;
`docs/method.md`, "Records", says which columns are a field's. A layout is matched to features after the fact, and narrow masks fit any
layout, so the null repeats everything with layouts whose fields are as long and as contiguous, but elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from temporallens.activations.made.records import read_layout
from temporallens.activations.position_names import names_in
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.statistics import quotient

LEAST_FIRINGS = 20
"""On held-out documents; a feature that fires less often has no columns to speak of."""
OPEN = 0.5
"""A gate is open when it exceeds this share of the feature's largest gate."""
FIRES = 0.1
"""Without masks, a feature lives in a column when its firing rate there is at least this share of its largest one."""
DRAWS = 1000
"""Layouts behind the null."""
TOGETHER = 50
"""Layouts that are scored at a time."""

ByField = dict[str, float | None]
"""None where a field has no features of its own."""


class FieldScores(NamedTuple):
    """How well the fields of a record are recovered; a p-value is the share of layouts, the true one counted in, that do as well."""

    columns_from: str  # "mask" or "firing": what says where a feature lives
    live_features: int  # features with enough firings to be counted
    shared_features: int  # those of them that are no field's own
    columns_per_feature: float  # in how many columns one lives, on average
    group: dict[str, int]  # features that are each field's own
    precision: ByField  # share of (column, feature) entries of the group that lie in the field's columns; above one half by definition
    recall: ByField  # share of the field's columns in which a feature of the group lives
    f1: ByField
    own_share: ByField  # share of the codes in the field's columns, on held-out documents, that are the group's
    null_f1: ByField  # means over null layouts
    null_own_share: ByField
    f1_p_value: ByField
    own_share_p_value: ByField
    mean_precision: float | None  # over fields with features of their own
    mean_recall: float  # over fields
    mean_f1: float
    mean_own_share: float
    null_mean_f1: float
    null_mean_own_share: float
    mean_f1_p_value: float
    mean_own_share_p_value: float


class Scores(NamedTuple):
    """Scores of one layout of `C` fields."""

    group: Int[np.ndarray, " C"]
    precision: Float[np.ndarray, " C"]  # NaN where a field has no features of its own
    recall: Float[np.ndarray, " C"]
    own_share: Float[np.ndarray, " C"]

    @property
    def f1(self) -> Float[np.ndarray, " C"]:
        """Of precision and recall; 0 where a field has no features of its own."""
        precision = np.nan_to_num(self.precision)
        return np.nan_to_num(quotient(2 * precision * self.recall, precision + self.recall))


@own_defaults()
def score_fields(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], seed: int = 0, cache: Path | None = None
) -> FieldScores:
    """Score `dictionary` on the held-out sequences of a store of records, whose encoding is kept in `cache`.

    Raises TemporalLensError when the store's layout is not known, or when no feature fires often enough to be counted.
    """
    fields = fields_of(store)
    fired, tokens = count_firings(dictionary, store, held_out, cache)
    live = fired.sum(0) >= LEAST_FIRINGS
    if not live.any():
        raise TemporalLensError(
            f"no feature fires {LEAST_FIRINGS} times on the held-out records of {store.folder}: there are no groups to compare with fields"
        )
    gates = dictionary.gates_by_position()
    columns = open_columns(None if gates is None else gates.double().cpu().numpy(), fired, tokens)[:, live]
    return compare(columns, fired[:, live], tokens > 0, fields, "firing" if gates is None else "mask", np.random.default_rng(seed))


def fields_of(store: ActivationStore) -> dict[str, tuple[int, ...]]:
    """Columns of each field: of records as they were made, of others by the names of positions."""
    description = store.manifest.description
    return read_layout(store.folder).fields if description.source.get("kind") == "records" else named_fields(names_in(description.policies))


def named_fields(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Columns by their name; none where no two share one: what every position has to itself is no field."""
    fields: dict[str, tuple[int, ...]] = {}
    for position, name in sorted(names.items()):
        fields[name] = (*fields.get(name, ()), position)
    return fields if any(len(columns) > 1 for columns in fields.values()) else {}


def count_firings(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], cache: Path | None = None
) -> tuple[Float[np.ndarray, "P F"], Float[np.ndarray, " P"]]:
    """How often each feature fires at each position on kept held-out rows, and how many such rows there are."""
    firings = find_firings(dictionary, store, held_out, cache)
    return firings.counts_by_position.astype(np.float64), np.bincount(firings.position, minlength=store.positions).astype(np.float64)


def open_columns(
    gates: Float[np.ndarray, "P F"] | None, fired: Float[np.ndarray, "P F"], tokens: Float[np.ndarray, " P"]
) -> Bool[np.ndarray, "P F"]:
    """Where each feature lives: by its mask, or by its firing rates where there is none. Columns without tokens are nobody's."""
    seen = tokens[:, None] > 0
    if gates is None:
        strength, share = fired / np.maximum(tokens, 1)[:, None], FIRES
    else:
        strength, share = np.where(seen, gates[: len(tokens)], 0.0), OPEN
    highest = strength.max(0)
    return seen & (strength >= share * highest) & (highest > 0)


def compare(
    columns: Bool[np.ndarray, "P F"],
    fired: Float[np.ndarray, "P F"],
    seen: Bool[np.ndarray, " P"],
    fields: dict[str, tuple[int, ...]],
    columns_from: str,
    generator: np.random.Generator,
) -> FieldScores:
    """Score where features live against a layout and against null layouts; `seen` are the columns that have tokens."""
    names, label = list(fields), labels(fields, len(seen))
    layouts = [np.where(seen, label, -1), *(shuffled(label, seen, generator) for _ in range(DRAWS))]
    found, *null = score_layouts(columns, fired, np.stack(layouts), len(names))
    null_f1, null_share = np.array([draw.f1 for draw in null]), np.array([draw.own_share for draw in null])
    measured = {
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
        "own_share": found.own_share,
        "null_f1": null_f1.mean(0),
        "null_own_share": null_share.mean(0),
        "f1_p_value": p_values(found.f1, null_f1),
        "own_share_p_value": p_values(found.own_share, null_share),
    }
    by_field: dict[str, ByField] = {
        what: {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
        for what, values in measured.items()
    }
    return FieldScores(
        columns_from=columns_from,
        live_features=columns.shape[1],
        shared_features=columns.shape[1] - int(found.group.sum()),
        columns_per_feature=float(columns.sum(0).mean()),
        group=dict(zip(names, found.group.tolist(), strict=True)),
        **by_field,
        mean_precision=float(np.nanmean(found.precision)) if found.group.any() else None,
        mean_recall=float(found.recall.mean()),
        mean_f1=float(found.f1.mean()),
        mean_own_share=float(found.own_share.mean()),
        null_mean_f1=float(null_f1.mean()),
        null_mean_own_share=float(null_share.mean()),
        mean_f1_p_value=_mean_p_value(found.f1, null_f1),
        mean_own_share_p_value=_mean_p_value(found.own_share, null_share),
    )


def labels(fields: dict[str, tuple[int, ...]], positions: int) -> Int[np.ndarray, " P"]:
    """Number of the field that each column belongs to, -1 where it belongs to none."""
    label = np.full(positions, -1)
    for number, columns in enumerate(fields.values()):
        label[list(columns)] = number
    return label


def shuffled(label: Int[np.ndarray, " P"], seen: Bool[np.ndarray, " P"], generator: np.random.Generator) -> Int[np.ndarray, " P"]:
    """The same runs of columns in another order: as many, as long, with the same names, over the columns that are seen."""
    out, labels_seen = np.full_like(label, -1), label[seen]
    runs = np.split(labels_seen, np.flatnonzero(np.diff(labels_seen)) + 1)
    out[seen] = np.concatenate([runs[place] for place in generator.permutation(len(runs))])
    return out


def score_layouts(
    columns: Bool[np.ndarray, "P F"], fired: Float[np.ndarray, "P F"], layouts: Int[np.ndarray, "R P"], fields: int
) -> list[Scores]:
    """Score every field of every layout, which has for each column the number of its field, -1 for none. What is summed are whole
    numbers, so that some layouts at a time give the bits of one."""
    entries = columns.astype(np.float64)
    found: list[Scores] = []
    for first in range(0, len(layouts), TOGETHER):
        inside = (layouts[first : first + TOGETHER, None] == np.arange(fields)[:, None]).astype(np.float64)  # [r, C, P]
        overlap, size, codes = inside @ entries, entries.sum(0), inside @ fired
        members = overlap > 0.5 * size
        reached = inside * (members @ entries.T > 0)
        parts = Scores(
            group=members.sum(2),
            precision=quotient((overlap * members).sum(2), (members * size).sum(2)),
            recall=np.nan_to_num(quotient(reached.sum(2), inside.sum(2))),
            own_share=np.nan_to_num(quotient((codes * members).sum(2), codes.sum(2))),
        )
        found += [Scores(*layout) for layout in zip(*parts, strict=True)]
    return found


def p_values(found: Float[np.ndarray, " C"], null: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " C"]:
    """Share of draws, what was found counted in, that come to at least as much."""
    return (1.0 + (null >= found - 1e-12).sum(0)) / (1 + len(null))


def _mean_p_value(found: Float[np.ndarray, " C"], null: Float[np.ndarray, "R C"]) -> float:
    return float(p_values(found.mean(keepdims=True), null.mean(1, keepdims=True))[0])
