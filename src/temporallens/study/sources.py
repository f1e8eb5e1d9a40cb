"""Where a study's activations come from: each entry under `activations:` is the policy of its `source`.

`model` (the default) harvests a language model over text; `store` takes what lies in a store already. The other sources make their
activations themselves, know by construction what should be found in them, and score a dictionary against it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from temporallens.activations.expressions import clock_of
from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.language.hooks import Layer
from temporallens.activations.made.records import RecordsPolicy, harvest_records
from temporallens.activations.made.worlds import WorldPolicy, harvest_world
from temporallens.activations.position_names import names_in
from temporallens.activations.store import ActivationStore
from temporallens.activations.stored import StoredPolicy, take_store
from temporallens.activations.writer import TARGET

TAG = "source: "
"""Begins the names by which pydantic tells the sources apart, so that none is mistaken for a key of the file."""

Score = Callable[..., Any]
"""What a dictionary found of what is known, on held-out sequences (dictionary, store, entries, cache=...): a NamedTuple of JSON values."""


def source_of(entry: Any) -> str:
    """The tag of an entry: that of its `source`, or a model's."""
    source = entry.get("source", "model") if isinstance(entry, dict) else getattr(entry, "source", "model")
    return f"{TAG}{source}"


def _without_source(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "source"} if isinstance(entry, dict) else entry


FromModel = Annotated[HarvestPolicy, BeforeValidator(_without_source)]
Activations = Annotated[
    Annotated[FromModel, Tag(f"{TAG}model")]
    | Annotated[StoredPolicy, Tag(f"{TAG}store")]
    | Annotated[WorldPolicy, Tag(f"{TAG}world")]
    | Annotated[RecordsPolicy, Tag(f"{TAG}records")],
    Discriminator(source_of),
]


def positions_of(entry: Activations) -> int:
    """Positions that an entry's clock knows."""
    return clock_of(entry.clock).size(entry.context_length) if isinstance(entry, HarvestPolicy) else entry.positions


def target_in(entry: Activations) -> Layer | None:
    """What an entry holds beside what is read, for transcoders; None where it is no pair."""
    if isinstance(entry, HarvestPolicy):
        return entry.target
    said = entry.opened.manifest.description.policies.get(TARGET) if isinstance(entry, StoredPolicy) else None
    return said if isinstance(said, int | str) else None


def make_store(entry: Activations, out: Path) -> ActivationStore:
    """The store of one entry."""
    if isinstance(entry, HarvestPolicy):
        return harvest_policy([entry], [out])[0]
    if isinstance(entry, StoredPolicy):
        return take_store(entry, out)
    return harvest_world(entry, out) if isinstance(entry, WorldPolicy) else harvest_records(entry, out)


def scores_of(entry: Activations) -> dict[str, Score]:
    """What a dictionary trained on an entry is scored by, under the key of a run's results; nothing where nothing is known."""
    if isinstance(entry, WorldPolicy):
        from temporallens.evaluation.known.worlds import score_world

        return {"world": score_world}
    from temporallens.evaluation.known.fields import named_fields, score_fields

    return {"fields": score_fields} if isinstance(entry, RecordsPolicy) or named_fields(names_of(entry)) else {}


def names_of(entry: Activations) -> Mapping[int, str]:
    """Names of an entry's positions."""
    if isinstance(entry, StoredPolicy):
        return names_in(entry.opened.manifest.description.policies)
    return (entry.position_names or {}) if isinstance(entry, HarvestPolicy) else {}
