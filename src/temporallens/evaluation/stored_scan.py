"""The scan of a store: how much of its activations' variance position explains, by its own clock and by the index, before any training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from temporallens.activations.expressions import clock_of
from temporallens.activations.language.token_rows import evenly_spaced
from temporallens.activations.store import ActivationStore
from temporallens.evaluation.scan import LayerSums, Scan, bags_of, clock_scan, finite_or_none, group_times, shuffled, structure_of
from temporallens.evaluation.structure import Structure, drawn, structure_share
from temporallens.progress import progress

CHUNK = 64
"""Sequences that are read at a time."""
POSITION, INDEX, DOCUMENT = "position", "index", "document"


def scan_store(folder: Path, sequences: int = 256, shuffles: int = 20, seed: int = 0) -> Scan:
    """Scan at most so many of a store's sequences, evenly spaced. Rows that a rule excludes are left out, as in training.

    Raises TemporalLensError where there is no whole store.
    """
    store = ActivationStore(folder)
    entries = np.array(list(evenly_spaced(store.sequences, sequences)))
    parts = np.array_split(entries, range(CHUNK, len(entries), CHUNK))
    times: dict[str, list[np.ndarray]] = {POSITION: [], INDEX: [], DOCUMENT: []}
    for part in parts:
        rows, ends = store.read(part), np.cumsum(store.sequence_table.length[part])[:-1]
        for name, column in ((POSITION, rows.position), (INDEX, rows.index), (DOCUMENT, rows.document_position)):
            times[name] += [own.astype(np.int64) for own in np.split(column.numpy(), ends)]
    told: dict[str, list[np.ndarray]] = {}
    for name, own in times.items():
        if not any(_same(own, other) for other in told.values()):
            told[name] = own
    bins, groupings, groups = group_times(told, shuffles, seed, (POSITION, INDEX))
    length = max(int(own.max()) for own in times[INDEX]) + 1
    sums, first = LayerSums(groups, store.width, length), 0
    description = store.manifest.description
    with progress("Scanning a store", int(store.sequence_table.length[entries].sum()), "tokens") as advance:
        for part in parts:
            rows = store.read(part)
            index = rows.index.long()
            bags = bags_of(range(first, first + len(part)), groupings, groups, index)
            sums.add(rows.x, rows.excluded == 0, index, bags, float("inf"))
            first += len(part)
            advance(len(rows.x))
    structure = _structure(store, entries, told, seed)
    layer = description.source.get("layer")
    return Scan(
        model=str(description.source.get("model") or folder.name),
        revision=None,
        text=str(description.source.get("text") or description.source.get("file") or folder.name),
        dtype=description.dtype,
        layers=[str(folder.name if layer is None else layer)],
        clocks={name: clock_scan(name, bins[name], groupings, [sums], structure[name]) for name in bins},
        norm=[finite_or_none(sums.by_index[1] / sums.by_index[0])],
        sinks=[finite_or_none(sums.by_index[2] / sums.by_index[0])],
        sequences=len(entries),
        tokens=int(store.sequence_table.length[entries].sum()),
        context_length=length,
        seed=seed,
        excluded={name: description.policies.get(name) for name in ("position_zero", "norm_multiple")},
    )


def _structure(
    store: ActivationStore, entries: Int[np.ndarray, " n"], told: Mapping[str, list[Int[np.ndarray, " _"]]], seed: int
) -> dict[str, Structure]:
    """Of each clock how much of the structure depends on it, and on the same clock shuffled."""
    found: dict[str, Structure] = {}
    rows, generator = store.read(entries), np.random.default_rng((seed, 2))
    kept = np.flatnonzero(rows.excluded.numpy() == 0)
    kept = kept[drawn(len(kept), seed)]
    for name, own in told.items():
        both = (np.concatenate(labels)[kept] for labels in (own, shuffled(own, generator)))
        share, floor = (structure_share(rows.x[kept], value) for value in both)
        found[name] = Structure([share], [floor])
    return found


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def in_words(scan: Scan, store: ActivationStore) -> str:
    """What the store's own clock explains."""
    clock = str(store.manifest.description.policies["clock"])
    known = clock_of(clock).name if clock.startswith("{") else clock
    found = scan.clocks[POSITION]
    share, floor = found.eta2[0], found.floor[0]
    if share is None or floor is None:
        return f"{scan.model}: its activations do not vary."
    beyond = f"{100 * (share - floor):.1f} % of the variance above its noise floor of {100 * floor:.1f} %"
    explained = f"{scan.model}: position ({known}) explains {beyond}"
    structure, chance = structure_of(found, 0) or (None, None)
    if structure is None or chance is None:
        return f"{explained}."
    return f"{explained}; of the structure that centring leaves {100 * structure:.1f} % depends on it ({100 * chance:.1f} %)."
